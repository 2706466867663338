"""Recordings of generation steps, with a stand-in for CUDA graphs; ``tests/gpu`` has the real ones."""

import logging
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from command_line import TINY
from recordings import Recorder
from samplers import sampler_of
from torch import nn

from hbench.core.chain import backpropagate
from hbench.core.directions import own_direction
from hbench.core.sampler import Sampler
from hbench.experiments import load_experiment, override
from hbench.models import build_model
from hbench.models.shift import FixedDirections, ShiftBlock
from hbench.runtime.capture import Graphs, graphs_of
from hbench.training import pretrain
from hbench.training.estimate import undone
from hbench.training.freeze import freeze
from hbench.training.probe import measure
from hbench.training.step import initial, raw_pairs, run_pairs, train_step
from hbench.training.strategy import resolve

CPU = torch.device("cpu")


@pytest.fixture
def recorder(monkeypatch):
    """Let all samplers of experiments record on the CPU."""
    found = Recorder()
    monkeypatch.setattr("hbench.core.sampler.graphs_of", found.graphs)
    return found


def frozen_model(experiment, precision="float32"):
    experiment = override(experiment, [f"discovery.precision={precision}"])
    torch.manual_seed(0)
    model = build_model(experiment)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return freeze(experiment, model, CPU)


def shift_block(model):
    torch.manual_seed(1)
    block = ShiftBlock(model.h_shape[0], model.emb_channels, K=3)
    nn.init.normal_(block.out_weight, std=0.05)
    return block


def batch(seed, B=2):
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(3, (B,), generator=generator)
    return torch.randn(B, 1, 16, 16, generator=generator), k, 2 * torch.randn(B, generator=generator)


def test_the_stand_in_finds_what_is_read_and_moves():
    read = {"weight": torch.ones(2)}
    graphs = Recorder().graphs()
    add = [torch.zeros(2)]
    assert graphs.run("add", lambda x: [x + read["weight"]], add)[0].tolist() == [1, 1]
    read["weight"].mul_(2)  # in place
    assert graphs.run("add", lambda x: [x + read["weight"]], [torch.ones(2)])[0].tolist() == [3, 3]
    read["weight"] = torch.ones(2)
    with pytest.raises(AssertionError, match="has moved"):
        graphs.run("add", lambda x: [x + read["weight"]], add)


def test_nothing_is_recorded_on_the_cpu(tiny):
    assert graphs_of(CPU) is None
    assert Sampler.of(tiny, build_model(tiny), CPU).graphs is None


def test_capture_can_be_left_out(tiny, recorder):
    model = build_model(tiny)
    assert Sampler.of(tiny, model, CPU).graphs is not None
    assert Sampler.of(override(tiny, ["discovery.capture=never"]), model, CPU).graphs is None


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["eps", "v", "x_0"])
def test_replayed_generation_is_the_same(prediction):
    experiment = load_experiment("digits16", [*TINY, f"diffusion.prediction={prediction}"])
    model, recorder = frozen_model(experiment), Recorder()
    block = shift_block(model)
    eager = sampler_of(model, 3, t_shift=400)
    replayed = replace(eager, graphs=recorder.graphs())
    for seed in (0, 1):
        x, k, s = batch(seed)
        shift = own_direction(block, k, s)
        torch.testing.assert_close(replayed.generate(x), eager.generate(x))
        torch.testing.assert_close(replayed.generate(x, shift), eager.generate(x, shift))
        for one, other in zip(replayed.generate_pairs(x, shift), eager.generate_pairs(x, shift), strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(replayed.invert(x), eager.invert(x))
    # regular, from the clean image, shifted, pairs from x_T, pairs, and the regular step of both processes
    assert recorder.recorded == 6
    replayed.with_steps(4).generate(x)
    assert recorder.recorded == 6  # serves all timesteps
    replayed.generate(x[:1])
    assert recorder.recorded == 7  # and one batch size


def test_nodes_of_replayed_steps_may_be_kept(tiny):
    model = frozen_model(tiny)
    eager = sampler_of(model, 4)
    nodes = {}
    for sampler in (eager, replace(eager, graphs=Recorder().graphs())):
        x, *_ = batch(0)
        nodes[sampler] = [x]
        with torch.no_grad():
            for step in sampler.steps():
                nodes[sampler].append(step(nodes[sampler][-1]))
    for one, other in zip(*nodes.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_directions_that_read_the_timestep_are_not_recorded(tiny):
    model, recorder = frozen_model(tiny), Recorder()
    directions = FixedDirections(torch.randn(3, 2, *model.h_shape), [999, 499])
    x, k, s = batch(0)
    shift = own_direction(directions, k, s)
    eager = sampler_of(model, 4, t_shift=400)
    replayed = replace(eager, graphs=recorder.graphs())
    torch.testing.assert_close(replayed.generate(x, shift), eager.generate(x, shift))
    assert recorder.recorded == 1  # the regular step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "checkpointed", "recorded"),
    [
        ({"strategy": "node"}, False, 6),  # three kinds of passes of pairs, and the gradients of three
        ({"strategy": "node"}, True, 6),
        ({"strategy": "node", "keep": 1}, False, 5),
        ({"strategy": "vanilla"}, False, 1),  # the raw samples
        ({"strategy": "torch-checkpoint"}, False, 1),
    ],
)
def test_replayed_gradients_are_the_same(tiny, how, checkpointed, recorded):
    settings = {**how, "M": 3, "checkpoint_blocks": checkpointed, "precision": "float32"}
    experiment = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update=settings)})
    model, recorder = frozen_model(experiment), Recorder()
    eager = sampler_of(model, 3, t_shift=400)
    found = {}
    for sampler in (eager, replace(eager, graphs=recorder.graphs())):
        block = shift_block(model)
        found[sampler] = []
        for seed in (0, 1):
            x_T, k, s = batch(seed)
            shift = own_direction(block, k, s)
            x_0, nodes = run_pairs(experiment.discovery, sampler, shift, x_T)
            block.zero_grad()
            loss, x_0_shifted = backpropagate(
                sampler.steps(shift),
                x_T,
                lambda x, x_0=x_0: (x - x_0).square().mean() + x.mean(),
                **how,
                known_nodes=nodes,
            )
            found[sampler] += [loss, x_0, x_0_shifted, *(p.grad for p in block.parameters())]
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other)
    assert recorder.recorded == recorded
    assert recorder.replayed > recorded


def test_the_gradient_of_x_T_is_pulled_back_too(tiny):
    model = frozen_model(tiny)
    eager = sampler_of(model, 3)
    found = []
    for sampler in (eager, replace(eager, graphs=Recorder().graphs())):
        x_T, *_ = batch(0)
        backpropagate(sampler.steps(), x_T.requires_grad_(), lambda x: x.square().mean())
        found.append(x_T.grad)
    torch.testing.assert_close(*found)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_training_goes_the_same_way(tiny, recorder, precision):
    """Weights change between replays, and so do batches, directions and magnitudes."""
    found, recorded = [], []
    for capture in ("never", "auto"):
        settings = {"capture": capture, "strategy": "node", "pool": 0, "precision": precision, "start": 1.0}
        experiment = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update=settings)})
        sampler = Sampler.of(experiment, frozen_model(experiment, precision), CPU)
        trained = initial(experiment, sampler, 0)
        draw = raw_pairs(experiment, sampler, 0)
        for i in range(3):
            row = train_step(experiment, sampler, trained, draw, 0, i)
            recorded.append(recorder.recorded)
        found.append([row, *(p.detach() for p in trained.shift_block.parameters())])
    assert recorded[:3] == [0] * 3
    assert len(set(recorded[3:])) == 1
    (row, *weights), (replayed_row, *replayed_weights) = found
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if precision == "float32" else {"rtol": 0.05, "atol": 5e-3}
    assert replayed_row == pytest.approx(row, rel=tolerance["rtol"], abs=tolerance["atol"])
    for one, other in zip(weights, replayed_weights, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("where", [0, 2])
def test_what_cannot_be_recorded_runs_as_it_is(tiny, caplog, where):
    model, recorder, asked = frozen_model(tiny), Recorder(), []

    def capture(work):
        asked.append(work)
        if len(asked) > where:
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nadvice")
            except RuntimeError:
                raise RuntimeError("capture failed")  # noqa: B904 - as the end of PyTorch's context manager does
        return recorder.capture(work)

    eager = sampler_of(model, 3, t_shift=400)
    sampler = replace(eager, graphs=Graphs(capture))
    x, k, s = batch(0)
    found = []
    for each in (eager, sampler):
        block = shift_block(model)
        shift = own_direction(block, k, s)
        pairs = each.generate_pairs(x, shift)
        backpropagate(each.steps(shift), x, lambda x: x.square().mean())
        found.append([*pairs, *(p.grad for p in block.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert len(asked) == where + 1
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert line == "computes without CUDA graphs: operation not permitted when stream is capturing"


def test_what_fails_for_want_of_memory_runs_as_it_is_without_the_memory_of_the_failure():
    held, seen = [], []

    def capture(work):
        activation = torch.zeros(3)
        held.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def add_one(x):
        seen.append(held[0]())
        return [x + 1]

    graphs = Graphs(capture)
    for _ in range(2):
        assert graphs.run("add", add_one, [torch.zeros(2)])[0].tolist() == [1, 1]
    assert len(held) == 1
    assert seen == [None, None]


@pytest.mark.parametrize("failing_run", [2, 4])
def test_a_recording_that_fails_leaves_the_stream_and_no_work_behind(monkeypatch, failing_run):
    """Calls of a made-up CUDA, whose graphs leave their stream current as those of older versions of PyTorch do."""
    main, side, done, runs = "main", "side", [], []

    class Stream(str):
        def wait_stream(self, other):
            done.append((self, "waits for", other))

    current = [Stream(main)]

    @contextmanager
    def entered(stream):
        before = current[0]
        current[0] = stream
        try:
            yield
        finally:
            current[0] = before

    @contextmanager
    def graph(_, stream, **how):
        current[0] = stream
        yield

    def add_one(x):
        runs.append(current[0])
        if len(runs) == failing_run:
            raise RuntimeError("capture failed")
        return [x + 1]

    made_up = {"Stream": lambda device: Stream(side), "current_stream": lambda device: current[0], "stream": entered}
    made_up |= {"device": nullcontext, "graph": graph, "CUDAGraph": object, "graph_pool_handle": object}
    for name, value in made_up.items():
        monkeypatch.setattr(torch.cuda, name, value)
    (found,) = graphs_of(torch.device("cuda")).run("add", add_one, [torch.zeros(2)])
    assert found.tolist() == [1, 1]
    assert runs == [side] * failing_run + [main]
    assert done == [(side, "waits for", main), (main, "waits for", side)]


def test_a_magnitude_that_is_trained_gets_its_gradient(tiny):
    model = frozen_model(tiny)
    block, eager, found = shift_block(model), sampler_of(model, 3, t_shift=400), []
    x_T, k, s = batch(0)
    for sampler in (eager, replace(eager, graphs=Recorder().graphs())):
        trained = s.clone().requires_grad_()
        backpropagate(sampler.steps(own_direction(block, k, trained)), x_T, lambda x: x.square().mean())
        found.append(trained.grad)
    torch.testing.assert_close(*found)
    assert found[0].all()


def test_a_backbone_that_is_trained_is_refused(tiny):
    model = frozen_model(tiny)
    model.out[-1].weight.requires_grad_()
    sampler = replace(sampler_of(model, 2), graphs=Recorder().graphs())
    x_T, *_ = batch(0)
    with pytest.raises(ValueError, match="is for a frozen backbone: freeze it, or take graphs=None"):
        backpropagate(sampler.steps(), x_T, lambda x: x.square().mean())
    backpropagate(replace(sampler, graphs=None).steps(), x_T, lambda x: x.square().mean())
    assert model.out[-1].weight.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [{"strategy": "vanilla"}, {"strategy": "node", "nodes": "cpu"}])
def test_the_tests_of_a_gpu_call_what_there_is(strategy, monkeypatch):
    """Few machines run them, so that nobody would see that an argument has another name."""
    file = Path(__file__).parents[1] / "gpu" / "test_cuda.py"
    spec = spec_from_file_location("test_cuda", file)
    tests = module_from_spec(spec)
    spec.loader.exec_module(tests)
    monkeypatch.setattr(tests, "CUDA", CPU)
    monkeypatch.setattr(tests, "pick_device", lambda name: CPU)
    assert tests.gradient(strategy, precision="float32").any()


def test_an_error_of_the_step_itself_is_raised(tiny):
    sampler = replace(sampler_of(frozen_model(tiny), 2), graphs=Recorder().graphs())
    with pytest.raises(ValueError, match="x must be"):
        sampler.generate(torch.randn(2, 5, 16, 16))


@pytest.mark.slow
def test_the_probe_measures_what_will_run(tiny, recorder, monkeypatch):
    monkeypatch.setattr("hbench.training.probe.REPEATS", 1)
    wanted = override(tiny, ["discovery.precision=float32", "discovery.strategy=auto"])
    sampler = Sampler.of(wanted, frozen_model(wanted), CPU)
    probe = measure(wanted, sampler, 0, repeats=0)
    for part in (probe.first, probe.shifted, probe.regular):
        assert part.both_ways > 0
        assert part.kept > 0
        assert part.graph_mib > 0  # of the step as it is
    assert 0 <= resolve(wanted, sampler, 0).discovery.keep <= wanted.discovery.M
    plain = measure(override(wanted, ["discovery.capture=never"]), sampler, 0, repeats=0)
    assert plain.shifted.kept is None
    assert plain.shifted.graph_mib == probe.shifted.graph_mib


def pretrained(experiment):
    """Return losses and average weights after four steps of pretraining; the first is taken twice, as an estimate's."""
    settings, trained = experiment.pretrain, pretrain.initial(experiment, 0, CPU)
    sampler = pretrain.grid_sampler(experiment, trained, CPU)
    images = torch.randint(256, (16, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    graphs = pretrain.recordings(settings, trained.model, CPU)
    step = partial(pretrain.train_step, settings, trained, sampler, images, 0, flip=True, graphs=graphs)
    with undone(vars(trained)):
        step(0)
    return [step(i)["loss"] for i in range(4)], trained.averaged_model.state_dict()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_pretraining_is_the_same(tiny, monkeypatch, precision):
    experiment = override(tiny, [f"pretrain.precision={precision}"])
    losses, weights = pretrained(experiment)
    recorder = Recorder()
    monkeypatch.setattr("hbench.training.pretrain.graphs_of", recorder.graphs)
    again, same = pretrained(experiment)
    assert (recorder.recorded, recorder.replayed) == (1, 5)
    assert again == losses
    for name, value in weights.items():
        assert torch.equal(same[name], value), name


@pytest.mark.parametrize("setting", ["pretrain.capture=never", "model.dropout=0.1"])
def test_steps_of_pretraining_that_are_not_recorded(tiny, monkeypatch, setting):
    monkeypatch.setattr("hbench.training.pretrain.graphs_of", Recorder().graphs)
    for overrides, is_recorded in (([], True), ([setting], False)):
        experiment = override(tiny, overrides)
        found = pretrain.recordings(experiment.pretrain, build_model(experiment), CPU)
        assert (found is not None) == is_recorded
