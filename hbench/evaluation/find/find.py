"""Directions found without a shift block, as a file: ``METHOD.safetensors``."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hbench.config import Experiment
from hbench.core import seeds
from hbench.core.backbone import Backbone, DiffusionModel
from hbench.core.domain import h_deviation
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError, check_at_least, check_seed, check_type, counted
from hbench.evaluation.find.method import Found, Method, Search
from hbench.evaluation.find.methods import method_named
from hbench.evaluation.visible import NEAR_ENOUGH, scaled_to
from hbench.models.shift import FixedDirections
from hbench.runtime import distributed
from hbench.runtime.device import pick_device
from hbench.runtime.distributed import all_gather, barrier, rank
from hbench.runtime.memory import MIB, watch_resident
from hbench.store.classifier import classifier_for, load_classifier
from hbench.store.directions_file import StoredDirections, model_sha256, read_directions, write_directions
from hbench.store.files import replacing, sha256
from hbench.store.folders import EXPERIMENT, claimed_folder
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import provenance
from hbench.store.records import Count, Positive, Record
from hbench.store.run import Run
from hbench.store.weights import read_written_experiment, write_experiment

log = logging.getLogger(__name__)

VISIBLE_CHANGE = 0.5
"""Median visible change between -S and S that found directions are scaled to; the shipped runs have 0.54 and 0.57."""
LOOKED_AT = 6
"""Samples on which the scale is chosen."""
PARTS, ASKED = "parts", "search.json"
"""Folder of the pieces of work that are done, while a search goes on, and the file in it that tells of which."""


@dataclass(frozen=True, kw_only=True)
class Asked(Record):
    """All that determines a search, beside the experiment in its folder."""

    method: str
    k: Positive | None
    """Number of directions; None for the experiment's."""
    samples: Count
    seed: Count
    model_sha256: str


def find(
    model: DiffusionModel,
    experiment: Experiment,
    method: str,
    out: str | Path,
    *,
    k: int | None = None,
    samples: int | None = None,
    visible_change: float = VISIBLE_CHANGE,
    seed: int = 0,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    resume: bool = False,
) -> StoredDirections:
    """Find directions of a frozen diffusion model, write them to ``out`` as METHOD.safetensors, and return them.

    All directions get the same norm, over all timesteps, and then one factor by which the median of their visible
    changes between -S and S is the wanted one: so methods compare at equal change. The file tells seconds, memory and
    convergence. Several processes share the work. Cost: that of the method, and some ten times six shifted chains a
    direction for the scale.

    Args:
        model: diffusion model.
        experiment: its experiment, which gives chain, shift interval and S.
        method: name of a method, in ``hbench.evaluation.find.methods`` or of another package.
        out: output folder.
        k: number of directions, at least 2; the experiment's by default, or as many as there are.
        samples: number of samples that the method looks at; by default its own. With one, ``jacobian`` is local.
        visible_change: median visible change of the directions, as a share of the range, more than 0 and less than 1.
        seed: random seed.
        device: device of the search.
        overwrite: accept a folder that already holds something.
        resume: go on with a search that was stopped in ``out``.

    Raises:
        TypeError: not an experiment or not a model.
        ValueError: a number out of range.
        HBenchError: no such method, it finds too few directions or ones that are not finite, or ``out`` holds something
            else, or a search with other settings.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_type(Backbone, "as load_model returns it", model=model)
    check_at_least(2, k=experiment.discovery.K if k is None else k)
    check_at_least(1, samples=1 if samples is None else samples)
    check_seed(seed)
    if not 0 < visible_change < 1:
        raise ValueError(f"visible_change must lie between 0 and 1, got {visible_change}")
    chosen, out, device = method_named(method), Path(out), pick_device(device)
    distributed.start(device)
    file = out / f"{method}.safetensors"
    claim = claimed_folder(out, overwrite=overwrite, resume=resume) if rank() == 0 else nullcontext()
    with claim:
        count = chosen.samples and (samples or chosen.samples)
        if resume and (out / EXPERIMENT).is_file():
            _check_experiment(out, experiment, k)
        if all(all_gather([resume and (out / PROVENANCE).is_file()])):
            stored = read_directions(file)
            stored.check_fits(model)
            asked_for, details = {"k": k, "samples": count, "seed": seed}, stored.about.details
            change = details.get("wanted_change", visible_change)  # files of older versions do not tell
            is_near = isinstance(change, float) and math.isclose(change, visible_change, rel_tol=NEAR_ENOUGH)
            if {name: details.get(name) for name in asked_for} != asked_for or not is_near:
                raise HBenchError(f"{out}: holds another search: choose another `out`")
            return stored
        if rank() == 0:
            (out / PROVENANCE).unlink(missing_ok=True)
            write_experiment(out, experiment)
            if not resume:
                shutil.rmtree(out / PARTS, ignore_errors=True)
        barrier()
        network = model.to(device).eval().requires_grad_(False)
        known_as = model_sha256(network)
        asked = Asked(method=method, k=k, samples=count, seed=seed, model_sha256=known_as)
        origin = provenance(experiment, device, seed, method=method, k=k, samples=count, model_sha256=known_as)
        if resume and (out / PARTS / ASKED).is_file() and Asked.read(out / PARTS / ASKED, "remove it") != asked:
            raise HBenchError(f"{out}: was started as another search: choose another `out`")
        search = make_search(network, experiment, device, k, count, seed, partial(_kept, out / PARTS, asked))
        found, facts = _timed(chosen, search)
        found = checked(found, method, k, search)
        scaled, reached = to_visible_change(found, network, experiment, device, visible_change, seed)
        if rank() == 0:
            each_timestep = found.delta_h.ndim == 5
            write_directions(
                file,
                scaled,
                search.sampler.shift_interval if each_timestep else None,
                model_sha256=known_as,
                S=experiment.discovery.S,
                method=method,
                names=found.names,
                details={"k": k, "samples": count, "seed": seed, "wanted_change": visible_change}
                | {**facts, "visible_change": reached, **found.details},
                experiment=experiment,
            )
            origin.finished(**facts, visible_change=reached, **{f"{method}_sha256": sha256(file)}).write(
                out / PROVENANCE
            )
            shutil.rmtree(out / PARTS, ignore_errors=True)
        barrier()
    return read_directions(file)


def chain_of(experiment: Experiment) -> tuple[Any, ...]:
    """Return the settings that directions are found for: the noise schedule, the chain, its shift interval, and S."""
    return experiment.diffusion, experiment.discovery.model_dump(include={"M", "t_shift", "spacing", "S"})


def _check_experiment(out: Path, experiment: Experiment, k: int | None) -> None:
    """Raise an HBenchError where the search in a folder was begun for another chain, or another K by default."""
    begun = read_written_experiment(out / EXPERIMENT, "search again in another `out`")
    if chain_of(begun) != chain_of(experiment) or (k is None and begun.discovery.K != experiment.discovery.K):
        raise HBenchError(f"{out}: was started with another chain, S or K: choose another `out`")


def make_search(
    model: DiffusionModel,
    experiment: Experiment,
    device: torch.device,
    k: int | None,
    samples: int,
    seed: int,
    keep: Callable[[str, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]],
) -> Search:
    """Return what a method is given: the experiment's chain in float32, and a classifier if one is at hand."""
    file = classifier_for(experiment)
    return Search(
        sampler=Sampler.of(experiment, model, device, precision="float32"),
        K=experiment.discovery.K if k is None else k,
        samples=samples,
        x_T_seed=seeds.found_on(seed),
        seed=seeds.found(seed),
        classifier=load_classifier(file) if file else None,
        keep=keep,
    )


def checked(found: Found, method: str, k: int | None, search: Search) -> Found:
    """Return directions of a method after a check, each with a mean square of 1, on the CPU.

    Raises:
        HBenchError: their shape is wrong, they are too few, or one is zero or not finite.
    """
    delta_h = found.delta_h.detach().cpu().float()
    shapes = [search.h_shape, (len(search.sampler.shift_interval), *search.h_shape)]
    if tuple(delta_h.shape[1:]) not in shapes:
        raise HBenchError(
            f'method "{method}": returns directions {list(delta_h.shape)}, need [K, {", ".join(map(str, shapes[0]))}] '
            f"or one for each of {shapes[1][0]} timesteps: update its package"
        )
    if len(delta_h) < 2 or (k is not None and len(delta_h) < k):
        raise HBenchError(f'method "{method}": finds {counted(len(delta_h), "direction")}: take a smaller `k`')
    if len(delta_h) < search.K:
        log.warning('method "%s": finds %s', method, counted(len(delta_h), "direction"))
    size = delta_h.flatten(1).square().mean(1).sqrt()
    if not bool((size.isfinite() & (size > 0)).all()):
        raise HBenchError(
            f'method "{method}": a direction is zero or not finite: take more `samples`, or another method'
        )
    return replace(found, delta_h=delta_h / size.reshape(-1, *[1] * (delta_h.ndim - 1)))


def to_visible_change(
    found: Found, model: DiffusionModel, experiment: Experiment, device: torch.device, wanted: float, seed: int
) -> tuple[Tensor, float]:
    """Return directions scaled to a median visible change between -S and S, and the one that was reached."""
    delta_h = found.delta_h.reshape(len(found.delta_h), -1, *found.delta_h.shape[-3:])
    sampler = Sampler.of(experiment, model, device)
    timesteps = sampler.shift_interval if delta_h.shape[1] > 1 else (0,)
    values = experiment.model_copy(update={"discovery": experiment.discovery.model_copy(update={"K": len(delta_h)})})
    start = h_deviation(sampler, sampler.noise(LOOKED_AT)) / experiment.discovery.S
    run = Run(values, device, model, FixedDirections(start * delta_h, timesteps).to(device))
    factor, reached = scaled_to(run, run.own, wanted, LOOKED_AT, seeds.found_on(seed))
    return factor * start * found.delta_h, reached


def _timed(method: Method, search: Search) -> tuple[Found, dict[str, Any]]:
    """Return what a method finds, and its seconds and its largest memory."""
    device, started = search.sampler.device, time.monotonic()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        found = method.find(search)
        mib, how = torch.cuda.max_memory_allocated(device) / MIB, "peak of PyTorch's allocator"
    else:
        with watch_resident() as (baseline, peak, how):
            found = method.find(search)
            mib = max(0.0, peak() - baseline)
    return found, {"seconds": round(time.monotonic() - started, 2), "memory_mib": round(mib, 1), "memory_is": how}


def _kept(folder: Path, asked: Asked, name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return a piece of work: read back where it was done before, else made now, and written by the main process."""
    path = folder / f"{name}.safetensors"
    if all(all_gather([path.is_file()])):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise HBenchError(f"{path}: damaged ({error}): remove it") from error
    made = {key: value.cpu().contiguous() for key, value in make().items()}
    if rank() == 0:
        folder.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            save_file(made, temporary)
        asked.write(folder / ASKED)
    return made
