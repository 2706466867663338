"""What only a CUDA GPU can show: ``pytest tests/gpu``. Skipped, visibly, where there is none, and among the
other tests, which are of the CPU."""

import logging
from dataclasses import replace

import pytest
import torch
from command_line import TINY

from hbench.core.chain import backpropagate
from hbench.core.directions import draw_shifts, own_direction
from hbench.core.sampler import Sampler
from hbench.evaluation import sweep_cells as sweep
from hbench.experiments import load_experiment, override
from hbench.models import build_model
from hbench.models.adm import GroupNorm32
from hbench.runtime.capture import graphs_of
from hbench.runtime.device import pick_device
from hbench.runtime.memory import MIB
from hbench.training import pretrain
from hbench.training.cost import predict
from hbench.training.freeze import freeze
from hbench.training.probe import measure, measure_apart
from hbench.training.step import initial, raw_pairs, run_pairs, train_step
from hbench.training.strategy import resolve

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and to be called alone"),
    pytest.mark.filterwarnings("default"),  # CUDA libraries say once that they make a context, or are a prototype
]
CUDA = torch.device("cuda")


def setup(**discovery):
    pick_device("cuda")  # float32 is float32
    experiment = load_experiment("digits16", [*TINY, "discovery.pool=0", "discovery.M=5"])
    experiment = experiment.model_copy(update={"discovery": experiment.discovery.model_copy(update=discovery)})
    torch.manual_seed(0)
    model = build_model(experiment).to(CUDA)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return experiment, Sampler.of(experiment, freeze(experiment, model, CUDA), CUDA)


def batch(B, seed, experiment):
    """x_T, and directions and magnitudes."""
    generator, settings = torch.Generator().manual_seed(seed), experiment.discovery
    k, s = draw_shifts(B, settings.K, settings.S, 0.5, generator)
    return torch.randn(B, 1, 16, 16, generator=generator).to(CUDA), k.to(CUDA), s.to(CUDA)


def shift_block(experiment, sampler):
    block = initial(experiment, sampler, 0).shift_block
    torch.nn.init.normal_(block.out_weight, std=0.05)
    return block


def gradient(strategy, sizes=(4, 4), **discovery):
    """The shift block's gradient, by the nodes of passes for both processes, of batches of these sizes in turn."""
    experiment, sampler = setup(**discovery)
    block = shift_block(experiment, sampler)
    settings = experiment.discovery.model_copy(update=strategy)
    found = []
    for seed, size in enumerate(sizes):  # CUDA graphs are recorded in the first and replayed in the others
        x_T, k, s = batch(size, seed, experiment)
        block.zero_grad()
        shift = own_direction(block, k, s)
        _, nodes = run_pairs(settings, sampler, shift, x_T)
        with sampler.autocast():
            backpropagate(sampler.steps(shift), x_T, lambda x: x.square().mean(), **strategy, known_nodes=nodes)
        found += [p.grad.flatten() for p in block.parameters()]
    return torch.cat(found).double()


@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy": "node"},
        {"strategy": "node", "keep": 2},
        {"strategy": "node", "nodes": "cpu"},
        {"strategy": "offload"},
        {"strategy": "torch-checkpoint"},
    ],
)
def test_strategies_agree(strategy):
    expected = gradient({"strategy": "vanilla"}, precision="float32")
    assert (gradient(strategy, precision="float32") - expected).norm() <= 1e-4 * expected.norm()
    assert torch.cosine_similarity(gradient(strategy, precision="bfloat16"), expected, dim=0) > 0.98


@pytest.mark.parametrize(
    ("strategy", "precision", "error"),
    [("node", "float32", 1e-3), ("vanilla", "float32", 1e-3), ("node", "bfloat16", 0.1)],
)
def test_compiled_and_replayed_steps_give_the_same_gradients(strategy, precision, error):
    eager = gradient({"strategy": strategy}, precision=precision, capture="never")
    compiled = gradient({"strategy": strategy}, precision=precision, compile=True)
    assert (compiled - eager).norm() <= error * eager.norm()


EACH = [
    {"strategy": "node"},
    {"strategy": "node", "keep": 2},
    {"strategy": "vanilla"},
    {"strategy": "torch-checkpoint"},
    {"strategy": "offload"},
]


@pytest.fixture
def without_a_word(caplog):
    """Fail a test in which anything runs without CUDA graphs that should not."""
    yield
    assert [record.message for record in caplog.get_records("call") if "CUDA graphs" in record.message] == []


@pytest.mark.usefixtures("without_a_word")
@pytest.mark.parametrize("strategy", EACH)
@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_replayed_steps_give_the_same_gradients(strategy, precision, error):
    settings = {"sizes": (4, 4, 2, 4), "precision": precision}
    eager, replayed = (gradient(strategy, **settings, capture=capture) for capture in ("never", "auto"))
    assert (replayed - eager).norm() <= error * eager.norm()


@pytest.mark.usefixtures("without_a_word")
def test_replayed_steps_of_checkpointed_blocks_give_the_same_gradients():
    eager = gradient({"strategy": "node"}, precision="float32", capture="never")
    replayed = gradient({"strategy": "node"}, precision="float32", checkpoint_blocks=True)
    assert (replayed - eager).norm() <= 1e-5 * eager.norm()


@pytest.mark.usefixtures("without_a_word")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_generation_is_the_same(precision):
    experiment, sampler = setup(precision=precision)
    block, eager = shift_block(experiment, sampler), replace(sampler, graphs=None)
    error = {"float32": 1e-4, "bfloat16": 0.05}[precision]
    for seed, size in enumerate((4, 4, 3)):
        x, k, s = batch(size, seed, experiment)
        shift = own_direction(block, k, s)
        for each in (
            lambda one, x=x: [one.generate(x)],
            lambda one, x=x, shift=shift: [one.generate(x, shift)],
            lambda one, x=x, shift=shift: one.generate_pairs(x, shift),
            lambda one, x=x: [one.invert(x)],
            lambda one, x=x: [one.with_steps(9).generate(x)],
        ):
            for replayed, expected in zip(each(sampler), each(eager), strict=True):
                torch.testing.assert_close(replayed, expected, rtol=error, atol=error)


@pytest.mark.usefixtures("without_a_word")
def test_a_replayed_training_goes_the_same_way():
    rows = {}
    for capture in ("never", "auto"):
        experiment, sampler = setup(strategy="node", precision="float32", capture=capture, start=1.0)
        trained, draw_raw = initial(experiment, sampler, 0), raw_pairs(experiment, sampler, 0)
        rows[capture] = [train_step(experiment, sampler, trained, draw_raw, 0, i)["loss"] for i in range(20)]
    assert rows["auto"] == pytest.approx(rows["never"], rel=0.02)


@pytest.mark.usefixtures("without_a_word")
def test_a_replayed_pretraining_goes_the_same_way():
    rows = {}
    for capture in ("never", "auto"):
        experiment = override(load_experiment("digits16", TINY), [f"pretrain.capture={capture}"])
        settings, trained = experiment.pretrain, pretrain.initial(experiment, 0, CUDA)
        sampler = pretrain.grid_sampler(experiment, trained, CUDA)
        images = torch.randint(256, (64, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        graphs = pretrain.recordings(settings, trained.model, CUDA)
        assert (graphs is None) == (capture == "never")
        steps = [pretrain.train_step(settings, trained, sampler, images, 0, i, graphs=graphs) for i in range(20)]
        rows[capture] = [row["loss"] for row in steps]
    assert rows["auto"] == pytest.approx(rows["never"], rel=0.02)


def test_what_cannot_be_recorded_runs_as_it_is(caplog):
    x = torch.arange(4.0, device=CUDA)
    graphs, current = graphs_of(CUDA), torch.cuda.current_stream()
    double = graphs.run("double", lambda x: [2 * x], [x])[0].tolist()
    for _ in range(2):
        found = graphs.run("waits", lambda x: [x + x.sum().item()], [x])[0]
        assert found.tolist() == [6, 7, 8, 9]
    assert torch.cuda.current_stream() == current
    assert torch.randn(3, device=CUDA).isfinite().all()  # the generator of random numbers is of use again
    assert graphs.run("double", lambda x: [2 * x], [x])[0].tolist() == double == [0, 2, 4, 6]
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith("computes without CUDA graphs: ")
    assert graphs_of(CUDA).run("double", lambda x: [2 * x], [x])[0].tolist() == double  # others go on


def test_auto_knows_the_times_of_replayed_steps():
    experiment, sampler = setup(strategy="auto", precision="bfloat16")
    assert measure(experiment, sampler, 0, repeats=0).shifted.kept > 0
    assert 0 <= resolve(experiment, sampler, 0).discovery.keep <= experiment.discovery.M


@pytest.mark.parametrize("place", ["device", "cpu"])
def test_a_training_step_never_waits_for_the_device_inside_the_chain(place):
    experiment, sampler = setup(strategy="node", precision="float32")
    x_T, k, s = batch(4, 0, experiment)
    block = shift_block(experiment, sampler)
    for each in (sampler, replace(sampler, graphs=None)):
        steps = each.steps(own_direction(block, k, s))
        backpropagate(steps, x_T, lambda x: x.square().mean(), nodes=place)  # records
        try:
            torch.cuda.set_sync_debug_mode("error")
            backpropagate(steps, x_T, lambda x: x.square().mean(), nodes=place)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("place", ["device", "cpu"])
def test_node_is_flat_in_M(place):
    peaks = {}
    for M in (5, 40):
        experiment, sampler = setup(strategy="node", M=M, nodes=place)
        trained, draw_raw = initial(experiment, sampler, 0), raw_pairs(experiment, sampler, 0)
        train_step(experiment, sampler, trained, draw_raw, 0, 0)
        torch.cuda.reset_peak_memory_stats()
        train_step(experiment, sampler, trained, draw_raw, 0, 1)
        peaks[M] = torch.cuda.max_memory_allocated() / MIB
    assert peaks[40] <= 1.1 * peaks[5]


def of_large_nodes(M, place):
    """The gradients and x_0 of a chain whose nodes are all there is, 12 MiB each, and its peak memory over x_T's."""
    rate = torch.full((3, 1, 1), 0.99, device=CUDA, requires_grad=True)
    x_T = torch.randn(64, 3, 128, 128, generator=torch.Generator().manual_seed(0)).to(CUDA).requires_grad_()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    # a new tensor each: the memory of the last node is soon that of another one
    _, x_0 = backpropagate([lambda x: (x * rate).sin()] * M, x_T, lambda x: x.square().mean(), nodes=place)
    return [rate.grad, x_T.grad, x_0], (torch.cuda.max_memory_allocated() - before) / MIB


@pytest.mark.parametrize("side", [False, True], ids=["current stream", "side stream"])
def test_nodes_in_cpu_memory_are_the_same_and_take_none_of_the_gpus(side):
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream() if side else None):
        expected, ample = of_large_nodes(40, "device")
        few = of_large_nodes(5, "cpu")[1]
        for _ in range(3):  # the pinned memory is used again
            found, many = of_large_nodes(40, "cpu")
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert many == pytest.approx(few, abs=1)
    assert ample > many + 30 * 12


def test_raw_and_shifted_samples_share_their_passes_with_nodes_in_cpu_memory():
    rows = []
    for place in ("device", "cpu"):
        experiment, sampler = setup(strategy="node", precision="float32", nodes=place)
        trained, draw_raw = initial(experiment, sampler, 0), raw_pairs(experiment, sampler, 0)
        rows.append([train_step(experiment, sampler, trained, draw_raw, 0, i) for i in range(3)])
    assert rows[0][-1] == pytest.approx(rows[1][-1], rel=1e-3)


def test_the_plan_predicts_a_cell_of_the_sweep():
    experiment = load_experiment("mnist16", ["discovery.pool=0", "discovery.strategy=node", "discovery.batch_size=128"])
    probe = measure_apart(experiment, "cuda", 0)
    for strategy, keep in (("node", 0), ("vanilla", 20)):
        (cell,) = sweep.cells(experiment, [strategy], [20], device="cuda", repeats=2)
        row = sweep.measure_apart(cell)
        assert row.status == "ok", row.error
        assert predict(probe, experiment, 20, keep, strategy).memory_mib == pytest.approx(row.memory_mib, rel=0.1)


def test_a_norm_copies_no_activations_to_float32():
    norm = GroupNorm32(64).to(CUDA)
    x, held = torch.randn(4, 64, 16, 16, device=CUDA).bfloat16().requires_grad_(), []
    with (
        torch.autocast("cuda", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda v: held.append(v) or v, lambda v: v),
    ):
        found = norm(x)
    assert found.dtype == torch.bfloat16
    assert {v.numel() for v in held if v.dtype == torch.float32} == {4 * 32}  # a mean and a deviation a group
    torch.testing.assert_close(found.float(), norm(x.detach().float()), rtol=0.02, atol=0.02)
    found.sum().backward()
    assert x.grad.isfinite().all()
