"""Logs of trainings for other programs."""

import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from command_line import TINY, invoke, refused, tiny_options

from hbench.errors import HBenchError
from hbench.experiments import load_experiment
from hbench.store.model import load_model
from hbench.store.run import load_run
from hbench.training.discover import train
from hbench.training.tracking import PROGRAMS, check_log_to, hyperparameters

pytest.importorskip("tensorboard")


@pytest.fixture
def trained(tiny_model, tmp_path):
    """A function that discovers in a number of steps with a log, and returns the folder."""

    def to(steps, log_to="tensorboard", **options):
        time.sleep(1)  # TensorBoard orders its files by the second in which they were begun
        experiment = load_experiment("digits16", [*TINY, f"discovery.steps={steps}"])
        assert train(experiment, load_model(tiny_model), tmp_path / "run", device="cpu", log_to=log_to, **options)
        return tmp_path / "run"

    return to


def events(folder):
    """Return what TensorBoard itself reads: the steps and values of each scalar, and the steps of each picture."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = read.Tags()
    scalars = {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, {tag: [each.step for each in read.Images(tag)] for tag in tags["images"]}


def assert_is_of_metrics(folder, steps):
    rows = pd.read_csv(folder / "metrics.csv")
    assert list(rows["step"]) == list(range(steps))
    scalars, _ = events(folder)
    assert scalars.keys() == set(rows.columns) - {"step"}
    for name, found in scalars.items():
        expected = rows[name].to_numpy().astype(np.float32)
        assert [step for step, _ in found] == list(range(steps))
        assert np.array_equal(np.array([value for _, value in found], np.float32), expected)


def test_tensorboard_reads_the_metrics_and_a_resumed_training_goes_on_with_them(trained):
    assert_is_of_metrics(trained(4), 4)
    assert_is_of_metrics(trained(6, resume=True), 6)


def test_a_checkpoint_that_is_older_than_the_log_leaves_each_step_once(trained, tmp_path):
    out = trained(2)
    shutil.copytree(out, tmp_path / "older", ignore=shutil.ignore_patterns("tensorboard", "log-*"))
    trained(6, resume=True)
    for file in out.iterdir():
        if file.is_file() and not file.name.startswith("log-"):
            file.unlink()
    shutil.copytree(tmp_path / "older", out, dirs_exist_ok=True)
    assert_is_of_metrics(trained(4, resume=True), 4)


def test_a_log_that_begins_late_gets_the_steps_before_and_one_that_was_killed_what_it_lacks(trained):
    out = trained(4)
    shutil.rmtree(out / "tensorboard")
    (out / "log-tensorboard.json").unlink()
    assert_is_of_metrics(trained(6, resume=True), 6)
    state = out / "log-tensorboard.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"steps": 5}))  # killed before it said that it had 6
    assert_is_of_metrics(trained(8, resume=True), 8)


def test_a_log_that_was_removed_is_made_anew(trained):
    out = trained(4)
    shutil.rmtree(out / "tensorboard")  # and not what says how much is in it
    assert_is_of_metrics(trained(6, resume=True), 6)


def test_a_damaged_log_leaves_a_finished_run_whole(trained):
    out = trained(4)
    (out / "log-tensorboard.json").write_text("{")
    before = load_run(out, device="cpu").hashes
    with pytest.raises(HBenchError, match=r"log-tensorboard\.json: cannot be read .*: remove it for a new log"):
        trained(6, resume=True)
    assert load_run(out, device="cpu").hashes == before
    (out / "log-tensorboard.json").unlink()
    assert_is_of_metrics(trained(6, resume=True), 6)


def test_an_overwritten_training_has_a_log_of_its_own(trained):
    trained(4)
    assert_is_of_metrics(trained(2, overwrite=True), 2)


def test_the_settings_are_hyperparameters(trained, tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    out = trained(4)
    trained(6, resume=True)
    (folder,) = {file.parent for file in (out / "tensorboard").glob("*/events*")}  # once, not at each start
    read = EventAccumulator(str(folder)).Reload()
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["discovery.K"].number_value == 3
    assert found["diffusion.prediction"].string_value == "eps"
    assert found["seed"].number_value == 0
    assert found.keys() == hyperparameters(tiny, 0).keys()


def test_a_pretraining_logs_its_grids(tmp_path):
    out = tmp_path / "model"
    result = invoke("pretrain", "digits16", *tiny_options(), "--out", out, "--log-to", "tensorboard", "--quiet")
    assert result.exit_code == 0, result.output
    assert_is_of_metrics(out, 4)
    assert events(out)[1] == {"samples": [3]}  # after 4 steps


def test_nothing_is_logged_unless_asked(tiny_run):
    assert not [path for path in tiny_run.rglob("*") if "tensorboard" in path.name or path.name.startswith("log-")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_missing_package_is_one_line(name, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("hbench.training.tracking.find_spec", lambda package: None)
    out = tmp_path / "run"
    line = refused("train", "digits16", *tiny_options(), "--model", tiny_model, "--out", out, "--log-to", name)
    assert line == f"Error: --log-to {name}: the package is not installed: pip install {name}"
    assert not out.exists()


def test_an_unknown_program_is_refused():
    with pytest.raises(ValueError, match="log_to must be tensorboard, wandb, trackio, mlflow or None, got 'x'"):
        check_log_to("x")


def test_the_option_offers_the_programs_that_there_are():
    from hbench.cli.main import main

    (option,) = [each for each in main.commands["train"].params if each.name == "log_to"]
    assert list(option.type.choices) == list(PROGRAMS)


def test_a_log_that_cannot_be_written_leaves_the_checkpoint(trained, tmp_path, tiny_model):
    out = trained(2)
    shutil.rmtree(out / "tensorboard")
    (out / "tensorboard").write_text("")
    options = tiny_options("discovery.steps=4")
    command = ["train", "digits16", *options, "--model", tiny_model, "--out", out, "--resume"]
    assert refused(*command, "--log-to", "tensorboard").endswith("mend that, or leave --log-to out")
    assert invoke(*command, "--quiet").exit_code == 0
    assert len(pd.read_csv(out / "metrics.csv")) == 4


@pytest.mark.slow
def test_wandb_logs_offline(trained, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    trained(2, "wandb")
    trained(4, resume=True, log_to="wandb")
    found = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(found) == 2
    assert len({name.rpartition("-")[2] for name in found}) == 1  # the same run


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of mlflow are its own
def test_mlflow_has_one_run_with_each_step_once(trained, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = trained(2, "mlflow")
    trained(4, resume=True, log_to="mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    rows = pd.read_csv(out / "metrics.csv")
    history = client.get_metric_history(run.info.run_id, "accuracy")
    assert [(each.step, each.value) for each in history] == list(zip(rows["step"], rows["accuracy"], strict=True))
    assert run.data.params["discovery.K"] == "3"
