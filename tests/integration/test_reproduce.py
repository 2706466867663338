import json
import shutil
from dataclasses import replace

import click
import numpy as np
import pytest
import torch
from command_line import invoke
from PIL import Image

from hbench.cli import main
from hbench.cli.options import Options
from hbench.cli.reproduce import done
from hbench.cli.tasks import Job, Task, tasks
from hbench.errors import HBenchError
from hbench.experiments import load_experiment
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.report import REASONS
from hbench.store.datasets import load_set
from hbench.store.provenance import Provenance, provenance


@pytest.fixture
def job(results, tmp_path):
    folder = tmp_path / "digits16"
    shutil.copytree(results / "rca", folder / "rca")
    return Job(load_experiment("digits16"), "digits16", results, Options(device="cpu", out=folder))


def wanted(job):
    return [task for task in tasks() if task.wanted(job)]


def test_all_reproduced_artifacts_are_on_the_page(job):
    shown = {artifact.folder for artifact in ARTIFACTS}
    assert {task.folder for task in wanted(job)} - shown <= {"mos"}  # sheets wait for people
    with_classifier = replace(job, experiment=load_experiment("digits16"))
    own = job.folder / "classifier" / "classifier.safetensors"
    own.parent.mkdir()
    own.touch()
    for task in wanted(with_classifier):  # each is a command line that its command accepts
        group, words = main, [*task.words(with_classifier), "--out", "x"]
        parent = click.Context(main, info_name="hbench", obj="", **main.context_settings)
        while hasattr(group, "commands"):
            group, words = group.commands[words[0]], words[1:]
        group.make_context(group.name, list(words), parent).close()
    from_scratch = wanted(replace(job, run=None))
    assert [task.folder for task in from_scratch[:4]] == ["pretrain", "train", "classifier", "rca"]


def test_the_root_of_an_experiment_reaches_commands_that_see_only_the_run(job):
    data = job.experiment.data.model_copy(update={"root": "pictures"})
    rooted = replace(job, experiment=job.experiment.model_copy(update={"data": data}))
    assert job.data == []
    assert rooted.data == ["--data-root", "pictures"]


@pytest.fixture
def few_tasks(monkeypatch):
    def no_data(job):
        raise HBenchError("no data:\ngive it with `data_root=FOLDER`")

    few = [
        Task("rca", lambda job: ["rca", job.measured, "--pairs", "8", *job.common]),
        Task("edit", no_data),
        Task("properties", lambda job: ["rca", f"{job.measured}/absent", *job.common]),
        Task("traverse", lambda job: pytest.fail("went on"), needs=("edit",)),
    ]
    monkeypatch.setattr("hbench.cli.reproduce.tasks", lambda: few)


def test_reproduce_goes_on_where_it_stopped(few_tasks, results, tmp_path):
    out = tmp_path / "out"
    arguments = ["reproduce", "digits16", "--run", results, "--out", out, "--quiet"]
    first = invoke(*arguments)
    assert first.exit_code == 0, first.output
    assert (out / "report.html").is_file()
    reasons = json.loads((out / REASONS).read_text())["reasons"]
    assert reasons["edit"] == "no data: give it with --data-root FOLDER"
    assert "no such run" in reasons["properties"]
    assert reasons["traverse"] == "needs edit, which was not run"
    origin = json.loads((out / "rca" / "provenance.json").read_text())
    assert origin["command"].startswith(f"hbench rca {results} --pairs 8")
    made = (out / "rca" / "rca.json").stat().st_mtime_ns
    second = invoke(*arguments)
    assert "done before" in second.output
    assert (out / "rca" / "rca.json").stat().st_mtime_ns == made
    (out / "rca" / "provenance.json").unlink()  # as if killed before the end
    third = invoke(*arguments)
    assert third.exit_code == 0, third.output
    assert (out / "rca" / "rca.json").stat().st_mtime_ns > made


def test_reproduce_mixes_no_runs_and_no_settings(few_tasks, results, tmp_path):
    out, experiment, run = tmp_path / "out", tmp_path / "own.toml", tmp_path / "run"
    shutil.copy("experiments/digits16.toml", experiment)
    shutil.copytree(results, run)
    arguments = ["reproduce", experiment, "--run", run, "--out", out, "--quiet"]
    assert invoke(*arguments).exit_code == 0
    text = experiment.read_text()
    experiment.write_text(text.replace("K = 8", "K = 9"))
    assert "with other settings: choose another --out" in invoke(*arguments).output
    experiment.write_text(text)
    (run / "shift_block.safetensors").unlink()
    assert "no finished run there" in invoke(*arguments, "--overwrite").output


def test_a_reproduction_goes_on_where_only_its_data_moved(job, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "before").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / "before" / f"{i}.png")
    data = job.experiment.data.model_copy(update={"dataset": "folder"})
    job = replace(job, experiment=job.experiment.model_copy(update={"data": data}))
    task = Task("pretrain", lambda job: ["pretrain", job.source, *job.data])

    def is_done(folder):
        return done(replace(job, options=Options(data_root=tmp_path / folder, out=job.folder)), task)

    read = load_set(data, tmp_path / "before").account.to_json()
    command = f"hbench pretrain digits16 --data-root {tmp_path}/before"
    (job.folder / "pretrain").mkdir()
    origin = replace(provenance(job.experiment, torch.device("cpu"), 0, data=read), command=command)
    origin.write(job.folder / "pretrain" / "provenance.json")
    assert is_done("before")
    shutil.move(tmp_path / "before", tmp_path / "after")
    assert is_done("after")
    (tmp_path / "after" / "3.png").unlink()
    assert not is_done("after")


def test_a_reproduction_goes_on_after_a_setting_was_added(few_tasks, results, tmp_path):
    arguments = ["reproduce", "digits16", "--run", results, "--out", tmp_path, "--quiet"]
    assert invoke(*arguments).exit_code == 0
    made_of = json.loads((tmp_path / "reproduced.json").read_text())
    del made_of["experiment"]["data"]["flip"]
    (tmp_path / "reproduced.json").write_text(json.dumps(made_of))
    again = invoke(*arguments)
    assert again.exit_code == 0, again.output
    assert "done before" in again.output


def test_a_failed_classifier_leaves_all_but_the_fd(job):
    made = {task.folder: task for task in wanted(job)}
    with pytest.raises(HBenchError, match="no classifier of these images"):
        made["fid-lenet-digits"].words(job)
    assert "--classifier" not in made["ablations"].words(job)
    (job.folder / "classifier").mkdir()
    (job.folder / "classifier" / "classifier.safetensors").touch()
    assert "--weights" in made["fid-lenet-digits"].words(job)
    assert "--classifier" in made["ablations"].words(job)


def test_reproduce_replaces_nothing_that_another_command_made(few_tasks, results, tmp_path):
    out = tmp_path / "out"
    arguments = ["reproduce", "digits16", "--run", results, "--out", out, "--quiet"]
    assert invoke(*arguments).exit_code == 0
    made = (out / "rca" / "rca.json").read_bytes()
    refused = invoke(*arguments, "--seed", 1)
    assert refused.exit_code == 1
    assert "of other weights, settings or another seed" in refused.output
    assert (out / "rca" / "rca.json").read_bytes() == made
    assert invoke(*arguments, "--seed", 1, "--overwrite").exit_code == 0
    assert (out / "rca" / "rca.json").read_bytes() != made


def test_a_result_counts_only_when_complete_and_of_these_weights(job):
    task = Task("rca", lambda job: ["rca", "x"])
    job = replace(job, experiment=load_experiment("digits16"))
    origin = Provenance.read(job.folder / "rca" / "provenance.json")
    for details, expected in [({}, True), ({"complete": False}, False), ({"weights_sha256": {"model": "b"}}, False)]:
        changed = replace(origin, command="hbench rca x --pairs 5", details=origin.details | details)
        changed.write(job.folder / "rca" / "provenance.json")
        assert done(job, task) == ("hbench rca x --pairs 5" if expected else None)
    origin.write(job.folder / "rca" / "provenance.json")
    assert done(replace(job, seed=0), task)
    assert not done(replace(job, seed=1), task)


def test_nothing_goes_on_without_an_essential_part(monkeypatch, results, tmp_path):
    failing = [
        Task("rca", lambda job: ["rca", f"{job.measured}/absent", *job.common], essential=lambda job: True),
        Task("edit", lambda job: pytest.fail("went on")),
    ]
    monkeypatch.setattr("hbench.cli.reproduce.tasks", lambda: failing)
    result = invoke("reproduce", "digits16", "--run", results, "--out", tmp_path, "--quiet")
    assert result.exit_code == 1
    assert "hbench rca" in result.output
    assert "no such run" in result.output


def test_reproduce_needs_a_run():
    result = invoke("reproduce", "anime64")
    assert result.exit_code == 1
    assert "give one with --run, or add --from-scratch" in result.output
