"""Where things go: the commands one after another, with their default folders, add up to a complete page."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke, refused, snapshot
from committed import V01
from PIL import Image

from hbench.cli import main
from hbench.cli.tasks import tasks
from hbench.evaluation.mos.study import Key
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.lookup import look
from hbench.reporting.report import collect
from hbench.store.places import free, place, results_in, score_folder
from hbench.store.run import load_run
from hbench.store.shipped import SHIPPED, shipped_runs

SMALL = """
[data]
{data}

[model]
model_channels = 32
channel_mult = [1, 2]
num_res_blocks = 1

[pretrain]
steps = 2
batch_size = 4
checkpoint_every = 2
sample_every = 2

[discovery]
K = 3
S = 5.0
M = 2
t_shift = 400
steps = 2
batch_size = 4
pool = 8
strategy = "node"
checkpoint_every = 2
reconstructor = "lenet"

[evaluation]
fid_samples = 140
"""
DIGITS = 'dataset = "digits"\nlabel = "Digits"\nsize = 16\nchannels = 1'
FOLDER = 'dataset = "folder"\nlabel = "Mine"\nsize = 16\nchannels = 3'


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder to work in, with six pictures."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("pictures").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"pictures/{i}.png")
    return tmp_path


def hbench(line):
    """Call a command line with "hbench" in front, and return its result."""
    words = shlex.split(line)
    result = invoke(*words[1:], *([] if words[1] == "report" else ["--quiet"]))
    assert result.exit_code == 0, f"{line}: {result.output}"
    return result


def marks(key):
    """Write the marks of all assessors of a study, and return the files."""
    files = []
    for sheet in Key.read(key).sheets:
        files.append(Path(f"marks_{sheet.assessor}.csv"))
        with files[-1].open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sheet", "assessor", "item", "mark", "name"])
            rows.writerows([sheet.sheet, sheet.assessor, item.item, item.item % 2, ""] for item in sheet.items)
    return files


def missing(folder):
    return {row.artifact: row.ours for row in collect(folder).rows if not row.ran}


@pytest.mark.slow
def test_the_commands_with_their_default_folders_add_up_to_the_page(workplace, monkeypatch):
    """Each command is the advice of the page itself, with options that make it quick."""
    monkeypatch.setattr("hbench.evaluation.ablations.PAPER", {"full": ["discovery.gradient=chain"]})
    Path("small.toml").write_text(SMALL.format(data=DIGITS))
    quick = {
        "rca": "--pairs 8",
        "traverse": "--pairs 8 --examples 1",
        "edit": "--steps 2",
        "properties": "--samples 4 --pairs 20 --examples 1",
        "vram-sweep": "--steps 2 --repeats 1 --strategies node",
        "ablations": "--seeds 0 --pairs 130",
        "mos export": "--assessors 1 --examples 1 --samples 3 --controls 1",
        "classifier": "--epochs 1",
    }
    hbench("hbench pretrain small.toml")
    hbench("hbench train small.toml")
    hbench("hbench sample runs/small/pretrain --samples 2 --steps 2")
    hbench("hbench rca runs/small/train --pairs 8")
    advised = missing("runs/small/train")
    assert "Fréchet inception distance" not in advised  # Inception knows no digits
    assert len(advised) == 8
    for ours in advised.values():
        commands = re.findall(r'"(hbench .*?)"', ours)
        assert commands, ours
        for command in commands:
            words = command.replace("IMAGE...", "pictures/0.png").replace("K=S", "1=2")
            if "MARKS.csv" in words:
                words = words.replace("MARKS.csv...", " ".join(map(str, marks(Path("runs/small/train/mos/key.json")))))
            name = next((name for name in quick if command.startswith(f"hbench {name} ")), "")
            hbench(f"{words} {quick.get(name, '')}")
    assert missing("runs/small/train") == {}
    page = hbench("hbench report runs/small/train").stdout.strip()
    assert page == "runs/small/train/report.html"
    assert hbench("hbench report runs/small").stdout.strip() == page  # the folder of the experiment
    assert {path.name for path in Path("runs").iterdir()} == {"cache", "small"}
    made = {"vram-sweep", "ablations", "classifier"}
    of_experiment = {each.folder for each in ARTIFACTS if each.of_experiment} & made
    assert {path.name for path in Path("runs/small").iterdir()} == {"pretrain", "train", *of_experiment}

    again = hbench("hbench reproduce small.toml")  # takes all of them as they are
    assert again.output.count("done before") == 10
    assert again.stdout.strip().splitlines()[-1] == page
    assert "hbench rca runs/small/train --pairs 8" in again.stderr
    assert {path.name for path in Path("runs").iterdir()} == {"cache", "small"}
    assert "is of other weights, settings or another seed" in refused("reproduce", "small.toml", "--seed", 1)


@pytest.mark.slow
def test_pages_of_own_pictures_advise_nothing_for_digits(workplace):
    Path("my.toml").write_text(SMALL.format(data=FOLDER))
    hbench("hbench pretrain my.toml --data-root pictures")
    hbench("hbench train my.toml")
    hbench("hbench sample runs/my/pretrain --samples 2 --steps 2")
    hbench("hbench sample runs/my/pretrain/model.safetensors --samples 2 --steps 3")
    assert {path.name for path in Path("runs/my/pretrain").glob("sample*")} == {"samples", "sample", "sample-2"}
    for line in ("rca runs/my/train --pairs 8", "train-curves runs/my/train"):
        hbench(f"hbench {line}")
    hbench("hbench vram-sweep my.toml --steps 2 --repeats 1 --strategies node")
    hbench("hbench edit runs/my/train pictures/0.png --shift 1=2 --steps 2")
    advised = missing("runs/my/train")
    assert "Memory and throughput of training" not in advised
    assert not re.search("(?i)lenet|classifier", " ".join([*advised, *advised.values()]))
    assert '"hbench fid runs/my/train --data-root DATA" makes it' in advised["Fréchet inception distance"]


def test_a_file_called_like_a_shipped_run_means_its_own_run(workplace, results):
    Path("mnist16.toml").write_text(SMALL.format(data=DIGITS))
    shutil.copytree(results, "runs/mnist16/train")
    assert "runs/mnist16/train: is a run of digits16, not of mnist16" in refused("reproduce", "mnist16.toml")


@pytest.mark.slow
def test_a_reproduction_from_scratch_takes_the_folders_of_the_commands(workplace, monkeypatch):
    wanted = [task for task in tasks() if task.folder in ("pretrain", "train", "train-curves")]
    monkeypatch.setattr("hbench.cli.reproduce.tasks", lambda: wanted)
    Path("small.toml").write_text(SMALL.format(data=DIGITS))
    assert "runs/small/train: no finished run there: give one with --run, or add --from-scratch" in refused(
        "reproduce", "small.toml"
    )
    hbench("hbench pretrain small.toml --seed 3")
    first = hbench("hbench reproduce small.toml --from-scratch")
    assert "done before, by hbench pretrain small.toml --seed 3" in first.stderr
    assert first.stdout.strip().splitlines()[-1] == "runs/small/train/report.html"
    again = hbench("hbench reproduce small.toml")
    assert again.stderr.count("done before") == 1
    assert "was started with --seed 3" in refused("reproduce", "small.toml", "--from-scratch", "--seed", 0)
    Path("small.toml").write_text(Path("small.toml").read_text().replace("K = 3", "K = 4"))
    assert "was trained with discovery.K=3" in hbench("hbench reproduce small.toml").stderr
    assert "was started with discovery.K = 3" in refused("reproduce", "small.toml", "--from-scratch")
    shutil.copy("small.toml", "other.toml")
    line = refused("reproduce", "other.toml", "--run", "runs/small/train")
    assert "is a run of small, not of other: name that experiment, or choose an --out" in line


@pytest.fixture
def run(workplace, results):
    """A run folder of the rule's form, with two results."""
    shutil.copytree(results, "runs/digits16/train")
    return Path("runs/digits16/train")


@pytest.mark.slow
def test_results_of_other_options_get_the_next_number(run):
    edit = ["edit", run, "pictures/0.png", "--steps", 2, "--quiet"]
    assert invoke(*edit, "--shift", "1=2").exit_code == 0
    first = snapshot(run / "edit")
    again = refused(*edit, "--precision", "float32", "--shift", "1=2", "--device", "cpu")  # in other words
    assert again.endswith("runs/digits16/train/edit: already holds results: choose another --out, or add --overwrite")
    assert invoke(*edit, "--shift", "1=-2").exit_code == 0
    assert invoke(*edit, "--sweep", 1, "--samples", 2).exit_code == 0
    assert "edit-2: already holds results" in refused(*edit, "--shift", "1=-2")
    assert "shift 1=-2" in (run / "edit-2" / "provenance.json").read_text()
    assert snapshot(run / "edit") == first
    second = snapshot(run / "edit-2")
    assert invoke(*edit, "--shift", "1=-2", "--overwrite").exit_code == 0  # replaces its own
    assert snapshot(run / "edit-2").keys() == second.keys()
    assert snapshot(run / "edit-2") != second
    assert snapshot(run / "edit") == first
    assert [path.name for path in results_in(run, "edit")] == ["edit", "edit-2", "edit-3"]

    report = collect(run)
    titles = [section.artifact.title for section in report.sections]
    assert [title for title in titles if "Edits" in title] == [
        "Edits of real images",
        "Edits of real images (edit-2)",
        "Edits of real images (edit-3)",
    ]
    rows = [row.artifact for row in report.rows if row.item == "Fig. 8"]
    assert {f"{row} (edit-2)" for row in rows if "(edit-" not in row} <= set(rows)


@pytest.mark.slow
def test_a_half_written_result_is_never_passed_over(run):
    (run / "rca" / "provenance.json").unlink()
    assert "rca: already holds results" in refused("rca", run, "--pairs", 9)
    assert invoke("rca", run, "--pairs", 9, "--overwrite", "--quiet").exit_code == 0
    assert not (run / "rca-2").exists()
    assert invoke("rca", run, "--pairs", 10, "--quiet").exit_code == 0
    assert json.loads((run / "rca-2" / "rca.json").read_text())["n"] == 10
    assert invoke("rca", run, "--pairs", 11, "--overwrite", "--quiet").exit_code == 0
    assert json.loads((run / "rca" / "rca.json").read_text())["n"] == 11
    assert results_in(run, "rca") == [run / "rca", run / "rca-2"]


def test_numbers_are_in_order(tmp_path):
    for number in ("", "-2", "-9", "-10", "-mean"):
        (tmp_path / f"edit{number}").mkdir()
        (tmp_path / f"edit{number}" / "provenance.json").touch()
    names = [path.name for path in results_in(tmp_path, "edit")]
    assert names == ["edit", "edit-2", "edit-9", "edit-10", "edit-mean"]
    assert free(tmp_path / "edit", lambda path: False) == tmp_path / "edit-3"
    assert free(tmp_path / "edit", lambda path: path.name == "edit-2", replace=True) == tmp_path / "edit-2"
    assert free(tmp_path / "edit", lambda path: False, replace=True) == tmp_path / "edit"


def test_what_goes_on_or_is_replaced_is_unfinished_rather_than_of_other_options(tmp_path):
    for number, file in {"": "provenance.json", "-2": "experiment.json", "-3": "provenance.json"}.items():
        (tmp_path / f"find-pca{number}").mkdir()
        (tmp_path / f"find-pca{number}" / file).touch()
    for replace in (False, True):
        assert free(tmp_path / "find-pca", lambda path: False, replace=replace) == tmp_path / "find-pca-2"
        found = free(tmp_path / "find-pca", lambda path: path.name == "find-pca-3", replace=replace)
        assert found == tmp_path / "find-pca-3"


def defaults():
    """Return the default folder of every command, as its help tells it."""
    found = {}
    for command in (*main.commands.values(), *main.commands["mos"].commands.values()):
        (out,) = [each for each in command.params if each.name == "out"] or [None]
        if out:
            places = re.findall(r"(?:RUN|MODEL|runs/EXPERIMENT|runs)/([a-z-]+)", out.help.replace("runs/shipped-", "/"))
            found |= {(command.name, name): name for name in places}
    return found


def test_no_default_folder_collides_with_what_another_command_writes(tiny_run, tiny_model):
    found = defaults()
    assert {"rca", "traverse", "edit", "sample", "mos", "train-curves", "vram-sweep", "settings"} <= set(found.values())
    names = {name for _, name in found}
    owners = {name: {command for command, each in found if each == name} for name in names}
    assert {name: who for name, who in owners.items() if len(who) > 1} == {"mos": {"export", "score"}}
    for written in (tiny_run, tiny_model):
        assert not names & {path.name for path in written.iterdir()}
    assert (tiny_model / "samples").is_dir()
    for name in names | {artifact.folder for artifact in ARTIFACTS}:  # nor is one taken for a further result of another
        others = {artifact.folder for artifact in ARTIFACTS} - {name}
        assert not [other for other in others if name.startswith(f"{other}-")]


def test_what_the_experiment_made_with_other_settings_is_left_out_and_named(run, caplog):
    sweep = Path(shutil.copytree(V01 / "vram-sweep", "runs/digits16/vram-sweep"))
    report = collect(run)
    (row,) = [row for row in report.rows if row.item == "Fig. 4"]
    assert "runs/digits16/vram-sweep is of other settings (data.dataset = 'mnist', not 'digits')" in row.ours
    assert "left out: runs/digits16/vram-sweep is of other settings" in caplog.text
    advice = "\"hbench vram-sweep digits16 --set 'model.channel_mult=[1, 2]' --out runs/digits16/train/vram-sweep\""
    assert advice in row.ours
    values = json.loads((sweep / "provenance.json").read_text())
    values["experiment"] = look(run).experiment.model_dump(mode="json")
    (sweep / "provenance.json").write_text(json.dumps(values))
    assert all(row.ran for row in collect(run).rows if row.item == "Fig. 4")
    values["model_tensors_sha256"] = "0"
    (sweep / "provenance.json").write_text(json.dumps(values))
    assert look(run).left_out == {"vram-sweep": "runs/digits16/vram-sweep is of another diffusion model"}


def as_if_made_with(name, folder):
    """Make a copied result one of the shipped run's images and model."""
    file = Path(folder) / "provenance.json"
    origin = json.loads(file.read_text())
    origin.pop("model_tensors_sha256", None)
    settings = load_run(name, device="cpu").experiment.model_dump(mode="json")
    file.write_text(json.dumps(origin | {"experiment": settings}))


@pytest.mark.parametrize("name", shipped_runs())
def test_a_shipped_run_has_a_folder_of_its_own(workplace, name):
    shutil.copytree(SHIPPED / name / "rca", f"runs/shipped-{name}/rca")
    as_if_made_with(name, shutil.copytree(V01 / "vram-sweep", f"runs/{name}/vram-sweep"))
    as_if_made_with(name, shutil.copytree(V01 / "ablations", f"runs/{name}-ablations/ablations"))
    for run in (name, f"runs/shipped-{name}"):
        assert hbench(f"hbench report {run}").stdout.strip() == f"runs/shipped-{name}/report.html"
        assert {"rca", "vram-sweep", "ablations"} == {each.artifact.folder for each in look(run).found}
    advised = missing(name)
    assert advised["Edits of real images"].endswith(f'"hbench edit {name} IMAGE... --shift K=S" makes it')
    (distance,) = [advice for title, advice in advised.items() if title.startswith("Fréchet")]
    assert re.search(rf'"hbench fid .*{name}.*" makes it', distance)


def test_a_folder_of_results_alone_stays_as_it_is(workplace):
    shutil.copytree(V01 / "vram-sweep", "runs/mnist16/vram-sweep")
    shutil.copytree(V01 / "rca", "results/mnist16/rca")
    Path("results/mnist16/train").mkdir()
    for file in ("experiment.json", "provenance.json"):
        shutil.copy(V01 / file, "results/mnist16/train")
    found = look("results/mnist16")
    assert found.place.folder == Path("results/mnist16")
    assert [each.artifact.folder for each in found.found] == ["rca"]
    advised = missing("results/mnist16")["Memory and throughput of training"]
    assert advised.endswith(' --out results/mnist16/vram-sweep" makes it')
    assert "hbench vram-sweep mnist16 --set" in advised  # a model of version 0.1 predicts eps
    assert "no results there" in refused("report", "runs/nothing")


def test_a_score_finds_the_folder_of_its_run(run, workplace):
    key = workplace / "elsewhere" / "key.json"
    assert score_folder(key, str(run)) == run / "mos" / "score"
    assert score_folder(run / "mos-2" / "key.json", str(run)) == run / "mos-2" / "score"
    assert score_folder(key, "mnist16") == Path("runs/shipped-mnist16/mos/score")
    assert score_folder(key, "gone") == workplace / "elsewhere" / "score"
    assert place("runs/digits16").folder == run
