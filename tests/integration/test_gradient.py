"""Cheap gradients beside the exact one: agreement, costs, trainings of equal time, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY, invoke, refused, snapshot, tiny_options
from safetensors.torch import load_file

import hbench.evaluation.attributes.attributes as attributes_module
import hbench.evaluation.gradient_costs as module
import hbench.evaluation.variants as variants_module
from hbench.core.chain import backpropagate
from hbench.core.directions import own_direction
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.evaluation.agreement import ANOTHER, Batch, contributions
from hbench.evaluation.gradient import STAGES, Gradients, default_last_steps, gradient
from hbench.evaluation.gradient_costs import EXACT, changed, seconds_of
from hbench.evaluation.sweep_cells import Row
from hbench.experiments import load_experiment, override
from hbench.models.shift import randomise_outputs
from hbench.reporting.artifacts import artifact_of, draw
from hbench.reporting.charts import gradient as chart
from hbench.store.model import load_model
from hbench.training.discover import train
from hbench.training.freeze import freeze
from hbench.training.step import initial, losses

CPU = torch.device("cpu")
METHODS = ["node", "linear", "truncated-1", "truncated-2", "one-step", "per-step"]
TRAINED = [EXACT, "linear", "truncated-2", "one-step", "per-step"]
SECONDS = {EXACT: 2.0, "node": 4.0, "linear": 1.0, "truncated-2": 2.0, "one-step": 0.5, "per-step": 8.0}


@pytest.fixture(scope="module", autouse=True)
def few():
    """Look at few samples, and make up the costs, which take fresh processes."""

    def memory(cell):
        settings = cell.experiment.discovery
        assert settings.pool == settings.batch_size
        row = Row(settings.strategy, settings.M, settings.batch_size, settings.precision, cell.device)
        return replace(row, memory_mib=10.0, memory_source="made up", saved_tensors_mib=5.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants_module, "MOST", 6)
        patch.setattr(attributes_module, "NATURAL", 130)
        patch.setattr(module, "measure_apart", memory)
        patch.setattr(module, "seconds_of", lambda timed, *_: {name: [SECONDS[name]] * 3 for name in timed})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    """The folder of a whole comparison, made by the command line."""
    out = tmp_path_factory.mktemp("gradient") / "out"
    result = invoke(*command(out, tiny_model))
    assert result.exit_code == 0, result.output
    assert "truncated-1: no gradient: none of its steps is shifted" in result.stderr
    return out


def command(out, model, *more):
    small = ["--batches", 4, "--seeds", 0, "--pairs", 16, "--repeats", 3, "--quiet"]
    return ["gradient", "digits16", *tiny_options("discovery.M=3"), "--model", model, "--out", out, *small, *more]


def at_a_stage(tiny_model, **discovery):
    """Networks off their starting point with one batch, in float64."""
    experiment = changed(load_experiment("digits16", [*TINY, "discovery.precision=float32"]), **discovery)
    model = freeze(experiment, load_model(tiny_model, experiment), CPU)
    sampler = Sampler.of(experiment, model.double(), CPU)
    trained = initial(experiment, sampler, 0)
    for network in (trained.shift_block, trained.reconstructor, trained.discriminator):
        network.double()
    randomise_outputs(trained.shift_block)
    torch.manual_seed(0)
    x_T, x_0 = torch.randn(2, 4, *sampler.image_shape, dtype=torch.float64)
    k, s = torch.tensor([0, 1, 2, 0]), torch.tensor([0.5, -2.0, 5.0, 1.0], dtype=torch.float64)
    return experiment.discovery, sampler, trained, Batch(x_T, x_0, k, s, None)


# Contributions ------------------------------------------------------------------------------------------------------


def test_contributions_add_up_to_the_gradient_of_training(tiny_model):
    settings, sampler, trained, batch = at_a_stage(tiny_model)
    found = contributions(settings, sampler, trained, batch)
    assert found.shape[0] == len(sampler.shift_interval) == 2
    assert (found.norm(dim=1) > 0).all()

    trained.shift_block.zero_grad()
    chain = sampler.steps(own_direction(trained.shift_block, batch.k, batch.s))
    backpropagate(chain, batch.x_T, lambda x: losses(settings, trained, batch.x_0, x, batch.k, batch.s)["loss"])
    whole = torch.cat([p.grad.flatten() for p in trained.shift_block.parameters()])
    torch.testing.assert_close(found.sum(0), whole, rtol=0, atol=1e-10 * whole.abs().max().item())


def test_node_by_node_and_through_all_steps_are_the_exact_gradient(tiny_model):
    exact = contributions(*at_a_stage(tiny_model))
    for how in ({"strategy": "node"}, {"strategy": "node", "keep": 1}, {"gradient": "truncated", "last_steps": 3}):
        found = contributions(*at_a_stage(tiny_model, **how))
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-10 * exact.abs().max().item())
    truncated = contributions(*at_a_stage(tiny_model, gradient="truncated", last_steps=2))
    assert not truncated[0].any()
    torch.testing.assert_close(truncated[1], exact[1], rtol=0, atol=1e-10 * exact.abs().max().item())


# The whole ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_comparison_holds_what_it_says(folder):
    result = Gradients.load(folder)
    assert result.methods == METHODS
    assert result.shifted_timesteps == [999, 665]
    assert {row.stage for row in result.agreements} == set(STAGES)
    for method in METHODS:
        for row in result.whole(method):
            assert (row.n, row.reason is None) == ((0, False) if method == "truncated-1" else (4, True))
    assert all(row.n == 2 for row in result.whole(ANOTHER))  # pairs of neighbours
    for row in result.agreements:
        assert math.isnan(row.cosine) == (row.reason is not None)
        if row.method == "node":
            assert row.cosine == pytest.approx(1, abs=1e-5)
            assert row.ratio == pytest.approx(1, rel=1e-3)
        if (row.method, row.t) == ("truncated-2", 999):
            assert row.reason == "no gradient: it does not reach this timestep"
        if row.n:
            low, high = row.cosine_interval
            assert -1 <= low <= row.cosine + 1e-9
            assert row.cosine - 1e-9 <= high <= 1
    values = json.loads((folder / "gradient.json").read_text())
    nothing = [row for row in values["agreements"] if row["method"] == "truncated-1"]
    assert {(row["cosine"], row["reason"]) for row in nothing} == {(None, "no gradient: none of its steps is shifted")}
    assert "no gradient" in result.summary()
    assert pd.read_csv(folder / "gradient.csv")["t"].isna().sum() == len(STAGES) * (len(METHODS) + 1)


@pytest.mark.slow
def test_trainings_take_the_same_time(folder):
    result = Gradients.load(folder)
    costs = {cost.method: cost for cost in result.costs}
    steps = {name: cost.steps for name, cost in costs.items()}
    assert steps == {
        EXACT: 4,
        "node": None,
        "linear": 8,
        "truncated-1": None,
        "truncated-2": 4,
        "one-step": 16,
        "per-step": 1,
    }
    assert "reaches no shifted timestep" in costs["truncated-1"].reason
    assert [run.variant for run in result.runs] == TRAINED
    for name in TRAINED:
        about = json.loads((folder / "trainings" / f"{name}-seed0" / "experiment.json").read_text())["discovery"]
        assert about["steps"] == steps[name]
        assert about["gradient"] == {EXACT: "chain", "truncated-2": "truncated"}.get(name, name)
    half = json.loads((folder / "half" / "experiment.json").read_text())["discovery"]
    assert (half["steps"], half["decay"], half["gradient"]) == (2, 0, "chain")


@pytest.mark.slow
def test_what_is_there_stays_and_other_settings_are_refused(folder, tiny_model):
    before = {
        path: data for path, data in snapshot(folder).items() if "seed0" in str(path) or path.name == "costs.json"
    }
    agreements = Gradients.load(folder).agreements
    assert "already holds results" in refused(*command(folder, tiny_model))
    line = refused(*command(folder, tiny_model, "--resume", "--last-steps", 2))
    assert "was measured with other settings, gradients or device: choose another --out" in line
    assert invoke(*command(folder, tiny_model, "--resume")).exit_code == 0
    assert {path: path.read_bytes() for path in before} == before
    assert Gradients.load(folder).agreements == agreements


@pytest.mark.slow
def test_a_stopped_comparison_goes_on(tmp_path, tiny_model):
    stopped = invoke(*command(tmp_path / "out", tiny_model, "--max-minutes", 1e-6))
    assert stopped.exit_code == 0, stopped.output
    assert "go on with --resume" in stopped.stderr
    assert not (tmp_path / "out" / "gradient.json").exists()
    assert (tmp_path / "out" / "costs.json").exists()


@pytest.mark.slow
def test_the_picture_shows_the_gradients_and_says_where_there_is_none(folder, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(chart, "save_figure", lambda figure, path: figures.append(figure))
    result = Gradients.load(folder)
    draw(result, tmp_path)
    (figure,) = figures
    texts = {text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text"))}
    assert {"truncated, last 1 (DRaFT): no gradient", "no gradient", "linear, 8 steps"} <= texts
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    rows = [row for row in result.agreements if (row.stage, row.method) == ("start", "linear") and row.t is not None]
    np.testing.assert_array_equal(lines["linear (DRTune)"], [row.cosine for row in rows])
    assert list(artifact_of(result).charts) == ["gradient.png"]


@pytest.mark.slow
def test_rows_and_trainings_of_the_report(folder):
    result = Gradients.load(folder)
    artifact = artifact_of(result)
    rows = {row.artifact.partition(" ")[0]: row for row in artifact.rows(result, None)}
    assert rows["truncated-1"].ours == "no gradient"
    assert rows["node"].ours == "1.000"
    assert [line[0] for line in artifact.comparison(result).lines] == TRAINED


# Settings -----------------------------------------------------------------------------------------------------------


def test_the_exact_gradient_keeps_all_graphs_whatever_the_experiment_says(tiny):
    settings = changed(override(tiny, ["discovery.strategy=node", "discovery.keep=1", "discovery.nodes=cpu"])).discovery
    assert (settings.strategy, settings.keep, settings.nodes) == ("vanilla", 0, "device")


def test_default_numbers_of_last_steps(tiny):
    assert default_last_steps(tiny) == [1, 2]  # of 999, 665 and 332, two are shifted
    assert default_last_steps(changed(tiny, M=10)) == [1, 5, 7]  # six of ten


@pytest.mark.slow
@pytest.mark.parametrize(
    "override", [["gradient=linear"], ["gradient=truncated", "last_steps=2"], ["gradient=one-step"]]
)
def test_each_gradient_trains_and_resumes_with_the_same_bits(override, tmp_path, tiny_model):
    experiment = load_experiment("digits16", [*TINY, *(f"discovery.{each}" for each in override)])
    model = load_model(tiny_model, experiment)
    assert train(experiment, model, tmp_path / "whole", device=CPU)
    assert not train(experiment, model, tmp_path / "broken", device=CPU, max_minutes=1e-6)
    assert train(experiment, model, tmp_path / "broken", device=CPU, resume=True)
    whole, broken = (load_file(tmp_path / each / "shift_block.safetensors") for each in ("whole", "broken"))
    assert whole["out_weight"].any()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_truncated_training_without_a_gradient_is_refused(tmp_path, tiny_model):
    options = tiny_options("discovery.gradient=truncated", "discovery.last_steps=1")
    line = refused("train", "digits16", *options, "--model", tiny_model, "--out", tmp_path / "out")
    assert "discovery.last_steps = 1 reaches no shifted timestep, so there is no gradient" in line
    assert line.endswith("the first 2 of the 3 steps are shifted: need at least 2")
    assert not (tmp_path / "out").exists()


def test_arguments_out_of_range_are_refused(tmp_path, tiny, tiny_model):
    model = load_model(tiny_model, tiny)
    for values, said in (
        ({"batches": 1}, "batches must be at least 2"),
        ({"last_steps": 4}, "last_steps must be at most 3"),
        ({"seeds": []}, "seeds must be at least 1"),
        ({"pairs": 0}, "pairs must be at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            gradient(tiny, model, tmp_path / "out", device="cpu", **values)
    assert not (tmp_path / "out").exists()


def test_an_exact_gradient_that_does_not_fit_is_said_in_one_line(tmp_path, tiny, tiny_model, monkeypatch):
    def no_room(cell):
        settings = cell.experiment.discovery
        row = Row(settings.strategy, settings.M, settings.batch_size, settings.precision, cell.device)
        return replace(row, status="oom", error="no room")

    monkeypatch.setattr(module, "measure_apart", no_room)
    with pytest.raises(
        HBenchError, match=r"the exact gradient has no cost \(oom: no room\): lower discovery.batch_size"
    ):
        gradient(tiny, load_model(tiny_model, tiny), tmp_path / "out", device="cpu", pairs=16)


@pytest.mark.slow
def test_seconds_are_measured_in_turns(tiny, tiny_model):
    asked = {name: changed(tiny, pool=4, gradient=name) for name in ("chain", "one-step")}
    found = seconds_of(asked, load_model(tiny_model, tiny), 2, 0, CPU)
    assert {name: len(values) for name, values in found.items()} == {"chain": 2, "one-step": 2}
    assert all(value > 0 for values in found.values() for value in values)
