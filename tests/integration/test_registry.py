"""One registry: what is registered there is drawn, reproduced and on the page."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import click
import pandas as pd
import pytest
import torch
from command_line import invoke
from committed import V01
from PIL import Image

import hbench
from hbench.cli import main
from hbench.cli.options import publish, result_of, run_argument, run_options, shared
from hbench.cli.tasks import tasks
from hbench.errors import HBenchError
from hbench.evaluation.rca import RCA
from hbench.reporting import artifacts, lookup, report
from hbench.reporting.artifact import Artifact
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.rows import Row
from hbench.store.provenance import provenance
from hbench.store.results import Result


@dataclass(frozen=True, kw_only=True)
class Brightness(Result):
    """Mean brightness of a run's samples: all that a new metric needs."""

    NAME: ClassVar[str] = "brightness"

    n: int
    mean: float

    def summary(self):
        return f"brightness {self.mean:.3f}  n {self.n}"

    def table(self):
        return pd.DataFrame({"n": [self.n], "mean": [self.mean]})

    def cautions(self):
        return [f"n = {self.n} is too few"]


def draw_brightness(result, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 10), int(255 * result.mean)).save(path)


TOY = Artifact(
    "brightness",
    Brightness,
    "Brightness of samples",
    "Table 9",
    "brightness",
    lambda result, paper: [Row("brightness", "Table 9", "", f"{result.mean:.3f}", n=f"{result.n} samples")],
    {"brightness.png": draw_brightness},
    of_run=True,
)


@pytest.fixture
def registered(monkeypatch):
    for module in (artifacts, lookup, report):
        monkeypatch.setattr(module, "ARTIFACTS", (*ARTIFACTS, TOY))


def test_a_new_metric_is_one_class_and_one_registration(registered, tiny_run, tmp_path, capsys):
    run = hbench.load_run(tiny_run, device="cpu")
    origin = provenance(run.experiment, torch.device("cpu"), 0, weights_sha256=run.hashes)
    result = Brightness(n=4, mean=0.25, provenance=origin.finished(n=4))
    publish(result, tmp_path / "brightness")
    printed = capsys.readouterr()
    assert printed.out == "brightness 0.250  n 4\n"
    assert "caution: n = 4 is too few\n" in printed.err
    assert Brightness.load(tmp_path / "brightness") == result
    assert json.loads((tmp_path / "brightness" / "brightness.json").read_text()) == {"schema": 1, "n": 4, "mean": 0.25}

    found = report.collect(tmp_path)
    (row,) = (row for row in found.rows if row.artifact == "brightness")
    assert (row.ours, row.n, row.item, row.ran) == ("0.250", "4 samples", "Table 9", True)
    report.write_pages([found], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Brightness of samples" in page
    assert page.count("data:image/png;base64,") == 1
    assert "n = 4 is too few" in page
    assert "Brightness of samples" in (tmp_path / "report.md").read_text()
    assert "Caution: n = 4 is too few" in (tmp_path / "report.md").read_text()

    assert hbench.plot(result, tmp_path / "own.png").is_file()


def test_reproduce_runs_what_is_registered(registered, tiny_run, tmp_path, monkeypatch):
    """The toy's command takes RUN and the shared options, as every command of a run does."""

    @click.command("brightness")
    @run_argument
    @shared(result_of("brightness"), run_options)
    def brightness(run, options):
        loaded = options.load(run)
        folder = options.claim_result(run, "brightness")
        origin = provenance(loaded.experiment, loaded.device, options.seed, weights_sha256=loaded.hashes)
        publish(Brightness(n=4, mean=0.25, provenance=origin.finished(n=4)), folder)

    monkeypatch.setitem(main.commands, "brightness", brightness)
    monkeypatch.setattr("hbench.cli.tasks.TASKS", ())
    only_the_toy = [task for task in tasks() if task.folder == "brightness"]
    monkeypatch.setattr("hbench.cli.reproduce.tasks", lambda: only_the_toy)
    arguments = ["reproduce", "digits16", "--run", tiny_run, "--out", tmp_path / "out", "--quiet"]
    first = invoke(*arguments)
    assert first.exit_code == 0, first.output
    assert "Brightness of samples" in (tmp_path / "out" / "report.md").read_text()
    assert "done before" in invoke(*arguments).output


def test_without_a_registration_there_is_no_picture(tmp_path):
    with pytest.raises(HBenchError, match="no picture is registered for a Brightness"):
        hbench.plot(Brightness(n=1, mean=0.5), tmp_path / "x.png")


def test_every_artifact_has_its_own_folder_command_and_picture():
    assert len({artifact.folder for artifact in ARTIFACTS}) == len(ARTIFACTS)
    for artifact in ARTIFACTS:
        command = main
        for word in artifact.command.split():
            if not word.startswith("-") and hasattr(command, "commands"):
                command = command.commands[word]
        assert command is not main, artifact.command
        assert artifact.charts, f"{artifact.folder}: no picture"
        assert issubclass(artifact.result, Result)


def test_a_chart_without_its_images_says_how_to_get_them(tmp_path):
    walk = next(artifact for artifact in ARTIFACTS if artifact.folder == "traverse").result
    loaded = walk.load(V01 / "traverse")
    with pytest.raises(HBenchError, match="nothing to draw: measure it again"):
        hbench.plot(loaded, tmp_path / "x.png")


def test_a_loaded_result_is_drawn_as_it_was(tmp_path):
    result = RCA.load(V01 / "rca")
    hbench.plot(result, tmp_path / "rca.png")
    with Image.open(tmp_path / "rca.png") as ours, Image.open(V01 / "rca" / "rca.png") as theirs:
        assert ours.size == theirs.size
    assert replace(result, n=result.n) == result
