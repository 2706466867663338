"""What directions do to the attributes of images, as numbers: effects, their shape over s, and what they leave alone.

Attributes are in units of their natural standard deviation, that over raw samples. Every statistic is a function of
weights of the samples, so that the bootstrap is one product of matrices for all directions, attributes and magnitudes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hbench.core.intervals import Array, Bounds, holm, mean_of

RESAMPLES = 1000
"""Number of resamples of the bootstrap."""
SAME_SIGN = 0.9
"""Share of samples that must move the same way for an effect to count as that of a direction."""
LARGE = 1.0
"""Effect at S in natural standard deviations from which on it counts."""
LARGE_OF_CLASS = 0.5
"""The same of an attribute that tells a class: it has two modes, and 1 is the way from one to the other of all samples
where half of them have the class. A sample that has it already cannot get it, so that no common curve is asked for."""
IN_COMMON = 0.5
"""R2 of the samples' common curve from which on an effect counts."""
MONOTONE = 0.9
"""Rank correlation with s from which on a sample's attribute is monotone."""
CERTAIN = 0.05
"""Level of the tests, after Holm's correction."""
ALIKE = 0.8
"""Correlation over raw samples from which on two attributes are nearly the same thing."""


class Changes(NamedTuple):
    """Attributes of n samples, raw and shifted along K directions by L magnitudes; J attributes, F factors."""

    s: Array
    """Magnitudes, ascending, symmetric about 0 and without it, [L]."""
    raw: Array
    """Attributes of raw samples in natural standard deviations, [n, J]; nan where one is not defined."""
    shifted: Array
    """Attributes of shifted samples, [n, K, L, J]."""
    of_class: NDArray[np.bool_]
    """True for an attribute that tells a class, [J]."""

    @property
    def moved(self) -> Array:
        """How far each attribute has moved, [n, K, L, J]."""
        moved: Array = self.shifted - self.raw[:, None, None, :]
        return moved


class Effects(NamedTuple):
    """Statistics of K directions on J attributes, [K, J] each but for the curves."""

    effect: Array
    """Half the way from -S to S, mean over samples, in natural standard deviations."""
    low: Array
    """Ends of its 95 % interval, by the percentile bootstrap over samples."""
    high: Array
    even: Array
    """What -S and S have in common: the mean of both moves. An effect of no direction, but of leaving the image."""
    sign_share: Array
    """Share of samples whose own effect has the sign of the mean."""
    monotone_share: Array
    """Share of samples whose attribute has a rank correlation with s of at least 0.9, in the effect's sense."""
    common: Array
    """R2 of the common curve: share of all moves, squared, that the mean move at each s explains, 0..1."""
    curve: Array
    """Mean move at each of L magnitudes, [K, L, J]."""
    linear: Array
    """R2 of a straight line through 0 in the mean curve over s, 0..1."""
    certain: NDArray[np.bool_]
    """True if the effect differs from 0 by a t test at 5 %, by Holm's correction for all K x J tests."""
    of_class: NDArray[np.bool_]
    """True for an attribute that tells a class, [J]."""

    @property
    def passes(self) -> NDArray[np.bool_]:
        """True where an effect is large, certain, and much the same in nearly all samples, [K, J]."""
        large = np.abs(self.effect) >= np.where(self.of_class, LARGE_OF_CLASS, LARGE)
        return self.certain & large & (self.sign_share >= SAME_SIGN) & (self.of_class | (self.common >= IN_COMMON))


def effects(changes: Changes, seed: int = 0) -> Effects:
    """Return what directions do to attributes.

    Samples in which an attribute is not defined, raw or shifted, are left out of its numbers, which are nan where no
    sample is left.

    Args:
        changes: attributes, with n of at least 2.
        seed: seed of the bootstrap.
    """
    moved = changes.moved
    half = (moved[:, :, -1] - moved[:, :, 0]) / 2  # [n, K, J]
    effect = mean_of(half)
    low, high = _ends(_means(half, resampled(len(half), seed)), effect)
    sense = np.sign(effect)
    curve = mean_of(moved)  # [K, L, J]
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = mean_of(moved**2).sum(1)
        line = (curve * changes.s[:, None]).sum(1)[:, None] / (changes.s**2).sum() * changes.s[:, None]
        common = (curve**2).sum(1) / squares
        linear = 1 - ((curve - line) ** 2).sum(1) / (curve**2).sum(1)
    return Effects(
        effect=effect,
        low=low,
        high=high,
        even=mean_of((moved[:, :, -1] + moved[:, :, 0]) / 2),
        sign_share=mean_of(np.where(np.isnan(half), np.nan, np.sign(half) == sense)),
        monotone_share=mean_of(_monotone(changes, sense)),
        common=common,
        curve=curve,
        linear=linear.clip(0, 1),
        certain=holm(_p_values(half)) < CERTAIN,
        of_class=changes.of_class,
    )


def resampled(n: int, seed: int) -> Array:
    """Return the weights of n samples in the resamples of a bootstrap, [RESAMPLES, n]; each row has the sum 1."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


def percentile_interval(values: Array, weights: Array) -> Bounds:
    """Return the 95 % percentile interval of the mean of values [n] over the resamples."""
    low, high = _ends(_means(values, weights), mean_of(values))
    return float(low), float(high)


def leading(found: Effects, raw: Array, general: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the attribute that leads each direction, the one with the largest effect that passes, [K]; -1 for none.

    Of attributes that are nearly the same thing in raw samples, the first that passes stands for all. Attributes of any
    image lead only where none of those that are made for these images passes: "brighter" says less than "short hair".

    Args:
        found: effects.
        raw: attributes of raw samples, [n, J].
        general: True for an attribute of any image, [J].
    """
    alike, passes = _alike(raw), found.passes
    passes = passes & ~(general & (passes & ~general).any(1, keepdims=True))
    size = np.where(passes, np.abs(found.effect), -1.0)
    first = (alike[size.argmax(1)] & passes).argmax(1)
    return np.where(passes.any(1), first, -1)


def specificity(found: Effects, raw: Array, leads: NDArray[np.int64]) -> Array:
    """Return |effect| on the leading attribute over the mean |effect| on the others, [K]; nan where none leads.

    It is nan, too, where the others do not move at all. Attributes that are nearly the same thing as the
    leading one in raw samples are no others (CASL, arXiv 2601.15441, calls the ratio EPR).

    Args:
        found: effects.
        raw: attributes of raw samples, [n, J].
        leads: attribute that leads each direction, [K]; -1 for none.
    """
    alike = _alike(raw)
    values = np.full(len(found.effect), np.nan)
    for k, lead in enumerate(leads):
        others = np.nan_to_num(np.abs(found.effect[k][~alike[lead]]))
        if lead >= 0 and others.any():
            values[k] = abs(found.effect[k, lead]) / others.mean()
    return values


def correlations(raw: Array) -> Array:
    """Return the correlations of attributes over the samples [n, J] in which both are defined, [J, J]."""
    import pandas as pd

    correlation: Array = pd.DataFrame(raw).corr().fillna(0.0).to_numpy(copy=True)
    np.fill_diagonal(correlation, 1.0)
    return correlation


def clusters(directions: Array, closeness: float = 0.7) -> NDArray[np.int64]:
    """Return the cluster of each direction [K, D], numbered from 0: average linkage of |cosine| of ``closeness``."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(directions) < 2:
        return np.zeros(len(directions), dtype=np.int64)
    distance = 1 - np.abs(cosines(directions))
    np.fill_diagonal(distance, 0)
    found = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - closeness, "distance")
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    order: NDArray[np.int64] = first.argsort().argsort()[number]
    return order


def cosines(directions: Array) -> Array:
    """Return the cosine between each two of the directions [K, D], [K, K]; 0 for one that is 0."""
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-30)
    cosine: Array = unit @ unit.T
    return cosine


def effective_rank(directions: Array) -> float:
    """Return how many independent directions [K, D] there are: exp of the entropy of their singular values' shares.

    Each direction counts alike, whatever its length (Roy & Vetterli 2007, Eq. 4, on unit vectors).
    """
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-30)
    values = np.linalg.svd(unit, compute_uv=False)
    if not len(values) or not values.sum():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _alike(raw: Array) -> NDArray[np.bool_]:
    """Return which attributes are nearly the same thing over raw samples [n, J], [J, J]."""
    return np.abs(correlations(raw)) > ALIKE


def _means(values: Array, weights: Array) -> Array:
    """Return the weighted means over the samples [n, ...] in which a value is defined: [resamples, ...]."""
    flat = values.reshape(len(values), -1)
    defined = np.isfinite(flat)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = weights @ np.where(defined, flat, 0) / (weights @ defined)
    shaped: Array = means.reshape(len(weights), *values.shape[1:])
    return shaped


def _ends(means: Array, mean: Array) -> Array:
    """Return the ends of the percentile interval of means [resamples, ...], [2, ...]; nan where the mean is.

    A resample in which no sample has a value, as may happen where few have one, counts as the mean.
    """
    ends: Array = np.quantile(np.where(np.isnan(means), mean, means), (0.025, 0.975), axis=0)
    return ends


def _monotone(changes: Changes, sense: Array) -> Array:
    """Return 1 where an attribute is monotone in s, in the effect's sense, [n, K, J]; nan where it is not defined."""
    from scipy.stats import rankdata

    n, K, L, J = changes.shifted.shape
    at_zero = np.broadcast_to(changes.raw[:, None, None, :], (n, K, 1, J))
    curve = np.concatenate([changes.shifted[:, :, : L // 2], at_zero, changes.shifted[:, :, L // 2 :]], axis=2)
    ranks = rankdata(curve, axis=2) - (L + 2) / 2
    wanted = np.arange(L + 1) - L / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = np.einsum("nklj,l->nkj", ranks, wanted) / np.sqrt((ranks**2).sum(2) * (wanted**2).sum())
    monotone = np.where(np.isnan(rho), 0.0, rho * sense >= MONOTONE)  # one that never changes is not monotone
    return np.where(np.isfinite(curve).all(2), monotone, np.nan)


def _p_values(half: Array) -> Array:
    """Return the p value of each mean effect, of t tests over samples [n, K, J] against 0; 1 where nothing moves."""
    from scipy.stats import t

    n = np.isfinite(half).sum(0)
    mean = mean_of(half)
    spread = np.sqrt(mean_of((half - mean) ** 2) / np.maximum(n - 1, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        p: Array = 2 * t.sf(np.abs(mean) / spread, n - 1)
    return np.where(mean == 0, 1.0, p)
