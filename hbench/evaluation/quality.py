"""Quality of a diffusion model's samples: do they pass for the data?

Samples are held against real images in five ways: distance and precision and recall in an extractor's features, shares
of the classes, nearest training images, and the image domain. Beside each number stands its floor, which real images
have in the samples' place. Samples and features come from the cache of :mod:`hbench.evaluation.sample_cache`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hbench.config import Experiment
from hbench.core.backbone import Backbone, DiffusionModel
from hbench.core.domain import Look, neighbours
from hbench.core.images import to_float
from hbench.core.intervals import in_words, wilson
from hbench.core.sampler import Sampler
from hbench.errors import check_at_least, check_seed, check_type
from hbench.evaluation.balance import Balance, balances
from hbench.evaluation.features import Extractor, choose_extractor, features
from hbench.evaluation.frechet import Distance, distance
from hbench.evaluation.nearest import Found, Nearest, find_nearest, summarised, threshold_of
from hbench.evaluation.originals import Originals, originals, predicted
from hbench.evaluation.precision_recall import PrecisionRecall, precision_recall
from hbench.evaluation.real_images import classifier_cautions
from hbench.evaluation.sample_cache import are_outside, model_folders, pngs, read_pngs
from hbench.experiments import warn_of_schedule
from hbench.runtime.device import pick_device
from hbench.runtime.distributed import all_gather, rank
from hbench.store.folders import remove_leftovers
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Interval, Nonnegative, Positive, Share
from hbench.store.results import Result
from hbench.store.weights import state_sha256

if TYPE_CHECKING:
    from pandas import DataFrame

COUNT = 2000
"""Number of samples for each number of steps, by default."""
SHOWN = 64
"""Number of samples, and of real images, in the picture."""
BESIDE = 12
"""Number of samples that the picture shows beside their nearest training images: the first ones, and the nearest."""
SAMPLES = 500
"""Number of samples whose nearest training images are looked for, at most."""


@dataclass(frozen=True, kw_only=True)
class QualityAt:
    """Quality of the samples that one number of generation steps makes."""

    M: Positive
    """Number of generation steps."""
    distance: Distance
    """Distances to the real images."""
    multiple: Nonnegative
    """Frechet distance over that between two halves of the real images."""
    multiple_interval: Interval
    """95 % interval of it for other samples; the halves are taken as they are."""
    precision_recall: PrecisionRecall | None
    """Precision and recall against one half of the real images; None if these are not at hand."""
    balances: list[Balance]
    """Shares of the classes of each factor; empty without labels, or if the real images are not at hand."""
    nearest: Nearest | None
    """Distances to the nearest training images; None if these are not at hand."""
    outside: Share
    """Share of samples with a pixel beyond +-1.5."""
    outside_interval: Interval
    """95 % Wilson interval of it."""
    neighbours: float
    """Mean correlation of neighbouring pixels, 0 for noise."""


class Pictures(NamedTuple):
    """Images that the picture shows, uint8 [N, C, H, W] each, of the number of steps that it shows."""

    samples: Tensor
    """First samples of the seed."""
    real: Tensor | None
    """First real images; None if they are not at hand."""
    beside: Tensor | None
    """First samples, their nearest training images, the samples that are nearest of all, and theirs: a row each,
    uint8 [4, columns, C, H, W]; None if the training images are not at hand."""
    distances: list[list[float]]
    """Distances [2, columns] of the first samples, and of the nearest ones."""


@dataclass(frozen=True, kw_only=True)
class Quality(Result):
    """How near a diffusion model's samples come to real images, for several numbers of generation steps."""

    NAME: ClassVar[str] = "quality"

    metric: str
    """Name of the distance: "FID" only with Inception features."""
    feature_size: Positive
    """Number of features."""
    n: Positive
    """Number of samples for each number of steps."""
    n_real: Positive
    """Number of real images."""
    halves: float
    """Distance between two random halves of the real images, n_real // 2 each: the floor."""
    halves_interval: Interval | None
    """95 % interval of it, by the jackknife; None if only the statistics of the real images are at hand."""
    perfect: PrecisionRecall | None
    """Precision and recall of real images, of the half that samples are not held against, in the samples' place."""
    n_train: Positive | None
    """Number of training images; None if they are not at hand."""
    near: Nonnegative | None
    """Distance to a training image up to which an image is very near, as 1 % of the test images are."""
    tested: Nearest | None
    """Distances of test images to their nearest training images."""
    shown: Positive
    """Number of generation steps of the picture: the discovery's, or the smallest measured one."""
    steps: list[QualityAt]
    """Numbers for each M, in ascending order."""
    images: Aside = field(default=None, compare=False, repr=False)
    """The :class:`Pictures`; None in a result read back."""

    def __post_init__(self) -> None:
        """Check that there are numbers for the steps of the picture."""
        if self.shown not in [each.M for each in self.steps]:
            raise ValueError(f"no numbers for M = {self.shown}")

    @property
    def at_shown(self) -> QualityAt:
        """Numbers for the steps of the picture."""
        return next(each for each in self.steps if self.shown == each.M)

    @property
    def floor_at_n(self) -> float:
        """Multiple of the floor that n perfect samples would have: the bias is in proportion to 1/n of both sides."""
        return (1 / self.n + 1 / self.n_real) / (2 / (self.n_real // 2))

    def cautions(self) -> list[str]:
        """Return what is suspicious about real images and samples, and what is of too few images or left out."""
        found = classifier_cautions(self)
        for each in self.steps:
            found += [f"M = {each.M}: {said}" for said in Look(each.outside, each.neighbours).doubts()]
        if self.n <= self.feature_size:
            found.append(f"{self.n:,} samples for {self.feature_size} features: a rank-deficient covariance; make more")
        elif abs(self.floor_at_n - 1) > 0.05:
            found.append(
                f"the floor is the distance between halves of {self.n_real // 2:,} real images: by their number alone, "
                f"{self.n:,} perfect samples would have about {self.floor_at_n:.2g} times it"
            )
        if self.tested is None:
            parts = [] if self.perfect else ["precision and recall"]
            found.append(
                "the real images were not at hand: what the classifier's file keeps of them stands in, and no "
                f"{', '.join([*parts, 'nearest training images'])} could be measured"
            )
        if self.tested:
            for each in self.steps:
                if each.nearest and each.nearest.near_interval[0] > self.tested.near_interval[1]:
                    found.append(
                        f"M = {each.M}: {each.nearest.near:.1%} of the samples lie as near to a training image as "
                        f"{self.tested.near:.1%} of the test images do: the model repeats training images, or makes "
                        "plainer ones; the picture shows the nearest"
                    )
        return found

    def summary(self) -> str:
        """Return a line for each number of steps, the floors, and the classes that are off at the steps shown."""
        lines = [self._line(each) for each in self.steps]
        halves, pr = in_words(self.halves, self.halves_interval), self.perfect
        real = f", precision {pr.precision:.3f}, recall {pr.recall:.3f} of real images" if pr else ""
        lines.append(f"floor   {self.metric} {halves} between halves of {self.n_real // 2:,} real images{real}")
        lines += [_balance_words(each, self.shown) for each in self.at_shown.balances]
        if self.tested and self.near is not None:
            lines.append(
                f"very near a training image: up to {self.near:.3f}, as {self.tested.near:.1%} of "
                f"{self.tested.n:,} test images, whose median is {self.tested.median:.3f}"
            )
        return "\n".join(lines)

    def _line(self, each: QualityAt) -> str:
        d = each.distance
        parts = [
            f"M = {each.M:<3} {self.metric} {in_words(d.fd, d.interval)}, {each.multiple:.1f} times the floor, "
            f"{in_words(d.infinity, d.infinity_interval, unknown='not known')} at infinite n"
        ]
        if pr := each.precision_recall:
            parts.append(f"precision {in_words(pr.precision, pr.precision_interval)}{self._fewer(pr.n)}")
            parts.append(f"recall {in_words(pr.recall, pr.recall_interval)}{self._fewer(pr.n)}")
        if near := each.nearest:
            share = in_words(near.near, near.near_interval)
            parts.append(f"very near a training image {share}{self._fewer(near.n)}")
        parts.append(f"outside {each.outside:.2%}")
        return f"{', '.join(parts)}, n = {self.n:,}"

    def _fewer(self, n: int) -> str:
        """Return the n of a number that is not of all samples."""
        return f" of {n:,}" if n < self.n else ""

    def table(self) -> "DataFrame":
        """Return the numbers, a row for each number of steps and a last one, "real", for the floors."""
        import pandas as pd

        rows = [self._row(each) for each in self.steps]
        floor = {"M": "real", "n": self.n_real // 2, self.metric: self.halves, "times_floor": 1.0}
        if self.halves_interval:
            floor |= {"low": self.halves_interval[0], "high": self.halves_interval[1]}
        floor |= _precision_columns(self.perfect)
        floor |= {f"{each.factor}_off": each.floor for each in self.at_shown.balances}
        return pd.DataFrame([*rows, floor | _nearest_columns(self.tested)])

    def _row(self, each: QualityAt) -> dict[str, Any]:
        d = each.distance
        return {
            "M": str(each.M),
            "n": self.n,
            self.metric: d.fd,
            "low": d.interval[0],
            "high": d.interval[1],
            "infinity": d.infinity,
            "infinity_low": d.infinity_interval and d.infinity_interval[0],
            "infinity_high": d.infinity_interval and d.infinity_interval[1],
            "times_floor": each.multiple,
            **_precision_columns(each.precision_recall),
            **{f"{balance.factor}_off": balance.distance for balance in each.balances},
            **_nearest_columns(each.nearest),
            "outside": each.outside,
        }


def quality(
    model: DiffusionModel,
    experiment: Experiment,
    *,
    samples: int | None = None,
    steps: int | Sequence[int] | None = None,
    extractor: str | None = None,
    weights: str | Path | None = None,
    cache: str | Path = "runs/cache",
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Quality:
    """Measure how near a diffusion model's samples come to real images.

    Several processes make the samples together; the main one measures, and each gets the result. What was made is kept
    in the cache, and a call after a kill goes on there. Cost: M passes of the model a sample for each M.

    Args:
        model: diffusion model; it is moved to the device.
        experiment: experiment with the model's settings. Samples are made in the discovery's precision and spacing.
        samples: number of samples for each number of steps, at least 6; by default 2,000, or the experiment's number
            for FIDs where that is less.
        steps: numbers of generation steps M, 1..T; by default the discovery's, twice and five times as many.
        extractor: name of a feature extractor, see :func:`hbench.evaluation.fid.fid`.
        weights: file of its weights.
        cache: folder of images and features, shared by all processes.
        data_root: folder of the real images, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.
        seed: seed of x_T.
        device: device that generates them: "auto" is a GPU where there is one, else the CPU.

    Raises:
        TypeError: not a model, or not an experiment.
        ValueError: fewer than 6 samples, or steps out of range.
        HBenchError: no such extractor, no data, or too few images.
    """
    check_type(Backbone, "as load_model returns it", model=model)
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    samples = min(COUNT, experiment.evaluation.fid_samples) if samples is None else samples
    check_at_least(6, samples=samples)
    check_seed(seed)
    Ms, shown = _steps(experiment, steps)
    warn_of_schedule(experiment)
    device, cache = pick_device(device), Path(cache)
    chosen = choose_extractor(experiment.data, extractor, weights)
    sampler = Sampler.of(experiment, model.to(device), device, M=shown)
    state = state_sha256(model)
    origin = provenance(experiment, device, seed, n=samples, M=shown, steps=Ms, state_sha256=state)
    real, read = None, dict[str, Any]()
    if rank() == 0:
        remove_leftovers(cache)
        real, read = originals(experiment.data, chosen, cache, device, data_root, download)
    folders = model_folders(sampler, state, experiment, Ms, samples, cache, seed)
    results = []
    if real:
        found = _measured(experiment, real, chosen, folders, samples, shown, cache, device, seed)
        details = origin.finished(
            n_real=real.reference.n,
            extractor=chosen.name,
            extractor_sha256=chosen.sha256,
            reference_sha256=real.reference.sha256,
            samples={str(M): str(folder) for M, folder in folders.items()},
            **read,
        )
        results.append(replace(found, provenance=details))
    (result,) = all_gather(results)
    return result


def default_steps(experiment: Experiment) -> list[int]:
    """Return the discovery's number of steps, twice and five times as many, as far as there are timesteps."""
    M = experiment.discovery.M
    return [each for each in (M, 2 * M, 5 * M) if each <= experiment.diffusion.T]


def _steps(experiment: Experiment, given: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Return the numbers of steps, ascending, and the one of the picture."""
    chosen = default_steps(experiment) if given is None else [given] if isinstance(given, int) else given
    Ms = sorted(set(chosen))
    if not Ms:
        raise ValueError("steps must be at least one number")
    for M in Ms:
        check_at_least(1, most=experiment.diffusion.T, steps=M)
    return Ms, experiment.discovery.M if experiment.discovery.M in Ms else Ms[0]


def _measured(
    experiment: Experiment,
    real: Originals,
    extractor: Extractor,
    folders: dict[int, Path],
    n: int,
    shown: int,
    cache: Path,
    device: torch.device,
    seed: int,
) -> Quality:
    """Return the result for n samples in each of the folders."""
    reference, pictures, steps = real.reference, None, []
    near = None if real.tested is None else threshold_of(real.tested)
    for M, folder in folders.items():
        paths = pngs(folder, n)
        found, images = features(paths, extractor, cache, device), read_pngs(paths)
        d, left, nearest, pr = distance(found, reference), sum(are_outside(paths)), None, None
        if real.training is not None:
            nearest = find_nearest(images[:SAMPLES], real.training, device, mirror=experiment.data.flip)
        if real.halves:
            first, _ = real.halves
            pr = precision_recall(found[: len(first)], first)
        if shown == M:
            pictures = _pictures(images, real, nearest)
        steps.append(
            QualityAt(
                M=M,
                distance=d,
                multiple=max(0.0, d.fd) / reference.halves,
                multiple_interval=(d.interval[0] / reference.halves, d.interval[1] / reference.halves),
                precision_recall=pr,
                balances=balances(predicted(real.classifier, found), real.counts, seed)
                if real.classifier and real.counts
                else [],
                nearest=summarised(nearest.distance, near) if nearest and near is not None else None,
                outside=left / n,
                outside_interval=wilson(left, n),
                neighbours=float(neighbours(to_float(images)).mean()),
            )
        )
    return Quality(
        metric=extractor.metric,
        feature_size=len(reference.statistics["mu"]),
        n=n,
        n_real=reference.n,
        halves=reference.halves,
        halves_interval=reference.halves_interval,
        perfect=precision_recall(real.halves[1][:n], real.halves[0]) if real.halves else None,
        n_train=None if real.training is None else len(real.training),
        near=near,
        tested=None if real.tested is None or near is None else summarised(real.tested, near),
        shown=shown,
        steps=steps,
        images=pictures,
    )


def _pictures(images: Tensor, real: Originals, nearest: Found | None) -> Pictures:
    """Return what the picture shows of samples, uint8 [n, C, H, W]."""
    theirs = real.reference.images
    beside, distances = None, []
    if nearest is not None and real.training is not None:
        columns = min(BESIDE, len(nearest.distance))
        closest = nearest.distance.argsort(stable=True)[:columns]
        rows = []
        for chosen in (torch.arange(columns), closest):
            part = Found(*(each[chosen] for each in nearest))
            rows += [images[chosen], part.images(real.training)]
            distances.append(part.distance.tolist())
        beside = torch.stack(rows)
    return Pictures(images[:SHOWN], None if theirs is None else theirs[:SHOWN], beside, distances)


def _balance_words(balance: Balance, M: int) -> str:
    """Return the balance of a factor in a line: its distance, and the classes that are most off."""
    most, least = (
        f"{balance.classes[i]} ({balance.shares[i]:.1%} of the samples, {balance.real[i]:.1%} of real images)"
        for i in (balance.most, balance.least)
    )
    return (
        f"{balance.factor} at M = {M}: shares are off by {in_words(balance.distance, balance.distance_interval)}, by "
        f"chance {balance.floor:.3f}; too many {most}, too few {least}"
    )


def _precision_columns(found: PrecisionRecall | None) -> dict[str, float]:
    if found is None:
        return {}
    columns: dict[str, float] = {}
    for name in ("precision", "recall"):
        low, high = getattr(found, f"{name}_interval")
        columns |= {name: getattr(found, name), f"{name}_low": low, f"{name}_high": high}
    return columns


def _nearest_columns(found: Nearest | None) -> dict[str, float]:
    if found is None:
        return {}
    low, high = found.near_interval
    return {"nearest_median": found.median, "near": found.near, "near_low": low, "near_high": high}
