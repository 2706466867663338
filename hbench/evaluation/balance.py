"""Balance of samples: is each class of a factor as frequent among them as among real images?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hbench.core import seeds
from hbench.core.intervals import jackknife, wilson
from hbench.evaluation.frechet import GROUPS
from hbench.store.labels import Labels
from hbench.store.records import Interval, Share

DRAWS = 2000
"""Number of draws of perfect samples, for the floor of a distance."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Shares of the classes of one factor, by a classifier's word on samples and on real images."""

    factor: str
    """Name of the factor, as in "digit"."""
    classes: list[str]
    """Names of its classes."""
    shares: list[Share]
    """Share of each class among the samples."""
    intervals: list[Interval]
    """95 % Wilson interval of each share."""
    real: list[Share]
    """Share of each class among the real images, by the same classifier, or by their labels if they are not at hand."""
    distance: Share
    """Total variation distance: share of the samples that would have to be of another class, 0 for equal shares."""
    distance_interval: Interval
    """95 % interval of the distance, by the jackknife."""
    floor: Share
    """Mean distance of as many perfect samples, which chance alone gives them."""
    floor_high: Share
    """Distance that 97.5 % of them stay below."""

    @property
    def most(self) -> int:
        """Number of the class that is most too frequent."""
        return int(np.argmax(np.subtract(self.shares, self.real)))

    @property
    def least(self) -> int:
        """Number of the class that is most too rare."""
        return int(np.argmin(np.subtract(self.shares, self.real)))

    @property
    def is_off(self) -> bool:
        """True if chance does not explain the distance."""
        return self.distance > self.floor_high


def balances(samples: Labels, real: Sequence[Tensor], seed: int) -> list[Balance]:
    """Return the balance of each factor, from the classes of n samples and of n_real real images.

    The floor is the distance between n and n_real draws from the shares of the real images: what chance leaves of
    samples whose classes are exactly as frequent.

    Args:
        samples: classes of the samples, by a classifier.
        real: number of real images of each class, int64 [classes] for each factor.
        seed: seed of the draws.
    """
    found = []
    for i, factor in enumerate(samples.factors):
        size, n = len(factor.classes), len(samples)
        values = samples.values[:, i]
        counts, theirs = _counts(values, size), real[i].numpy()
        n_real = int(theirs.sum())
        shares, expected = counts / n, theirs / n_real
        groups = min(GROUPS, n)
        parts = [_counts(values[g::groups], size) for g in range(groups)]
        without = [_distance((counts - part) / max(1, n - part.sum()), expected) for part in parts]
        distance = float(_distance(shares, expected))
        low, high = jackknife(distance, without)
        draws = _perfect(expected, n, n_real, seed)
        found.append(
            Balance(
                factor=factor.name,
                classes=list(factor.classes),
                shares=shares.tolist(),
                intervals=[wilson(int(count), n) for count in counts],
                real=expected.tolist(),
                distance=distance,
                distance_interval=(max(0.0, float(low)), min(1.0, float(high))),
                floor=float(draws.mean()),
                floor_high=float(np.quantile(draws, 0.975)),
            )
        )
    return found


def _counts(values: Tensor, size: int) -> NDArray[np.int64]:
    """Return how often each of ``size`` classes is among values [n]."""
    return np.bincount(values.numpy(), minlength=size)


def _distance(shares: NDArray[np.float64], expected: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the total variation distance of shares [..., classes] and others."""
    found: NDArray[np.float64] = np.abs(shares - expected).sum(-1) / 2
    return found


def _perfect(expected: NDArray[np.float64], n: int, n_real: int, seed: int) -> NDArray[np.float64]:
    """Return distances [DRAWS] between n and n_real images whose classes have the expected shares."""
    generator = np.random.default_rng(seeds.balance(seed))
    first, second = (generator.multinomial(count, expected, size=DRAWS) / count for count in (n, n_real))
    return _distance(first, second)
