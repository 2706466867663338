"""Samples and pairs for measurements, and the samples that pictures show."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbench.core import seeds
from hbench.core.directions import Source, draw_shifts, own_direction
from hbench.core.sampler import BATCH, Sampler
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.classifier import load_classifier, shipped_classifier
from hbench.store.run import Run

SURE = 0.999
"""Probability of one class from which on the classifier is sure: with 0.99, x_T 2 of mnist16 0.1 would pass, whose
sample is half a 2 and half a 6."""
SEARCHED = 16
"""Number of x_T that are looked through, for each one that is wanted."""


class Pairs(NamedTuple):
    """Raw samples, and the same shifted along one random direction each, on the run's device."""

    x_0: Tensor
    """Raw samples, [B, C, H, W]."""
    x_0_shifted: Tensor
    """Shifted samples, [B, C, H, W]."""
    k: Tensor
    """Directions, [B]."""
    s: Tensor
    """Magnitudes, [B]."""


@dataclass(frozen=True)
class ChosenNoise:
    """The x_T that a picture shows, and the rule that chose them."""

    indices: list[int]
    """Indices i of the x_T, which depend on (seed, i) alone."""
    seed: int
    rule: str
    """The rule in words, as in "the first x_T"."""

    def noise(self, run: Run) -> Tensor:
        """Return the x_T, float32 [len(indices), C, H, W], on the run's device."""
        return torch.cat([run.noise(1, seed=self.seed, first=i) for i in self.indices])

    @property
    def details(self) -> dict[str, Any]:
        """Details of a provenance."""
        return {"x_T": self.indices, "x_T_rule": self.rule}


@torch.no_grad()
def choose_x_T(run: Run, count: int, seed: int = 0, M: int | None = None) -> ChosenNoise:
    """Choose ``count`` x_T to show: the first ones whose sample the classifier is sure of.

    A few samples of a small model are no digits, and directions that start from one show nothing. Only pictures choose:
    the numbers, and what people mark in a user study, are of all x_T. The classifier is the shipped one that knows the
    images, if it is of a single factor, such as the digit. Without one, and where it is sure of too few samples, the
    first x_T are shown. Cost: one chain for each x_T that is looked through, at most 16 ``count``.

    Args:
        run: run to draw.
        count: number of x_T, at least 1.
        seed: seed of x_T.
        M: number of generation steps; the run's by default.
    """
    first = ChosenNoise(list(range(count)), seed, "the first x_T")
    shipped = shipped_classifier(run.experiment.data)
    if shipped is None or len((classifier := load_classifier(shipped)).factors) > 1:
        return first
    sampler = run.sampler.with_steps(M)
    found: list[int] = []
    for batch in batches_of(SEARCHED * count):
        samples = sampler.generate(run.noise(len(batch), seed=seed, first=batch[0])).cpu()
        sure = classifier.network(samples.clamp(-1, 1))[0].softmax(1).amax(1) >= SURE
        found += [i for i, is_sure in zip(batch, sure.tolist(), strict=True) if is_sure]
        if len(found) >= count:
            return ChosenNoise(found[:count], seed, "the first x_T whose sample the classifier is sure of")
    return first


def sample_model(sampler: Sampler, count: int, seed: int = 0) -> Tensor:
    """Return ``count`` samples of a diffusion model: float32 [count, C, H, W], unclamped, on the CPU.

    Several processes make the samples together, and each gets all of them.
    """
    images = []
    batches = turns(batches_of(count))
    with progress(total=sum(map(len, batches)), desc="samples", unit="image") as bar:
        for batch in batches:
            images.append(sampler.generate(sampler.noise(len(batch), seed=seed, first=batch[0])).cpu())
            bar.update(len(batch))
    return torch.cat(all_gather(images))


def batches_of(count: int, size: int = BATCH) -> list[range]:
    """Return the indices of ``count`` images by batches, the same for any number of processes."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def draw_pairs(
    run: Run,
    seed: int,
    first: int,
    count: int,
    source: Source | None = None,
    M: int | None = None,
    directions: Sequence[int] | None = None,
) -> Pairs:
    """Draw the pairs ``first`` .. ``first + count - 1`` with random k and s; pair i depends only on (seed, i).

    Both samples of a pair are made in the same passes.

    Args:
        run: run with the directions.
        seed: seed of x_T, k and s.
        first: index of the first pair.
        count: number of pairs.
        source: kind of direction; each sample's own by default.
        M: number of generation steps; the run's by default.
        directions: directions that k is drawn from; all by default.
    """
    source = source or partial(own_direction, run.shift_block)
    settings = run.experiment.discovery
    among = torch.tensor(range(settings.K) if directions is None else directions)
    shifts = []
    for i in range(first, first + count):
        generator = torch.Generator().manual_seed(seeds.shift_of_pair(seed, i))
        shifts.append(draw_shifts(1, len(among), settings.S, settings.min_magnitude, generator))
    drawn, s = (torch.cat(values) for values in zip(*shifts, strict=True))
    k, s = among[drawn].to(run.device), s.to(run.device)
    x_T = run.noise(count, seed=seed, first=first)
    return Pairs(*run.sampler.with_steps(M).generate_pairs(x_T, source(k, s)), k, s)
