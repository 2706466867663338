"""Means, intervals of 95 % and corrected tests for the numbers that hbench reports."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bounds = tuple[float, float]
Array = NDArray[np.float64]


def mean_of(values: Array) -> Array:
    """Return the mean over the first axis [n, ...] of the values that are defined; nan where none is."""
    defined = np.isfinite(values)
    count = defined.sum(0)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(defined, values, 0).sum(0) / np.where(count, count, np.nan)
    return mean


def in_words(value: float | None, bounds: Bounds | None = None, *, unknown: str = "not defined") -> str:
    """Return a number with its interval, as in "0.680 [0.671, 0.689]", and ``unknown`` for None and nan."""
    if value is None or math.isnan(value):
        return unknown
    has_bounds = bounds is not None and all(map(math.isfinite, bounds))
    return f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds and has_bounds else f"{value:.3f}"


def wilson(count: int, n: int) -> Bounds:
    """Return Wilson's interval of the share ``count / n`` (Wilson 1927); nan where n is 0."""
    from scipy.stats import binomtest

    if not n:
        return math.nan, math.nan
    found = binomtest(count, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def student(values: ArrayLike) -> tuple[Array, Array]:
    """Return Student's interval of the mean over the first axis of independent values [n, ...]; nan where n is 1."""
    from scipy.stats import t

    found = np.asarray(values, dtype=float)
    n = len(found)
    if n < 2:
        nothing = np.full(found.shape[1:], np.nan)
        return nothing, nothing
    mean, error = found.mean(0), found.std(0, ddof=1) / math.sqrt(n) * t.ppf(0.975, n - 1)
    return mean - error, mean + error


def student_of_logarithms(values: ArrayLike) -> Bounds:
    """Return Student's interval of a typical one of positive values [n], made on their logarithms; it stays above 0."""
    low, high = student(np.log(np.asarray(values, dtype=float)))
    return float(np.exp(low)), float(np.exp(high))


def student_of_shares(shares: ArrayLike, n: int) -> Bounds:
    """Return Student's interval of a typical one of shares [...], made on their logits; it stays between 0 and 1.

    Args:
        shares: shares of ``n`` cases each. The logits of 0 and 1 are taken half a case from the end.
        n: number of cases.
    """
    from scipy.special import expit, logit

    found = np.asarray(shares, dtype=float)
    low, high = student(logit(found.clip(0.5 / n, 1 - 0.5 / n)))
    return float(np.minimum(expit(low), found.min())), float(np.maximum(expit(high), found.max()))


def fieller(tops: ArrayLike, bottoms: ArrayLike) -> Bounds | None:
    """Return Fieller's interval of the ratio of the means of paired positive quantities [n] (Fieller 1954).

    Single values may be negative, as those of a jackknife may; the means' ratio is not, so the interval is cut at 0. It
    is None where the bottoms' mean cannot be told from 0, since the ratio then has no upper bound.
    """
    from scipy.stats import t

    pairs = np.stack([np.asarray(values, dtype=float) for values in (tops, bottoms)])
    n = pairs.shape[1]
    if n < 2:
        return None
    (top, bottom), spread = pairs.mean(1), np.cov(pairs) / n * t.ppf(0.975, n - 1) ** 2
    # the ratios r for which top - r bottom lies within its error: a r^2 - 2 b r + c <= 0
    a, b, c = bottom**2 - spread[1, 1], top * bottom - spread[0, 1], top**2 - spread[0, 0]
    if a <= 0 or bottom <= 0:
        return None
    root = math.sqrt(max(0.0, b * b - a * c))
    return max(0.0, (b - root) / a), max(0.0, (b + root) / a)


def jackknife(whole: ArrayLike, without: ArrayLike) -> tuple[Array, Array]:
    """Return the interval of a statistic by the delete-a-group jackknife (Shao & Wu 1989) over G equal groups.

    Args:
        whole: statistic of all samples, [...].
        without: statistics with one group left out at a time, [G, ...].
    """
    from scipy.stats import t

    center, replicates = np.asarray(whole, dtype=float), np.asarray(without, dtype=float)
    groups = len(replicates)
    error = np.sqrt((groups - 1) * replicates.var(0)) * t.ppf(0.975, groups - 1)
    return center - error, center + error


def batch_means(series: ArrayLike, batches: int = 10) -> Bounds:
    """Return the interval of the mean of a series whose values depend on their neighbours, by the means of its batches.

    Consecutive values fall into equal batches, long enough to be nearly independent of each other (Law & Kelton, Sec.
    9.5); the remainder at the start is left out. Both bounds are nan where a batch would have fewer than two values.
    """
    values = np.asarray(series, dtype=float)
    length = len(values) // batches
    if length < 2:
        return math.nan, math.nan
    low, high = student(values[-length * batches :].reshape(batches, length).mean(1))
    return float(low), float(high)


def median_interval(values: ArrayLike) -> Bounds:
    """Return the interval of the median of independent values [n], by order statistics; nan where n is below 6."""
    from scipy.stats import quantile_test

    found = np.asarray(values, dtype=float)
    bounds = quantile_test(found, q=float(np.median(found)), p=0.5).confidence_interval()
    return float(bounds.low), float(bounds.high)


def holm(p: Array) -> Array:
    """Return p values corrected for being many (Holm 1979), of the same shape; nan stay, and count as no test."""
    flat = p.ravel()
    order = np.argsort(flat)[: np.isfinite(flat).sum()]
    corrected = np.full(flat.shape, np.nan)
    corrected[order] = np.maximum.accumulate(flat[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return corrected.reshape(p.shape)
