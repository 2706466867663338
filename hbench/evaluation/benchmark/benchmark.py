"""The bench: directions of any methods on one frozen model, at equal visible change, measured alike (Sec. 5).

Every method gives K directions. Those without a scale of their own are scaled to the same median visible change, that
of the run's own directions. A fresh reconstructor of a fixed budget is trained for each, so that RCA exists for all,
and says the same for all. What is done is kept in the folder, and is not done again.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from hbench.config import Experiment
from hbench.core import seeds
from hbench.core.sampler import BATCH
from hbench.errors import MOST_SEED, HBenchError, check_at_least, check_seed, counted
from hbench.evaluation.attributes.attributes import NATURAL
from hbench.evaluation.benchmark.entries import TRAINED, directionless, given, holds_run, of_file, trained
from hbench.evaluation.benchmark.measure import Counts, Distances, measure
from hbench.evaluation.benchmark.result import Benchmark
from hbench.evaluation.features import CLASSIFIER, Extractor, choose_extractor
from hbench.evaluation.find.find import LOOKED_AT, VISIBLE_CHANGE, chain_of, find
from hbench.evaluation.find.methods import method_named
from hbench.evaluation.random_features import RANDOM
from hbench.evaluation.visible import look
from hbench.runtime.device import pick_device
from hbench.runtime.distributed import all_gather, barrier
from hbench.runtime.progress import duration, is_asked_for
from hbench.store.classifier import classifier_for
from hbench.store.datasets import at_hand, load_set
from hbench.store.directions import direction_source
from hbench.store.directions_file import model_sha256
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance, provenance
from hbench.store.run import Run, load_run
from hbench.store.shipped import refuse_to_hide

log = logging.getLogger(__name__)

METHODS = (TRAINED, "pca", "jacobian", "random", "axes")
"""Methods by default."""


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
    own = load_run(model, device=device_) if holds_run(Path(model)) else None
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
    entries = [trained(TRAINED, own)] if TRAINED in methods and own else []
    added = [given(Path(path), base, model) for path in add]
    names = [*(each.name for each in entries), *searches, *(each.name for each in added)]
    if len({*names}) < len(names):
        raise HBenchError(f"two of one name among {', '.join(names)}: rename a file or a folder")
    distances = None
    if counts.images:
        distances = Distances(_extractor(base, extractor, weights), Path(cache), data_root, download)
        _check_images(distances, settings, [out / name for name in names])
    _tell_left_out(out, names)

    _announce(base, [name for name, _ in searches.values()], len(added) + len(entries), counts)
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
        entries.append(of_file(name, method, method_named(method).title, stored, base))
    entries += added
    measured, factors, grids, metric = [], [], {}, ""
    for entry in entries:
        found = measure(entry, out / entry.name, counts, distances, seed, draw)
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


def _check_images(distances: Distances, settings: Experiment, folders: Sequence[Path]) -> None:
    """Raise an HBenchError where a distance that is still to be measured needs real images that are not at hand."""
    root, download = distances.data_root, distances.download
    needed = any(not (distances.folder(folder) / PROVENANCE).is_file() for folder in folders)
    if needed and not distances.extractor.is_classifier and not at_hand(settings.data, root, download):
        load_set(settings.data, root, "reference", download)  # it says what is missing


def _tell_left_out(out: Path, names: Sequence[str]) -> None:
    """Warn of methods that the page in a folder has, and that these would leave out of it."""
    if not (out / PROVENANCE).is_file():
        return
    before = Provenance.read(out / PROVENANCE, "remove it").details.get("directions_sha256")
    if left_out := [name for name in before or () if name not in names]:
        log.warning("%s: its page has %s too: name them as well, or it loses them", out, ", ".join(left_out))


def _extractor(base: Run, name: str | None, weights: str | Path | None) -> Extractor:
    """Return the extractor of the distances: by default the classifier of the images, or random features."""
    known = classifier_for(base.experiment, base.folder) if weights is None else None
    if name is None:
        name = CLASSIFIER if known or weights else RANDOM
    return choose_extractor(base.experiment.data, name, known if name == CLASSIFIER and known else weights)


def _own_change(run: Run, seed: int) -> float:
    """Return the median visible change of a run's own directions."""
    seen = look(run, direction_source(run), LOOKED_AT, seeds.found_on(seed))
    return float(np.median(seen.visible_change.mean(0)))


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
    log.info("%s: about %s on an empty folder", counted(count, "method"), duration(chain * (each * count + search)))
