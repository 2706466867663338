import json
import math
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import TINY, invoke, tiny_options
from safetensors.torch import load_file

import hbench.runtime.memory as memory
import hbench.training.strategy as module
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.evaluation.plan import Plan, measured_line
from hbench.experiments import load_experiment
from hbench.models import build_model
from hbench.runtime.memory import free_mib, saved_tensors_peak, watch_resident
from hbench.store.model import load_model
from hbench.training.cost import (
    Pass,
    Prediction,
    Probe,
    Whole,
    best_keep,
    budget_of,
    passes,
    predict,
    whole_discovery,
    whole_seconds,
)
from hbench.training.discover import train
from hbench.training.freeze import freeze
from hbench.training.probe import Batch, measure, offloads_nodes, shortened
from hbench.training.strategy import resolve, resolve_once, with_keep

CPU = torch.device("cpu")


def test_peak_of_resident_memory(monkeypatch):
    def peak_of_64_mib():
        with watch_resident() as (baseline, peak, source):
            torch.ones(16 * 2**20).sum()  # freed again
            time.sleep(0.05)
            return peak() - baseline, source

    peak, source = peak_of_64_mib()
    assert 60 < peak < 90
    assert "VmHWM" in source
    real = memory._high_water_mib
    monkeypatch.setattr(memory, "_high_water_mib", lambda: real() + 1000)  # was not reset
    monkeypatch.setattr(torch, "ones", lambda n: torch.zeros(n).fill_(1).add_(1).mul_(2).sqrt_())  # long enough to see
    peak, source = peak_of_64_mib()
    assert 60 < peak < 90
    assert "polled" in source


def test_saved_tensors_are_counted_once_and_let_go():
    x = torch.zeros(1000, requires_grad=True)

    def run():
        for _ in range(3):
            y = x.exp()  # saves its own 4,000 bytes
            (y * y).sum().backward()  # saves them again

    assert saved_tensors_peak(run) == 4000

    def run_forward():
        for _ in range(3):
            x.exp()  # no backward pass frees the graph

    assert saved_tensors_peak(run_forward) == 4000


def test_resident_tensors_are_not_counted():
    weight = torch.zeros(1000, requires_grad=True)
    x = torch.zeros(500, requires_grad=True)
    assert saved_tensors_peak(lambda: (weight.sum() * x).exp().sum() + (weight * weight).sum(), [weight, x]) == 2004


def test_free_memory_ends_at_the_limit_of_the_container_or_the_job(monkeypatch, tmp_path):
    free = free_mib(CPU)
    assert free > 0
    job = tmp_path / "job"
    job.mkdir()
    monkeypatch.setattr(memory, "_groups", lambda: [job, tmp_path])
    for folder, limit in ((tmp_path, 2**30), (job, "max")):
        for name, text in {"max": limit, "current": 2**29, "stat": f"anon 5\ninactive_file {2**28}"}.items():
            (folder / f"memory.{name}").write_text(f"{text}\n")
    assert free_mib(CPU) == pytest.approx(min(free, 768), rel=0.1)
    (tmp_path / "memory.max").write_text("max\n")
    assert free_mib(CPU) == pytest.approx(free, rel=0.1)


# The plan -----------------------------------------------------------------------------------------------------------

PROBE = Probe(
    first=Pass(forward=1.0, beside=1.0, both_ways=3.0, graph_mib=8.0),
    shifted=Pass(forward=1.0, beside=2.0, both_ways=4.0, graph_mib=10.0),
    regular=Pass(forward=0.5, beside=1.0, both_ways=2.0, graph_mib=6.0),
    objective_mib=3.0,
    discriminator_mib=5.0,
    node_mib=0.5,
    free_mib=1000.0,
    before_mib=4.0,
    other_mib=16.0,
    other_seconds=7.0,
)


def experiment(*overrides):
    return load_experiment("mnist16", ["discovery.pool=0", "discovery.strategy=auto", *overrides])


def test_prediction_by_hand():
    # timesteps 999, 799, 599, 399, 199: three shifted, the first from x_T
    node, vanilla, two = (predict(PROBE, experiment(), 5, keep, "node") for keep in (0, 5, 2))
    assert node.memory_mib == 20 + 10 + 5 * 0.5
    assert vanilla.memory_mib == 20 + (8 + 10 + 10 + 6 + 6) + 3
    assert two.memory_mib == 20 + (6 + 6 + 3) + 3 * 0.5
    chain, batch = 3 + 4 + 4 + 2 + 2, 32
    assert node.images_per_second == batch / (7 + chain + (1 + 2 + 2 + 1 + 1))
    assert vanilla.images_per_second == batch / (7 + chain + 5 * 0.5)
    assert two.images_per_second == batch / (7 + chain + (1 + 2 + 2) + 2 * 0.5)
    pooled = predict(PROBE, experiment("discovery.pool=100"), 5, 2, "node")
    assert pooled.images_per_second == batch / (7 + chain + (1 + 1 + 1))


@pytest.mark.parametrize(("budget", "keep"), [(30, None), (32.5, 1), (36.5, 2), (62.9, 4), (63, 5), (1000, 5)])
def test_auto_keeps_as_many_graphs_as_fit(budget, keep):
    found = best_keep(PROBE, experiment(), 5, budget)
    assert found == keep
    if keep is not None:
        assert predict(PROBE, experiment(), 5, keep, "auto").memory_mib <= budget
        assert keep == 5 or predict(PROBE, experiment(), 5, keep + 1, "auto").memory_mib > budget


REPLAYED = replace(
    PROBE,
    first=replace(PROBE.first, kept=5.0),
    shifted=replace(PROBE.shifted, kept=9.0),
    regular=replace(PROBE.regular, kept=2.25),
)
"""A probe where recomputed steps are replayed: keeping a graph pays for the two regular steps alone."""


@pytest.mark.parametrize(("budget", "keep"), [(37, None), (37.5, 0), (41, 1), (46.5, 2), (1000, 2)])
def test_auto_keeps_the_fastest_number_of_graphs_where_recomputed_steps_are_replayed(budget, keep):
    assert best_keep(REPLAYED, experiment(), 5, budget) == keep


def test_prediction_of_kept_and_replayed_steps_by_hand():
    node, vanilla, two = (predict(REPLAYED, experiment(), 5, keep, "node") for keep in (0, 5, 2))
    # beside the recordings, which hold the largest graph of a recomputed step
    assert node.memory_mib == 20 + 10 + 5 + 5 * 0.5
    assert two.memory_mib == 20 + 10 + (6 + 6 + 3) + 3 * 0.5
    assert vanilla.memory_mib == 20 + (8 + 10 + 10 + 6 + 6) + 3
    assert node.images_per_second == predict(PROBE, experiment(), 5, 0, "node").images_per_second
    assert vanilla.images_per_second == 32 / (7 + 5 + 9 + 9 + 2 * 2.25 + 5 * 0.5)
    assert two.images_per_second == 32 / (7 + 3 + 4 + 4 + 2 * 2.25 + (1 + 2 + 2) + 2 * 0.5)


def test_default_budget_is_a_share_of_what_is_free():
    assert budget_of(experiment(), CPU, PROBE) == 4 + 500
    assert budget_of(experiment(), torch.device("cuda"), PROBE) == 4 + 900
    assert budget_of(experiment("discovery.memory_budget=0.25"), CPU, PROBE) == 256


def test_the_short_chain_has_every_kind_of_step():
    assert shortened(experiment()).discovery.M == 3  # 999, 666, 333
    assert shortened(experiment("discovery.t_shift=0")).discovery.M == 1
    assert shortened(experiment("discovery.t_shift=950")).discovery.M == 2


@pytest.mark.slow
def test_probe_predicts_what_autograd_holds():
    settings = experiment("discovery.batch_size=4")
    torch.manual_seed(0)
    frozen = freeze(settings, build_model(settings), CPU)
    sampler = Sampler.of(settings, frozen, CPU)
    probe = measure(settings, sampler, 0, repeats=1)
    assert probe.regular.graph_mib < probe.shifted.graph_mib < 2 * probe.regular.graph_mib
    assert min(probe.objective_mib, probe.discriminator_mib, probe.other_seconds, probe.regular.forward) > 0

    from hbench.training.step import initial, raw_pairs, train_step

    networks = initial(settings, sampler, 0)
    resident = [p for part in (frozen, *list(vars(networks).values())[:3]) for p in part.parameters()]
    for M, keep in [(5, 0), (5, 3), (8, 8)]:
        values = {"M": M, "strategy": "node", "keep": keep}
        running = settings.model_copy(update={"discovery": settings.discovery.model_copy(update=values)})
        sampler = Sampler.of(running, frozen, CPU)
        step = partial(train_step, running, sampler, networks, raw_pairs(running, sampler, 0), 0, 0)
        held = saved_tensors_peak(step, resident)
        predicted = predict(probe, running, M, keep, "node")
        graphs = predicted.memory_mib - probe.other_mib - (M - keep) * probe.node_mib
        assert held / memory.MIB == pytest.approx(graphs, rel=0.02)


@pytest.mark.slow
def test_training_with_auto_ends_as_with_what_auto_took(tmp_path, tiny, tiny_model):
    weights = {}
    for name, settings in {"auto": {"strategy": "auto"}, "node": {"strategy": "node", "keep": 3}}.items():
        wanted = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update=settings)})
        (tmp_path / name).mkdir()
        assert train(wanted, load_model(tiny_model, wanted), tmp_path / name, device=CPU)
        weights[name] = load_file(tmp_path / name / "shift_block.safetensors")
    assert json.loads((tmp_path / "auto" / "provenance.json").read_text())["keep"] == 3
    assert all(torch.equal(value, weights["node"][key]) for key, value in weights["auto"].items())


def test_what_auto_took_is_noted_for_those_who_go_on(tiny, tmp_path, monkeypatch):
    ample = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update={"strategy": "auto"})})
    sampler = Sampler.of(tiny, build_model(tiny), CPU)
    monkeypatch.setattr(module, "measure", lambda *_, **__: PROBE)
    assert resolve_once(ample, sampler, 0, tmp_path).discovery.keep == 3
    monkeypatch.setattr(module, "measure", lambda *_, **__: replace(PROBE, free_mib=62.0))  # something else has grown
    assert resolve_once(ample, sampler, 0, tmp_path).discovery.keep == 3
    assert resolve(ample, sampler, 0).discovery.keep == 1
    budget = {"strategy": "auto", "memory_budget": 0.033}
    tight = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update=budget)})
    assert resolve_once(tight, sampler, 0, tmp_path).discovery.keep == 1  # another budget
    assert resolve_once(ample, sampler, 0, tmp_path).discovery.keep == 1  # which is noted now
    monkeypatch.setattr(module, "measure", lambda *_, **__: PROBE)
    offloaded = ample.model_copy(update={"discovery": ample.discovery.model_copy(update={"nodes": "cpu"})})
    found = resolve_once(offloaded, sampler, 0, tmp_path).discovery
    assert (found.strategy, found.keep, found.nodes) == ("node", 3, "cpu")  # more graphs may fit then
    noted = json.loads((tmp_path / "strategy.json").read_text())
    assert noted["asked"].pop("nodes") == "cpu"
    (tmp_path / "strategy.json").write_text(json.dumps(noted | {"schema": 1, "keep": 2}))  # by a version without
    assert resolve_once(ample, sampler, 0, tmp_path).discovery.keep == 2


def test_nodes_in_cpu_memory_do_not_count_on_another_device(tiny):
    def batch(place, device):
        settings = tiny.discovery.model_copy(update={"nodes": place})
        found = tiny.model_copy(update={"discovery": settings})
        return Batch(found, None, None, torch.empty(1, device=device), None, None)

    assert [offloads_nodes(batch("cpu", device)) for device in ("meta", "cpu")] == [True, False]
    assert not offloads_nodes(batch("device", "meta"))
    without = replace(PROBE, node_mib=0.0)
    assert {predict(without, experiment(), M, 0, "node").memory_mib for M in (5, 20)} == {20 + 10}
    assert best_keep(PROBE, experiment(), 20, 35) is None
    assert best_keep(without, experiment(), 20, 35) == 2


def test_auto_is_node_where_memory_is_unknown(tiny, monkeypatch, caplog):
    def unknown(*_, **__):
        raise memory.UnknownMemoryError("NVML does not answer")

    monkeypatch.setattr(module, "measure", unknown)
    ample = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update={"strategy": "auto"})})
    assert resolve(ample, Sampler.of(tiny, build_model(tiny), CPU), 0).discovery.keep == 0
    assert "NVML does not answer" in caplog.text


def test_resolve_takes_auto_away_and_nothing_else(tiny, monkeypatch):
    tiny = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update={"strategy": "auto"})})
    monkeypatch.setattr(module, "measure", lambda *_, **__: PROBE)
    sampler = Sampler.of(tiny, build_model(tiny), CPU)
    running = resolve(tiny, sampler, 0)
    assert (running.discovery.strategy, running.discovery.keep) == ("node", tiny.discovery.M)
    assert with_keep(tiny, tiny.discovery.M) == running
    fixed = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update={"strategy": "vanilla"})})
    assert resolve(fixed, sampler, 0) == fixed == with_keep(fixed, 0)
    per_step = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update={"gradient": "per-step"})})
    assert resolve(per_step, sampler, 0).discovery.keep == 0


def test_what_does_not_fit_says_what_would(tiny, monkeypatch):
    monkeypatch.setattr(module, "measure", lambda *_, **__: PROBE)
    tight = {"strategy": "auto", "memory_budget": 0.02}
    sampler = Sampler.of(tiny, build_model(tiny), CPU)
    small = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update=tight)})
    with pytest.raises(HBenchError, match=r"needs 32 MiB .* budget is 20 MiB: try discovery\.batch_size=2 or disc"):
        resolve(small, sampler, 0)
    offload = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update={"strategy": "offload"})})
    with pytest.raises(HBenchError, match="offload"):
        resolve(offload, sampler, 0)


def plan(*arguments):
    options = tiny_options("discovery.strategy=auto")
    return invoke("plan", "digits16", *options, "--device", "cpu", "--quiet", *arguments)


@pytest.fixture
def probed(monkeypatch):
    """A probe that is made up at once, in place of a fresh process."""
    monkeypatch.setattr("hbench.evaluation.plan.measure_apart", lambda *_: PROBE)
    pretraining = Whole("pretraining", 4, 4, None, 7200.0, 50.0)
    monkeypatch.setattr("hbench.evaluation.plan.measure_pretraining_apart", lambda *_: pretraining)


@pytest.mark.slow
def test_plan_command(tmp_path):
    few = ["--set", "discovery.t_shift=0"]  # one kind of step, so a short chain stands for all
    result = plan("--steps", "2,4", "--out", str(tmp_path / "plan"), "--set", "discovery.memory_budget=4", *few)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[:2] for line in lines[1:]] == [
        [name, M] for name in ("node", "vanilla", "auto", "torch-checkpoint") for M in ("2", "4")
    ]
    written = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert written["budget_mib"] == 4096
    assert [row["keep"] for row in written["predictions"]] == [0, 0, 2, 4, 2, 4, 0, 0]
    assert {path.name for path in (tmp_path / "plan").iterdir()} == {
        *("plan.json", "plan.csv", "plan.png", "provenance.json")
    }
    assert Plan.load(tmp_path / "plan").summary() == result.stdout.strip("\n")
    discovery, pretraining = (line for line in result.stderr.splitlines() if " steps of " in line)
    assert re.fullmatch(r"this training: 4 steps of 4 pairs = \d+ s, [\d,]+ MiB with auto", discovery)
    assert re.fullmatch(r"its pretraining: 4 steps of 4 images = \d+ s, [\d,]+ MiB", pretraining)
    assert plan("--out", str(tmp_path / "plan")).exit_code == 1  # nothing is replaced


def test_a_plan_of_an_older_version_is_read():
    plan = Plan.load(Path(__file__).parents[2] / "results" / "bench" / "plan")
    assert plan.left_out == []
    assert math.isnan(plan.probe.free_mib) or plan.probe.free_mib > 0


def test_plan_command_refuses(probed, monkeypatch):
    result = plan("--m", "2000")
    assert result.exit_code == 2
    assert "at most 1000, the number of timesteps" in result.output
    line = [Prediction("torch-checkpoint", 3, 0, 1.0, 1.0)]
    monkeypatch.setattr("hbench.evaluation.plan.measured_line", lambda *_: line)
    result = plan("--set", "discovery.memory_budget=0.0001")
    assert result.exit_code == 1
    assert "discovery.checkpoint_blocks=true" in result.output


def test_plan_command_leaves_out_a_strategy_that_fails(probed, monkeypatch):
    def failing(*_):
        raise HBenchError("torch-checkpoint, M = 30: out of memory: lower discovery.batch_size")

    monkeypatch.setattr("hbench.evaluation.plan.measured_line", failing)
    result = plan("--steps", "2")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["node", "vanilla", "auto"]
    assert "not in the table: torch-checkpoint, M = 30: out of memory" in result.stderr
    assert "its pretraining: 4 steps of 4 images = 2.0 h, 50 MiB" in result.stderr
    assert not any("<- this M" in line for line in result.stdout.splitlines())
    lines = plan("--steps", "2,3").stdout.splitlines()
    assert [line.endswith("<- this M") for line in lines[1:]] == [False, True] * 3


def test_plan_command_says_that_its_table_is_of_the_exact_gradient(probed, monkeypatch):
    line = [Prediction("torch-checkpoint", 3, 0, 1.0, 1.0)]
    monkeypatch.setattr("hbench.evaluation.plan.measured_line", lambda *_: line)
    assert "discovery.gradient" not in plan("--steps", "2").stderr
    said = plan("--steps", "2", "--set", "discovery.gradient=one-step").stderr
    assert 'not in the table: discovery.gradient = "one-step", which takes less than the exact gradient' in said
    assert "this training" not in said


def test_a_whole_training_by_hand():
    settings = load_experiment("digits16", [*TINY, "pretrain.steps=10", "pretrain.checkpoint_every=4"]).pretrain
    # three steps of 2 s, the checkpoints after steps 8 and 10, the grids after 8 (every 4) and 10
    assert whole_seconds(settings, 7, 2.0, once=5.0, checkpoint=0.5, grid=0.25) == 5 + 6 + 1 + 0.5
    wanted = experiment("discovery.steps=100", "discovery.pool=40", "discovery.batch_size=4")
    row = Prediction("auto", wanted.discovery.M, 1, 473.0, 2.0)
    forwards = sum(step.forward for step in passes(PROBE, wanted, wanted.discovery.M))
    whole = whole_discovery(PROBE, wanted, row)
    assert whole.seconds == pytest.approx(100 * 4 / 2.0 + 10 * forwards)
    assert str(replace(whole, seconds=16_900.0)) == "this training: 100 steps of 4 pairs = 4.7 h, 473 MiB with auto"


def test_no_step_count_that_shifts_nothing_is_planned(probed):
    few = ["--set", "discovery.spacing=leading", "--set", "discovery.t_shift=600"]  # M = 3 visits 666, M = 1 only 0
    result = plan("--steps", "1", *few)
    assert result.exit_code == 2
    assert "shifts no timestep of M = 1: need at most 0, or more M" in result.stderr
    assert "shifts no timestep: need at most 666" in plan(*few, "--set", "discovery.t_shift=700").stderr


def test_offload_is_not_tried_where_it_would_crowd_the_memory(monkeypatch):
    experiment = load_experiment("digits16", TINY)
    monkeypatch.setattr("hbench.evaluation.sweep_cells.measure_apart", lambda cell: pytest.fail(f"tried {cell}"))
    monkeypatch.setattr("hbench.evaluation.plan.free_mib", lambda device: 10.0)
    with pytest.raises(
        HBenchError, match=r"offload, M = \d+: up to [\d,]+ MiB of graphs, where 5 MiB of the CPU's memory may be"
    ):
        measured_line(experiment, "offload", [3], PROBE, "cpu", 0)
