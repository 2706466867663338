"""Variants of a training over several seeds, trained on one model and measured alike."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.errors import HBenchError
from hbench.evaluation.attributes.attributes import attributes
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.classifier_distance import pair_distances
from hbench.evaluation.curves import late_means, read_curves
from hbench.evaluation.frechet import Distance, Reference
from hbench.evaluation.rca import RCA, rca
from hbench.evaluation.sampling import ChosenNoise, Pairs, choose_x_T
from hbench.evaluation.traverse import direction_label
from hbench.evaluation.visible import MOST
from hbench.experiments import override
from hbench.runtime.progress import duration, is_asked_for
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance
from hbench.store.records import Count, Number, Positive, Share, ShareOrNone
from hbench.store.run import Run, load_run
from hbench.store.run_files import run_hashes
from hbench.store.weights import tensors_sha256
from hbench.training.checkpoint import read_checkpoint
from hbench.training.discover import estimated_seconds, train
from hbench.training.estimate import FEWEST

log = logging.getLogger(__name__)

DIRECTIONS, EXAMPLES, SAMPLES = 4, 4, 5
"""Directions, x_T and magnitudes in the picture of each variant."""
SHARED = "model.safetensors"
"""Name of the file of the model that all are trained on."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of one training of a variant, on ``n`` fresh pairs unless they say otherwise.

    All trainings get the same x_T, and those of equal K and S the same k and s.
    """

    variant: str
    seed: Count
    """Seed of the training."""
    n: Positive
    chance: Share
    """Accuracy of guessing, 1/K."""
    rca: Share
    rca_low: Share
    """Ends of the 95 % Wilson interval."""
    rca_high: Share
    magnitude_error: Annotated[float, Field(ge=0)]
    outside: Share
    """Share of shifted samples with a pixel beyond +-1.5."""
    D_raw: ShareOrNone
    """Mean output of the training's discriminator over the last third of its steps, on raw samples."""
    D_shifted: ShareOrNone
    kid_raw: Number
    """KID in the features of a classifier, which does not depend on n; nan where the real images were not at hand."""
    kid_shifted: Number
    fd_raw: Number
    """FD of n samples in these features, comparable only at equal n; nan where there is no classifier of the images."""
    fd_shifted: Number
    visible: ShareOrNone
    """Share of directions of which a person sees something; nan, as the next ones, in files of older versions."""
    distinct: ShareOrNone
    """Clusters of these by what they do to images, as a share of K."""
    named: ShareOrNone
    """Share of directions whose effect on an attribute is large, certain, and the same in nearly all samples."""
    rca_visible: ShareOrNone
    """RCA over visible directions; nan too if none is."""
    specificity: Number
    """Mean over visible directions of the effect on the leading attribute over that on the others."""
    kept_half: ShareOrNone
    """Mean share of samples that keep their classes at S/2 along the visible directions; nan without a classifier."""
    device: str
    """Device of the training, as the fields below are its threads, wall time and commit; threads change rounding."""
    threads: Positive
    seconds: Annotated[float, Field(ge=0)]
    commit: str | None


class Shown(NamedTuple):
    """The most accurate directions of a variant's first training, to be drawn."""

    variant: str
    S: float
    """Largest magnitude."""
    directions: list[int]
    accuracies: list[float]
    images: Tensor
    """Images along the directions, in [-1, 1]: [directions, examples, samples, C, H, W]."""
    chosen: ChosenNoise
    """The x_T of the examples, the same for all variants."""

    @property
    def labels(self) -> list[str]:
        """Variant, index and accuracy of each direction."""
        numbers = zip(self.directions, self.accuracies, strict=True)
        return [f"{self.variant}: {direction_label(k, accuracy)}" for k, accuracy in numbers]


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
            about = read_checkpoint(folder, changed, seed, "discovery") if (folder / PROVENANCE).is_file() else None
            if about is None or about.step != changed.discovery.steps:
                missing.append((changed, folder, seed))
            elif origin_of(folder).details.get("model_tensors_sha256") != tensors_sha256(out / SHARED):
                raise HBenchError(f"{folder}: was trained on another model than {out / SHARED}: choose another `out`")
    if is_asked_for() and len(missing) > 1 and experiment.discovery.steps >= FEWEST:
        log.info("%d trainings: about %s", len(missing), duration(_seconds_of_all(missing, model, device, draw)))
    for i, (changed, folder, seed) in enumerate(missing):
        left = None if max_minutes is None else max_minutes - (time.monotonic() - started) / 60
        if left is not None and left <= 0:
            if i:
                log.warning("stopped by `max_minutes` before %s: go on with `resume=True`", folder.name)
                return False
            left = max_minutes  # at least one step
        folder.mkdir(exist_ok=True)
        if not train(changed, model, folder, seed=seed, device=device, resume=True, max_minutes=left, draw=draw):
            return False
    return True


def origin_of(folder: Path) -> Provenance:
    """Return the provenance of a finished training, after comparing its files with it."""
    run_hashes(folder)
    return Provenance.read(folder / PROVENANCE)


def _seconds_of_all(
    trainings: Sequence[tuple[Experiment, Path, int]],
    model: DiffusionModel,
    device: torch.device,
    draw: Callable[[Path], None] | None,
) -> float:
    """Return the seconds of trainings, from a few steps of each experiment among them."""
    counts = Counter(experiment.model_dump_json() for experiment, _, _ in trainings)
    settings = {experiment.model_dump_json(): experiment for experiment, _, _ in trainings}
    return sum(
        count * estimated_seconds(settings[key], model, device=device, draw=draw) for key, count in counts.items()
    )


def measure_variants(
    out: Path,
    variants: Sequence[str],
    seeds: Sequence[int],
    *,
    pairs: int,
    classifier: Path | None,
    reference: Reference | None,
    seed: int = 0,
    device: torch.device,
) -> tuple[list[Measured], list[Shown]]:
    """Measure all trainings of :func:`train_variants`, and generate along directions of each variant's first.

    Cost of a training: two chains a pair, 24 samples of :func:`hbench.evaluation.attributes.attributes.attributes`.

    Args:
        out: folder of the trainings.
        variants: names of the variants.
        seeds: seeds of the trainings.
        pairs: fresh pairs, on which KID and FD are measured too.
        classifier: file of the classifier for KID and FD; without one there are none.
        reference: real images in its features, see :func:`hbench.evaluation.classifier_distance.real_reference_of`.
        seed: seed of the pairs.
        device: device that generates the pairs.
    """
    rows, shown = [], []
    chosen: ChosenNoise | None = None
    for variant in variants:
        for training_seed in seeds:
            folder = training_folder(out, variant, training_seed)
            run = load_run(folder, device=device)
            drawn: list[Pairs] = []
            found = rca(run, pairs=pairs, seed=seed, on_pairs=drawn.append)
            distances = pair_distances(drawn, classifier, reference) if classifier and reference else None
            meaning = attributes(run, samples=MOST, seed=seed, ranking=found)
            rows.append(_measured(folder, variant, training_seed, found, meaning, distances))
            if training_seed == seeds[0]:
                chosen = chosen or choose_x_T(run, EXAMPLES, seed)
                shown.append(_shown(run, variant, found, chosen))
    return rows, shown


def training_folder(out: Path, variant: str, seed: int) -> Path:
    """Return the folder of the training of a variant and seed."""
    return out / f"{variant}-seed{seed}"


def _measured(
    folder: Path,
    variant: str,
    seed: int,
    found: RCA,
    meaning: Attributes,
    distances: tuple[Distance, Distance] | None,
) -> Measured:
    (curves,) = read_curves([folder])
    late = late_means(curves)
    origin = origin_of(folder)
    kids = [math.nan if each.kid is None else each.kid for each in distances or ()] or [math.nan] * 2
    fds = [each.fd for each in distances or ()] or [math.nan] * 2
    K = len(meaning.directions)
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
        visible=len(meaning.visible) / K,
        distinct=meaning.distinct / K,
        named=len(meaning.proposed_names) / K,
        rca_visible=meaning.accuracy_visible,
        specificity=meaning.specificity,
        kept_half=meaning.kept_half,
        device=origin.device,
        threads=origin.threads,
        seconds=origin.wall_seconds,
        commit=origin.git.commit if origin.git else None,
    )


def _shown(run: Run, variant: str, found: RCA, chosen: ChosenNoise) -> Shown:
    best = found.ranking()[:DIRECTIONS]
    return Shown(
        variant=variant,
        S=run.S,
        directions=best,
        accuracies=[found.per_direction[k] for k in best],
        images=run.traverse(best, examples=chosen.indices, samples=SAMPLES, seed=chosen.seed).images,
        chosen=chosen,
    )
