"""Nearest training images of samples: does a model repeat what it was trained on?

Test images tell how near one gets without having seen the training images. A share of samples that lie as near as
hardly any test image are repeated training images, or so plain that nothing else is possible; the picture tells.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hbench.core.images import to_float
from hbench.core.intervals import wilson
from hbench.runtime.progress import progress
from hbench.store.records import Interval, Nonnegative, Positive, Share

QUANTILE = 0.01
"""Share of test images that count as very near."""
SAME = 0.04
"""Distance up to which two images look the same: 5 of 255 levels."""
CHUNK = 2048
"""Training images that are compared at once."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Distances to the nearest training image: root mean square over the pixels, in [-1, 1] as images are, so 0..2."""

    n: Positive
    """Number of images."""
    lower: Nonnegative
    """Lower quartile."""
    median: Nonnegative
    upper: Nonnegative
    """Upper quartile."""
    near: Share
    """Share of images that are very near, up to the threshold."""
    near_interval: Interval
    """95 % Wilson interval of the share."""


class Found(NamedTuple):
    """Nearest training images of N images."""

    distance: Tensor
    """Root mean square distance, float32 [N]."""
    number: Tensor
    """Number of the training image, int64 [N]."""
    mirrored: Tensor
    """True where its mirror image is nearer, bool [N]."""

    def images(self, training: Tensor) -> Tensor:
        """Return the nearest images, uint8 [N, C, H, W], mirrored where that is nearer."""
        chosen = training[self.number]
        return torch.where(self.mirrored[:, None, None, None], chosen.flip(-1), chosen)


@torch.no_grad()
def find_nearest(images: Tensor, training: Tensor, device: torch.device, *, mirror: bool = False) -> Found:
    """Return the nearest training image of each image.

    Cost: a multiplication for each pixel of each pair of images, so a second of a CPU core for 500 images of 16x16 and
    60,000 others.

    Args:
        images: uint8 [N, C, H, W].
        training: training images, uint8 [n, C, H, W].
        device: device of the computation.
        mirror: compare with the mirrored training images, too.
    """
    wanted = to_float(images.to(device)).flatten(1)
    least = torch.full((len(images),), torch.inf, device=device)
    index = torch.zeros(len(images), dtype=torch.int64, device=device)
    mirrored = torch.zeros(len(images), dtype=torch.bool, device=device)
    starts = range(0, len(training), CHUNK)
    for first in progress(starts, desc="nearest training images", unit="block"):
        chunk = to_float(training[first : first + CHUNK].to(device))
        for is_mirrored in (False, True)[: 1 + mirror]:
            others = (chunk.flip(-1) if is_mirrored else chunk).flatten(1)
            # the square of the image itself is the same for all, and left out
            value, nearest = (others.square().sum(1) - 2 * wanted @ others.T).min(1)
            better = value < least
            least = torch.where(better, value, least)
            index = torch.where(better, nearest + first, index)
            mirrored = torch.where(better, torch.tensor(is_mirrored, device=device), mirrored)
    found = Found(least, index.cpu(), mirrored.cpu())
    difference = to_float(images) - to_float(found.images(training))
    return found._replace(distance=difference.square().flatten(1).mean(1).sqrt())


def threshold_of(test: Tensor) -> float:
    """Return the distance up to which images are very near: the first percentile of distances [n] of test images.

    Where test images themselves are copies of training images, as drawn images may be, that would be 0, and a copy with
    a little noise would pass; so it is at least a distance that nobody sees.
    """
    return max(SAME, float(np.quantile(test.numpy(), QUANTILE, method="higher")))


def summarised(distance: Tensor, threshold: float) -> Nearest:
    """Return what distances [n] to the nearest training images are like."""
    lower, median, upper = (float(each) for each in np.quantile(distance.double().numpy(), (0.25, 0.5, 0.75)))
    near = int((distance <= threshold).sum())
    return Nearest(
        n=len(distance),
        lower=lower,
        median=median,
        upper=upper,
        near=near / len(distance),
        near_interval=wilson(near, len(distance)),
    )
