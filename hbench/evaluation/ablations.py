"""Variants of the training over several seeds, measured alike: those of Fig. 3 and Sec. 4.4, or any settings."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.core.intervals import student, student_of_logarithms, student_of_shares
from hbench.errors import HBenchError, check_at_least
from hbench.evaluation.curves import late_means, read_curves
from hbench.evaluation.digits import digit_distances, real_digits
from hbench.evaluation.frechet import Distance, Reference
from hbench.evaluation.rca import RCA, rca
from hbench.evaluation.sampling import Pairs
from hbench.evaluation.traverse import direction_label
from hbench.experiments import override
from hbench.models.reconstructor import LENET_FEATURES
from hbench.runtime.device import pick_device
from hbench.store.files import sha256, write_text
from hbench.store.folders import claimed_folder
from hbench.store.lenet import SHIPPED_LENET, fits
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance, provenance
from hbench.store.records import Aside, Number
from hbench.store.results import Result
from hbench.store.run import Run, load_run
from hbench.store.weights import save_weights, tensors_sha256, write_experiment
from hbench.training.checkpoint import read_checkpoint
from hbench.training.discover import train

if TYPE_CHECKING:
    from pandas import DataFrame, Series

log = logging.getLogger(__name__)

PAPER = {
    "full": ["discovery.fidelity=adversarial", "discovery.gradient=chain"],
    "l1": ["discovery.fidelity=l1", "discovery.gradient=chain"],
    "none": ["discovery.fidelity=none", "discovery.gradient=chain"],
    "per-step": ["discovery.fidelity=adversarial", "discovery.gradient=per-step"],
}
"""Overrides of each variant of Fig. 3 and Sec. 4.4; all other settings are the experiment's."""
DIRECTIONS, EXAMPLES, SAMPLES = 4, 4, 5
"""Directions, x_T and magnitudes in the picture of each variant."""
SHARES = ("rca", "D_raw", "D_shifted")
"""Fields of :class:`Measured` that lie between 0 and 1, and not at 0 as a rule."""
POSITIVE = ("magnitude_error", "fd_raw", "fd_shifted")
"""Fields of :class:`Measured` that lie above 0."""
METRICS = ("rca", "kid_raw", "kid_shifted", "fd_raw", "fd_shifted", "magnitude_error", "outside", "D_raw", "D_shifted")
"""Fields of :class:`Measured` that are averaged over the seeds."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of one training of a variant, on ``n`` fresh pairs unless they say otherwise.

    All trainings get the same x_T, and those of equal K and S the same k and s.
    """

    variant: str
    seed: int
    """Seed of the training."""
    n: int
    chance: float
    """Accuracy of guessing, 1/K."""
    rca: float
    rca_low: float
    """Ends of the 95 % Wilson interval."""
    rca_high: float
    magnitude_error: float
    outside: float
    """Share of shifted samples with a pixel beyond +-1.5."""
    D_raw: Number
    """Mean output of the training's discriminator over the last third of its steps, on raw samples."""
    D_shifted: Number
    kid_raw: Number
    """KID (LeNet digits), which does not depend on n; nan where the real images were not at hand."""
    kid_shifted: Number
    fd_raw: Number
    """FD (LeNet digits) of n samples, comparable only at equal n; nan where there is no LeNet for the images."""
    fd_shifted: Number
    device: str
    """Device of the training, as the fields below are its threads, wall time and commit; threads change rounding."""
    threads: int
    seconds: float
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class VariantMean:
    """Mean of one metric of one variant over the training seeds."""

    variant: str
    metric: str
    seeds: int
    mean: float
    low: Number
    """Ends of the 95 % t-interval, on logits of shares and logarithms of positive numbers; nan for one seed."""
    high: Number
    min: float
    max: float


class Shown(NamedTuple):
    """The most accurate directions of a variant's first training, to be drawn."""

    variant: str
    S: float
    """Largest magnitude."""
    directions: list[int]
    accuracies: list[float]
    images: Tensor
    """Images along the directions, in [-1, 1]: [directions, examples, samples, C, H, W]."""

    @property
    def labels(self) -> list[str]:
        """Variant, index and accuracy of each direction."""
        numbers = zip(self.directions, self.accuracies, strict=True)
        return [f"{self.variant}: {direction_label(k, accuracy)}" for k, accuracy in numbers]


@dataclass(frozen=True, kw_only=True)
class Ablations(Result):
    """Variants of a training, each measured over several training seeds.

    Its folder also gets the means as ``summary.csv``.
    """

    NAME: ClassVar[str] = "ablations"
    SCHEMA: ClassVar[int] = 2

    runs: list[Measured]
    """Numbers of all trainings, variant by variant."""
    means: Annotated[list[VariantMean], Field(alias="summary")]
    """Means over the seeds, metric by metric."""
    shown: Aside = field(default=None, compare=False, repr=False)
    """List with :class:`Shown` of each variant; None in a result read back."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's, which has KIDs, and intervals within the range of a number."""
        runs = [{"kid_raw": None, "kid_shifted": None} | run for run in values["runs"]]
        numbers = [{key: math.nan for key, value in run.items() if value is None and key != "commit"} for run in runs]
        measured = [Measured(**run | undefined) for run, undefined in zip(runs, numbers, strict=True)]
        return values | {"runs": runs, "summary": [asdict(mean) for mean in summarise(measured)]}

    def cautions(self) -> list[str]:
        """Return how far the distances compare with others."""
        measured = [run for run in self.runs if not math.isnan(run.fd_shifted)]
        if not measured:
            return []
        found = [
            f"the FDs compare only with each other: they are of n = {measured[0].n:,}, and few samples raise an FD"
        ]
        if all(math.isnan(run.kid_shifted) for run in measured):
            found.append("no KID, which is free of that, was measured: the real images were not at hand")
        return found

    @property
    def variants(self) -> list[str]:
        """Names of the variants."""
        return list(dict.fromkeys(run.variant for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """Seeds of the trainings."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    def summary(self) -> str:
        """Return the means over the seeds as a table."""
        text: str = self.means_table().round(4).to_string(index=False)
        return text

    def table(self) -> "DataFrame":
        """Return the numbers of each training, a row a training."""
        import pandas as pd

        return pd.DataFrame([asdict(run) for run in self.runs])

    def means_table(self) -> "DataFrame":
        """Return mean, interval and range over the seeds, a row for each metric and variant."""
        import pandas as pd

        return pd.DataFrame([asdict(mean) for mean in self.means])

    def write_into(self, folder: Path) -> None:
        """Write the result into a folder that the caller has claimed."""
        write_text(folder / "summary.csv", self.means_table().to_csv(index=False))
        super().write_into(folder)


def ablations(
    experiment: Experiment,
    model: DiffusionModel,
    out: str | Path,
    *,
    variants: Mapping[str, Sequence[str]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    pairs: int = 1000,
    lenet: str | Path | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    resume: bool = False,
    max_minutes: float | None = None,
    draw: Callable[[Path], None] | None = None,
) -> Ablations | None:
    """Train variants of an experiment over several seeds, and measure all of them. Return None if stopped early.

    The trainings lie in folders of ``out``.

    Args:
        experiment: settings that all variants share.
        model: diffusion model that all are trained on.
        out: output folder, made where it is missing.
        variants: overrides of each variant, by its name, each ``section.key=value``; by default those of the paper.
        seeds: seeds of the trainings.
        pairs: fresh pairs that each training is measured on, at least 1. Cost: two chains each.
        lenet: file of the LeNet for KID and FD; by default the shipped one where it fits the images, else none.
        data_root: folder of the real images for the KID, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.
        seed: seed of the pairs.
        device: device of trainings and measurements: "auto", "cpu", "cuda", "cuda:N" or a torch device.
        resume: leave finished trainings in ``out`` alone, go on with the others, and measure all of them again.
        max_minutes: stop cleanly after this time.
        draw: function that draws the curves of a training's folder.

    Raises:
        ValueError: no variant, or one that is no name of a folder; no seed, a negative one, or no pair.
        HBenchError: an unknown setting or a value out of range, a LeNet of other images, too few pairs for the FD, or
            ``out`` holds something else or trainings of other settings.
    """
    variants = PAPER if variants is None else variants
    check_at_least(1, variants=len(variants), seeds=len(seeds), pairs=pairs)
    check_at_least(0, seed=min(seed, *seeds))
    for name, overrides in variants.items():
        if not name or Path(name).name != name:
            raise ValueError(f"variant {name!r} names a folder of its trainings: leave out slashes")
        override(experiment, overrides)  # a wrong one is refused before any is trained
    weights, out, device = choose_lenet(lenet, experiment, pairs), Path(out), pick_device(device)
    reference = None
    if weights:
        reference = real_digits(weights, experiment.data, data_root, download)
    else:
        log.warning("no digit LeNet for these images, so neither KID nor FD: `lenet` takes the file of one")
    shared = out / "model.safetensors"
    with claimed_folder(out, resume=resume):
        origin = provenance(experiment, device, seed, variants=variants, training_seeds=seeds)
        write_experiment(out, experiment)
        if not shared.is_file():
            save_weights(shared, model, experiment, "model", experiment.pretrain.weights)
        if not train_variants(
            experiment, model, variants, seeds, out, device=device, max_minutes=max_minutes, draw=draw
        ):
            return None
        measured, shown = measure_variants(
            out, list(variants), seeds, pairs=pairs, lenet=weights, reference=reference, seed=seed, device=device
        )
    found = origin.finished(
        n=pairs,
        weights_sha256={path.stem: sha256(path) for path in (shared, weights) if path},
        model_tensors_sha256=tensors_sha256(shared),
    )
    return Ablations(runs=measured, means=summarise(measured), shown=shown, provenance=found)


def choose_lenet(given: str | Path | None, experiment: Experiment, pairs: int) -> Path | None:
    """Return the file of the LeNet for KID and FD: the given one, or the shipped one if it fits the images, else None.

    Raises:
        HBenchError: the given one does not fit the images, or the pairs are too few for its features.
    """
    lenet = Path(given or SHIPPED_LENET)
    if not fits(lenet, experiment.data):
        if given:
            raise HBenchError(f"{given}: was trained on other images: train a LeNet on those of {experiment.name}")
        return None
    if pairs <= LENET_FEATURES:
        raise HBenchError(f"{pairs} pairs are too few for the FD: need more than its {LENET_FEATURES} features")
    return lenet


def train_variants(
    experiment: Experiment,
    model: DiffusionModel,
    variants: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    out: Path,
    *,
    device: torch.device,
    max_minutes: float | None = None,
    draw: Callable[[Path], None] | None = None,
) -> bool:
    """Train every variant with every seed. Return False if stopped early; the next call goes on.

    Finished trainings in ``out`` are left alone, a half-finished one is resumed.

    Raises:
        HBenchError: trainings in ``out`` have other settings.
    """
    started = time.monotonic()
    missing = []
    for seed in seeds:
        for variant, overrides in variants.items():
            changed = override(experiment, overrides)
            folder = training_folder(out, variant, seed)
            if not ((folder / PROVENANCE).is_file() and read_checkpoint(folder, changed, seed, "discovery")):
                missing.append((changed, folder, seed))
    for i, (changed, folder, seed) in enumerate(missing):
        left = None if max_minutes is None else max_minutes - (time.monotonic() - started) / 60
        if i and left is not None and left <= 0:
            log.warning("stopped by `max_minutes` before %s: go on with `resume=True`", folder.name)
            return False
        folder.mkdir(exist_ok=True)
        if not train(changed, model, folder, seed=seed, device=device, resume=True, max_minutes=left, draw=draw):
            return False
    return True


def measure_variants(
    out: Path,
    variants: Sequence[str],
    seeds: Sequence[int],
    *,
    pairs: int,
    lenet: Path | None,
    reference: Reference | None,
    seed: int = 0,
    device: torch.device,
) -> tuple[list[Measured], list[Shown]]:
    """Measure all trainings of :func:`train_variants`, and generate along directions of each variant's first.

    Args:
        out: folder of the trainings.
        variants: names of the variants.
        seeds: seeds of the trainings.
        pairs: fresh pairs, on which KID and FD are measured too.
        lenet: file of the LeNet for KID and FD; without one there are none.
        reference: real images in its features, see :func:`hbench.evaluation.digits.real_digits`.
        seed: seed of the pairs.
        device: device that generates the pairs.
    """
    rows, shown = [], []
    for variant in variants:
        for training_seed in seeds:
            folder = training_folder(out, variant, training_seed)
            run = load_run(folder, device=device)
            drawn: list[Pairs] = []
            found = rca(run, pairs=pairs, seed=seed, on_pairs=drawn.append)
            distances = digit_distances(drawn, lenet, reference) if lenet and reference else None
            rows.append(_measured(folder, variant, training_seed, found, distances))
            if training_seed == seeds[0]:
                shown.append(_shown(run, variant, found, seed))
    return rows, shown


def summarise(measured: Sequence[Measured]) -> list[VariantMean]:
    """Return mean, 95 % interval and range over the seeds of each metric and variant that has values.

    The t-interval of a share is made on logits, and that of a positive number on logarithms: so it stays in range. That
    of the share outside, which may well be 0, is cut there.
    """
    import pandas as pd

    values = pd.DataFrame([asdict(each) for each in measured]).melt(["variant"], [*METRICS], "metric").dropna()
    grouped = values.groupby(["variant", "metric"], sort=False)["value"]
    means = grouped.mean()
    found = []
    n = measured[0].n
    for (variant, metric), each in grouped:
        low, high = _interval(metric, each, n)
        found.append(
            VariantMean(
                variant=variant,
                metric=metric,
                seeds=len(each),
                mean=float(means[variant, metric]),
                low=low,
                high=high,
                min=float(each.min()),
                max=float(each.max()),
            )
        )
    return found


def _interval(metric: str, values: "Series[float]", n: int) -> tuple[float, float]:
    if metric in SHARES:
        return student_of_shares(values, n)
    if metric in POSITIVE:
        return student_of_logarithms(values)
    low, high = student(values)
    if metric == "outside":
        return max(0.0, float(low)), min(1.0, float(high))
    return float(low), float(high)


def training_folder(out: Path, variant: str, seed: int) -> Path:
    """Return the folder of the training of a variant and seed."""
    return out / f"{variant}-seed{seed}"


def _measured(
    folder: Path, variant: str, seed: int, found: RCA, distances: tuple[Distance, Distance] | None
) -> Measured:
    (curves,) = read_curves([folder])
    late = late_means(curves)
    origin = Provenance.read(folder / PROVENANCE)
    kids = [math.nan if each.kid is None else each.kid for each in distances or ()] or [math.nan] * 2
    fds = [each.fd for each in distances or ()] or [math.nan] * 2
    return Measured(
        variant=variant,
        seed=seed,
        n=found.n,
        chance=found.chance,
        rca=found.accuracy,
        rca_low=found.interval[0],
        rca_high=found.interval[1],
        magnitude_error=found.magnitude_error,
        outside=found.outside,
        D_raw=late.D_raw,
        D_shifted=late.D_shifted,
        kid_raw=kids[0],
        kid_shifted=kids[1],
        fd_raw=fds[0],
        fd_shifted=fds[1],
        device=origin.device,
        threads=origin.threads,
        seconds=origin.wall_seconds,
        commit=origin.git.commit if origin.git else None,
    )


def _shown(run: Run, variant: str, found: RCA, seed: int) -> Shown:
    best = found.ranking()[:DIRECTIONS]
    return Shown(
        variant=variant,
        S=run.S,
        directions=best,
        accuracies=[found.per_direction[k] for k in best],
        images=run.traverse(best, examples=EXAMPLES, samples=SAMPLES, seed=seed).images,
    )
