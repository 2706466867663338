"""Gradients of the shift block compared with the exact one, timestep by timestep.

The shift block is used at every shifted timestep, and its gradient is the sum of as many contributions. A copy of the
block for each timestep takes them apart, whatever the gradient is: each copy gets its own contribution.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hbench.config import Discovery, Experiment
from hbench.core import seeds
from hbench.core.approximations import accumulate, reached
from hbench.core.directions import draw_shifts, own_direction
from hbench.core.intervals import student, student_of_logarithms
from hbench.core.sampler import Sampler
from hbench.runtime.progress import progress
from hbench.store.records import Count, Interval, Nonnegative, Number
from hbench.training.step import Trained, antithetic, losses

ANOTHER = "another batch"
"""Name of the yardstick: the exact gradient of another batch."""
TINY = 1e-30
"""Norm below which a gradient counts as none."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of one gradient with the exact one of the same batch, over ``n`` batches.

    The gradients are those of all parameters of the shift block.
    """

    stage: str
    """Part of a training: "start", "middle" or "end"."""
    method: str
    """Name of the gradient; "another batch" compares the exact gradients of two batches, as a yardstick."""
    t: Count | None
    """Timestep of the contribution that is compared; None for the whole gradient."""
    n: Count
    """Number of batches that have both gradients."""
    cosine: Number
    """Mean cosine; nan, as all numbers, where ``reason`` says why there is none."""
    cosine_interval: Interval
    ratio: Nonnegative
    """Geometric mean of the norm over that of the exact gradient."""
    ratio_interval: Interval
    reason: str | None = None
    """Reason for there being no number, in words."""


@dataclass(frozen=True)
class Batch:
    """Random inputs of one training step, without the networks."""

    x_T: Tensor
    """Starting noise, [B, C, H, W]."""
    x_0: Tensor
    """Raw samples from it, [B, C, H, W]."""
    k: Tensor
    """Directions, [B]."""
    s: Tensor
    """Magnitudes, [B]."""
    noise: Tensor | None
    """Noise that the reconstructor sees, [B, 2, C, H, W]; None for none."""


def draw_batches(settings: Discovery, sampler: Sampler, count: int, seed: int) -> Iterator[Batch]:
    """Draw fresh batches as a training step does; each follows from the seed and its number. Cost: a chain a pair."""
    B, device = settings.batch_size, sampler.device
    for i in range(count):
        generator = torch.Generator().manual_seed(seeds.gradient_batch(seed, i))
        x_T = torch.randn(B, *sampler.image_shape, generator=generator)
        k, s = draw_shifts(B, settings.K, settings.S, settings.min_magnitude, generator)
        noise = None
        if settings.reconstructor_noise:
            unit = torch.randn(B, 2, *sampler.image_shape, generator=generator)
            noise = (settings.reconstructor_noise * unit).to(device)
        if settings.lambda_odd:
            x_T, _, k, s = antithetic(x_T, None, k, s)
        x_T = x_T.to(device)
        yield Batch(x_T, sampler.generate(x_T), k.to(device), s.to(device), noise)


def contributions(settings: Discovery, sampler: Sampler, trained: Trained, batch: Batch) -> Tensor:
    """Return the contribution of each shifted timestep to the gradient that ``discovery.gradient`` names.

    The networks stay as they are, but for the running statistics of the reconstructor. With "per-step" all timesteps
    see the same weights, as at the first of its optimiser steps.

    Args:
        settings: gradient, strategy and losses.
        sampler: frozen model and chain.
        trained: networks; only the shift block is differentiated.
        batch: inputs.

    Returns:
        [timesteps, parameters] in the order of ``sampler.shift_interval``, zero where no gradient arrives.
    """
    copies = {t: copy.deepcopy(trained.shift_block).requires_grad_() for t in sampler.shift_interval}

    def f(h: Tensor, emb: Tensor, k: Tensor, t: int) -> Tensor:
        found: Tensor = copies[t](h, emb, k, t)
        return found

    def objective(x_0_shifted: Tensor) -> Tensor:
        return losses(settings, trained, batch.x_0, x_0_shifted, batch.k, batch.s, batch.noise)["loss"]

    trained.reconstructor.train().requires_grad_(False)
    trained.discriminator.requires_grad_(False)
    accumulate(settings, sampler, own_direction(f, batch.k, batch.s), batch.x_T, objective)
    return torch.stack([_flat_gradient(each) for each in copies.values()])


def _flat_gradient(module: nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])


def agreements(
    stage: str,
    methods: Mapping[str, Experiment],
    exact: Experiment,
    sampler: Sampler,
    trained: Trained,
    batches: Iterable[Batch],
) -> list[Agreement]:
    """Compare gradients with the exact one on the same batches, each timestep's contribution and the whole.

    Cost: each gradient once a batch.

    Args:
        stage: name of the stage of the training.
        methods: experiment of each gradient, by its name.
        exact: experiment of the exact gradient.
        sampler: frozen model and chain.
        trained: networks at this stage.
        batches: inputs, of which two neighbours also give the yardstick.
    """
    timesteps = sampler.shift_interval
    arriving = {name: reached(each.discovery, sampler.timesteps) for name, each in methods.items()}
    found: dict[str, list[Compared]] = {name: [] for name, arrived in arriving.items() if arrived}
    found[ANOTHER], earlier = [], None
    for i, batch in enumerate(progress(batches, desc=f"gradients, {stage}", unit="batch")):
        truth = contributions(exact.discovery, sampler, trained, batch)
        for name in found.keys() - {ANOTHER}:
            found[name].append(compare(contributions(methods[name].discovery, sampler, trained, batch), truth))
        if earlier is not None and i % 2:  # neighbours in pairs, which share no batch
            found[ANOTHER].append(compare(earlier, truth))
        earlier = truth
    rows = []
    for name in (*methods, ANOTHER):
        for place, t in enumerate((*timesteps, None)):
            arrived = arriving.get(name, timesteps)
            if not arrived:
                rows.append(_none(stage, name, t, "no gradient: none of its steps is shifted"))
            elif t is not None and t not in arrived:
                rows.append(_none(stage, name, t, "no gradient: it does not reach this timestep"))
            else:
                rows.append(_mean(stage, name, t, [each[:, place] for each in found[name]]))
    return rows


Compared = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""Cosine and ratio of norms, of each timestep and of the whole: [2, timesteps + 1]."""


def compare(gradient: Tensor, exact: Tensor) -> Compared:
    """Return cosines and ratios of norms of contributions [timesteps, parameters] and, last, of their sums.

    A value is nan where one of both is none.
    """
    one, other = (torch.cat([each, each.sum(0, keepdim=True)]).double().cpu() for each in (gradient, exact))
    norm, norm_exact = one.norm(dim=1), other.norm(dim=1)
    cosine = (one * other).sum(1) / (norm * norm_exact)
    both = torch.stack([cosine.clamp(-1, 1), norm / norm_exact]).numpy()
    both[:, ((norm < TINY) | (norm_exact < TINY)).numpy()] = np.nan
    return both


def _mean(stage: str, method: str, t: int | None, values: list[np.ndarray]) -> Agreement:
    defined = np.array([each for each in values if np.isfinite(each).all()]).reshape(-1, 2)
    if not len(defined):
        return _none(stage, method, t, "no gradient: it is zero in every batch")
    cosines, ratios = defined.T
    low, high = (float(bound) for bound in student(cosines))
    return Agreement(
        stage=stage,
        method=method,
        t=t,
        n=len(defined),
        cosine=float(cosines.mean()),
        cosine_interval=(max(-1.0, low), min(1.0, high)) if len(defined) > 1 else (low, high),
        ratio=float(np.exp(np.log(ratios).mean())),
        ratio_interval=student_of_logarithms(ratios),
    )


def _none(stage: str, method: str, t: int | None, reason: str) -> Agreement:
    nothing = (float("nan"), float("nan"))
    return Agreement(
        stage=stage,
        method=method,
        t=t,
        n=0,
        cosine=nothing[0],
        cosine_interval=nothing,
        ratio=nothing[0],
        ratio_interval=nothing,
        reason=reason,
    )
