"""Variants of the training over several seeds, measured alike: those of Fig. 3 and Sec. 4.4, or any settings."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from hbench.config import Experiment
from hbench.core.images import to_uint8
from hbench.core.intervals import student
from hbench.errors import HBenchError
from hbench.evaluation.curves import last_third, read_curves
from hbench.evaluation.fid import frechet_distance, lenet_reference, statistics
from hbench.evaluation.lenet import FILE, fits, load_lenet, single_features
from hbench.evaluation.rca import rca
from hbench.evaluation.sampling import Pairs
from hbench.evaluation.traverse import direction_label
from hbench.experiments import override
from hbench.models.adm import UNetModel
from hbench.models.reconstructor import LENET_FEATURES
from hbench.store.files import read_json
from hbench.store.run import SHIPPED, load_run
from hbench.training.checkpoint import read_checkpoint
from hbench.training.discover import train

log = logging.getLogger(__name__)

PAPER = {
    "full": ["discovery.fidelity=adversarial", "discovery.gradient=chain"],
    "l1": ["discovery.fidelity=l1", "discovery.gradient=chain"],
    "none": ["discovery.fidelity=none", "discovery.gradient=chain"],
    "per-step": ["discovery.fidelity=adversarial", "discovery.gradient=per-step"],
}
"""The variants of Fig. 3 and Sec. 4.4: the overrides of each; all other settings are the experiment's."""
DIRECTIONS, EXAMPLES, SAMPLES = 4, 4, 5
"""Of each variant, in the picture."""


@dataclass(frozen=True)
class Measured:
    """One run of a variant, on ``n`` fresh pairs if not said otherwise.

    All runs get the same x_T, and those of equal K and S the same k and s.
    """

    variant: str
    seed: int
    """Of the training."""
    n: int
    chance: float
    """The accuracy of guessing, 1/K."""
    rca: float
    rca_low: float
    rca_high: float
    """95 % Wilson interval."""
    magnitude_error: float
    outside: float
    """Share of shifted samples with a pixel beyond +-1.5."""
    D_raw: float
    """Mean output of this run's own discriminator over the last third of its training."""
    D_shifted: float
    fd_raw: float | None
    """FD (LeNet digits); None where there is no LeNet for the images."""
    fd_shifted: float | None
    device: str
    """Of the training, as are the rest; other threads round differently."""
    threads: int
    seconds: float
    commit: str | None


@dataclass(frozen=True)
class Ablations:
    """All runs, measured."""

    table: pd.DataFrame
    """One row of :class:`Measured` for each variant and seed."""
    images: Tensor
    """The most accurate directions of each variant's first run, as :func:`traverse` draws them, variant by variant:
    equally many of each."""
    labels: list[str]
    """One a direction."""


def run_folder(out: Path, variant: str, seed: int) -> Path:
    """Where the run of a variant and seed lies."""
    return out / f"{variant}-seed{seed}"


def train_variants(
    experiment: Experiment,
    model: UNetModel,
    variants: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    out: Path,
    *,
    device: torch.device,
    max_minutes: float | None = None,
    draw: Callable[[Path], None] | None = None,
) -> bool:
    """Train every variant with every seed. Return False if stopped early; the next call goes on.

    Finished runs in ``out`` are left alone, a half one is resumed; HBenchError if they have other settings. ``draw``
    draws the curves of a folder, see :func:`train`.
    """
    started = time.monotonic()
    missing = []
    for seed in seeds:
        for variant, overrides in variants.items():
            changed = override(experiment, overrides)
            folder = run_folder(out, variant, seed)
            if not ((folder / "provenance.json").is_file() and read_checkpoint(folder, changed, seed, "discovery")):
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


def choose_lenet(given: Path | None, experiment: Experiment, count: int) -> Path | None:
    """The LeNet for the FD of ``count`` samples: the given one, or the shipped one where it fits the images, or None.

    Raises:
        HBenchError: the given one does not fit the images, or the samples are too few.
    """
    lenet = given or SHIPPED / "mnist16" / FILE
    if not fits(lenet, experiment.data):
        if given:
            raise HBenchError(f'{given}: was trained on other images: make one with "hbench lenet {experiment.name}"')
        return None
    if count <= LENET_FEATURES:
        raise HBenchError(f"{count} pairs are too few for the FD: need more than its {LENET_FEATURES} features")
    return lenet


def lenet_distance(batches: Sequence[Tensor], lenet: Path) -> float:
    """FD (LeNet digits) of batches of images in [-1, 1]."""
    features = single_features(load_lenet(lenet), torch.cat([to_uint8(batch).cpu() for batch in batches]))
    return frechet_distance(statistics(features), lenet_reference(lenet).statistics)


def measure_variants(
    out: Path,
    variants: Sequence[str],
    seeds: Sequence[int],
    *,
    device: torch.device,
    lenet: Path | None,
    count: int,
    seed: int = 0,
) -> Ablations:
    """The numbers of all trained runs, and pictures of each variant's first.

    Args:
        out: where :func:`train_variants` has put them.
        variants: their names.
        seeds: of the training.
        device: where to generate.
        lenet: for the FD; None = no FD.
        count: fresh pairs, which also make the FD. Cost: two chains each.
        seed: of the pairs.
    """
    rows, drawn = [], []
    for variant in variants:
        for training_seed in seeds:
            folder = run_folder(out, variant, training_seed)
            run = load_run(folder, device=device)
            pairs: list[Pairs] = []
            found = rca(run, pairs=count, seed=seed, on_pairs=pairs.append)
            (curves,) = read_curves([folder])
            late = last_third(curves.rows)
            origin = read_json(folder / "provenance.json")
            rows.append(
                Measured(
                    variant=variant,
                    seed=training_seed,
                    n=count,
                    chance=found.chance,
                    rca=found.accuracy,
                    rca_low=found.interval[0],
                    rca_high=found.interval[1],
                    magnitude_error=found.magnitude_error,
                    outside=found.outside,
                    D_raw=late["D_raw"],
                    D_shifted=late["D_shifted"],
                    fd_raw=lenet_distance([pair.x_0 for pair in pairs], lenet) if lenet else None,
                    fd_shifted=lenet_distance([pair.x_0_shifted for pair in pairs], lenet) if lenet else None,
                    device=origin["device"],
                    threads=origin["threads"],
                    seconds=origin["wall_seconds"],
                    commit=origin["git"] and origin["git"]["commit"],
                )
            )
            if training_seed == seeds[0]:
                best = found.ranking()[:DIRECTIONS]
                labels = [f"{variant}: {direction_label(k, found.per_direction[k])}" for k in best]
                drawn.append((run.traverse(best, examples=EXAMPLES, samples=SAMPLES, seed=seed).images, labels))
    table = pd.DataFrame(rows).astype({"fd_raw": float, "fd_shifted": float})  # None becomes nan
    shown = min(len(labels) for _, labels in drawn)  # fewer where a variant has fewer directions
    images = torch.cat([images[:shown] for images, _ in drawn])
    return Ablations(table, images, [label for _, labels in drawn for label in labels[:shown]])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, 95 % t-interval and range over the seeds: one row for each variant and metric of :class:`Measured`."""
    metrics = ["rca", "magnitude_error", "outside", "D_raw", "D_shifted", "fd_raw", "fd_shifted"]
    long = table.melt(["variant"], metrics, "metric").dropna()
    grouped = long.groupby(["variant", "metric"], sort=False)["value"]
    bounds = {
        name: grouped.agg(lambda values, i=i: float(student(values)[i])) for i, name in enumerate(("low", "high"))
    }
    found = grouped.agg(seeds="count", mean="mean").assign(**bounds, min=grouped.min(), max=grouped.max())
    return found.reset_index()
