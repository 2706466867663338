"""Approximate gradients of the sampling chain, as the literature trains with them, beside the exact one.

The steps are x_{i+1} = F_i(x_i, theta), and g_i is the loss's gradient at node i. The exact gradient, that of
:func:`hbench.core.chain.backpropagate`, is the sum over i of (dF_i/dtheta)^T g_{i+1}, with g_i = (dF_i/dx_i)^T g_{i+1}.
Each approximation leaves something out:

| gradient | what it drops | as in |
|---|---|---|
| ``chain`` | nothing | Algorithm 1 of the paper, and DRaFT with all steps |
| ``linear`` | in dF_i/dx_i, the network's Jacobian; the rest of a DDIM step is linear | DRTune (Wu et al. 2024) |
| ``truncated`` | all terms but those of the last ``last_steps`` steps | DRaFT-K (Clark et al. 2024) |
| ``one-step`` | all terms but one, and the steps after it: the loss is that of its P_t | ReFL (Xu et al. 2023) |
| ``per-step`` | all steps after each term: the loss of each is that of its own P_t | DiffusionCLIP, Asyrp, Sec. 4.4 |

DRTune stops the gradient at the network's input. The linear path that stays is that of the network's own prediction:
its coefficient is sqrt(alpha_bar_prev / alpha_bar_t) for eps, as in DRTune, and for v the cosine of the step's angle
[reconstructed]; DRTune's choice of a subset of the steps and its early stop are left out. AlignProp (Prabhudesai et al.
2023) is ``truncated`` with a number of steps that is drawn anew for every batch; here it is a setting. ReFL takes the
loss at a random late timestep; here it is the last shifted one [reconstructed].

Not one of them is a gradient of the loss. Forward passes, and so samples, are those of the exact chain.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hbench.config import Discovery
from hbench.core.backbone import Backbone
from hbench.core.chain import Nodes, Step, Strategy, backpropagate, run_chain
from hbench.core.diffusion import DeltaH, regular_step, shifted_step
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError


def accumulate(
    settings: Discovery,
    sampler: Sampler,
    delta_h: DeltaH,
    x_T: Tensor,
    objective: Step,
    known_nodes: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradient that ``discovery.gradient`` names, and return the loss and x'_0.

    Args:
        settings: gradient, ``last_steps``, strategy, ``keep`` and ``nodes``; the strategy is not "auto".
        sampler: frozen model and chain.
        delta_h: shift, with what is trained in it.
        x_T: starting noise, [B, C, H, W].
        objective: image [B, C, H, W] -> scalar loss. It is called once with x'_0, or by "one-step" and "per-step" with
            the P_t of each timestep that gets a gradient.
        known_nodes: for "chain" and "linear", nodes that are known; see :func:`hbench.core.chain.backpropagate`.

    Returns:
        loss, by "per-step" the mean over its timesteps, and x'_0, both detached.

    Raises:
        ValueError: nothing that is trained gets a gradient.
    """
    assert settings.strategy != "auto"  # strategy.resolve has replaced it
    how = settings.strategy, settings.keep, settings.nodes
    if settings.gradient == "one-step":
        return one_step(sampler, delta_h, x_T, objective)
    if settings.gradient == "per-step":
        return per_step(sampler, delta_h, x_T, objective)
    if settings.gradient == "truncated":
        assert settings.last_steps  # the settings' own check
        return truncated(sampler, delta_h, x_T, objective, settings.last_steps, *how)
    if settings.gradient == "linear":
        return linear(sampler, delta_h, x_T, objective, *how, known_nodes=known_nodes)
    with sampler.autocast():
        return backpropagate(sampler.steps(delta_h), x_T, objective, *how, known_nodes=known_nodes)


def reached(settings: Discovery, visited: Sequence[int]) -> tuple[int, ...]:
    """Return the shifted ones of the visited timesteps whose shift gets a gradient, descending; maybe none."""
    shifted = tuple(t for t in visited if t >= settings.t_shift)
    if settings.gradient == "one-step":
        return shifted[-1:]
    if settings.gradient == "truncated" and settings.last_steps:
        return tuple(t for t in visited[-settings.last_steps :] if t >= settings.t_shift)
    return shifted


def check_reached(settings: Discovery, visited: Sequence[int]) -> None:
    """Raise an HBenchError, in one line, where no shift of the chain would get a gradient."""
    if not reached(settings, visited):
        least = sum(t < settings.t_shift for t in visited) + 1
        raise HBenchError(
            f"discovery.last_steps = {settings.last_steps} reaches no shifted timestep, so there is no gradient: the "
            f"first {len(visited) - least + 1} of the {len(visited)} steps are shifted: need at least {least}"
        )


# Approximations -----------------------------------------------------------------------------------------------------


def linear(
    sampler: Sampler,
    delta_h: DeltaH,
    x_T: Tensor,
    objective: Step,
    strategy: Strategy = "vanilla",
    keep: int = 0,
    nodes: Nodes = "device",
    known_nodes: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradient that no network hands back to its input, as in DRTune; see the module.

    It equals the exact one where the network's output does not depend on x_t. Cost: as the exact one, without graphs of
    encoders and of regular steps.
    """
    stopped = replace(sampler, backbone=StoppedInput(sampler.backbone), graphs=None)
    with sampler.autocast():
        return backpropagate(stopped.steps(delta_h), x_T, objective, strategy, keep, nodes, known_nodes=known_nodes)


def truncated(
    sampler: Sampler,
    delta_h: DeltaH,
    x_T: Tensor,
    objective: Step,
    last_steps: int,
    strategy: Strategy = "vanilla",
    keep: int = 0,
    nodes: Nodes = "device",
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradient through the last steps alone, as DRaFT-K does with K = ``last_steps``.

    It equals the exact one with all steps, and there is none where no timestep of them is shifted. Cost: graphs of
    these steps, and the others once without a graph.
    """
    chain = sampler.steps(delta_h)
    first = len(chain) - last_steps
    with sampler.autocast():
        with torch.no_grad():
            x_t = run_chain(chain[:first], x_T)
        return backpropagate(chain[first:], x_t, objective, strategy, min(keep, last_steps), nodes)


def one_step(sampler: Sampler, delta_h: DeltaH, x_T: Tensor, objective: Step) -> tuple[Tensor, Tensor]:
    """Accumulate the gradient through the last shifted timestep alone, on the objective of its P_t, as in ReFL.

    Cost: one graph, and one pass of the chain.
    """
    chain, last = sampler.steps(delta_h), len(sampler.shift_interval) - 1
    with sampler.autocast():
        with torch.no_grad():
            x_t = run_chain(chain[:last], x_T)
        x_prev, predicted = shifted_step(sampler.backbone, sampler.transitions[last], delta_h, x_t)
        loss = objective(predicted)
        loss.backward()
        with torch.no_grad():
            x_0 = run_chain(chain[last + 1 :], x_prev.detach())
    return loss.detach(), x_0


def per_step(
    sampler: Sampler, delta_h: DeltaH, x_T: Tensor, objective: Step, after: Callable[[], object] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradient of every shifted timestep on the objective of its own P_t (Sec. 4.4).

    It is the "GPU-efficient" training of DiffusionCLIP and Asyrp, which take an optimiser step at each of these
    timesteps: ``after`` is called then. No gradient passes from node to node, and each node is made with the weights
    before its optimiser step. Cost: one pass of the chain, memory of one step.
    """
    x_t, found = x_T, []
    for step in sampler.transitions:
        with sampler.autocast():
            if step.t < sampler.t_shift:
                x_t = regular_step(sampler.backbone, step, x_t)
                continue
            x_prev, predicted = shifted_step(sampler.backbone, step, delta_h, x_t)
            loss = objective(predicted)
        loss.backward()
        after()
        found.append(loss.detach())
        x_t = x_prev.detach()
    return torch.stack(found).mean(), x_t


class StoppedInput:
    """A backbone that hands no gradient back to its input; everything else is that of the given one."""

    def __init__(self, backbone: Backbone) -> None:
        self.h_shape, self.emb_channels = backbone.h_shape, backbone.emb_channels
        self.in_channels, self.prediction = backbone.in_channels, backbone.prediction
        self._encode, self.decode = backbone.encode, backbone.decode

    def encode(self, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return h_t, the skip connections and the time embedding, of images that get no gradient."""
        return self._encode(x.detach(), t)
