"""Frechet inception distance of raw and shifted samples to real images, through torch-fidelity (Table 2).

Samples and real images become folders of PNGs in a cache, so that they can be looked at, resumed, and given to the
``fidelity`` command, which finds the same numbers. Everything in the cache is found by its content: images by all that
determines them, features by the bytes of the images and of the extractor's weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from hbench.core.intervals import in_words, jackknife
from hbench.errors import as_list, check_at_least, check_seed, check_type
from hbench.evaluation.features import choose_extractor, features
from hbench.evaluation.frechet import (
    Distance,
    Reference,
    distance,
    extrapolated,
    infinity_of,
    ratio_at_infinity,
)
from hbench.evaluation.real_images import classifier_cautions, real_images
from hbench.evaluation.sample_cache import pngs, read_pngs, sample_folders
from hbench.runtime.distributed import all_gather, rank
from hbench.store.folders import remove_leftovers
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Interval, Positive
from hbench.store.results import Result
from hbench.store.run import Run, check_has_files

if TYPE_CHECKING:
    from pandas import DataFrame

EXAMPLES = 64
"""Number of samples of each kind in the picture."""
ENOUGH = 5000
"""Number of images from which on two FDs of different n are about comparable; at least ten a feature, too."""


@dataclass(frozen=True, kw_only=True)
class Fidelity(Result):
    """Distances of raw and shifted samples to real images."""

    NAME: ClassVar[str] = "fid"
    SCHEMA: ClassVar[int] = 2

    metric: str
    """Name of the distance: "FID" only with Inception features."""
    feature_size: Positive
    """Number of features."""
    n_real: Positive
    """Number of real images."""
    halves: float
    """Distance between two random halves of the real images, n_real // 2 each; infinitely many would have 0."""
    halves_interval: Interval | None
    """95 % interval of ``halves``, by the jackknife; None if only statistics in a file of hbench 0.1 are at hand."""
    raw: Distance
    shifted: Distance
    ratio: float
    """Distance of shifted samples over that of raw ones, of the same n; few samples pull it towards 1."""
    ratio_interval: Interval
    """95 % interval of the ratio, by the jackknife; the two samples of a pair are left out together."""
    ratio_infinity: float | None
    """Ratio of both distances extrapolated to infinitely many samples; at 1 the shift costs no fidelity."""
    ratio_infinity_interval: Interval | None
    """95 % interval of it, by Fieller's method; None where raw samples cannot be told from real ones at this n."""
    images: Aside = field(default=None, compare=False, repr=False)
    """First raw and shifted samples, a pair of uint8 [N, C, H, W]; None in a result read back."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's; what it lacks follows from the jackknife's replicates."""
        olds, size = {kind: values[kind] for kind in ("raw", "shifted")}, values["feature_size"]
        ends = {kind: extrapolated(old["fd"], old["replicates"], old["n"], size) for kind, old in olds.items()}
        found: dict[str, Any] = {}
        for kind, old in olds.items():
            infinity, interval = infinity_of(ends[kind])
            found[kind] = old | {"infinity": infinity, "infinity_interval": interval}
        ratio, interval = ratio_at_infinity(ends["raw"], ends["shifted"])
        return values | found | {"ratio_infinity": ratio, "ratio_infinity_interval": interval}

    @property
    def kid_metric(self) -> str:
        """Name of the kernel distance: "KID" only with Inception features."""
        return self.metric.replace("FID", "KID").replace("FD", "KID")

    def cautions(self) -> list[str]:
        """Return what is suspicious about the real images, how far distances compare, and what is of too few images."""
        n, size, found = self.raw.n, self.feature_size, classifier_cautions(self)
        if n < max(ENOUGH, 10 * size):
            found.append(
                f"FDs fall as n grows: these, and their ratio, compare only with others of n = {n:,}, not of "
                f"n = {max(10_000, 2 * n):,}; compare those extrapolated to infinite n, or {self.kid_metric}, against "
                "the same real images"
            )
        if self.raw.infinity is None:
            found.append(f"{n:,} samples are too few to extrapolate distances in {size} features: make more")
        elif self.ratio_infinity_interval is None:
            found.append(
                f"{n:,} samples are too few to tell the raw ones from real images, so no ratio is known: make more"
            )
        found += [
            f"{count:,} {what} for {size} features: a rank-deficient covariance"
            for what, count in (("samples", n), ("real images", self.n_real))
            if count <= size
        ]
        if self.n_real < max(ENOUGH, 10 * size):
            # halves of n / 2 images each have four times the bias of n images against infinitely many
            share = f"about {self.halves / 4:.3f}" if self.n_real // 2 > size else "a part"
            found.append(
                f"the {self.n_real:,} real images are few: {share} of every FD, extrapolated ones included, comes from "
                "that"
            )
        return found

    def summary(self) -> str:
        """Return the table, then the ratio of both distances, and the distance between halves of the real images."""
        ratio, half = in_words(self.ratio, self.ratio_interval), self.n_real // 2
        infinity = in_words(self.ratio_infinity, self.ratio_infinity_interval, unknown="not known")
        among = self.detail("directions")
        alone = f"shifted along directions {', '.join(map(str, among))} alone\n" if among else ""
        return (
            f"{self.table().to_string(index=False)}\n{alone}"
            f"shifted / raw {ratio} at n = {self.raw.n:,}, {infinity} at infinity\n"
            f"two halves of the real images {self.halves:.3f} at n = {half:,} each, 0 at infinity"
        )

    def table(self) -> "DataFrame":
        """Return the distances with their intervals and n, a row for raw samples and one for shifted ones."""
        import pandas as pd

        return pd.DataFrame(
            {
                "samples": name,
                "n": each.n,
                "n_real": self.n_real,
                self.metric: each.fd,
                "low": each.interval[0],
                "high": each.interval[1],
                "infinity": each.infinity,
                "infinity_low": each.infinity_interval and each.infinity_interval[0],
                "infinity_high": each.infinity_interval and each.infinity_interval[1],
                self.kid_metric: each.kid,
                "KID_std": each.kid_std,
            }
            for name, each in (("raw", self.raw), ("shifted", self.shifted))
        )


def fid(
    run: Run,
    *,
    samples: int | None = None,
    steps: int | None = None,
    directions: Sequence[int] | None = None,
    extractor: str | None = None,
    weights: str | Path | None = None,
    cache: str | Path = "runs/cache",
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> Fidelity:
    """Measure the distances of raw and shifted samples to real images.

    Several processes make the samples together; the main one measures, and each gets the result. Cost: two chains a
    sample, and one pass of the extractor an image.

    Args:
        run: run that generates the samples.
        samples: number of samples of each kind, at least 3; the experiment's by default.
        steps: number of generation steps M, 1..T; the run's by default.
        directions: directions that samples are shifted along, such as the visible ones; all by default.
        extractor: name of a feature extractor of torch-fidelity that is plain weights, or "classifier"; by default
            Inception, and for labelled images the classifier.
        weights: file of the extractor's weights; by default torch-fidelity's, or the shipped classifier that fits. A
            classifier's file carries the statistics of real images, so that the distance needs no data set; KID does.
        cache: folder of images and features, shared by all processes.
        data_root: folder of the real images, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.
        seed: seed of x_T, k and s.

    Raises:
        TypeError: not a run.
        ValueError: fewer than 3 samples, steps out of range, or no direction.
        HBenchError: no such extractor, no data, or too few images.
    """
    check_type(Run, "as load_run returns it", run=run)
    count = run.experiment.evaluation.fid_samples if samples is None else samples
    M = len(run.sampler.with_steps(steps).timesteps)
    check_at_least(3, samples=count)
    check_seed(seed)
    check_has_files(run)
    among = None if directions is None else sorted(set(as_list(directions)))
    if among is not None:
        check_at_least(1, directions=len(among))
        run.check_edit(dict.fromkeys(among, 0.0))
    chosen, cache = choose_extractor(run.experiment.data, extractor, weights), Path(cache)
    origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes, M=M)
    reference = None
    if rank() == 0:
        remove_leftovers(cache)
        reference, read = real_images(run.experiment.data, chosen, cache, run.device, data_root, download)
    folders = sample_folders(run, count, cache, seed, M, among)
    results = []
    if reference:
        raw, shifted = (features(pngs(folder, count), chosen, cache, run.device) for folder in folders)
        found = origin.finished(
            n=count,
            n_real=reference.n,
            extractor=chosen.name,
            extractor_sha256=chosen.sha256,
            reference_sha256=reference.sha256,
            samples={"raw": str(folders[0]), "shifted": str(folders[1])},
            **({} if among is None else {"directions": among}),
            **read,
        )
        images = tuple(read_pngs(pngs(folder, min(count, EXAMPLES))) for folder in folders)
        results.append(replace(fidelity(raw, shifted, reference, chosen.metric), images=images, provenance=found))
    (result,) = all_gather(results)
    return result


def fidelity(raw: Tensor, shifted: Tensor, reference: Reference, metric: str) -> Fidelity:
    """Return the distances of features [n, D] of raw and shifted samples, pair by pair, to the reference.

    Raises:
        HBenchError: too few features for a covariance.
    """
    raw_distance, shifted_distance = distance(raw, reference), distance(shifted, reference)
    ratio = shifted_distance.fd / raw_distance.fd
    ends = (extrapolated(each.fd, each.replicates, each.n, raw.shape[1]) for each in (raw_distance, shifted_distance))
    ratio_infinity, ratio_infinity_interval = ratio_at_infinity(*ends)
    low, high = jackknife(ratio, np.array(shifted_distance.replicates) / np.array(raw_distance.replicates))
    return Fidelity(
        metric=metric,
        feature_size=raw.shape[1],
        n_real=reference.n,
        halves=reference.halves,
        halves_interval=reference.halves_interval,
        raw=raw_distance,
        shifted=shifted_distance,
        ratio=ratio,
        ratio_interval=(max(0.0, float(low)), float(high)),
        ratio_infinity=ratio_infinity,
        ratio_infinity_interval=ratio_infinity_interval,
    )
