"""Mean directions of random samples, the groups behind their intervals, and edits along them (Sec. 5.4)."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hbench.core import seeds
from hbench.core.directions import Directions, Source, global_direction, mean_direction
from hbench.core.sampler import BATCH, Sampler
from hbench.runtime.device import float64_device
from hbench.runtime.progress import progress
from hbench.store.run import Run

GROUPS = 20
"""Groups of the samples, for the jackknife."""


class GroupedMeans(NamedTuple):
    """Mean directions of samples, and sums over groups of these samples."""

    directions: Directions
    sums: Tensor
    """Sums of the shift block's hidden features over each group, float64 [groups, timesteps, C, H, W]."""
    sizes: Tensor
    """Number of samples in each group, [groups]."""


def mean_directions(run: Run, n: int, seed: int = 0, M: int | None = None) -> Directions:
    """Return the mean over ``n`` samples of f_k(h_t, t), at each timestep of the shift interval.

    The point h_t is that of the sample's regular chain, before any edit, so that no magnitude is needed. A separate
    random stream gives x_T, so that none of the samples is one that other measurements draw with ``seed``. Cost: one
    chain a sample, for all K directions together, since the output convolutions of the shift block are affine.

    Args:
        run: run with the directions.
        n: number of samples.
        seed: seed of the samples.
        M: number of generation steps; the run's by default.
    """
    return grouped_means(run, n, seed, M).directions


def grouped_means(run: Run, n: int, seed: int, M: int | None) -> GroupedMeans:
    """Return the mean directions of n samples, and the groups for the jackknife; see :func:`mean_directions`."""
    stream = seeds.mean_samples(seed, n)
    sampler = run.sampler.with_steps(M)
    group = torch.arange(n) % min(GROUPS, n)
    sums: Tensor | None = None
    with progress(total=n, desc="mean direction", unit="image") as bar:
        for first in range(0, n, BATCH):
            _, hidden = regular_with_hidden(run, sampler, run.noise(min(BATCH, n - first), seed=stream, first=first))
            if sums is None:
                shape, where = (int(group.max()) + 1, *hidden[0].shape), float64_device(hidden.device)
                sums = torch.zeros(shape, dtype=torch.float64, device=where)
            sums.index_add_(0, group[first : first + BATCH].to(sums.device), hidden.to(sums.device).double())
            bar.update(len(hidden))
    assert sums is not None
    means = Directions(sampler.shift_interval, directions_of(run, sums.sum(0) / n), n, seed)
    return GroupedMeans(means, sums, torch.bincount(group).to(sums.device))


def regular_with_hidden(run: Run, sampler: Sampler, x_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return x_0 of the regular process, and the shift block's hidden features in it, [B, timesteps, C, H, W]."""
    seen = []

    def record(h: Tensor, emb: Tensor, t: int) -> Tensor:
        seen.append(run.shift_block.hidden(h, emb, t).float())
        return torch.zeros_like(h)

    x_0 = sampler.generate(x_T, record)
    return x_0, torch.stack(seen, dim=1)


@torch.no_grad()
def directions_of(run: Run, hidden: Tensor) -> Tensor:
    """Return all directions, float32 [K, timesteps, C, H, W], of mean hidden features [timesteps, C, H, W]."""
    hidden = hidden.float().to(run.device)
    return torch.stack([run.shift_block.direction(hidden, k) for k in range(run.shift_block.K)])


@torch.no_grad()
def compare(
    run: Run,
    directions: Directions,
    shown: Sequence[int],
    values: Sequence[float],
    x_T: Tensor,
    M: int | None = None,
) -> Tensor:
    """Return the images of Fig. 9: float32 [shown, examples, 1 + 3 * values, C, H, W], on the CPU.

    Each row shows one of x_T [examples, C, H, W]: the original, then its own, mean and time-invariant edit at each
    magnitude of ``values``.
    """
    sampler = run.sampler.with_steps(M)
    original = sampler.generate(x_T)
    panels = []
    for k in shown:
        chosen = torch.full((len(x_T),), k, device=run.device)
        row = [original]
        for s in values:
            magnitude = torch.full((len(x_T),), s, device=run.device)
            row += [sampler.generate(x_T, source(chosen, magnitude)) for source in sources(run, directions)]
        panels.append(torch.stack(row, dim=1).cpu())
    return torch.stack(panels)


def sources(run: Run, directions: Directions) -> list[Source]:
    """Return the three sources of delta_h: each sample's own directions, their mean, and the time-invariant ones."""
    return [run.own, partial(mean_direction, directions), partial(global_direction, directions)]
