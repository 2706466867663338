"""What a bench measures of one entry: RCA by a fresh reconstructor, effects on attributes, distances, factors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from hbench.evaluation.attributes.attributes import attributes
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.benchmark.entries import Entry
from hbench.evaluation.benchmark.result import NO_INTERVAL, FactorFound, MeasuredMethod
from hbench.evaluation.features import Extractor, features
from hbench.evaluation.fid import Fidelity, fid
from hbench.evaluation.precision_recall import PrecisionRecall, precision_recall
from hbench.evaluation.rca import RCA, rca
from hbench.evaluation.sample_cache import pngs, sample_folders
from hbench.runtime.distributed import all_gather, barrier, rank
from hbench.store.classifier import classifier_for
from hbench.store.files import sha256
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance
from hbench.store.results import Result
from hbench.store.run import Run
from hbench.training.reconstruct import STEPS, reconstruct

R = TypeVar("R", bound=Result)

SHOWN, EXAMPLES, COLUMNS = 4, 4, 5
"""Directions, rows and columns of each method's grid."""


@dataclass(frozen=True)
class Counts:
    """Sizes of the measurements, the same for every method."""

    pairs: int = 2000
    samples: int = 50
    images: int = 1000
    reconstructor_steps: int = STEPS


@dataclass(frozen=True)
class Distances:
    """What distances between images are measured with, the same for every entry."""

    extractor: Extractor
    cache: Path
    """Folder of images and features."""
    data_root: str | Path | None
    """Folder of the real images, where the extractor carries no statistics of them."""
    download: bool

    def folder(self, of_entry: Path) -> Path:
        """Return the folder of the distances in that of an entry."""
        return of_entry / f"fid-{self.extractor.name}"

    def measure(self, run: Run, images: int, directions: Sequence[int] | None, seed: int) -> Fidelity:
        """Measure how far raw images, and those shifted along some directions, lie from the real ones."""
        return fid(
            run,
            samples=images,
            directions=directions,
            extractor=self.extractor.name,
            weights=self.extractor.weights,
            cache=self.cache,
            data_root=self.data_root,
            download=self.download,
            seed=seed,
        )


class Measured(NamedTuple):
    """All that is measured of one entry."""

    numbers: MeasuredMethod
    factors: list[FactorFound]
    metric: str
    """Name of the distance; empty for none."""
    grid: "tuple[Tensor, list[str]]"
    """Images along its most visible directions, [directions, examples, columns, C, H, W], and their labels."""


def measure(
    entry: Entry,
    folder: Path,
    counts: Counts,
    distances: Distances | None,
    seed: int,
    draw: Callable[[Path], None] | None,
) -> Measured | None:
    """Return all that is measured of one entry; what its folder holds already is not measured again.

    Return None if the training of its reconstructor is stopped early.
    """
    steps = counts.reconstructor_steps
    digest = entry.run.hashes["shift_block"][:8]
    judged = reconstruct(entry.run, folder / f"train-{steps}-{digest}", steps=steps, seed=seed, draw=draw)
    if judged is None:
        return None
    run = replace(judged, names=entry.run.names, folder=entry.run.folder or judged.folder)
    ranking = kept(RCA, folder / "rca", run, seed, lambda: rca(run, pairs=counts.pairs, seed=seed), n=counts.pairs)
    file = classifier_for(run.experiment, run.folder)
    effects = kept(
        Attributes,
        folder / "attributes",
        run,
        seed,
        lambda: attributes(run, samples=counts.samples, seed=seed, ranking=ranking),
        n=counts.samples,
        pairs=counts.pairs,
        classifier_sha256=sha256(file) if file else None,
    )
    fidelity, spread = None, None
    if distances:
        extractor = distances.extractor
        visible = effects.visible if 0 < len(effects.visible) < run.K else None  # what changes nothing costs nothing
        fidelity = kept(
            Fidelity,
            distances.folder(folder),
            run,
            seed,
            lambda: distances.measure(run, counts.images, visible, seed),
            n=counts.images,
            directions=visible,
            extractor_sha256=extractor.sha256,
        )
        spread = _precision_recall(run, extractor, counts.images, visible, distances.cache, seed)
    numbers = _numbers(entry, ranking, effects, fidelity, spread)
    best = sorted(effects.directions, key=lambda each: (not each.visible, -each.visible_change))[:SHOWN]
    images = run.traverse([each.direction for each in best], examples=EXAMPLES, samples=COLUMNS, seed=seed).images
    labels = [f"{entry.name} {each.direction}: {each.proposed or 'no name'}" for each in best]
    return Measured(numbers, factors_found(entry.name, effects), fidelity.metric if fidelity else "", (images, labels))


def _numbers(
    entry: Entry, ranking: RCA, effects: Attributes, fidelity: Fidelity | None, spread: PrecisionRecall | None
) -> MeasuredMethod:
    """Return the line of numbers of one entry; distances, precision and recall are nan where they were not measured."""
    return MeasuredMethod(
        name=entry.name,
        found_by=entry.found_by,
        title=entry.title,
        K=entry.run.K,
        directions_sha256=entry.run.hashes["shift_block"],
        seconds=entry.seconds,
        memory_mib=entry.memory_mib,
        visible_change=float(np.median([each.visible_change for each in effects.directions])),
        rca=ranking.accuracy,
        rca_interval=ranking.interval,
        rca_visible=ranking.accuracy_visible,
        rca_visible_interval=ranking.accuracy_visible_interval,
        visible=effects.visible,
        distinct=effects.distinct,
        named=len(effects.proposed_names),
        effective_rank=effects.effective_rank,
        specificity=effects.specificity,
        oddness=effects.oddness,
        oddness_interval=effects.oddness_interval,
        kept_half=effects.kept_half,
        kept_half_interval=effects.kept_half_interval,
        fd_raw=fidelity.raw.fd if fidelity else math.nan,
        fd_shifted=fidelity.shifted.fd if fidelity else math.nan,
        fd_ratio=fidelity.ratio if fidelity else math.nan,
        fd_ratio_interval=fidelity.ratio_interval if fidelity else NO_INTERVAL,
        precision=spread.precision if spread else math.nan,
        precision_interval=spread.precision_interval if spread else NO_INTERVAL,
        recall=spread.recall if spread else math.nan,
        recall_interval=spread.recall_interval if spread else NO_INTERVAL,
    )


def kept(kind: type[R], folder: Path, run: Run, seed: int, measure: Callable[[], R], **asked: Any) -> R:
    """Return a result: that in a folder, where it is of the same directions, seed and details, or else measured now."""
    done, remedy = [False], "remove it, and it is measured anew"
    if rank() == 0 and all((folder / name).is_file() for name in (PROVENANCE, f"{kind.NAME}.json")):
        found = Provenance.read(folder / PROVENANCE, remedy)
        is_same = found.seed == seed and {name: found.details.get(name) for name in asked} == asked
        done = [is_same and found.is_of(run.hashes)]
    if all_gather(done)[0]:
        return kind.load(folder, remedy)
    result = measure()
    if rank() == 0:
        result.save(folder, overwrite=True)
    barrier()
    return result


def _precision_recall(
    run: Run, chosen: Extractor, count: int, directions: Sequence[int] | None, cache: Path, seed: int
) -> PrecisionRecall:
    """Return how far shifted samples lie among raw ones, and raw ones among shifted ones, in the extractor's features.

    The real images play no part: it is the model's own images that a direction should stay among.
    """
    folders = sample_folders(run, count, cache, seed, directions=directions)
    found = []
    if rank() == 0:
        raw, shifted = (features(pngs(folder, count), chosen, cache, run.device) for folder in folders)
        found.append(precision_recall(shifted, raw))
    return all_gather(found)[0]


def factors_found(method: str, effects: Attributes) -> list[FactorFound]:
    """Return the direction of a method that moves each factor of the data most; see :class:`FactorFound`."""
    found = []
    factors = [each.factor for each in effects.attributes]
    for factor in [name for name in effects.factors if name in factors]:
        columns = [j for j, name in enumerate(factors) if name == factor]
        candidates = [
            (each.visible and each.effects.passes[j], abs(each.effects.effect[j]), each, j)
            for each in effects.directions
            for j in columns
            if not math.isnan(each.effects.effect[j])
        ]
        if not candidates:
            continue
        passes, size, each, j = max(candidates, key=lambda one: one[:2])
        others = [abs(value) for i, value in enumerate(each.effects.effect) if factors[i] != factor]
        defined = [value for value in others if not math.isnan(value)]
        also = [
            name
            for i, name in enumerate(factors)
            if name not in ("", factor) and each.effects.passes[i] and abs(each.effects.effect[i]) >= size / 2
        ]
        found.append(
            FactorFound(
                factor=factor,
                method=method,
                direction=each.direction if passes else None,
                attribute=effects.attributes[j].name,
                effect=each.effects.effect[j],
                interval=(each.effects.low[j], each.effects.high[j]),
                specificity=size / float(np.mean(defined)) if any(defined) else math.nan,
                also=list(dict.fromkeys(also)),
            )
        )
    return found
