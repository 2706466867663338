"""The diffusion recursion: schedule, timesteps, and the generation steps of Eq. (2).

Pure functions: no hidden no_grad, and no clipping, since a clamp kills gradients. ``t`` is always the model's integer
time, 0..T-1, and ``t_prev`` the next timestep that is *visited*. Beyond both ends of the schedule lie the image itself,
t = -1 with alpha_bar = 1, and pure noise, t = T with alpha_bar = 0.

| paper | here |
|---|---|
| α_t of DDIM, ᾱ_t | alpha_bar[t] |
| P_t(ε) | predict_x_0 |
| D_t(ε) | direction_to_x_t |
| f_k(h_t, t) | shift_block(h, emb, k) |
| s | magnitude |
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hbench.models.adm import UNetModel

DeltaH = Callable[[Tensor, Tensor, int], Tensor]
"""(h_t, emb, t) -> what is added to h_t, magnitude included."""


def alpha_bar_schedule(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Cumulative products of 1 - beta_t for linear betas: float64 [T] (DDPM, Ho et al. 2020, Sec. 4)."""
    return torch.cumprod(1 - torch.linspace(beta_start, beta_end, T, dtype=torch.float64), dim=0)


def timesteps(M: int, T: int = 1000, spacing: str = "trailing") -> list[int]:
    """The M timesteps that a generation visits, descending.

    ``trailing``: T(i+1)/M - 1 (999 … T/M - 1; starts at x_T and spends no step at t = 0); ``linspace``:
    linspace(0, T-1, M) rounded down (Asyrp's); ``leading``: iT/M (guided-diffusion's "ddimM").

    Raises:
        ValueError: M outside 1..T, or an unknown spacing.
    """
    if not 1 <= M <= T:
        raise ValueError(f"M must be in 1..{T}, got {M}")
    if spacing == "trailing":
        ascending = [T * (i + 1) // M - 1 for i in range(M)]
    elif spacing == "linspace":
        ascending = [int(t) for t in np.linspace(0, T - 1, M)]
    elif spacing == "leading":
        ascending = [T * i // M for i in range(M)]
    else:
        raise ValueError(f'spacing must be "trailing", "linspace" or "leading", got {spacing!r}')
    return ascending[::-1]


def transitions(descending: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs (t, t_prev) of a generation; the last goes to -1."""
    return list(zip(descending, [*descending[1:], -1], strict=True))


def predict_x_0(x_t: Tensor, eps: Tensor, alpha_bar_t: float) -> Tensor:
    """P_t(eps), the predicted x_0 (DDIM, Song et al. 2021, Eq. 9)."""
    return (x_t - math.sqrt(1 - alpha_bar_t) * eps) / math.sqrt(alpha_bar_t)


def direction_to_x_t(eps: Tensor, alpha_bar_prev: float) -> Tensor:
    """D_t(eps), the direction pointing to x_t, for eta = 0 (DDIM, Song et al. 2021, Eq. 12)."""
    return math.sqrt(1 - alpha_bar_prev) * eps


def regular_step(model: UNetModel, alpha_bar: Tensor, x_t: Tensor, t: int, t_prev: int) -> Tensor:
    """X at ``t_prev`` by one deterministic DDIM step from x_t. Cost: one pass of the UNet.

    With ``t_prev`` above ``t`` this is a step of the inversion.
    """
    eps = _eps(model(x_t, _times(x_t, t)), x_t)
    return _combine(predict_x_0(x_t, eps, _at(alpha_bar, t)), eps, _at(alpha_bar, t_prev))


def shifted_step(
    model: UNetModel, alpha_bar: Tensor, delta_h: DeltaH, x_t: Tensor, t: int, t_prev: int
) -> tuple[Tensor, Tensor]:
    """X' at ``t_prev`` by one asymmetric step, first line of Eq. (2), and its P_t, which alone sees the shifted h_t.

    Cost: the encoder once, the decoder twice, as one pass of twice the batch.
    """
    eps, eps_shifted = _both_eps(model, delta_h, x_t, t, len(x_t))
    x_0 = predict_x_0(x_t, eps_shifted, _at(alpha_bar, t))
    return _combine(x_0, eps, _at(alpha_bar, t_prev)), x_0


def generation_steps(
    model: UNetModel,
    alpha_bar: Tensor,
    descending: Sequence[int],
    delta_h: DeltaH | None = None,
    t_shift: int = 0,
) -> list[Callable[[Tensor], Tensor]]:
    """The reverse process x_T -> x_0 as a chain of M callables, one per timestep.

    Without ``delta_h`` it is the regular process; with it, Eq. (2): asymmetric for t >= t_shift, regular below.
    """

    def step(t: int, t_prev: int) -> Callable[[Tensor], Tensor]:
        if delta_h is not None and t >= t_shift:
            return lambda x_t: shifted_step(model, alpha_bar, delta_h, x_t, t, t_prev)[0]
        return lambda x_t: regular_step(model, alpha_bar, x_t, t, t_prev)

    return [step(t, t_prev) for t, t_prev in transitions(descending)]


def pair_steps(
    model: UNetModel, alpha_bar: Tensor, descending: Sequence[int], delta_h: DeltaH, t_shift: int
) -> list[Callable[[Tensor], Tensor]]:
    """The regular and the shifted process side by side, a chain of M callables that make each pass for both.

    The first callable takes x_T [B, C, H, W], which both have in common; what it returns, and all later nodes, are raw
    samples and then shifted ones, [2B, C, H, W]. For where no gradient is needed: a graph would hold both.
    """

    def step(t: int, t_prev: int, is_first: bool) -> Callable[[Tensor], Tensor]:
        def pair_step(x_t: Tensor) -> Tensor:
            if t < t_shift:
                x_prev = regular_step(model, alpha_bar, x_t, t, t_prev)
                return torch.cat([x_prev, x_prev]) if is_first else x_prev
            B = len(x_t) if is_first else len(x_t) // 2
            eps, eps_shifted = _both_eps(model, delta_h, x_t, t, B)
            x_0 = predict_x_0(x_t[:B], eps[:B], _at(alpha_bar, t))
            x_0_shifted = predict_x_0(x_t[-B:], eps_shifted, _at(alpha_bar, t))
            both = torch.cat([eps[:B], eps[-B:]])
            return _combine(torch.cat([x_0, x_0_shifted]), both, _at(alpha_bar, t_prev))

        return pair_step

    return [step(t, t_prev, i == 0) for i, (t, t_prev) in enumerate(transitions(descending))]


def inversion_steps(model: UNetModel, alpha_bar: Tensor, descending: Sequence[int]) -> list[Callable[[Tensor], Tensor]]:
    """DDIM inversion x_0 -> x_T as a chain of M callables: the same recursion and timesteps, run upwards.

    Each step takes eps at the time of the image it starts from (Song et al. 2021, Eq. 13, as in guided-diffusion's
    ``ddim_reverse_sample``); the clean image itself, which has no timestep, is shown to the model at t = 0.
    """

    def step(t: int, t_next: int) -> Callable[[Tensor], Tensor]:
        return lambda x_t: regular_step(model, alpha_bar, x_t, t, t_next)

    ascending = descending[::-1]
    return [step(t, t_next) for t, t_next in zip([-1, *ascending[:-1]], ascending, strict=True)]


def run(steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """The last node of a chain."""
    for step in steps:
        x = step(x)
    return x


def _both_eps(model: UNetModel, delta_h: DeltaH, x_t: Tensor, t: int, count: int) -> tuple[Tensor, Tensor]:
    """Eps of all samples, and eps with a shifted h_t of the last ``count`` ones; one pass of the decoder for both."""
    h, skips, emb = model.encode(x_t, _times(x_t, t))
    shifted = h[-count:] + delta_h(h[-count:], emb[-count:], t)
    skips = [torch.cat([skip, skip[-count:]]) for skip in skips]
    eps = _eps(model.decode(torch.cat([h, shifted]), skips, torch.cat([emb, emb[-count:]])), x_t)
    return eps[:-count], eps[-count:]


def _times(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), max(t, 0), dtype=torch.long, device=x.device)


def _eps(output: Tensor, x: Tensor) -> Tensor:
    return output[:, : x.shape[1]].to(x.dtype)  # learned sigma: eps comes first


def _at(alpha_bar: Tensor, t: int) -> float:
    if t < 0:
        return 1.0
    return float(alpha_bar[t]) if t < len(alpha_bar) else 0.0


def _combine(x_0: Tensor, eps: Tensor, alpha_bar_prev: float) -> Tensor:
    return math.sqrt(alpha_bar_prev) * x_0 + direction_to_x_t(eps, alpha_bar_prev)
