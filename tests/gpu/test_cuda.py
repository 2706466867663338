"""What only a CUDA GPU can show: ``pytest tests/gpu``. Skipped, visibly, where there is none, and among the
other tests, which are of the CPU."""

import pytest
import torch
from command_line import TINY

from hbench.core.chain import backpropagate
from hbench.core.directions import draw_shifts, own_direction
from hbench.core.sampler import Sampler
from hbench.evaluation import sweep_cells as sweep
from hbench.experiments import load_experiment
from hbench.models import build_model
from hbench.runtime.device import pick_device
from hbench.runtime.memory import MIB
from hbench.training.cost import predict
from hbench.training.freeze import freeze
from hbench.training.probe import measure_apart
from hbench.training.step import initial, raw_pairs, train_step

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


def gradient(strategy, **discovery):
    """The shift block's gradient, and x_0."""
    experiment, sampler = setup(**discovery)
    settings = experiment.discovery
    block = initial(experiment, sampler, 0).shift_block
    torch.nn.init.normal_(block.out_weight, std=0.05)
    k, s = (v.to(CUDA) for v in draw_shifts(4, settings.K, settings.S, 0.5, torch.Generator().manual_seed(0)))
    x_T = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(CUDA)
    steps = sampler.steps(own_direction(block, k, s))
    for _ in range(3):  # CUDA graphs are recorded at the second run and replayed at the third
        block.zero_grad()
        with sampler.autocast():
            backpropagate(steps, x_T, lambda x: x.square().mean(), **strategy)
    return torch.cat([p.grad.flatten() for p in block.parameters()]).double()


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


@pytest.mark.parametrize("strategy", [{"strategy": "node"}, {"strategy": "vanilla"}])
def test_compiled_and_replayed_steps_give_the_same_gradients(strategy):
    eager = gradient(strategy, precision="float32")
    compiled = gradient(strategy, precision="float32", compile=True)
    assert (compiled - eager).norm() <= 1e-3 * eager.norm()


@pytest.mark.parametrize("place", ["device", "cpu"])
def test_a_training_step_never_waits_for_the_device_inside_the_chain(place):
    experiment, sampler = setup(strategy="node", precision="float32")
    block = initial(experiment, sampler, 0).shift_block
    k, s = (v.to(CUDA) for v in draw_shifts(4, 3, 5.0, 0.5))
    x_T = torch.randn(4, 1, 16, 16).to(CUDA)
    steps = sampler.steps(own_direction(block, k, s))
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
