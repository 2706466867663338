"""Distances between sets of images in a feature space: Frechet distance and KID, by torch-fidelity's formulas."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from hbench.core import seeds
from hbench.core.intervals import fieller, jackknife, student
from hbench.errors import HBenchError, counted
from hbench.store.classifier import load_classifier
from hbench.store.records import Interval, Positive

TOO_FEW = "one image has no covariance: use more samples"
GROUPS = 20
"""Number of groups of the jackknife; each replicate leaves one of them out."""

Statistics = dict[str, np.ndarray]
"""Mean ``mu`` [D] and covariance ``sigma`` [D, D] of features, in torch-fidelity's form."""


@dataclass(frozen=True)
class Reference:
    """The real images that samples are compared with."""

    statistics: Statistics
    n: int
    halves: float
    """Distance between two random halves of the real images, n // 2 each; infinitely many would have 0."""
    halves_interval: tuple[float, float] | None
    """95 % interval of ``halves``; None if only the statistics in a file of hbench 0.1 are at hand."""
    features: Tensor | None = None
    """Features [n, D], for KID; None if only the statistics are at hand."""

    @property
    def sha256(self) -> str:
        """SHA-256 of mean and covariance."""
        return hashlib.sha256(self.statistics["mu"].tobytes() + self.statistics["sigma"].tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Distances of one kind of samples to the reference."""

    n: Positive
    fd: float
    """Frechet distance of the Gaussians with the features' means and covariances; it falls as n grows."""
    interval: Interval
    """95 % interval of ``fd`` for other samples of the same generator and number, by the jackknife."""
    replicates: list[float]
    """Values of ``fd`` without each of the jackknife's groups of samples."""
    infinity: float | None
    """Distance extrapolated to infinitely many samples, against the same real images; None if n is too small."""
    infinity_interval: Interval | None
    """95 % interval of ``infinity``."""
    kid: float | None
    """Kernel inception distance, mean over torch-fidelity's 100 subsets; None without features of the reference."""
    kid_std: float | None
    """Standard deviation over the subsets; None if each of them holds all images, so that all are alike."""


def distance(found: Tensor, reference: Reference) -> Distance:
    """Return the distances of features [n, D] to the reference.

    Raises:
        HBenchError: too few features for a covariance.
    """
    fd = frechet_distance(statistics(found), reference.statistics)
    root = _root(reference.statistics["sigma"])
    replicates = [_distance_by_root(part, reference.statistics, root) for part in _without_each_group(found)]
    low, high = jackknife(fd, replicates)
    infinity, infinity_interval = infinity_of(extrapolated(fd, replicates, len(found), found.shape[1]))
    subsets: dict[str, float] = {}
    alike = len(found) == reference.n <= 1000
    if reference.features is not None:
        size = min(1000, len(found), reference.n)
        subsets = kid_features_to_metric(found, reference.features, kid_subset_size=size, verbose=False)
    return Distance(
        n=len(found),
        fd=fd,
        interval=(max(0.0, float(low)), float(high)),
        replicates=replicates,
        infinity=infinity,
        infinity_interval=infinity_interval,
        kid=subsets.get("kernel_inception_distance_mean"),
        kid_std=None if alike else subsets.get("kernel_inception_distance_std"),
    )


def extrapolated(fd: float, replicates: Sequence[float], n: int, size: int) -> NDArray[np.float64] | None:
    """Return values [G] whose mean is the distance for infinitely many samples, and whose spread is its error.

    The distance FD_m of m samples is read as a line over the bias b(m) that m gives it, and its end at b = 0 is
    FD-infinity (Chong & Forsyth 2020). They fit 15 sizes, a random subset each, over 1/m. Here are two sizes, n and
    n - n/G, each made of all samples, the smaller one as the mean over the G replicates: much noise cancels (0.6 to 0.8
    of their standard deviation is left), and large sizes bend the least. Near the number of features FD_m bends over
    1/m, so that their line ends too low; b(m) is the bias of white features instead: 1/m by the means, and by the
    covariances that of the square root of a Wishart matrix (Marchenko-Pastur), which is in proportion to 1/m as well
    for many samples. The real images stay as they are, as in the paper, so the bias by their number remains.

    Args:
        fd: distance of all samples.
        replicates: distances without each of G groups of equal size, [G].
        n: number of samples.
        size: number of features; the result is None unless n - n/G is larger.
    """
    if (G := len(replicates)) < 2 or (fewer := n - n / G) <= size:
        return None
    without = np.array(replicates)
    at_n, at_fewer = _white_bias(n, size), _white_bias(fewer, size)
    infinity = fd - at_n / (at_fewer - at_n) * (without.mean() - fd)
    values: NDArray[np.float64] = infinity + (G - 1) * (without.mean() - without)
    return values


def infinity_of(values: NDArray[np.float64] | None) -> tuple[float | None, Interval | None]:
    """Return mean and 95 % interval of extrapolated values, both cut at 0, below which no distance lies."""
    if values is None:
        return None, None
    low, high = student(values)
    return max(0.0, float(values.mean())), (max(0.0, float(low)), max(0.0, float(high)))


def ratio_at_infinity(
    raw: NDArray[np.float64] | None, shifted: NDArray[np.float64] | None
) -> tuple[float | None, Interval | None]:
    """Return the ratio of the means of extrapolated values [G] of the same pairs, shifted over raw, and its interval.

    Both are None where a distance could not be extrapolated, or the raw one cannot be told from 0.
    """
    if raw is None or shifted is None or not (interval := fieller(shifted, raw)):
        return None, None
    return max(0.0, float(shifted.mean() / raw.mean())), interval


def real_reference(found: Tensor) -> Reference:
    """Return the reference with these features [n, D] of real images.

    Raises:
        HBenchError: fewer than 6 images.
    """
    if len(found) < 6:
        raise HBenchError(
            f"{counted(len(found), 'real image')}: need at least 6 to compare two halves of them: add images"
        )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seeds.real_halves()))
    first, second = (found[half] for half in order.chunk(2))
    halves = frechet_distance(statistics(first), statistics(second))
    parts = zip(_without_each_group(first), _without_each_group(second), strict=False)
    low, high = jackknife(halves, [_distance_by_root(a, b, _root(b["sigma"])) for a, b in parts])
    return Reference(statistics(found), len(found), halves, (max(0.0, float(low)), float(high)), found)


def stored_reference(weights: Path) -> Reference:
    """Return the reference that a classifier's file carries: the statistics of its real test set."""
    real = load_classifier(weights).real
    stats = {"mu": real.mu.numpy(), "sigma": real.sigma.numpy()}
    return Reference(stats, real.n, real.halves, real.halves_interval)


def statistics(found: Tensor) -> Statistics:
    """Return mean and covariance of features [n, D].

    Raises:
        HBenchError: fewer than 2 images.
    """
    if len(found) < 2:
        raise HBenchError(TOO_FEW)
    stats: Statistics = fid_features_to_statistics(found)
    return stats


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Return the Frechet distance of two Gaussians; a little below 0 for equal ones, by rounding."""
    return float(fid_statistics_to_metric(first, second, False)["frechet_inception_distance"])


def _without_each_group(found: Tensor) -> Iterator[Statistics]:
    """Yield the statistics of features [n, D] without each group of the jackknife.

    Cost: one pass over all features, and D^2 operations a group.
    """
    centre = found.double().mean(0)
    groups = [(found[g::GROUPS].double() - centre).numpy() for g in range(min(GROUPS, len(found)))]
    products = sum(group.T @ group for group in groups)
    sums = sum(group.sum(0) for group in groups)
    for group in groups:
        if (n := len(found) - len(group)) < 2:
            raise HBenchError(TOO_FEW)
        mu = (sums - group.sum(0)) / n
        sigma = (products - group.T @ group - n * np.outer(mu, mu)) / (n - 1)
        yield {"mu": mu + centre.numpy(), "sigma": sigma}


def _distance_by_root(first: Statistics, second: Statistics, root: np.ndarray) -> float:
    """Return :func:`frechet_distance`, several times as fast, given the square root of the second covariance.

    With the root on both sides, the first covariance is symmetric and has the eigenvalues of sigma_1 sigma_2.
    """
    eigenvalues = np.linalg.eigvalsh(root @ first["sigma"] @ root)
    traces = np.trace(first["sigma"]) + np.trace(second["sigma"]) - 2 * np.sqrt(eigenvalues.clip(0)).sum()
    return float(((first["mu"] - second["mu"]) ** 2).sum() + traces)


def _white_bias(n: float, size: int) -> float:
    """Return the bias of the distance of n white features to their own distribution, over their number; n > size."""
    from scipy.special import hyp2f1

    mean_root = hyp2f1(0.5, -0.5, 2, size / n)  # mean root of an eigenvalue of the sample covariance
    return float(1 / n + 2 * (1 - mean_root))


def _root(sigma: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a covariance [D, D]."""
    values, vectors = np.linalg.eigh(sigma)
    root: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root
