"""Distances of raw and shifted samples to real images, through torch-fidelity (Table 2).

Samples and real images become folders of PNGs in a cache, so that they can be looked at, resumed, and given to the
``fidelity`` command, which finds the same numbers. Everything in the cache is found by its content: images by all that
determines them, features by the bytes of the images and of the extractor's weights.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from hbench.core import seeds
from hbench.core.intervals import jackknife
from hbench.errors import HBenchError
from hbench.evaluation.features import INCEPTION, features
from hbench.evaluation.lenet import EXTRACTOR as LENET
from hbench.evaluation.lenet import load_lenet
from hbench.evaluation.sample_cache import pngs

TOO_FEW = "one image has no covariance: use more samples"
GROUPS = 20
"""Of the jackknife: each replicate leaves one of so many equal parts of the samples out."""

Statistics = dict[str, np.ndarray]
"""Mean ``mu`` and covariance ``sigma`` of features, as torch-fidelity has them."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with."""

    statistics: Statistics
    n: int
    halves: float
    """Distance between two random halves of the real images: what is below it cannot be told from them at that n."""
    halves_interval: tuple[float, float] | None
    """None where only the statistics are at hand."""
    sha256: str
    """Of mean and covariance."""
    features: Tensor | None = None
    """[n, D], for KID; None where only the statistics are at hand."""


@dataclass(frozen=True)
class Distance:
    """Distances of one kind of samples to the reference."""

    n: int
    fd: float
    interval: tuple[float, float]
    """95 % interval of ``fd`` for other samples of the same generator, by the jackknife."""
    replicates: list[float]
    """``fd`` without each of the jackknife's groups of samples."""
    kid: float | None
    kid_std: float | None
    """Over torch-fidelity's 100 subsets; None where each of them holds all images, and so says nothing."""


@dataclass(frozen=True)
class Fidelity:
    """Distances of raw and shifted samples to real images (Table 2)."""

    metric: str
    """What the distance may be called: "FID" only with Inception features."""
    feature_size: int
    n_real: int
    halves: float
    halves_interval: tuple[float, float] | None
    raw: Distance
    shifted: Distance
    ratio: float
    """Shifted over raw; 1 = shifting costs no fidelity."""
    ratio_interval: tuple[float, float]
    """By the jackknife: shifted sample i is raw sample i, shifted, and both are left out together."""


def metric_name(extractor: str) -> str:
    """The name of the Frechet distance in an extractor's features."""
    return {INCEPTION: "FID", LENET: "FD (LeNet digits)"}.get(extractor, f"FD ({extractor})")


def fidelity(
    samples: tuple[Path, Path],
    reference: Reference,
    extractor: str,
    weights: Path | None,
    cache: Path,
    device: torch.device,
    count: int,
) -> Fidelity:
    """Distances of the first ``count`` images in the folders of raw and shifted samples to the reference."""
    found = [features(pngs(folder, count), extractor, weights, cache, device) for folder in samples]
    raw, shifted = (distance(each, reference) for each in found)
    ratio = shifted.fd / raw.fd
    low, high = jackknife(ratio, np.array(shifted.replicates) / np.array(raw.replicates))
    return Fidelity(
        metric=metric_name(extractor),
        feature_size=found[0].shape[1],
        n_real=reference.n,
        halves=reference.halves,
        halves_interval=reference.halves_interval,
        raw=raw,
        shifted=shifted,
        ratio=ratio,
        ratio_interval=(float(low), float(high)),
    )


def distance(found: Tensor, reference: Reference) -> Distance:
    """Distances of features [n, D] to the reference."""
    fd = frechet_distance(statistics(found), reference.statistics)
    root = _root(reference.statistics["sigma"])
    replicates = [_distance_by_root(part, reference.statistics, root) for part in _without_each_group(found)]
    low, high = jackknife(fd, replicates)
    subsets: dict[str, float] = {}
    alike = len(found) == reference.n <= 1000
    if reference.features is not None:
        size = min(1000, len(found), reference.n)
        subsets = kid_features_to_metric(found, reference.features, kid_subset_size=size, verbose=False)
    return Distance(
        n=len(found),
        fd=fd,
        interval=(float(low), float(high)),
        replicates=replicates,
        kid=subsets.get("kernel_inception_distance_mean"),
        kid_std=None if alike else subsets.get("kernel_inception_distance_std"),
    )


def _without_each_group(found: Tensor) -> Iterator[Statistics]:
    """The statistics of the features [n, D] without each of the jackknife's groups: one pass over all, and D^2 each."""
    centre = found.double().mean(0)
    groups = [(found[g::GROUPS].double() - centre).numpy() for g in range(min(GROUPS, len(found)))]
    products = sum(group.T @ group for group in groups)
    sums = sum(group.sum(0) for group in groups)
    for group in groups:
        if (n := len(found) - len(group)) < 2:
            raise HBenchError(TOO_FEW)
        mean = (sums - group.sum(0)) / n
        sigma = (products - group.T @ group - n * np.outer(mean, mean)) / (n - 1)
        yield {"mu": mean + centre.numpy(), "sigma": sigma}


def real_reference(found: Tensor) -> Reference:
    """The reference made of the features [n, D] of real images."""
    if len(found) < 6:
        raise HBenchError(f"{len(found)} real images: need at least 6 to compare two halves of them: add images")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seeds.real_halves()))
    first, second = (found[half] for half in order.chunk(2))
    halves = frechet_distance(statistics(first), statistics(second))
    parts = zip(_without_each_group(first), _without_each_group(second), strict=False)
    low, high = jackknife(halves, [_distance_by_root(a, b, _root(b["sigma"])) for a, b in parts])
    stats = statistics(found)
    return Reference(stats, len(found), halves, (float(low), float(high)), _digest(stats), found)


def lenet_reference(weights: Path) -> Reference:
    """The reference that a LeNet's file carries: its real test set."""
    lenet = load_lenet(weights)
    stats = {"mu": lenet.real_mu.numpy(), "sigma": lenet.real_sigma.numpy()}
    return Reference(stats, int(lenet.real_n), float(lenet.real_halves), None, _digest(stats))


def statistics(found: Tensor) -> Statistics:
    """Mean and covariance of features [n, D]."""
    if len(found) < 2:
        raise HBenchError(TOO_FEW)
    stats: Statistics = fid_features_to_statistics(found)
    return stats


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Frechet distance of two Gaussians; a little below 0 for equal ones, by rounding."""
    return float(fid_statistics_to_metric(first, second, False)["frechet_inception_distance"])


def _distance_by_root(first: Statistics, second: Statistics, root: np.ndarray) -> float:
    """:func:`frechet_distance`, several times as fast where ``root``, that of second's covariance, is known.

    Its product with the first covariance on both sides is symmetric, and has the eigenvalues of S1 S2.
    """
    eigenvalues = np.linalg.eigvalsh(root @ first["sigma"] @ root)
    traces = np.trace(first["sigma"]) + np.trace(second["sigma"]) - 2 * np.sqrt(eigenvalues.clip(0)).sum()
    return float(((first["mu"] - second["mu"]) ** 2).sum() + traces)


def _root(sigma: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(sigma)
    root: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


# Features -----------------------------------------------------------------------------------------------------------


# Images -------------------------------------------------------------------------------------------------------------


def _digest(stats: Statistics) -> str:
    return hashlib.sha256(stats["mu"].tobytes() + stats["sigma"].tobytes()).hexdigest()
