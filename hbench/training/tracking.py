"""Logs of a training for programs that show many side by side, through accelerate's trackers.

A log is made of what lies in the training's folder: the rows of ``metrics.jsonl`` and the grids of samples. It is
brought up to date after each checkpoint, so that it has no step that a resumed training takes again, and gets what it
lacks when the training goes on: each step once.
"""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hbench.config import Experiment
from hbench.errors import HBenchError
from hbench.store.records import Count, Record

if TYPE_CHECKING:
    import torch
    from accelerate.tracking import GeneralTracker

Settings = dict[str, int | float | str]
"""Hyperparameters by name."""
PROJECT = "hbench"
"""Project of the logs, where a program has projects."""


@dataclass(frozen=True, kw_only=True)
class Logged(Record):
    """State of a training's log: what its program calls it, and how much of the training it has."""

    id: str
    steps: Count
    """Number of steps in it."""


@dataclass(frozen=True)
class Program:
    """A program that keeps logs of trainings."""

    start: Callable[[Path, str, Logged, Settings], "tuple[GeneralTracker, str]"]
    """Function (folder of the training, title, state of the log, hyperparameters) -> tracker that goes on with the log,
    and its id."""
    log_picture: Callable[[Any, Path, int], None]
    """Function (tracker, PNG file, step) that logs a picture."""
    errors: str = "builtins.OSError"
    """Class of its errors."""
    forgets: bool = False
    """True if it drops the steps from the state's on when it starts."""
    inside: str = ""
    """Name of the log in the training's folder; empty where it lies elsewhere."""


@contextmanager
def tracking(
    folder: Path, experiment: Experiment, seed: int, step: int, log_to: str | None, device: "torch.device"
) -> Iterator[Callable[[int], None]]:
    """Open the log of a training while the block runs, and yield a function of the number of steps done that fills it.

    The function takes the rows and pictures that the log lacks from the folder; call it after each checkpoint. At first
    the log gets what was done before.

    Args:
        folder: folder of the training.
        experiment: settings, which the log gets as hyperparameters.
        seed: random seed, one more of them.
        step: number of steps in the checkpoint to go on from.
        log_to: name of the program; None for no log.
        device: device of the training.

    Raises:
        HBenchError: the program refuses, or the log cannot be written; the training's last checkpoint stays.
    """
    if log_to is None:
        yield lambda done: None
        return
    from accelerate import PartialState

    PartialState(cpu=device.type == "cpu")  # accelerate's trackers would take a GPU by themselves
    program, file, state = PROGRAMS[log_to], _state_file(folder, log_to), read_log(folder, log_to, step)
    settings = hyperparameters(experiment, seed)
    with _telling(log_to):
        tracker, name = program.start(folder, f"{experiment.name} {uuid4().hex[:8]}", state, settings)
    try:
        with _telling(log_to):
            if not state.id:
                tracker.store_init_configuration(settings)
        state = replace(state, id=name)

        def fill(done: int) -> None:
            nonlocal state
            with _telling(log_to):
                _fill(tracker, program, folder, state.steps, done)
            state = replace(state, steps=max(done, state.steps))
            state.write(file)

        fill(step)
        yield fill
    finally:
        with _telling(log_to):
            tracker.finish()


def read_log(folder: Path, log_to: str, step: int) -> Logged:
    """Return the state of a training's log at a checkpoint; a log that is not there, or is no more, has nothing.

    Raises:
        HBenchError: its file is damaged.
    """
    program, file = PROGRAMS[log_to], _state_file(folder, log_to)
    if not step or not file.is_file() or not (folder / program.inside).exists():
        return Logged(id="", steps=0)
    state = Logged.read(file, "remove it for a new log")
    return replace(state, steps=min(state.steps, step)) if program.forgets else state


def _state_file(folder: Path, log_to: str) -> Path:
    return folder / f"log-{log_to}.json"


def check_log_to(log_to: str | None) -> None:
    """Check the name of a program that keeps logs; None is no log.

    Raises:
        ValueError: an unknown name.
        HBenchError: its package is not installed.
    """
    if log_to is None:
        return
    if log_to not in PROGRAMS:
        raise ValueError(f"log_to must be {', '.join(PROGRAMS)} or None, got {log_to!r}")
    if find_spec(log_to) is None:
        raise HBenchError(f"`log_to={log_to}`: the package is not installed: pip install {log_to}")


def hyperparameters(experiment: Experiment, seed: int) -> Settings:
    """Return the settings of an experiment that are not None, and the seed, by names such as "discovery.K"."""
    return {"seed": seed, **_flat(experiment.model_dump(mode="json", exclude={"paper"}))}


def _flat(values: dict[str, Any], section: str = "") -> Settings:
    found: Settings = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{section}{key}.")
        elif value is not None:
            found[f"{section}{key}"] = value if isinstance(value, int | float | str) else json.dumps(value)
    return found


def _fill(tracker: "GeneralTracker", program: Program, folder: Path, first: int, done: int) -> None:
    """Log the rows of steps ``first`` .. ``done`` - 1, and the grids that were drawn after them."""
    pictures = {int(path.stem) - 1: path for path in (folder / "samples").glob("*.png") if path.stem.isdecimal()}
    with (folder / "metrics.jsonl").open(encoding="utf-8") as rows:
        for line in islice(rows, first, done):
            row = json.loads(line)
            step = row.pop("step")
            tracker.log(row, step=step)
            if step in pictures:
                program.log_picture(tracker, pictures[step], step)


@contextmanager
def _telling(log_to: str) -> Iterator[None]:
    """Turn the errors of a program into HBenchErrors."""
    module, _, name = PROGRAMS[log_to].errors.rpartition(".")
    try:
        yield
    except (OSError, getattr(importlib.import_module(module), name)) as error:
        said = " ".join(str(error).split())
        raise HBenchError(f"`log_to={log_to}`: {said}: mend that, or leave `log_to` out") from error


# Programs -----------------------------------------------------------------------------------------------------------


def _tensorboard(folder: Path, title: str, state: Logged, settings: Settings) -> "tuple[GeneralTracker, str]":
    from accelerate.tracking import TensorBoardTracker

    return _started(TensorBoardTracker("tensorboard", folder, purge_step=state.steps)), "tensorboard"


def _wandb(folder: Path, title: str, state: Logged, settings: Settings) -> "tuple[GeneralTracker, str]":
    from accelerate.tracking import WandBTracker

    name = state.id or uuid4().hex[:8]
    mode = os.environ.get("WANDB_MODE") or "offline"
    # in the current folder, since its links to the user's cache would make a run's one unsafe to open
    return _started(WandBTracker(PROJECT, id=name, name=title, resume="allow", mode=mode)), name


def _trackio(folder: Path, title: str, state: Logged, settings: Settings) -> "tuple[GeneralTracker, str]":
    from accelerate.tracking import TrackioTracker

    name = state.id or title  # it forgets the settings of a log that goes on
    return _started(TrackioTracker(PROJECT, name=name, resume="allow", config=settings)), name


def _mlflow(folder: Path, title: str, state: Logged, settings: Settings) -> "tuple[GeneralTracker, str]":
    import mlflow
    from accelerate.tracking import MLflowTracker

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{(folder / 'mlflow.db').resolve()}")
    artifacts = (folder / "mlflow").resolve().as_uri()
    tracker = _started(MLflowTracker(PROJECT, logging_dir=artifacts, run_id=state.id or None, run_name=title))
    return tracker, tracker.tracker.info.run_id


def _started(tracker: "GeneralTracker") -> "GeneralTracker":
    tracker.start()
    return tracker


def _to_tensorboard(tracker: Any, file: Path, step: int) -> None:
    import numpy as np
    from PIL import Image

    tracker.log_images({"samples": np.asarray(Image.open(file).convert("RGB"))[None]}, step=step, dataformats="NHWC")


def _to_wandb(tracker: Any, file: Path, step: int) -> None:
    from PIL import Image

    tracker.log_images({"samples": [Image.open(file)]}, step=step)


def _to_trackio(tracker: Any, file: Path, step: int) -> None:
    import trackio

    tracker.log({"samples": trackio.Image(str(file))}, step=step)


def _to_mlflow(tracker: Any, file: Path, step: int) -> None:
    tracker.log_artifact(str(file), "samples")


PROGRAMS = {
    "tensorboard": Program(_tensorboard, _to_tensorboard, forgets=True, inside="tensorboard"),
    "wandb": Program(_wandb, _to_wandb, "wandb.errors.Error"),
    "trackio": Program(_trackio, _to_trackio),
    "mlflow": Program(_mlflow, _to_mlflow, "mlflow.exceptions.MlflowException"),
}
"""Programs by name, which is that of the package too."""
