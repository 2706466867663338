"""What a bench measures: directions of a run, of a file, or found by a method, each on the bench's diffusion model."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hbench.config import Experiment
from hbench.errors import HBenchError
from hbench.models.shift import FixedDirections, ShiftBlock
from hbench.store.directions import experiment_with
from hbench.store.directions_file import StoredDirections, model_sha256, read_directions
from hbench.store.model import load_model, model_experiment
from hbench.store.places import TRAINED as WEIGHTS_FILE
from hbench.store.run import Run, load_run
from hbench.store.run_files import locate, origin_of_training
from hbench.training.checkpoint import WITHOUT_EFFECT

TRAINED = "trained"
"""Name of the directions of the run itself, which a discovery has trained."""


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


def directionless(model: str | Path, experiment: Experiment | None, device: Any) -> Run:
    """Return the run of a diffusion model in which no direction does anything, for its chain and its settings."""
    settings = model_experiment(model, experiment)
    network = load_model(model, settings, device=device).requires_grad_(False)
    nothing = FixedDirections(torch.zeros(settings.discovery.K, 1, *network.h_shape), (0,))
    return Run(settings, device, network, nothing.to(device))


def holds_run(path: Path) -> bool:
    """Return whether a path is a finished run, and not a diffusion model alone."""
    return (locate(path) / WEIGHTS_FILE).is_file()


def given(path: Path, base: Run, model: str | Path) -> Entry:
    """Return directions that somebody gives: a file, or a run on the same diffusion model.

    Raises:
        HBenchError: of another diffusion model, or neither.
    """
    if not holds_run(path):
        stored = read_directions(path)
        return of_file(path.stem, path.stem, stored.method, stored, base)
    run = load_run(path, device=base.device)
    if model_sha256(run.model) != model_sha256(base.model):
        raise HBenchError(f"{path}: is of another diffusion model than {model}: give runs on the same one")
    place = path.resolve()
    name = place.parent.name if place.name == "train" else place.name  # hbench train calls every run so
    alike = isinstance(run.shift_block, ShiftBlock) and _settings(run) == _settings(base)
    return trained(name, run, TRAINED if alike else name)


def _settings(run: Run) -> dict[str, Any]:
    """Return what a discovery depends on, its seed and its diffusion model apart."""
    return run.experiment.discovery.model_dump(exclude=WITHOUT_EFFECT)


def trained(name: str, run: Run, found_by: str = TRAINED) -> Entry:
    """Return a run's own directions, with the time of its training; those of a file were found before it."""
    if not isinstance(run.shift_block, ShiftBlock):
        return Entry(name, found_by, "directions of a file", run)
    origin = origin_of_training(run.folder) if run.folder else None
    seconds = origin.wall_seconds if origin and origin.wall_seconds is not None else math.nan
    return Entry(name, found_by, "shift block of a discovery, a function of the sample", run, seconds)


def of_file(name: str, found_by: str, title: str, stored: StoredDirections, base: Run) -> Entry:
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
