"""Variants of the training compared: those of Fig. 3 and Sec. 4.4, or any settings, each a mean over training seeds.

:mod:`hbench.evaluation.variants` trains and measures them.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from hbench.config import Experiment
from hbench.core.backbone import Backbone, DiffusionModel
from hbench.core.intervals import student, student_of_logarithms, student_of_shares
from hbench.errors import as_list, check_at_least, check_seed, check_type, counted
from hbench.evaluation.classifier_distance import choose_classifier, real_reference_of
from hbench.evaluation.rca import MANY_OUTSIDE
from hbench.evaluation.variants import SHARED, Measured, measure_variants, train_variants
from hbench.experiments import override
from hbench.runtime.device import pick_device
from hbench.store.classifier import LENET_METRIC, metric_of
from hbench.store.files import sha256, write_text
from hbench.store.folders import claimed_folder
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Number, Positive
from hbench.store.registry import factors_of
from hbench.store.results import Result
from hbench.store.weights import save_weights, tensors_sha256, write_experiment
from hbench.training.discover import check_shift_interval
from hbench.training.loop import check_minutes

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
SHARES = ("rca", "D_raw", "D_shifted")
"""Fields of :class:`Measured` that lie between 0 and 1, and not at 0 as a rule."""
OTHER_SHARES = ("outside", "visible", "distinct", "named", "rca_visible", "kept_half")
"""Fields that lie between 0 and 1, and may well be at an end."""
OF_MEANING = ("visible", "distinct", "named", "rca_visible", "specificity", "kept_half")
"""Fields of :class:`Measured` that say what the directions mean; unknown in results of older versions."""
POSITIVE = ("magnitude_error", "fd_raw", "fd_shifted")
"""Fields of :class:`Measured` that lie above 0."""
METRICS = (
    *("rca", "kid_raw", "kid_shifted", "fd_raw", "fd_shifted", "magnitude_error", "outside", "D_raw", "D_shifted"),
    *OF_MEANING,
)
"""Fields of :class:`Measured` that are averaged over the seeds."""


@dataclass(frozen=True, kw_only=True)
class VariantMean:
    """Mean of one metric of one variant over the training seeds."""

    variant: str
    metric: str
    seeds: Positive
    mean: float
    low: Number
    """Ends of the 95 % t-interval, see :func:`summarise`; nan for one seed."""
    high: Number
    min: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Ablations(Result):
    """Variants of a training, each measured over several training seeds.

    Its folder also gets the means as ``summary.csv``.
    """

    NAME: ClassVar[str] = "ablations"
    SCHEMA: ClassVar[int] = 3

    runs: list[Measured]
    """Numbers of all trainings, variant by variant."""
    means: Annotated[list[VariantMean], Field(alias="summary")]
    """Means over the seeds, metric by metric."""
    shown: Aside = field(default=None, compare=False, repr=False)
    """List with :class:`hbench.evaluation.variants.Shown` of each variant; None in a result read back."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's, which has KIDs and meaning, and intervals within the range."""
        unknown = dict.fromkeys(["kid_raw", "kid_shifted", *OF_MEANING])
        runs = [unknown | run for run in values["runs"]]
        numbers = [{key: math.nan for key, value in run.items() if value is None and key != "commit"} for run in runs]
        measured = [Measured(**run | undefined) for run, undefined in zip(runs, numbers, strict=True)]
        return values | {"runs": runs, "summary": [asdict(mean) for mean in summarise(measured)]}

    def cautions(self) -> list[str]:
        """Return which trainings failed, and how far the distances compare with others."""
        found = []
        if guessing := [run for run in self.runs if run.rca_low <= run.chance]:
            found.append(
                f"the interval of RCA of {self._count(guessing)} does not lie above chance: these may be guessing"
            )
        if destroyed := [run for run in self.runs if run.outside >= MANY_OUTSIDE]:
            found.append(
                f"{MANY_OUTSIDE:.0%} or more of the shifted samples of {self._count(destroyed)} leave the image "
                "domain: their directions destroy images, which makes them easy to tell apart"
            )
        measured = [run for run in self.runs if not math.isnan(run.fd_shifted)]
        if not measured:
            return found
        found.append(
            f"the FDs compare only with each other: they are of n = {measured[0].n:,}, and few samples raise an FD"
        )
        if all(math.isnan(run.kid_shifted) for run in measured):
            found.append("no KID, which is free of that, was measured: the real images were not at hand")
        return found

    def _count(self, found: Sequence[Measured]) -> str:
        """Return trainings in words, as in "2 of 6 trainings (none-seed0, none-seed1)"."""
        names = ", ".join(f"{run.variant}-seed{run.seed}" for run in found)
        return f"{len(found)} of {counted(len(self.runs), 'training')} ({names})"

    @property
    def variants(self) -> list[str]:
        """Names of the variants."""
        return list(dict.fromkeys(run.variant for run in self.runs))

    @property
    def metric(self) -> str:
        """Name of the Frechet distance; results of hbench 0.1 are of digits."""
        name: str = self.detail("metric", LENET_METRIC)
        return name

    @property
    def seeds(self) -> list[int]:
        """Seeds of the trainings."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    def summary(self) -> str:
        """Return the number of pairs, and the means over the seeds as a table."""
        text: str = self.means_table().round(4).to_string(index=False)
        return f"n = {counted(self.runs[0].n, 'pair')} a training\n{text}"

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
    classifier: str | Path | None = None,
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
        classifier: file of the classifier for KID and FD; by default the shipped one that fits the images, else none.
        data_root: folder of the real images for the KID, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.
        seed: seed of the pairs.
        device: device of trainings and measurements: "auto", "cpu", "cuda", "cuda:N", "mps" or a torch device.
        resume: leave finished trainings in ``out`` alone, go on with the others, and measure all of them again.
        max_minutes: stop cleanly after this time.
        draw: function that draws the curves of a training's folder.

    Raises:
        ValueError: no variant, or one that is no name of a folder; no seed, a negative one, or no pair.
        HBenchError: an unknown setting or a value out of range, a classifier of other images, too few pairs for the FD,
            or ``out`` holds something else or trainings of other settings.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_type(Backbone, "as load_model returns it", model=model)
    check_minutes(max_minutes)
    variants, seeds = PAPER if variants is None else variants, as_list(seeds)
    check_type(Mapping, "from names to overrides", variants=variants)
    check_at_least(1, variants=len(variants), seeds=len(seeds), pairs=pairs)
    for each in (seed, *seeds):
        check_seed(each)
    for name, overrides in variants.items():
        if not name or Path(name).name != name:
            raise ValueError(f"variant {name!r} names a folder of its trainings: leave out slashes")
        check_shift_interval(override(experiment, overrides))  # a wrong one is refused before any is trained
    weights, out, device = choose_classifier(classifier, experiment, pairs), Path(out), pick_device(device)
    reference = None
    if weights:
        reference = real_reference_of(weights, experiment.data, data_root, download)
    else:
        advice = ": `classifier` takes the file of one" if factors_of(experiment.data) else ""
        log.warning("no classifier of these images, so neither KID nor FD%s", advice)
    shared = out / SHARED
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
            out, list(variants), seeds, pairs=pairs, classifier=weights, reference=reference, seed=seed, device=device
        )
    found = origin.finished(
        n=pairs,
        metric=metric_of(experiment.data),
        weights_sha256={path.stem: sha256(path) for path in (shared, weights) if path},
        model_tensors_sha256=tensors_sha256(shared),
        **shown[0].chosen.details,
    )
    return Ablations(runs=measured, means=summarise(measured), shown=shown, provenance=found)


def summarise(measured: Sequence[Measured]) -> list[VariantMean]:
    """Return mean, 95 % interval and range over the seeds of each metric and variant that has values.

    The t-interval of a share is made on logits, and that of a positive number on logarithms: so it stays in range. The
    intervals of shares that may well be 0 or 1 are cut there.
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
    if metric in OTHER_SHARES:
        low, high = np.clip([low, high], 0, 1)  # nan, of one seed, stays
    return float(low), float(high)
