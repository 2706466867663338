"""What the readmes show works as it stands there."""

import re
import shlex
from pathlib import Path

import click
import pytest
import torch
from PIL import Image

from hbench.cli.main import main
from hbench.cli.options import Renamed
from hbench.cli.repeats import today
from hbench.experiments import load_experiment
from hbench.models import build_model
from hbench.store.datasets import load_set
from hbench.store.model import load_model
from hbench.store.registry import DATASETS

ROOT = Path(__file__).parents[2]
GUIDES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_experiment_file_of_the_guide_is_for_small_colour_pictures_as_the_guide_advises(tmp_path):
    (text,) = blocks("toml")
    (tmp_path / "my.toml").write_text(text)
    experiment = load_experiment(str(tmp_path / "my.toml"))
    assert experiment.title == "Faces32-400-10-8-4"
    assert experiment.data.root == str(tmp_path / "pictures")
    assert experiment.discovery.lambda_adv == 1
    with torch.device("meta"):
        model = build_model(experiment)
    assert model.h_shape == (64, 4, 4)
    assert sum(each.numel() for each in model.parameters()) < 2_000_000
    torch.save(build_model(experiment).state_dict(), tmp_path / "ema.pt")
    assert load_model(tmp_path / "ema.pt", experiment).state_dict()["out.2.bias"].shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_of_the_guide_runs(code, tmp_path, monkeypatch, few_drawn):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (20, 20), 90).save("digit.png")
    values = {}
    exec(code, values)
    if "STRIPES" in values:
        monkeypatch.setitem(DATASETS, "stripes", values["STRIPES"])
        experiment = load_experiment("digits16", "data.dataset=stripes")
        assert load_set(experiment.data).labels.table()["direction"][1] == "level"
    if "result" in values:  # original, reconstruction and two edits
        assert values["result"].pictures.shape == (1, 4, 1, 16, 16)
        assert Path("edits.png").stat().st_size > 1000
    else:
        assert values.get("images", torch.zeros(2, 1, 16, 16)).shape == (2, 1, 16, 16)


def options(command):
    """Return the options that a command's help shows."""
    shown = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    return {flag for each in shown for flag in (each.opts[:1] if isinstance(each, Renamed) else each.opts)}


def commands(group):
    for each in group.commands.values():
        yield from commands(each) if isinstance(each, click.Group) else [each]


def snippets(page):
    """Yield the code spans of a page, and the lines of its shell blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```|^\| `--.*?$", "", text, flags=re.DOTALL | re.MULTILINE)  # nor guided-diffusion's flags
    yield from re.findall(r"`([^`]+)`", prose.replace("\n", " "))


def unknown(snippet):
    """Return the command or the options of a snippet that hbench does not show."""
    found = set()
    for line in re.split(r"&&|\|\||;", snippet.partition(" #")[0]):
        if re.match(r"--[a-z]", line):
            found |= {line.split()[0]} - set().union(*map(options, commands(main)))
        if not (call := re.search(r"(?:^|\s)hbench (.*)", line)):
            continue
        command, words = main, today(shlex.split(call[1]))
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            command = command.commands.get(words.pop(0))
        if command is None:
            found.add(line)
        elif not isinstance(command, click.Group):
            found |= {word for word in words if re.match(r"-[-a-z]", word)} - options(command) - {"-h", "--help"}
    return found


def test_unknown_commands_and_options_are_found():
    assert not unknown("hbench edit RUN IMAGE... --shift K=S --steps 5")
    assert not unknown("torchrun --nproc_per_node 4 -m hbench train mnist16 --out x --processes 4 || exit")
    assert unknown("hbench edit RUN --inversion-steps 5") == {"--inversion-steps"}
    assert unknown("hbench pretrain digits16 && hbench trian x") == {" hbench trian x"}
    assert unknown("hbench mos export RUN --count 3") == {"--count"}
    assert unknown("--m 5") == {"--m"}


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/guide.md",
        "docs/cluster.md",
        "docs/directions.md",
        "experiments/README.md",
        "results/mnist16-v0.1/README.md",
    ],
)
def test_commands_of_the_pages_exist(page):
    found = list(snippets(page))

    assert sum("hbench " in each for each in found) > 3
    assert [(each, unknown(each)) for each in found if unknown(each)] == []


def test_cluster_names_the_commands_that_processes_share():
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    shared = [each.name for each in commands(main) if "--processes" in options(each)]
    assert re.findall(r"`([a-z]+)`", text[: text.index("share their work")]) == shared


def test_the_guide_names_every_folder_of_a_run_s_results():
    row = next(line for line in GUIDE.splitlines() if line.startswith("| every result of a run |"))
    helps = [each.help for command in commands(main) for each in command.params if each.name == "out"]
    folders = {re.sub("[A-Z]+$", "…", name) for said in helps for name in re.findall(r"(?:RUN|MODEL)/([\w/-]+)", said)}
    assert len(folders) > 10
    assert [name for name in sorted(folders) if f"`{name}`" not in row] == []


@pytest.mark.parametrize("page", ["README.md", *GUIDES, "docs", "experiments", "results"])
def test_links_lead_somewhere(page):
    found = [ROOT / page] if page.endswith(".md") else sorted((ROOT / page).rglob("*.md"))
    assert found
    for file in found:
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
            assert link.startswith("http") or (file.parent / link).exists(), f"{file}: {link}"
