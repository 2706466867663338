"""The bench: directions of any methods on one frozen model, at equal visible change, measured alike (Sec. 5).

Every method gives K directions. Those without a scale of their own are scaled to the same median visible change, that
of the run's own directions. A fresh reconstructor of a fixed budget is trained for each, so that RCA exists for all,
and says the same for all. What is done is kept in the folder, and is not done again.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from hbench.config import Experiment
from hbench.core import seeds
from hbench.core.sampler import BATCH
from hbench.errors import MOST_SEED, HBenchError, check_at_least, check_seed
from hbench.evaluation.attributes.attributes import NATURAL, attributes
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.benchmark.result import NO_INTERVAL, Benchmark, FactorFound, MeasuredMethod
from hbench.evaluation.features import CLASSIFIER, Extractor, choose_extractor, features
from hbench.evaluation.fid import Fidelity, fid
from hbench.evaluation.find.find import LOOKED_AT, VISIBLE_CHANGE, chain_of, find
from hbench.evaluation.find.methods import method_named
from hbench.evaluation.precision_recall import PrecisionRecall, precision_recall
from hbench.evaluation.random_features import RANDOM
from hbench.evaluation.rca import RCA, rca
from hbench.evaluation.sample_cache import pngs, sample_folders
from hbench.evaluation.visible import look
from hbench.models.shift import FixedDirections, ShiftBlock
from hbench.runtime.device import pick_device
from hbench.runtime.distributed import all_gather, barrier, rank
from hbench.runtime.progress import duration, is_asked_for
from hbench.store.classifier import classifier_for
from hbench.store.datasets import at_hand, load_set
from hbench.store.directions import direction_source, experiment_with
from hbench.store.directions_file import StoredDirections, model_sha256, read_directions
from hbench.store.files import sha256
from hbench.store.model import load_model, model_experiment
from hbench.store.places import TRAINED as WEIGHTS_FILE
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance, provenance
from hbench.store.results import Result
from hbench.store.run import Run, load_run
from hbench.store.run_files import locate, origin_of_training
from hbench.store.shipped import refuse_to_hide
from hbench.training.checkpoint import WITHOUT_EFFECT
from hbench.training.reconstruct import STEPS, reconstruct

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Result)

TRAINED = "trained"
"""Name of the directions of the run itself, which a discovery has trained."""
METHODS = (TRAINED, "pca", "jacobian", "random", "axes")
"""Methods by default."""
SHOWN, EXAMPLES, COLUMNS = 4, 4, 5
"""Directions, rows and columns of each method's grid."""


@dataclass(frozen=True)
class Entry:
    """Directions that the bench measures."""

    name: str
    found_by: str
    """Method that found them, the same for all of its seeds."""
    title: str
    run: Run
    """Run with the directions; its reconstructor is not used."""
    seconds: float = math.nan
    memory_mib: float = math.nan


@dataclass(frozen=True)
class Counts:
    """Sizes of the measurements, the same for every method."""

    pairs: int = 2000
    samples: int = 50
    images: int = 1000
    reconstructor_steps: int = STEPS


def benchmark(
    model: str | Path,
    out: str | Path,
    *,
    methods: Sequence[str] = METHODS,
    add: Sequence[str | Path] = (),
    experiment: Experiment | None = None,
    k: int | None = None,
    counts: Counts | None = None,
    extractor: str | None = None,
    weights: str | Path | None = None,
    cache: str | Path = "runs/cache",
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    search_seeds: Sequence[int] = (),
    device: str = "auto",
    draw: Callable[[Path], None] | None = None,
) -> Benchmark | None:
    """Find directions by several methods, or take those that are there, and measure all alike.

    Return None if the training of a reconstructor is stopped early, by SIGTERM or SIGINT: the same call goes on.

    What ``out`` holds of the same directions, sizes and seed is taken as it is, so that a bench that was stopped goes
    on, and another method, or somebody's file, costs no more than itself. Several processes share the work. Cost: for
    each method its search, ``reconstructor_steps`` steps without gradients, and the chains of rca, attributes and fid;
    it is said first.

    Args:
        model: run, whose own directions are "trained", or diffusion model.
        out: folder of the bench.
        methods: "trained", and names of methods, see docs/directions.md.
        add: files of directions, and runs on the same diffusion model.
        experiment: experiment of a model whose file carries none, or with another chain; a run has its own.
        k: number of directions of the methods that find some; the model's by default.
        counts: sizes of the measurements.
        extractor: feature extractor of the distances, as for :func:`hbench.evaluation.fid.fid`; by default the
            classifier of the images, and random-resnet18 where there is none.
        weights: file of its weights.
        cache: folder of images and features.
        data_root: folder of the real images, for distances in features that carry no statistics of them.
        download: let torchvision download MNIST if it is missing.
        seed: seed of the searches, trainings and measurements.
        search_seeds: further seeds of the searches; what each finds is measured too, and the numbers of a method get
            intervals over its seeds, as do those of discoveries of the same settings, given by ``add``.
        device: device of all of it.
        draw: function that draws the curves of a training's folder.

    Raises:
        ValueError: a number out of range.
        HBenchError: an unknown method, directions of another model, a model without directions of its own, or ``out``
            would hide a shipped run.
    """
    counts, out, device_ = counts or Counts(), Path(out), pick_device(device)
    check_at_least(1, pairs=counts.pairs, reconstructor_steps=counts.reconstructor_steps)
    check_at_least(6, samples=counts.samples)
    check_at_least(0, images=counts.images)
    check_seed(seed)
    for each in search_seeds:
        check_at_least(0, most=MOST_SEED, search_seeds=each)
    refuse_to_hide(out)  # the same call would find its own results in place of the run
    own = load_run(model, device=device_) if _holds_run(Path(model)) else None
    methods = list(dict.fromkeys(methods))
    if not methods and not add:
        raise HBenchError("none to measure: name `methods`, or give directions by `add`")
    _check_asked(model, own, methods, experiment)
    base = own or directionless(model, experiment, device_)
    settings = base.experiment
    origin = provenance(settings, device_, seed, model_sha256=model_sha256(base.model))

    # What is wrong is refused before anything is searched.
    searches = {
        name if each == seed else f"{name}-seed{each}": (name, each)
        for name in methods
        if name != TRAINED
        for each in (seed, *search_seeds)
    }
    entries = [_trained(TRAINED, own)] if TRAINED in methods and own else []
    given = [_given(Path(path), base, model) for path in add]
    names = [*(each.name for each in entries), *searches, *(each.name for each in given)]
    if len({*names}) < len(names):
        raise HBenchError(f"two of one name among {', '.join(names)}: rename a file or a folder")
    chosen = _extractor(base, extractor, weights) if counts.images else None
    if chosen:
        _check_images(chosen, settings, [out / name for name in names], data_root, download)
    _tell_left_out(out, names)

    _announce(base, [name for name, _ in searches.values()], len(given) + len(entries), counts)
    wanted = _own_change(own, seed) if own else VISIBLE_CHANGE
    for name, (method, each) in searches.items():
        stored = find(
            base.model,
            settings,
            method,
            folder := out / name / "find",
            k=k,
            visible_change=wanted,
            seed=each,
            device=device,
            resume=all(all_gather([folder.is_dir()])),
        )
        entries.append(_of_file(name, method, method_named(method).title, stored, base))
    entries += given
    measured, factors, grids, metric = [], [], {}, ""
    for entry in entries:
        found = _measure(entry, out / entry.name, counts, chosen, (Path(cache), data_root, download), seed, draw)
        if found is None:
            log.warning("%s: stopped at %s: do the same again to go on", out, entry.name)
            return None
        metric = found.metric
        measured.append(found.numbers)
        factors += found.factors
        if entry.found_by not in {each.found_by for each in measured[:-1]}:
            grids[entry.name] = found.grid  # one seed of each method
        log.info(
            "%s: RCA %.3f, %d of %d visible", entry.name, found.numbers.rca, len(found.numbers.visible), entry.run.K
        )
    barrier()
    return Benchmark(
        metric=metric,
        n_pairs=counts.pairs,
        n_samples=counts.samples,
        n_images=counts.images if metric else 0,
        reconstructor_steps=counts.reconstructor_steps,
        methods=measured,
        factors=factors,
        grids=grids,
        provenance=origin.finished(
            n=counts.samples, directions_sha256={e.name: e.run.hashes["shift_block"] for e in entries}
        ),
    )


def _check_asked(model: str | Path, own: Run | None, methods: Sequence[str], experiment: Experiment | None) -> None:
    """Raise an HBenchError where a method is unknown, or not one of this model, or a run gets another chain."""
    if TRAINED in methods and own is None:
        raise HBenchError(f'{model}: has no directions of its own: leave "{TRAINED}" out, or give a run')
    if own and experiment and chain_of(experiment) != chain_of(own.experiment):
        raise HBenchError(f"{model}: is a run, with a chain and an S of its own: leave `experiment` out")
    for name in methods:
        if name != TRAINED:
            method_named(name)


def _check_images(
    chosen: Extractor, settings: Experiment, folders: Sequence[Path], data_root: str | Path | None, download: bool
) -> None:
    """Raise an HBenchError where a distance that is still to be measured needs real images that are not at hand."""
    needed = any(not (folder / f"fid-{chosen.name}" / PROVENANCE).is_file() for folder in folders)
    if needed and not chosen.is_classifier and not at_hand(settings.data, data_root, download):
        load_set(settings.data, data_root, "reference", download)  # it says what is missing


def _tell_left_out(out: Path, names: Sequence[str]) -> None:
    """Warn of methods that the page in a folder has, and that these would leave out of it."""
    if not (out / PROVENANCE).is_file():
        return
    before = Provenance.read(out / PROVENANCE, "remove it").details.get("directions_sha256")
    if left_out := [name for name in before or () if name not in names]:
        log.warning("%s: its page has %s too: name them as well, or it loses them", out, ", ".join(left_out))


# Entries ------------------------------------------------------------------------------------------------------------


def directionless(model: str | Path, experiment: Experiment | None, device: Any) -> Run:
    """Return the run of a diffusion model in which no direction does anything, for its chain and its settings."""
    settings = model_experiment(model, experiment)
    network = load_model(model, settings, device=device).requires_grad_(False)
    nothing = FixedDirections(torch.zeros(settings.discovery.K, 1, *network.h_shape), (0,))
    return Run(settings, device, network, nothing.to(device))


def _holds_run(path: Path) -> bool:
    """Return whether a path is a finished run, and not a diffusion model alone."""
    return (locate(path) / WEIGHTS_FILE).is_file()


def _own_change(run: Run, seed: int) -> float:
    """Return the median visible change of a run's own directions."""
    seen = look(run, direction_source(run), LOOKED_AT, seeds.found_on(seed))
    return float(np.median(seen.visible_change.mean(0)))


def _given(path: Path, base: Run, model: str | Path) -> Entry:
    """Return directions that somebody gives: a file, or a run on the same diffusion model.

    Raises:
        HBenchError: of another diffusion model, or neither.
    """
    if not _holds_run(path):
        stored = read_directions(path)
        return _of_file(path.stem, path.stem, stored.method, stored, base)
    run = load_run(path, device=base.device)
    if model_sha256(run.model) != model_sha256(base.model):
        raise HBenchError(f"{path}: is of another diffusion model than {model}: give runs on the same one")
    place = path.resolve()
    name = place.parent.name if place.name == "train" else place.name  # hbench train calls every run so
    alike = isinstance(run.shift_block, ShiftBlock) and _settings(run) == _settings(base)
    return _trained(name, run, TRAINED if alike else name)


def _settings(run: Run) -> dict[str, Any]:
    """Return what a discovery depends on, its seed and its diffusion model apart."""
    return run.experiment.discovery.model_dump(exclude=WITHOUT_EFFECT)


def _trained(name: str, run: Run, found_by: str = TRAINED) -> Entry:
    """Return a run's own directions, with the time of its training; those of a file were found before it."""
    if not isinstance(run.shift_block, ShiftBlock):
        return Entry(name, found_by, "directions of a file", run)
    origin = origin_of_training(run.folder) if run.folder else None
    seconds = origin.wall_seconds if origin and origin.wall_seconds is not None else math.nan
    return Entry(name, found_by, "shift block of a discovery, a function of the sample", run, seconds)


def _of_file(name: str, found_by: str, title: str, stored: StoredDirections, base: Run) -> Entry:
    """Return the directions of a file, on the bench's model."""
    stored.check_fits(base.model)
    run = Run(
        experiment_with(base.experiment, stored),
        base.device,
        base.model,
        stored.fixed().to(base.device).eval(),
        hashes={"model": base.hashes.get("model", model_sha256(base.model)), "shift_block": stored.sha256},
        names=stored.names,
    )
    details = stored.about.details
    known = {key: float(details[key]) for key in ("seconds", "memory_mib") if isinstance(details.get(key), int | float)}
    return Entry(name, found_by, title, run, **known)


# Measurements -------------------------------------------------------------------------------------------------------


class _Of(NamedTuple):
    """All that is measured of one entry."""

    numbers: MeasuredMethod
    factors: list[FactorFound]
    metric: str
    """Name of the distance; empty for none."""
    grid: "tuple[Tensor, list[str]]"
    """Images along its most visible directions, [directions, examples, columns, C, H, W], and their labels."""


def _measure(
    entry: Entry,
    folder: Path,
    counts: Counts,
    chosen: Extractor | None,
    places: tuple[Path, str | Path | None, bool],
    seed: int,
    draw: Callable[[Path], None] | None,
) -> _Of | None:
    """Return all that is measured of one entry; what its folder holds already is not measured again.

    Return None if the training of its reconstructor is stopped early.
    """
    steps = counts.reconstructor_steps
    judged = reconstruct(entry.run, folder / f"train-{steps}-{_digest(entry)}", steps=steps, seed=seed, draw=draw)
    if judged is None:
        return None
    run = replace(judged, names=entry.run.names, folder=entry.run.folder or judged.folder)
    ranking = _kept(RCA, folder / "rca", run, seed, lambda: rca(run, pairs=counts.pairs, seed=seed), n=counts.pairs)
    file = classifier_for(run.experiment, run.folder)
    effects = _kept(
        Attributes,
        folder / "attributes",
        run,
        seed,
        lambda: attributes(run, samples=counts.samples, seed=seed, ranking=ranking),
        n=counts.samples,
        pairs=counts.pairs,
        classifier_sha256=sha256(file) if file else None,
    )
    metric, distances, spread = "", None, None
    if chosen:
        cache, data_root, download = places
        made = partial(
            fid,
            run,
            samples=counts.images,
            extractor=chosen.name,
            weights=chosen.weights,
            cache=cache,
            data_root=data_root,
            download=download,
            seed=seed,
        )
        place, asked = folder / f"fid-{chosen.name}", {"n": counts.images, "extractor_sha256": chosen.sha256}
        distances = _kept(Fidelity, place, run, seed, made, **asked)
        metric, spread = distances.metric, _precision_recall(run, chosen, counts.images, cache, seed)
    numbers = _numbers(entry, ranking, effects, distances, spread)
    best = sorted(effects.directions, key=lambda each: (not each.visible, -each.visible_change))[:SHOWN]
    images = run.traverse([each.direction for each in best], examples=EXAMPLES, samples=COLUMNS, seed=seed).images
    labels = [f"{entry.name} {each.direction}: {each.proposed or 'no name'}" for each in best]
    return _Of(numbers, factors_found(entry.name, effects), metric, (images, labels))


def _numbers(
    entry: Entry, ranking: RCA, effects: Attributes, distances: Fidelity | None, spread: PrecisionRecall | None
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
        fd_raw=distances.raw.fd if distances else math.nan,
        fd_shifted=distances.shifted.fd if distances else math.nan,
        fd_ratio=distances.ratio if distances else math.nan,
        fd_ratio_interval=distances.ratio_interval if distances else NO_INTERVAL,
        precision=spread.precision if spread else math.nan,
        precision_interval=spread.precision_interval if spread else NO_INTERVAL,
        recall=spread.recall if spread else math.nan,
        recall_interval=spread.recall_interval if spread else NO_INTERVAL,
    )


def _digest(entry: Entry) -> str:
    return entry.run.hashes["shift_block"][:8]


def _kept(kind: type[R], folder: Path, run: Run, seed: int, measure: Callable[[], R], **asked: Any) -> R:
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


def _extractor(base: Run, name: str | None, weights: str | Path | None) -> Extractor:
    """Return the extractor of the distances: by default the classifier of the images, or random features."""
    known = classifier_for(base.experiment, base.folder) if weights is None else None
    if name is None:
        name = CLASSIFIER if known or weights else RANDOM
    return choose_extractor(base.experiment.data, name, known if name == CLASSIFIER and known else weights)


def _precision_recall(run: Run, chosen: Extractor, count: int, cache: Path, seed: int) -> PrecisionRecall:
    """Return how far shifted samples lie among raw ones, and raw ones among shifted ones, in the extractor's features.

    The real images play no part: it is the model's own images that a direction should stay among.
    """
    folders = sample_folders(run, count, cache, seed)
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


def _announce(base: Run, searches: Sequence[str], others: int, counts: Counts) -> None:
    """Say how long the bench takes on an empty folder, where progress is shown: by the time of one batch of chains."""
    if not is_asked_for():
        return
    x_T = base.noise(BATCH)
    base.generate(x_T[:2])  # the first pass is slower
    started = perf_counter()
    base.generate(x_T)
    chain = (perf_counter() - started) / BATCH
    settings, K = base.experiment.discovery, base.K
    each = 1.5 * counts.reconstructor_steps * settings.batch_size  # the networks that are trained count for a part
    each += 2 * counts.pairs + 48 * K + 8 * K * counts.samples + NATURAL + 2 * counts.images
    search = sum(method_named(name).samples + 60 * K for name in searches)
    count = len(searches) + others
    log.info("%d methods: about %s on an empty folder", count, duration(chain * (each * count + search)))
