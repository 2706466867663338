from functools import partial
from typing import get_args

import pytest
import torch
from samplers import sampler_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hbench.config import Discovery
from hbench.core.chain import Strategy, backpropagate, run_chain
from hbench.errors import HBenchError
from hbench.models import build_model
from hbench.models.adm import ADMConfig, UNetModel
from hbench.models.recompute import checkpoint_blocks
from hbench.models.shift import ShiftBlock
from hbench.runtime.device import autocast, cast_frozen
from hbench.runtime.memory import saved_tensors_peak
from hbench.training.freeze import freeze

CPU = torch.device("cpu")

STRATEGIES = {
    "vanilla": {"strategy": "vanilla"},
    "node": {"strategy": "node"},
    "keep 1": {"strategy": "node", "keep": 1},
    "keep 2": {"strategy": "node", "keep": 2},
    "nodes on the CPU": {"strategy": "node", "keep": 1, "nodes": "cpu"},
    "offload": {"strategy": "offload"},
    "torch-checkpoint": {"strategy": "torch-checkpoint"},
}
each_strategy = pytest.mark.parametrize("how", STRATEGIES.values(), ids=STRATEGIES)


def test_every_strategy_is_tested_here_and_can_be_chosen():
    names = set(get_args(Strategy))
    assert {how["strategy"] for how in STRATEGIES.values()} == names
    assert set(get_args(Discovery.model_fields["strategy"].annotation)) == names | {"auto"}


class Toy(nn.Module):
    def __init__(self, width=4, frozen=False):
        super().__init__()
        self.linear = nn.Linear(width, width).double().requires_grad_(not frozen)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + torch.tanh(self.linear(x))


def toy_chain(length=5, frozen=()):
    torch.manual_seed(0)
    return [Toy(frozen=i in frozen) for i in range(length)], torch.randn(3, 4, dtype=torch.float64)


def cubic(x):
    return (x**3).sum() + x.sin().mean()


def gradients(steps):
    return [p.grad for step in steps for p in step.parameters()]


@each_strategy
@pytest.mark.parametrize("frozen", [(), (0, 1), (2,), (4,)])
def test_equals_plain_backward(how, frozen):
    steps, x_T = toy_chain(frozen=frozen)
    x = x_T
    for step in steps:
        x = step(x)
    expected_loss = cubic(x)
    expected_loss.backward()
    expected = [None if g is None else g.clone() for g in gradients(steps)]
    for step in steps:
        step.zero_grad()
    loss, x_0 = backpropagate(steps, x_T, cubic, **how)
    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-12)
    assert torch.equal(x_0, x.detach())
    assert not loss.requires_grad
    assert not x_0.requires_grad
    for got, wanted in zip(gradients(steps), expected, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@each_strategy
def test_equals_plain_backward_where_a_step_passes_no_gradient_on(how):
    steps, x_T = toy_chain()
    cut = [*steps[:2], lambda x: x.detach(), *steps[2:]]
    _, x_0 = backpropagate(cut, x_T.requires_grad_(), cubic, **how)
    assert torch.equal(x_0, run_chain(steps, x_T))
    assert [step.linear.weight.grad is None for step in steps] == [True, True, False, False, False]
    assert x_T.grad is None
    found = gradients(steps[2:])
    for step in steps:
        step.zero_grad()
    cubic(run_chain(cut, x_T)).backward()
    for got, wanted in zip(found, gradients(steps[2:]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


@each_strategy
def test_equals_finite_differences(how):
    steps, x_T = toy_chain()
    backpropagate(steps, x_T, cubic, **how)

    def loss_at(parameter, index, offset):
        with torch.no_grad():
            parameter.view(-1)[index] += offset
            x = x_T
            for step in steps:
                x = step(x)
            parameter.view(-1)[index] -= offset
            return cubic(x).item()

    h = 1e-5
    for step in steps:
        for index in (0, 7):
            weight = step.linear.weight
            slope = (loss_at(weight, index, h) - loss_at(weight, index, -h)) / (2 * h)
            assert weight.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_offload_moves_activations_only(monkeypatch):
    moved = []

    class Recording(torch.autograd.graph.save_on_cpu):
        def __init__(self, pin_memory):
            super().__init__(pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda saved: (moved.append(saved.data_ptr()), pack(saved))[1]

    monkeypatch.setattr("hbench.core.chain.save_on_cpu", Recording)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.SiLU(), nn.Linear(4, 4))
    backpropagate([layers] * 3, torch.randn(1, 2, 4, 4), cubic, "offload")
    assert len(moved) > 3
    assert not {p.data_ptr() for p in layers.parameters()} & set(moved)


@each_strategy
def test_gradients_accumulate_and_reach_the_objective(how):
    steps, x_T = toy_chain()
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    backpropagate(steps, x_T, lambda x: scale * cubic(x), **how)
    once = [g.clone() for g in [*gradients(steps), scale.grad]]
    backpropagate(steps, x_T, lambda x: scale * cubic(x), **how)
    for g, first in zip([*gradients(steps), scale.grad], once, strict=True):
        torch.testing.assert_close(g, 2 * first)


@each_strategy
def test_reaches_x_T_only_if_it_requires_a_gradient(how):
    steps, x_T = toy_chain()
    reference = x_T.clone().requires_grad_()
    backpropagate(steps, reference, cubic, "vanilla")
    x_T.requires_grad_()
    backpropagate(steps, x_T, cubic, **how)
    torch.testing.assert_close(x_T.grad, reference.grad, rtol=0, atol=1e-10)
    plain = x_T.detach()
    backpropagate(steps, plain, cubic, **how)
    assert plain.grad is None


@pytest.mark.parametrize("keep", range(6))
def test_node_recomputes_all_but_the_kept_steps(keep):
    steps, x_T = toy_chain()
    backpropagate(steps, x_T, cubic, "node", keep=keep)
    assert [step.calls for step in steps] == [2] * (5 - keep) + [1] * keep


@pytest.mark.parametrize("keep", [0, 2, 5])
def test_node_takes_the_nodes_that_the_caller_knows(keep):
    steps, x_T = toy_chain()
    backpropagate(steps, x_T, cubic, "vanilla")
    expected = [g.clone() for g in gradients(steps)]
    nodes = [x_T]
    with torch.no_grad():
        for step in steps[: 5 - keep]:
            nodes.append(step(nodes[-1]))
    for step in steps:
        step.zero_grad()
        step.calls = 0
    backpropagate(steps, x_T, cubic, "node", keep, known_nodes=nodes)
    assert [step.calls for step in steps] == [1] * 5
    for got, wanted in zip(gradients(steps), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    with pytest.raises(ValueError, match=f"known_nodes must be {6 - keep}"):
        backpropagate(steps, x_T, cubic, "node", keep, known_nodes=[x_T] * 7)


def test_node_does_not_recompute_steps_before_the_first_trainable_one():
    steps, x_T = toy_chain(frozen=(0, 1))
    backpropagate(steps, x_T, cubic, "node")
    assert [step.calls for step in steps] == [1, 1, 2, 2, 2]


def test_node_never_differentiates_its_first_node():
    wanted = []

    class Spy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            wanted.append(ctx.needs_input_grad)
            x, w = ctx.saved_tensors
            return g * w, (g * x).sum()

    w = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    _, x_T = toy_chain()
    backpropagate([lambda x: Spy.apply(x, w)] * 3, x_T, cubic, "node")
    assert wanted == [(True, True), (True, True), (False, True)]


@each_strategy
def test_nodes_may_change_shape(how):
    torch.manual_seed(0)
    up, down = nn.Linear(4, 9).double(), nn.Linear(9, 2).double()
    _, x_0 = backpropagate([up, down], torch.randn(3, 4, dtype=torch.float64), cubic, **how)
    assert x_0.shape == (3, 2)
    assert up.weight.grad.abs().sum() > 0


def test_errors():
    steps, x_T = toy_chain()
    with pytest.raises(ValueError, match="strategy must be"):
        backpropagate(steps, x_T, cubic, "fast")
    with pytest.raises(ValueError, match=r"scalar, got shape \[3, 4\]"):
        backpropagate(steps, x_T, lambda x: x)
    for keep in (-1, 6):
        with pytest.raises(ValueError, match=r"keep must be in 0\.\.5"):
            backpropagate(steps, x_T, cubic, keep=keep)
    for setting in ({"keep": 1}, {"nodes": "cpu"}, {"known_nodes": [x_T]}):
        with pytest.raises(ValueError, match="keep, nodes and known_nodes go with"):
            backpropagate(steps, x_T, cubic, "vanilla", **setting)
    with pytest.raises(ValueError, match="nodes must be device or cpu, got 'disk'"):
        backpropagate(steps, x_T, cubic, nodes="disk")
    with pytest.raises(TypeError, match="go by known_nodes, got list"):
        backpropagate(steps, x_T, cubic, nodes=[x_T])
    frozen, x_T = toy_chain(frozen=range(5))
    for how in STRATEGIES.values():
        with pytest.raises(ValueError, match="nothing to train"):
            backpropagate(frozen, x_T, cubic, **how)


def unet_chain(M, dtype=torch.float32):
    torch.manual_seed(0)
    config = ADMConfig(
        image_size=16,
        in_channels=1,
        out_channels=1,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_heads=2,
        use_scale_shift_norm=True,
    )
    model = UNetModel(config)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    model = model.to(dtype).eval().requires_grad_(False)
    block = ShiftBlock(model.h_shape[0], model.emb_channels, K=3)
    nn.init.normal_(block.out_weight, std=0.05)
    block.to(dtype)
    k = torch.tensor([0, 2])
    steps = sampler_of(model, M, t_shift=400).steps(lambda h, emb, t: 2 * block(h, emb, k))
    return model, block, steps, torch.randn(2, 1, 16, 16).to(dtype)


@pytest.mark.slow
def test_strategies_agree_on_the_diffusion_chain():
    found = []
    for how in STRATEGIES.values():
        model, block, steps, x_T = unet_chain(5, torch.float64)
        loss, x_0 = backpropagate(steps, x_T, lambda x: x.square().mean(), **how)
        assert all(p.grad is None for p in model.parameters())
        found.append([loss, x_0, *(p.grad for p in block.parameters())])
        assert all(g.abs().sum() > 0 for g in found[-1][2:])
        assert block.out_weight.grad[1].abs().sum() == 0  # direction 1 was not drawn
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def shift_gradient(how, dtype, precision="float32"):
    model, block, steps, x_T = unet_chain(5, dtype)
    cast_frozen(model, precision)
    with autocast(x_T.device, precision):
        backpropagate(steps, x_T, lambda x: x.float().square().mean(), **how)
    return torch.cat([p.grad.flatten() for p in block.parameters()]).double()


@each_strategy
def test_gradients_of_each_precision(how):
    exact = shift_gradient({"strategy": "vanilla"}, torch.float64)
    single = shift_gradient(how, torch.float32)
    assert (single - exact).norm() <= 1e-5 * exact.norm()
    half = shift_gradient(how, torch.float32, "bfloat16")
    assert torch.cosine_similarity(half, exact, dim=0) > 0.98


def test_weights_that_are_cast_once_give_the_same_bits():
    model, _, steps, x_T = unet_chain(3)
    with torch.no_grad(), autocast(x_T.device, "bfloat16"):
        expected = run_chain(steps, x_T)
        cast_frozen(model, "bfloat16")
        assert torch.equal(run_chain(steps, x_T), expected)
    assert model.out[-1].weight.dtype == torch.bfloat16


def test_checkpointed_blocks_give_the_same_gradients_and_run_twice():
    calls = []
    found = []
    for recomputed in (False, True):
        model, block, steps, x_T = unet_chain(3, torch.float64)
        checkpoint_blocks(model, recomputed)
        model.middle_block[0].register_forward_hook(lambda *_: calls.append(1))
        calls.clear()
        backpropagate(steps, x_T, lambda x: x.square().mean(), "vanilla")
        found.append([len(calls), [p.grad for p in block.parameters()]])
    assert [count for count, _ in found] == [3, 5]  # the first encoder pass needs no gradient
    for plain, checkpointed in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=1e-12)


def test_a_network_without_blocks_is_not_checkpointed_in_silence():
    checkpoint_blocks(Toy(), False)
    with pytest.raises(HBenchError, match="Toy has no blocks to recompute: leave it out"):
        checkpoint_blocks(Toy())


@each_strategy
def test_the_chain_never_asks_the_device_for_a_number(how):
    class NoSynchronisation(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            name = function.name()
            if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"):
                assert arguments[0].dtype == torch.float64, name  # the schedule, which is always on the CPU
            return function(*arguments, **(options or {}))

    _, _, steps, x_T = unet_chain(3)
    with NoSynchronisation():
        backpropagate(steps, x_T, lambda x: x.square().mean(), **how)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            x_T.mean().item()


def test_compiling_without_a_compiler_is_refused(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update={"compile": True})})
    with pytest.raises(HBenchError, match=r"needs a compiler: install g\+\+"):
        freeze(wanted, build_model(tiny), CPU)


@pytest.mark.slow
def test_compiled_once_for_all_timesteps(tiny, monkeypatch):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    wanted = tiny.model_copy(
        update={"discovery": tiny.discovery.model_copy(update={"compile": True, "precision": "float32"})}
    )
    plain = build_model(tiny)
    model = freeze(wanted, plain, CPU)
    x = torch.randn(2, 1, 16, 16)

    def generate(M):
        return sampler_of(model, M).generate(x)

    torch.testing.assert_close(generate(2), sampler_of(plain, 2).generate(x))
    frames = counter.frame_count
    assert frames >= 2
    generate(9)
    assert counter.frame_count == frames


def saved_bytes_peak(M, **how):
    _, _, steps, x_T = unet_chain(M)
    return saved_tensors_peak(lambda: backpropagate(steps, x_T, lambda x: x.square().mean(), **how))


@pytest.mark.slow
def test_saved_bytes_are_flat_for_node_and_grow_for_vanilla():
    node = {M: saved_bytes_peak(M, strategy="node") for M in (10, 20, 40)}
    assert node[40] <= 1.05 * node[10]
    assert saved_bytes_peak(20, strategy="vanilla") >= 5 * node[20]


@pytest.mark.slow
def test_saved_bytes_grow_evenly_with_the_kept_steps():
    held = [saved_bytes_peak(10, keep=keep) for keep in (0, 1, 6, 10)]
    assert held[0] <= held[1] < held[2] < held[3]
    assert saved_bytes_peak(10, strategy="vanilla") == held[3]
