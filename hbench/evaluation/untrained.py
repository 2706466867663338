"""Shift blocks that nobody trained: the homogeneity and consistency that come with h-space itself (Sec. 5.4).

A cosine near 1 shows what training did only as far as it exceeds that of the same network with random weights.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hbench.core import seeds
from hbench.core.intervals import Array, student
from hbench.core.sampler import BATCH
from hbench.evaluation.estimates import consistency
from hbench.evaluation.mean_directions import directions_of
from hbench.models.shift import AnyShift, build_shift_block, randomise_outputs
from hbench.runtime.device import float64_device
from hbench.runtime.progress import progress
from hbench.store.records import Interval, Number
from hbench.store.run import Run

BLOCKS = 10
"""Number of blocks of each kind: enough for intervals of about 0.01, at little cost beside the edits."""


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """Homogeneity and consistency of shift blocks with random weights and the run's number of directions.

    Each number is a mean over blocks. Its 95 % interval is Student's over them: it tells the spread of the weights.
    """

    blocks: int
    """Number of blocks, each with other weights."""
    homogeneity: Number
    homogeneity_interval: Interval
    homogeneity_at: list[Number]
    """Homogeneity at each timestep."""
    consistency: Number
    consistency_interval: Interval


def untrained(run: Run, samples: int, pairs: int, seed: int, M: int | None = None) -> tuple[Untrained, Untrained]:
    """Measure homogeneity and consistency without training, on the same samples as those of the run.

    Cost: ``samples`` + ``pairs`` chains.

    Args:
        run: run that is compared.
        samples: number of samples in the mean directions.
        pairs: number of other samples, whose directions are compared with the mean.
        seed: seed of the samples and of the weights.
        M: number of generation steps; the run's by default.

    Returns:
        The numbers of the run's own block with random output convolutions, so on the same features (of fixed
        directions, those of Gaussian ones), and those of wholly untrained blocks: initialised as for training, but for
        the outputs, which would be zero.
    """
    kinds = [_random_outputs(run, seed), _fresh(run, seed)]
    found = _measure(run, [block for kind in kinds for block in kind], samples, pairs, seed, M)
    outputs, fresh = (_summarise(*(values[rows] for values in found)) for rows in (slice(BLOCKS), slice(BLOCKS, None)))
    return outputs, fresh


def _random_outputs(run: Run, seed: int) -> list[AnyShift]:
    return _drawn(run, seed, lambda: copy.deepcopy(run.shift_block))


def _fresh(run: Run, seed: int) -> list[AnyShift]:
    return _drawn(run, seed, lambda: build_shift_block(run.experiment, run.model))


@torch.no_grad()
def _drawn(run: Run, seed: int, make: Callable[[], AnyShift]) -> list[AnyShift]:
    """Return the blocks that a function makes, with Gaussian output convolutions, on the run's device."""
    blocks = []
    for i in range(BLOCKS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.untrained_blocks(seed, i))
            block = randomise_outputs(make().cpu())  # on the CPU, so that no device changes the weights
        blocks.append(block.to(run.device).eval().requires_grad_(False))
    return blocks


@torch.no_grad()
def _measure(
    run: Run, blocks: list[AnyShift], samples: int, pairs: int, seed: int, M: int | None
) -> tuple[Array, Array]:
    """Return the homogeneity at each timestep, [blocks, timesteps], and the consistency, [blocks]."""
    timesteps, where = run.sampler.with_steps(M).shift_interval, float64_device(run.device)
    sums: dict[tuple[int, int], Tensor] = {}

    def add(i: int, b: int, hidden: Tensor) -> None:
        sums[b, i] = sums.get((b, i), 0) + hidden.to(where).double().sum(0)

    _visit(run, blocks, samples, seeds.mean_samples(seed, samples), M, add)
    means = [
        torch.stack([(sums[b, i] / samples).float().to(run.device) for i in range(len(timesteps))])
        for b in range(len(blocks))
    ]
    cosines = np.zeros((len(blocks), len(timesteps)))

    def compare(i: int, b: int, hidden: Tensor) -> None:
        for k in range(run.K):
            own, mean = blocks[b].direction(hidden, k), blocks[b].direction(means[b][i], k)
            cosines[b, i] += F.cosine_similarity(own.flatten(1), mean.flatten()[None]).cpu().double().sum().item()

    _visit(run, blocks, pairs, seed, M, compare)
    between = [
        consistency(directions_of(replace(run, shift_block=block), mean)).mean().item()
        for block, mean in zip(blocks, means, strict=True)
    ]
    return cosines / (pairs * run.K), np.array(between)


def _visit(
    run: Run, blocks: list[AnyShift], n: int, seed: int, M: int | None, see: Callable[[int, int, Tensor], None]
) -> None:
    """Call ``see`` with the hidden features of each block on regular chains of n samples.

    Its arguments are the index of the timestep, that of the block, and the features of a batch, float32 [B, C, H, W].
    """
    sampler = run.sampler.with_steps(M)
    index = {t: i for i, t in enumerate(sampler.shift_interval)}

    def observe(h: Tensor, emb: Tensor, t: int) -> Tensor:
        for b, block in enumerate(blocks):
            hidden = block.hidden(h, emb, t).float()
            with torch.autocast(run.device.type, enabled=False):
                see(index[t], b, hidden)
        return torch.zeros_like(h)

    with progress(total=n, desc="untrained blocks", unit="image") as bar:
        for first in range(0, n, BATCH):
            x_T = run.noise(min(BATCH, n - first), seed=seed, first=first)
            sampler.generate(x_T, observe)
            bar.update(len(x_T))


def _summarise(homogeneity_at: Array, between: Array) -> Untrained:
    """Return the numbers of homogeneities [blocks, timesteps] and consistencies [blocks] of one kind of block."""
    values = np.stack([homogeneity_at.mean(1), between], axis=1)
    (homogeneous, consistent), (lows, highs) = values.mean(0).tolist(), student(values)
    return Untrained(
        blocks=len(values),
        homogeneity=homogeneous,
        homogeneity_interval=(float(lows[0]), float(highs[0])),
        homogeneity_at=homogeneity_at.mean(0).tolist(),
        consistency=consistent,
        consistency_interval=(float(lows[1]), float(highs[1])),
    )
