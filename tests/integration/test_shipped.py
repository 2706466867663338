"""The runs that hbench ships, whichever they are, and the one that it shipped at version 0.1."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import copy_of_weights, invoke, refused
from committed import RESULTS, V01

from hbench.cli import demo, main
from hbench.evaluation.ablations import Ablations
from hbench.evaluation.curves import train_curves
from hbench.evaluation.rca import RCA, known_rca
from hbench.experiments import known_experiments, load_experiment
from hbench.reporting.lookup import look
from hbench.reporting.report import collect
from hbench.store import shipped as shipped_names
from hbench.store.folders import claimed_folder
from hbench.store.model import load_model
from hbench.store.names import load_names
from hbench.store.provenance import Provenance
from hbench.store.run import load_run
from hbench.store.run_files import ROLES, run_hashes
from hbench.store.shipped import SHIPPED, shipped, shipped_runs
from hbench.store.weights import tensors_sha256

MB = 1_000_000
each_shipped_run = pytest.mark.parametrize("name", shipped_runs())


@each_shipped_run
def test_a_shipped_run_belongs_together_and_to_its_experiment(name):
    assert set(run_hashes(name)) == set(ROLES)
    run = load_run(name, device="cpu")
    assert run.experiment.name == name
    written = load_experiment(name)
    for section in ("data", "model", "diffusion", "pretrain", "discovery"):
        trained = getattr(run.experiment, section).model_dump(exclude={"strategy", "root"})
        assert trained == getattr(written, section).model_dump(exclude={"strategy", "root"}), section
    assert load_names(name, run.K), "somebody has looked at its directions"
    assert train_curves(name).runs[0].steps == run.experiment.discovery.steps
    images = run.generate(run.noise(2), {0: run.S})
    assert images.shape == (2, *run.image_shape)
    assert load_model(name, device="cpu").prediction == run.model.prediction


@each_shipped_run
def test_a_shipped_run_carries_its_measurement(name):
    measured = RCA.load(SHIPPED / name / "rca")
    low, high = measured.interval
    brief = known_rca(load_run(name, device="cpu")).brief
    assert brief == f"{measured.accuracy:.3f} [{low:.3f}, {high:.3f}] at n = {measured.n:,}"
    assert measured.n >= 1000


def test_the_shipped_runs_stay_small():
    """Models, directions and classifiers; and with the discriminators, for D in rca, and the logs, for train-curves."""
    sizes = {file.relative_to(SHIPPED): file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()}
    weights = [n for file, n in sizes.items() if file.suffix == ".safetensors" and file.stem != "discriminator"]
    assert sum(weights) <= 6 * MB
    assert sum(sizes.values()) <= 9 * MB


@each_shipped_run
def test_a_shipped_run_holds_no_file_of_its_training_alone(name):
    """What a wheel holds, everybody downloads."""
    weights = {f"{role}.safetensors" for role in ROLES}
    needed = weights | ({demo.PICTURES} if name == demo.FIRST else set())
    needed |= {"experiment.json", "metrics.csv", "names.txt", "provenance.json", "rca"}
    held = {path.name for path in (SHIPPED / name).iterdir()}
    assert needed <= held
    assert {Path(each).suffix for each in held - needed} <= {".safetensors"}  # a classifier
    assert {path.name for path in (SHIPPED / name / "rca").iterdir()} == {"rca.json", "provenance.json"}


@pytest.mark.parametrize("command", ["", "rca", "edit", "mos export", "report", "sample", "demo", "train", "reproduce"])
def test_helps_name_every_shipped_run(command):
    said = CliRunner().invoke(main, [*command.split(), "-h"]).output
    assert f"Runs that hbench ships: {', '.join(shipped_runs())}." in " ".join(said.split())
    assert "Runs that hbench ships" not in invoke("pretrain", "-h").output


def test_errors_name_every_shipped_run(tmp_path, monkeypatch):
    for run in shipped_runs():
        assert run in refused("rca", tmp_path / "absent")
        assert run in refused("train", "digits16", "--model", tmp_path / "absent")
        assert run in refused("demo", "absent")
    for folder in ("faces", "digits"):
        (tmp_path / "shipped" / folder).mkdir(parents=True)
    monkeypatch.setattr(shipped_names, "SHIPPED", tmp_path / "shipped")
    assert shipped_runs() == ["digits", "faces"]
    assert shipped() == "the shipped digits or faces"
    assert refused("rca", tmp_path / "absent").endswith("give the folder of one, or the shipped digits or faces")


@pytest.mark.parametrize("out", ["faces16", "faces16/bench", "./faces16"])
def test_no_command_makes_a_folder_that_hides_a_shipped_run(out, tmp_path, monkeypatch):
    """The next command would take the folder for the run."""
    monkeypatch.chdir(tmp_path)
    for command in (["benchmark", "faces16"], ["rca", "faces16"], ["train", "digits16", "--model", "mnist16"]):
        said = refused(*command, "--out", out, "--device", "cpu", "--quiet")
        assert said.endswith("a folder faces16 here would hide the shipped run faces16: choose another --out")
        assert not (tmp_path / "faces16").exists()
    (tmp_path / "faces16").mkdir()  # somebody's: a result may lie in it
    with claimed_folder(Path(out)):
        pass


def test_a_folder_that_hides_a_shipped_run_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces16").mkdir()
    for command in ("rca", "sample", "benchmark"):
        said = refused(command, "faces16", "--out", "other", "--quiet")
        assert said.endswith(", or rename the folder faces16, which hides the shipped run")
    assert "rename" not in refused("rca", tmp_path, "--quiet")


def test_the_demo_shows_a_shipped_run_by_default():
    assert demo.FIRST in shipped_runs()


def test_the_run_of_version_0_1_is_a_run_with_its_results():
    run = load_run(V01, device="cpu")
    assert repr(run).startswith("Run MNIST16-400-10-32-5 on cpu")
    assert run.model.prediction == "eps"
    assert known_rca(run).brief == "0.680 [0.671, 0.689] at n = 10,000"
    hashes = run_hashes(V01)
    measured = (
        "rca",
        "attributes",
        "traverse",
        "edit",
        "sweep-12",
        "properties",
        "fid-lenet-digits",
        "steps/10",
        "steps/20",
        "steps/50",
    )
    for folder in measured:
        assert Provenance.read(V01 / folder / "provenance.json").weights == hashes, folder
    model = tensors_sha256(V01 / "model.safetensors")
    for folder in ("ablations", "settings"):
        assert Provenance.read(V01 / folder / "provenance.json").details["model_tensors_sha256"] == model
        assert Ablations.load(V01 / folder).runs
    assert model == tensors_sha256(V01 / "m20" / "train" / "model.safetensors")
    assert len(look(V01).found) == 11
    assert len([row for row in collect(V01).rows if row.ran]) > 50


@pytest.mark.slow
def test_results_of_the_run_of_version_0_1_go_beside_it(tmp_path, monkeypatch):
    copy = copy_of_weights(V01, tmp_path / V01.name)
    monkeypatch.chdir(tmp_path)
    assert invoke("rca", V01.name, "--pairs", 8, "--quiet").exit_code == 0
    assert RCA.load(copy / "rca").n == 8
    shutil.rmtree(copy / "rca")
    assert invoke("train-curves", V01.name).exit_code == 0
    assert (copy / "train-curves" / "train-curves.png").is_file()
    assert invoke("report", V01.name).stdout.strip() == f"{V01.name}/report.html"


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/glossary.md", "experiments/README.md"])
def test_the_pages_name_every_shipped_run(page):
    text = (RESULTS.parent / page).read_text(encoding="utf-8")
    assert [name for name in shipped_runs() if f"`{name}`" not in text] == []


def test_every_shipped_run_has_an_experiment():
    assert set(shipped_runs()) <= set(known_experiments())
