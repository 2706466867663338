"""Samples and pairs that the measurements are made of."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hbench.core import seeds
from hbench.core.directions import Source, draw_shifts, own_direction
from hbench.core.sampler import BATCH, Sampler
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.run import Run


class Pairs(NamedTuple):
    """Raw samples and what one random shift makes of each, on the run's device."""

    x_0: Tensor
    x_0_shifted: Tensor
    k: Tensor
    s: Tensor


def sample_model(sampler: Sampler, count: int, seed: int = 0) -> Tensor:
    """Return ``count`` samples of a diffusion model: float32 [count, C, H, W], unclamped, on the CPU.

    Several processes make them together, and each gets all.
    """
    images = []
    batches = turns(batches_of(count))
    with progress(total=sum(map(len, batches)), desc="samples", unit="image") as bar:
        for batch in batches:
            images.append(sampler.generate(sampler.noise(len(batch), seed=seed, first=batch[0])).cpu())
            bar.update(len(batch))
    return torch.cat(all_gather(images))


def batches_of(count: int, size: int = BATCH) -> list[range]:
    """Return the indices of ``count`` images by batches: the same however many processes share them."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def draw_pairs(
    run: Run, seed: int, first: int, count: int, source: Source | None = None, M: int | None = None
) -> Pairs:
    """Draw the pairs ``first`` .. ``first + count - 1`` with random k and s; pair i depends only on (seed, i).

    Shifted by each sample's own direction, or that of another ``source``, in M steps, by default the run's. Both
    samples of a pair are made in the same passes.
    """
    source = source or partial(own_direction, run.shift_block)
    settings = run.experiment.discovery
    shifts = []
    for i in range(first, first + count):
        generator = torch.Generator().manual_seed(seeds.shift_of_pair(seed, i))
        shifts.append(draw_shifts(1, settings.K, settings.S, settings.min_magnitude, generator))
    k, s = (torch.cat(values).to(run.device) for values in zip(*shifts, strict=True))
    x_T = run.noise(count, seed=seed, first=first)
    return Pairs(*run.sampler.with_steps(M).generate_pairs(x_T, source(k, s)), k, s)
