"""Sources of delta_h: directions as functions that a generation step adds to h_t.

| source | delta_h of magnitude s along direction k | paper, Sec. 5.4 |
|---|---|---|
| own | s f_k(h_t, t) | Δh_t, of the sample itself |
| mean | s times the mean over samples of f_k(h_t, t) | Δh_t^mean |
| global | s times the mean of that over the timesteps of the shift interval | Δh^global, time-invariant |

The own directions of a run need not depend on the sample: those of a file depend on t alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hbench.core.diffusion import DeltaH

ShiftFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Function (h_t, emb, k [B], t) -> f_k(h_t, t) of each sample's direction, [B, C, H, W], at unit magnitude."""
Source = Callable[[Tensor, Tensor], DeltaH]
"""Function (k [B], s [B]) -> delta_h of each sample."""


@dataclass(frozen=True)
class Directions:
    """The mean direction of random samples at each timestep (Sec. 5.4)."""

    timesteps: tuple[int, ...]
    """Timesteps of the shift interval, t >= t_shift, descending."""
    mean: Tensor
    """Mean of f_k(h_t, t), at unit magnitude: float32 [K, timesteps, C, H, W]."""
    n: int
    """Number of samples in the mean."""
    seed: int
    """Seed of these samples."""

    def nearest(self, t: int) -> int:
        """Return the index of the timestep nearest to t."""
        return nearest(self.timesteps, t)


def nearest(timesteps: Sequence[int], t: int) -> int:
    """Return the index of the timestep nearest to t."""
    return min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - t))


@dataclass(frozen=True, eq=False)
class OwnDirection:
    """The sample's own direction times its magnitude, s f_k(h_t, t) in Eq. (2)."""

    f: ShiftFunction
    k: Tensor
    """Direction of each sample, [B]."""
    s: Tensor
    """Magnitude of each sample, [B]."""

    def __call__(self, h: Tensor, emb: Tensor, t: int) -> Tensor:
        """Return the shift of h_t, [B, C, H, W]."""
        return self.s[:, None, None, None] * self.f(h, emb, self.k, t)


def own_direction(f: ShiftFunction, k: Tensor, s: Tensor) -> OwnDirection:
    """Return the sample's own direction times its magnitude, s f_k(h_t, t) in Eq. (2), for k [B] and s [B]."""
    return OwnDirection(f, k, s)


def mean_direction(directions: Directions, k: Tensor, s: Tensor) -> DeltaH:
    """Return s Δh_t^mean: the same for every sample; between the recorded timesteps, that of the nearest one."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        return s[:, None, None, None] * directions.mean[k, directions.nearest(t)]

    return delta_h


def global_direction(directions: Directions, k: Tensor, s: Tensor) -> DeltaH:
    """Return s Δh^global: the same for every sample and timestep, the mean of Δh_t^mean over the shift interval."""
    shift = s[:, None, None, None] * directions.mean[k].mean(1)
    return lambda h, emb, t: shift


def together(*delta_hs: DeltaH) -> DeltaH:
    """Return several shifts at once: the sum over i of s_i f_k_i(h_t, t) (Fig. 8)."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        total = h.new_zeros(())
        for each in delta_hs:
            total = total + each(h, emb, t)
        return total

    return delta_h


def scaled(delta_h: DeltaH, factor: float) -> DeltaH:
    """Return ``factor`` times a shift."""
    return lambda h, emb, t: factor * delta_h(h, emb, t)


Edit = Mapping[int, float]
"""Magnitude of each direction; the shifts are added up, the sum over k of s_k f_k. The empty edit is the original."""


def edited(source: Source, edits: Sequence[Edit], device: torch.device) -> DeltaH:
    """Return the shift that edits each sample of a batch in its own way."""
    terms = max(1, *map(len, edits))
    padded = [[*edit.items(), *[(0, 0.0)] * (terms - len(edit))] for edit in edits]  # a magnitude of 0 adds nothing
    k = torch.tensor([[k for k, _ in each] for each in padded], device=device)
    s = torch.tensor([[float(s) for _, s in each] for each in padded], device=device)
    return together(*(source(k[:, i], s[:, i]) for i in range(terms)))


def draw_shifts(
    batch_size: int, K: int, S: float, min_magnitude: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw directions k [B] and magnitudes s [B] as in training, on the CPU.

    Directions are uniform in 0..K-1, magnitudes in [-S, S]; an |s| below ``min_magnitude`` is raised to it
    (GANLatentDiscovery, Voynov & Babenko 2020).
    """
    k = torch.randint(K, (batch_size,), generator=generator)
    s = (2 * torch.rand(batch_size, generator=generator) - 1) * S
    return k, torch.copysign(s.abs().clamp(min=min_magnitude), s)


def magnitudes(S: float, count: int) -> list[float]:
    """Return ``count`` magnitudes evenly from -S to S; the middle of an odd count is exactly 0, the original."""
    half = (count - 1) / 2
    return [S * (i - half) / half if half else 0.0 for i in range(count)]
