"""The diffusion recursion: schedule, timesteps, and the generation steps of Eq. (2).

Pure functions: no hidden no_grad, and no clipping, since a clamp kills gradients. ``t`` is always the model's integer
time, 0..T-1, and ``t_prev`` the next timestep that is *visited*. Beyond both ends of the schedule lie the image itself,
t = -1 with alpha_bar = 1, and pure noise, t = T with alpha_bar = 0. :class:`hbench.core.sampler.Sampler` strings the
steps together.

| paper | here |
|---|---|
| α_t of DDIM, ᾱ_t | alpha_bar[t] |
| P_t(ε) | predict_x_0 |
| D_t(ε) | direction_to_x_t |
| f_k(h_t, t) | shift_block(h, emb, k, t) |
| s | magnitude |
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hbench.config import cosine_alpha_bar
from hbench.core.backbone import Backbone

DeltaH = Callable[[Tensor, Tensor, int], Tensor]
"""Function (h_t, emb, t) -> shift that is added to h_t, magnitude included."""
Share = float | Tensor
"""Value of alpha_bar: a number, or a float64 scalar on the device."""


def alpha_bar_schedule(
    T: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    noise_schedule: str = "linear",
    trained_betas: Sequence[float] | None = None,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Return the cumulative products of 1 - beta_t: float64 [T].

    Args:
        T: number of timesteps.
        beta_start: first beta.
        beta_end: last beta.
        noise_schedule: ``linear`` betas (DDPM, Ho et al. 2020, Sec. 4); ``scaled_linear``, the squares of linear values
            (latent diffusion, Rombach et al. 2022); ``cosine``, 1 - beta_t the ratio of neighbours on a squared cosine,
            at least 0.001 (Nichol & Dhariwal 2021, Eq. 17), which needs no beta.
        trained_betas: the T betas themselves, in place of all three.
        zero_terminal_snr: shift and scale sqrt(alpha_bar) so that it ends at 0 and starts where it did (Lin et al.
            2024, Algorithm 1).

    Raises:
        ValueError: unknown noise schedule.
    """
    if trained_betas is not None:
        betas = torch.tensor(trained_betas, dtype=torch.float64)
    elif noise_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, T, dtype=torch.float64)
    elif noise_schedule == "scaled_linear":
        betas = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), T, dtype=torch.float64).square()
    elif noise_schedule == "cosine":
        ratios = (cosine_alpha_bar((t + 1) / T) / cosine_alpha_bar(t / T) for t in range(T))
        betas = torch.tensor([min(1 - ratio, 0.999) for ratio in ratios], dtype=torch.float64)
    else:
        raise ValueError(f'noise_schedule must be "linear", "scaled_linear" or "cosine", got {noise_schedule!r}')
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        root = alpha_bar.sqrt()
        alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    return alpha_bar


NEARLY_NOISE = 8.0
"""Noise over signal, sqrt((1 - alpha_bar) / alpha_bar), above which x_t is nearly pure noise."""


def timesteps(
    M: int, alpha_bar: Tensor | None = None, spacing: str = "trailing", *, steps_offset: int = 0
) -> list[int]:
    """Return the M timesteps that a generation visits, descending.

    - ``trailing``: T(i+1)/M - 1 (999 … T/M - 1; starts at x_T and spends no step at t = 0);
    - ``linspace``: linspace(0, T-1, M) rounded down (Asyrp's);
    - ``leading``: iT/M (guided-diffusion's "ddimM"), plus ``steps_offset`` (diffusers'), up to T-1;
    - ``skipping``: T-1, then evenly from the last level that is not :data:`NEARLY_NOISE`: one step crosses what is
      nearly pure noise, where little is decided, and few steps go further below. Where M leaves no room, as trailing.

    Args:
        M: number of generation steps.
        alpha_bar: noise schedule, [T]; that of 1000 linear betas by default.
        spacing: one of the four.
        steps_offset: number that is added to leading timesteps.

    Raises:
        ValueError: M outside 1..T, or an unknown spacing.
    """
    alpha_bar = alpha_bar_schedule() if alpha_bar is None else alpha_bar
    T = len(alpha_bar)
    if not 1 <= M <= T:
        raise ValueError(f"M must be in 1..{T}, got {M}")
    trailing = [T * (i + 1) // M - 1 for i in range(M)]
    if spacing == "trailing":
        ascending = trailing
    elif spacing == "linspace":
        ascending = [int(t) for t in np.linspace(0, T - 1, M)]
    elif spacing == "leading":
        offset = min(steps_offset, T - 1 - T * (M - 1) // M)
        ascending = [T * i // M + offset for i in range(M)]
    elif spacing == "skipping":
        top = int((alpha_bar >= 1 / (1 + NEARLY_NOISE**2)).sum()) - 1
        below = [top * (2 * i + 1) // (2 * M - 3) for i in range(M - 1)]
        ascending = [*below, T - 1] if 2 * M - 3 <= top < T - 1 else trailing
    else:
        names = '"trailing", "linspace", "leading" or "skipping"'
        raise ValueError(f"spacing must be {names}, got {spacing!r}")
    return ascending[::-1]


@dataclass(frozen=True, eq=False)
class Transition:
    """One step of the recursion, from time ``t`` to ``t_prev``, and the constants that depend on these two alone."""

    t: int
    t_prev: int
    alpha_bar_t: Share
    alpha_bar_prev: Share
    alpha_bar_seen: Share
    """Value at the time that the model is shown: the clean image, which has no timestep, is shown at t = 0."""
    _times: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, repr=False)
    _shares: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def times(self, x: Tensor) -> Tensor:
        """Return the time that the model is shown with each sample of x, [B]; made once for each batch size."""
        key = len(x), x.device
        if key not in self._times:
            self._times[key] = torch.full((len(x),), max(self.t, 0), dtype=torch.long, device=x.device)
        return self._times[key]

    def shares(self, device: torch.device) -> Tensor:
        """Return alpha_bar at t, at t_prev and as seen: float64 [3] on the device; made once for each device."""
        if device not in self._shares:
            values = [self.alpha_bar_t, self.alpha_bar_prev, self.alpha_bar_seen]
            self._shares[device] = torch.tensor(values, dtype=torch.float64, device=device)
        return self._shares[device]

    def reading(self, times: Tensor, shares: Tensor) -> "Transition":
        """Return the step with its constants in tensors, :meth:`times` and :meth:`shares`, that are read when it runs.

        Only the kind of step stays that of ``t``: whether the model sees an image or noise.
        """
        alpha_bar_t, alpha_bar_prev, alpha_bar_seen = shares.unbind()
        known = {(len(times), times.device): times}
        return replace(
            self,
            alpha_bar_t=alpha_bar_t,
            alpha_bar_prev=alpha_bar_prev,
            alpha_bar_seen=alpha_bar_seen,
            _times=known,
        )


def transition(alpha_bar: Tensor, t: int, t_prev: int) -> Transition:
    """Return the step from t to t_prev on the schedule ``alpha_bar`` [T]; both in -1..T."""

    def at(t: int) -> float:
        if t < 0:
            return 1.0
        return float(alpha_bar[t]) if t < len(alpha_bar) else 0.0

    return Transition(t, t_prev, at(t), at(t_prev), at(max(t, 0)))


def transitions(alpha_bar: Tensor, descending: Sequence[int]) -> tuple[Transition, ...]:
    """Return the steps of a generation through the timesteps; the last goes to -1, the image."""
    pairs = zip(descending, [*descending[1:], -1], strict=True)
    return tuple(transition(alpha_bar, t, t_prev) for t, t_prev in pairs)


def inverse_transitions(alpha_bar: Tensor, descending: Sequence[int]) -> tuple[Transition, ...]:
    """Return the steps of the inversion: the same timesteps upwards, from the image to the first of a generation."""
    ascending = descending[::-1]
    pairs = zip([-1, *ascending[:-1]], ascending, strict=True)
    return tuple(transition(alpha_bar, t, t_next) for t, t_next in pairs)


def predict_x_0(x_t: Tensor, eps: Tensor, alpha_bar_t: Share) -> Tensor:
    """Return P_t(eps), the predicted x_0 (DDIM, Song et al. 2021, Eq. 9)."""
    return (x_t - _root(1 - alpha_bar_t) * eps) / _root(alpha_bar_t)


def direction_to_x_t(eps: Tensor, alpha_bar_prev: Share) -> Tensor:
    """Return D_t(eps), the direction pointing to x_t, for eta = 0 (DDIM, Song et al. 2021, Eq. 12)."""
    return _root(1 - alpha_bar_prev) * eps


def regular_step(backbone: Backbone, step: Transition, x_t: Tensor) -> Tensor:
    """Return x at ``t_prev`` by one deterministic DDIM step from x_t. Cost: encoder and decoder once.

    The step is one of the inversion where ``t_prev`` is above ``t``.
    """
    output = _prediction(backbone.decode(*backbone.encode(x_t, step.times(x_t))), x_t)
    eps = _eps(backbone, output, x_t, step)
    return _next(_x_0(backbone, output, x_t, step), eps, step)


def shifted_step(backbone: Backbone, step: Transition, delta_h: DeltaH, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Return x' at ``t_prev`` by one asymmetric step, first line of Eq. (2), and its P_t.

    Only P_t sees the shifted h_t. Cost: the encoder once, the decoder twice, as one pass of twice the batch.
    """
    output, output_shifted = _both_outputs(backbone, step, delta_h, x_t, len(x_t))
    x_0 = _x_0(backbone, output_shifted, x_t, step)
    return _next(x_0, _eps(backbone, output, x_t, step), step), x_0


def pair_step(backbone: Backbone, step: Transition, delta_h: DeltaH, x_t: Tensor, B: int) -> Tensor:
    """Return the regular and the shifted process one asymmetric step later, [2B, C, H, W], by passes for both.

    Args:
        backbone: the frozen network.
        step: step to take.
        delta_h: shift of h_t.
        x_t: raw samples and then shifted ones, [2B, C, H, W], or x_T [B, C, H, W] for both.
        B: number of pairs.
    """
    output, output_shifted = _both_outputs(backbone, step, delta_h, x_t, B)
    x_0 = _x_0(backbone, output[:B], x_t[:B], step)
    x_0_shifted = _x_0(backbone, output_shifted, x_t[-B:], step)
    both = torch.cat([_eps(backbone, output[part], x_t[part], step) for part in (slice(B), slice(-B, None))])
    return _next(torch.cat([x_0, x_0_shifted]), both, step)


def _both_outputs(
    backbone: Backbone, step: Transition, delta_h: DeltaH, x_t: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return the output of all samples, and that with a shifted h_t of the last ``count``; one pass of the decoder."""
    h, skips, emb = backbone.encode(x_t, step.times(x_t))
    shifted = h[-count:] + delta_h(h[-count:], emb[-count:], step.t)
    skips = [torch.cat([skip, skip[-count:]]) for skip in skips]
    output = backbone.decode(torch.cat([h, shifted]), skips, torch.cat([emb, emb[-count:]]))
    output = _prediction(output, x_t)
    return output[:-count], output[-count:]


def _prediction(output: Tensor, x: Tensor) -> Tensor:
    return output[:, : x.shape[1]].to(x.dtype)  # learned sigma: the prediction comes first


def _eps(backbone: Backbone, output: Tensor, x_t: Tensor, step: Transition) -> Tensor:
    """Return the eps that a prediction stands for; for v see Salimans & Ho 2022, Sec. 4."""
    signal, noise = _root(step.alpha_bar_seen), _root(1 - step.alpha_bar_seen)
    if backbone.prediction == "v":
        return noise * x_t + signal * output
    if backbone.prediction == "x_0":
        return (x_t - signal * output) / noise
    return output


def _x_0(backbone: Backbone, output: Tensor, x_t: Tensor, step: Transition) -> Tensor:
    """Return the x_0 that a prediction stands for; at t = -1 that is x_t."""
    if backbone.prediction == "eps" or step.t < 0:
        return predict_x_0(x_t, output, step.alpha_bar_t)
    if backbone.prediction == "v":
        return _root(step.alpha_bar_t) * x_t - _root(1 - step.alpha_bar_t) * output
    return output


def training_target(backbone: Backbone, x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """Return the value that the network should predict for x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    It is eps (Ho et al. 2020, Eq. 14), x_0, or v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans & Ho
    2022, Sec. 4).

    Args:
        backbone: network; its ``prediction`` decides.
        x_0: clean images, [B, C, H, W].
        eps: noise, [B, C, H, W].
        alpha_bar_t: schedule at the timestep of each image, [B, 1, 1, 1].
    """
    if backbone.prediction == "v":
        return alpha_bar_t.sqrt() * eps - (1 - alpha_bar_t).sqrt() * x_0
    return x_0 if backbone.prediction == "x_0" else eps


def _next(x_0: Tensor, eps: Tensor, step: Transition) -> Tensor:
    """Return x at ``t_prev`` (DDIM, Song et al. 2021, Eq. 12)."""
    return _root(step.alpha_bar_prev) * x_0 + direction_to_x_t(eps, step.alpha_bar_prev)


def _root(share: Share) -> Share:
    return share.sqrt() if isinstance(share, Tensor) else math.sqrt(share)
