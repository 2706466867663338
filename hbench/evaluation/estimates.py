"""Numbers of a run's properties with their intervals, from the measured samples (Sec. 5.4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hbench.core import seeds
from hbench.core.intervals import Array, jackknife, student
from hbench.evaluation.mean_directions import directions_of
from hbench.store.records import Number
from hbench.store.run import Run

RESAMPLES = 1000
"""Number of resamples of the bootstrap."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of each direction, and last their mean, with 95 % intervals; nan if it is not defined."""

    value: list[Number]
    low: list[Number]
    high: list[Number]

    def __str__(self) -> str:
        """Return the mean over directions with its interval, in words."""
        return f"{self.value[-1]:.3f} [{self.low[-1]:.3f}, {self.high[-1]:.3f}]"

    def columns(self, name: str) -> dict[str, list[float]]:
        """Return the columns of a table, a row a direction and a last one for their mean."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


class Measured(NamedTuple):
    """Measurements of n samples along K directions."""

    s: Array
    """Magnitude of each sample, [n]."""
    cosine: Array
    """Cosine with the mean direction at each timestep, [n, K, timesteps]."""
    edit: Array
    """Size of the edit, ‖x_own − x_0‖, [n, K]."""
    distance: Array
    """‖x_mean − x_own‖ and ‖x_global − x_own‖, [n, K, 2]."""
    k_hat: NDArray[np.int64]
    """Direction that the reconstructor predicts for x_own, x_mean and x_global, [n, K, 3]."""
    s_hat: Array
    """Magnitude that it predicts for them, [n, K, 3]."""


class Numbers(NamedTuple, Generic[T]):
    """The numbers that are estimated from the measured samples, under the names of :class:`Properties`.

    The type T is an array [..., K] while they are computed, and an :class:`Estimate` at the end.
    """

    homogeneity: T
    distance_mean: T
    distance_global: T
    accuracy_own: T
    accuracy_mean: T
    accuracy_global: T
    same_k_mean: T
    same_k_global: T
    s_difference_mean: T
    s_difference_global: T
    slope: T
    correlation: T
    homogeneity_at: list[T]

    @classmethod
    def of(cls, values: Sequence[T]) -> "Numbers[T]":
        """Return the numbers from their list, as :meth:`flat` returns it."""
        count = len(cls._fields) - 1
        return cls._make([*values[:count], list(values[count:])])

    def flat(self) -> list[T]:
        """Return all numbers in their order."""
        return [*self[:-1], *self.homogeneity_at]


def _summarise(measured: Measured, rows: NDArray[np.int64]) -> Numbers[Array]:
    """Return the numbers of each direction, [..., K], from the samples ``rows`` [..., n]."""

    def averaged(values: NDArray[Any]) -> Array:
        result: Array = values[rows].mean(-2)
        return result

    def centred(values: Array) -> Array:
        result: Array = values - values.mean(-2, keepdims=True)
        return result

    of_k = measured.k_hat == np.arange(measured.k_hat.shape[1])[:, None]
    same_k = measured.k_hat[..., 1:] == measured.k_hat[..., :1]
    s_difference = np.abs(measured.s_hat[..., 1:] - measured.s_hat[..., :1])
    s, s_hat = centred(measured.s[rows][..., None]), centred(measured.s_hat[rows, :, 0])
    size = averaged(measured.edit)
    with np.errstate(invalid="ignore", divide="ignore"):  # nan where nothing changes at all
        return Numbers(
            homogeneity=averaged(measured.cosine.mean(2)),
            distance_mean=averaged(measured.distance[..., 0]) / size,
            distance_global=averaged(measured.distance[..., 1]) / size,
            accuracy_own=averaged(of_k[..., 0]),
            accuracy_mean=averaged(of_k[..., 1]),
            accuracy_global=averaged(of_k[..., 2]),
            same_k_mean=averaged(same_k[..., 0]),
            same_k_global=averaged(same_k[..., 1]),
            s_difference_mean=averaged(s_difference[..., 0]),
            s_difference_global=averaged(s_difference[..., 1]),
            slope=(s * s_hat).sum(-2) / (s * s).sum(-2),
            correlation=(s * s_hat).sum(-2) / np.sqrt((s * s).sum(-2) * (s_hat * s_hat).sum(-2)),
            homogeneity_at=[averaged(measured.cosine[..., i]) for i in range(measured.cosine.shape[2])],
        )


def bootstrap_all(measured: Measured, seed: int) -> Numbers[Estimate]:
    """Return every number with its 95 % interval, by the percentile bootstrap over samples, common to directions."""
    from scipy.stats import bootstrap

    samples = np.arange(len(measured.s))

    def statistic(rows: NDArray[np.int64], axis: int = -1) -> Array:
        return np.stack([np.moveaxis(_with_mean(number), -1, 0) for number in _summarise(measured, rows).flat()])

    result = bootstrap(
        (samples,),
        statistic,
        n_resamples=RESAMPLES,
        batch=10,
        method="percentile",
        rng=np.random.default_rng(seeds.properties_bootstrap(seed, len(samples))),
    )
    found = zip(statistic(samples), *result.confidence_interval, strict=True)
    return Numbers.of([_estimate(value, low, high) for value, low, high in found])


def jackknife_of(run: Run, sums: Tensor, sizes: Tensor, statistic: Callable[[Tensor], Tensor]) -> Estimate:
    """Return a statistic [K] of the mean directions with its 95 % interval, by the jackknife over groups of samples."""

    def of(total: Tensor, count: Tensor) -> Array:
        return _with_mean(statistic(directions_of(run, total / count)).cpu().double().numpy())

    whole = of(sums.sum(0), sizes.sum())
    without = np.stack([of(sums.sum(0) - one, sizes.sum() - size) for one, size in zip(sums, sizes, strict=True)])
    low, high = jackknife(whole, without)
    return _estimate(whole, low, high)


def mean_with_interval(values: Array) -> Estimate:
    """Return means over samples of values [n, K] with Student's 95 % intervals."""
    values = _with_mean(values)
    return _estimate(values.mean(0), *student(values))


def _estimate(value: Array, low: Array, high: Array) -> Estimate:
    return Estimate(value=value.tolist(), low=low.tolist(), high=high.tolist())


def _with_mean(values: Array) -> Array:
    """Return values [..., K] followed by their mean over directions, [..., K + 1]."""
    return np.concatenate([values, values.mean(-1, keepdims=True)], axis=-1)


def consistency(directions: Tensor) -> Tensor:
    """Return the mean cosine between timesteps of directions [K, timesteps, C, H, W], [K]; nan for one timestep."""
    return _off_diagonal(cosines(directions)).mean(1)


def cosine_to_others(directions: Tensor) -> Tensor:
    """Return the mean cosine of each direction [K, timesteps, C, H, W] with the others at its timestep, [K]."""
    return _off_diagonal(cosines(directions.transpose(0, 1))).mean(0)


def cosines(vectors: Tensor) -> Tensor:
    """Return the cosines between all pairs of feature maps [A, B, C, H, W], [A, B, B]."""
    flat = F.normalize(vectors.flatten(2), dim=2)
    return flat @ flat.mT


def _off_diagonal(square: Tensor) -> Tensor:
    """Return the mean of each row without its diagonal element, [A, B]; nan if there is no other element."""
    return (square.sum(2) - square.diagonal(dim1=1, dim2=2)) / (square.shape[2] - 1)
