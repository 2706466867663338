"""Approximate gradients against closed forms of a linear chain, and against the exact gradient where they equal it."""

import math

import numpy as np
import pytest
import torch
from samplers import sampler_of
from torch import nn

from hbench.config import Discovery
from hbench.core.approximations import StoppedInput, accumulate, check_reached, linear, per_step, reached
from hbench.core.backbone import Backbone
from hbench.core.chain import backpropagate
from hbench.errors import HBenchError
from hbench.evaluation.agreement import compare
from hbench.models.adm import ADMConfig, UNetModel
from hbench.models.shift import ShiftBlock

VISITED, T_SHIFT = (999, 799, 599, 399, 199), 400
SHIFTED = VISITED[:3]


class Linear:
    """A backbone whose eps is ``c`` h_t, with h_t = ``w`` x_t."""

    h_shape, emb_channels, in_channels, prediction = (1, 4, 4), 1, 1, "eps"

    def __init__(self, c=0.3, w=0.7):
        self.c, self.w = c, w

    def encode(self, x, t):
        return self.w * x, [], torch.zeros(len(x), 1)

    def decode(self, h, skips, emb):
        return self.c * h


def settings(gradient="chain", **values):
    return Discovery(K=2, S=1, M=5, t_shift=T_SHIFT, steps=1, strategy="vanilla", gradient=gradient, **values)


def found(network, gradient="chain", **values):
    """The derivative of the sum of x'_0 by the shift of each shifted timestep, or nan where there is none."""
    shifts = {t: nn.Parameter(torch.tensor(0.1, dtype=torch.float64)) for t in SHIFTED}
    torch.manual_seed(0)
    x_T = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    sampler = sampler_of(network, VISITED, T_SHIFT, image_shape=(1, 4, 4))
    accumulate(settings(gradient, **values), sampler, lambda h, emb, t: shifts[t] + 0 * h, x_T, torch.sum)
    return np.array([math.nan if p.grad is None else p.grad.item() for p in shifts.values()])


def expected(network, *, jacobian=True):
    """The same by hand: each step multiplies x_t by a and adds b times the shift."""
    transitions = sampler_of(network, VISITED, T_SHIFT).transitions
    eps = network.c * network.w if jacobian else 0.0
    a, b = [], []
    for step in transitions:
        ratio = math.sqrt(step.alpha_bar_prev / step.alpha_bar_t)
        noise, noise_prev = math.sqrt(1 - step.alpha_bar_t), math.sqrt(1 - step.alpha_bar_prev)
        a.append(ratio * (1 - noise * eps) + noise_prev * eps)
        b.append(-ratio * noise * network.c)
    return np.array([32 * b[i] * math.prod(a[i + 1 :]) for i in range(len(SHIFTED))])


def predicted(network):
    """The derivatives of the sums of P_t."""
    steps = sampler_of(network, VISITED, T_SHIFT).transitions[: len(SHIFTED)]
    return np.array([-32 * math.sqrt(1 / step.alpha_bar_t - 1) * network.c for step in steps])


def test_each_gradient_of_a_linear_chain_has_its_closed_form():
    network, nan = Linear(), math.nan
    exact = expected(network)
    np.testing.assert_allclose(found(network), exact)
    np.testing.assert_allclose(found(network, "linear"), expected(network, jacobian=False))
    np.testing.assert_allclose(found(network, "truncated", last_steps=4), [nan, *exact[1:]])
    np.testing.assert_allclose(found(network, "truncated", last_steps=3), [nan, nan, exact[2]])
    np.testing.assert_allclose(found(network, "one-step"), [nan, nan, predicted(network)[2]])
    np.testing.assert_allclose(found(network, "per-step"), predicted(network))
    assert not np.allclose(exact, expected(network, jacobian=False), rtol=0.1)  # the toy tells them apart


def test_truncated_to_all_steps_and_linear_for_a_constant_network_are_exact():
    np.testing.assert_allclose(found(Linear(), "truncated", last_steps=5), found(Linear()), rtol=1e-12)
    np.testing.assert_allclose(found(Linear(w=0.0), "linear"), found(Linear(w=0.0)), rtol=1e-12)


@pytest.mark.parametrize("gradient", ["linear", "truncated", "one-step", "per-step"])
def test_samples_are_those_of_the_exact_chain(gradient):
    sampler = sampler_of(Linear(), VISITED, T_SHIFT, image_shape=(1, 4, 4))
    shift, x_T = nn.Parameter(torch.tensor(0.1)), torch.randn(2, 1, 4, 4)
    _, exact = backpropagate(sampler.steps(lambda h, emb, t: shift + 0 * h), x_T, torch.sum)
    chosen = settings(gradient, last_steps=3 if gradient == "truncated" else None)
    loss, x_0 = accumulate(chosen, sampler, lambda h, emb, t: shift + 0 * h, x_T, torch.sum)
    torch.testing.assert_close(x_0, exact)
    assert not x_0.requires_grad
    assert not loss.requires_grad


def test_per_step_calls_back_after_each_gradient():
    sampler = sampler_of(Linear(), VISITED, T_SHIFT, image_shape=(1, 4, 4))
    shift, seen, x_T = nn.Parameter(torch.tensor(0.1)), [], torch.randn(2, 1, 4, 4)
    per_step(sampler, lambda h, emb, t: shift + 0 * h, x_T, torch.sum, lambda: seen.append(shift.grad.item()))
    assert len(set(seen)) == len(SHIFTED)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = UNetModel(
        ADMConfig(
            image_size=16, in_channels=1, out_channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1
        )
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model.double().eval().requires_grad_(False)


def gradient_of(network, prediction, function, **how):
    torch.manual_seed(1)
    block = ShiftBlock(network.h_shape[0], network.emb_channels, 2).double()
    nn.init.normal_(block.out_weight, std=0.1)
    network.prediction = prediction
    sampler = sampler_of(network, VISITED, T_SHIFT)
    k, x_T = torch.tensor([0, 1]), torch.randn(2, 1, 16, 16, dtype=torch.float64)
    function(sampler, lambda h, emb, t: block(h, emb, k), x_T, lambda x: (x**2).mean(), **how)
    return torch.cat([p.grad.flatten() for p in block.parameters()])


def exact(sampler, delta_h, x_T, objective, **how):
    backpropagate(sampler.steps(delta_h), x_T, objective, **how)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("function", [exact, linear])
def test_node_and_vanilla_are_equal_in_float64(network, function, prediction):
    vanilla, node = (gradient_of(network, prediction, function, strategy=each) for each in ("vanilla", "node"))
    torch.testing.assert_close(node, vanilla, rtol=0, atol=1e-12 * vanilla.abs().max().item())
    other = gradient_of(network, prediction, exact if function is linear else linear, strategy="vanilla")
    assert (vanilla - other).norm() > 1e-3 * vanilla.norm()


def test_a_stopped_network_is_a_backbone_and_hands_nothing_back(network):
    stopped, x = StoppedInput(network), torch.randn(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    assert isinstance(stopped, Backbone)
    h, skips, emb = stopped.encode(x, torch.tensor([5]))
    assert not any(each.requires_grad for each in (h, *skips, emb))


def test_what_is_reached():
    assert reached(settings(), VISITED) == SHIFTED
    assert reached(settings("one-step"), VISITED) == (599,)
    assert reached(settings("truncated", last_steps=4), VISITED) == (799, 599)
    assert reached(settings("truncated", last_steps=2), VISITED) == ()
    check_reached(settings("truncated", last_steps=3), VISITED)
    with pytest.raises(HBenchError, match=r"discovery.last_steps = 2 reaches no shifted timestep.*need at least 3"):
        check_reached(settings("truncated", last_steps=2), VISITED)


def test_cosines_and_ratios_of_known_vectors():
    exact = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    other = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    cosine, ratio = compare(other, exact)
    np.testing.assert_allclose(cosine, [math.sqrt(0.5), math.nan, math.nan, 1.0])
    np.testing.assert_allclose(ratio, [math.sqrt(0.5), math.nan, math.nan, 1.0])
