"""Checks that need no data: do samples look like images rather than noise, and can a shift of h_t be seen at all?"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from hbench.core.chain import run_chain
from hbench.core.sampler import Sampler
from hbench.runtime.device import float64_device

log = logging.getLogger(__name__)

DOMAIN = 1.5
"""Largest absolute value of a pixel in the domain; images lie in [-1, 1], good samples pass it by some hundredths."""
MOST_OUTSIDE = 0.1
"""Share of raw samples outside the domain that a usable diffusion model stays below; mnist16 0.1 has 0.1 %."""
LEAST_NEIGHBOURS = 0.3
"""Correlation of neighbouring pixels that images have at least: digits 0.7, photographs more, noise 0."""
LARGEST_RATIO = 4.0
"""Standard deviation of h_t over the scale of its shifts, up to which S = 5 can be seen; mnist16 0.1 has 1.6."""


@dataclass(frozen=True)
class Look:
    """Numbers that tell samples from noise."""

    outside: float
    """Share of samples with a pixel beyond +-1.5."""
    neighbours: float
    """Mean correlation of neighbouring pixels; 0 for noise, and for flat images."""

    def summary(self) -> str:
        """Return both numbers, in words."""
        return f"outside the domain {self.outside:.2%}, correlation of neighbouring pixels {self.neighbours:.2f}"

    def doubts(self) -> list[str]:
        """Return what is wrong with raw samples of a diffusion model, a sentence each; nothing if they may be fine."""
        found = []
        if not self.outside <= MOST_OUTSIDE:
            found.append(
                f"{self.outside:.0%} of the raw samples leave the image domain: the diffusion model makes no images, "
                "and what is found or measured on it means nothing; train it longer, or check its settings"
            )
        if not self.neighbours >= LEAST_NEIGHBOURS:
            found.append(
                f"neighbouring pixels of the raw samples have a correlation of {self.neighbours:.2f}, images have more "
                f"than {LEAST_NEIGHBOURS}: the samples look like noise; train the diffusion model longer, or check its "
                "settings"
            )
        return found


def look(images: Tensor) -> Look:
    """Return the numbers of samples [B, C, H, W], B of at least 1."""
    return Look(outside(images).cpu().double().mean().item(), neighbours(images).mean().item())


def log_look(images: Tensor) -> None:
    """Log what raw samples [B, C, H, W] of a diffusion model look like, and warn where they are no images."""
    seen = look(images)
    log.info("raw samples: %s", seen.summary())
    for doubt in seen.doubts():
        log.warning("caution: %s", doubt)


def outside(images: Tensor) -> Tensor:
    """Return for each of the images [B, C, H, W] whether a pixel lies beyond +-1.5 or is not finite: bool [B]."""
    return ~(images.abs().amax((1, 2, 3)) <= DOMAIN)


def neighbours(images: Tensor) -> Tensor:
    """Return the correlation of neighbouring pixels of each of the images [B, C, H, W]: float64 [B].

    It is the mean over neighbours side by side and one above the other, of deviations from each channel's mean. Images
    that are flat, too small to have neighbours, or not finite have 0.
    """
    pixels = images.to(float64_device(images.device)).double()
    pixels = pixels - pixels.mean((2, 3), keepdim=True)
    pairs = ((pixels[..., 1:], pixels[..., :-1]), (pixels[..., 1:, :], pixels[..., :-1, :]))
    found = []
    for first, second in pairs:
        product, *squares = ((a * b).sum((1, 2, 3)) for a, b in ((first, second), (first, first), (second, second)))
        found.append(product / (squares[0] * squares[1]).sqrt())
    return torch.stack(found).nan_to_num(0, 0, 0).mean(0)


@torch.no_grad()
def h_deviation(sampler: Sampler, x_T: Tensor) -> float:
    """Return the standard deviation of h_t over the shifted timesteps of the regular processes from x_T [B, C, H, W].

    Cost: a shifted chain.
    """
    variances = []

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        variances.append(h.float().var())
        return torch.zeros_like(h)

    with sampler.autocast():
        run_chain(sampler.steps(delta_h), x_T)
    return torch.stack(variances).mean().sqrt().item()


def log_h_scale(deviation: float, h_scale: float) -> None:
    """Log the standard deviation of h_t, and warn where shifts of this scale are far too small or too large for it."""
    log.info("h_t has a standard deviation of %.2g, discovery.h_scale is %g", deviation, h_scale)
    if not 1 / LARGEST_RATIO <= deviation / h_scale <= LARGEST_RATIO:
        size = "small to be seen" if deviation > h_scale else "large for an image to survive"
        log.warning(
            "caution: shifts of h_t may be too %s: its standard deviation is %.2g, discovery.h_scale is %g; "
            "try discovery.h_scale = %.2g",
            *(size, deviation, h_scale, deviation),
        )
