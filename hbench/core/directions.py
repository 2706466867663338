"""Where delta_h comes from: directions as functions that a generation step adds to h_t.

| source | delta_h of magnitude s along direction k | paper, Sec. 5.4 |
|---|---|---|
| own | s f_k(h_t, t) | Δh_t, the sample's own |
| mean | s times the mean over samples of f_k(h_t, t) | Δh_t^mean |
| global | s times the mean of that over the timesteps of the shift interval | Δh^global, time-invariant |
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hbench.core.diffusion import DeltaH
from hbench.models.shift import ShiftBlock

Source = Callable[[Tensor, Tensor], DeltaH]
"""(k [B], s [B]) -> delta_h of each sample."""


@dataclass(frozen=True)
class Directions:
    """The mean direction of random samples at each timestep (Sec. 5.4)."""

    timesteps: tuple[int, ...]
    """Those of the shift interval, t >= t_shift, descending."""
    mean: Tensor
    """Of f_k(h_t, t), at unit magnitude: float32 [K, timesteps, C, H, W]."""
    n: int
    """Samples in the mean."""
    seed: int
    """Of those samples."""

    def nearest(self, t: int) -> int:
        """Index of the timestep that is nearest to t."""
        return min(range(len(self.timesteps)), key=lambda i: abs(self.timesteps[i] - t))


def own(shift_block: ShiftBlock, k: Tensor, s: Tensor) -> DeltaH:
    """S f_k(h_t, t), the sample's own direction in Eq. (2), for k [B] and magnitudes s [B]."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        shift: Tensor = s[:, None, None, None] * shift_block(h, emb, k)
        return shift

    return delta_h


def mean(directions: Directions, k: Tensor, s: Tensor) -> DeltaH:
    """S Δh_t^mean: the same for every sample; at a timestep that was not recorded, that of the nearest one."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        return s[:, None, None, None] * directions.mean[k, directions.nearest(t)]

    return delta_h


def time_invariant(directions: Directions, k: Tensor, s: Tensor) -> DeltaH:
    """S Δh^global: the same for every sample and timestep, the mean of Δh_t^mean over the shift interval."""
    shift = s[:, None, None, None] * directions.mean[k].mean(1)
    return lambda h, emb, t: shift


def together(*delta_hs: DeltaH) -> DeltaH:
    """Several edits at once: the sum over i of s_i f_k_i(h_t, t) (Fig. 8)."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        total = h.new_zeros(())
        for each in delta_hs:
            total = total + each(h, emb, t)
        return total

    return delta_h


def scaled(delta_h: DeltaH, factor: float) -> DeltaH:
    """``factor`` times an edit."""
    return lambda h, emb, t: factor * delta_h(h, emb, t)
