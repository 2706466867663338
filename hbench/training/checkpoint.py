"""Checkpoints and metrics of a training, which may stop at any moment and go on from them."""

import hashlib
import io
import json
import logging
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hbench.config import Discovery, Experiment, Pretrain
from hbench.errors import HBenchError
from hbench.experiments import parse_experiment
from hbench.store.files import replacing, sha256, write_text
from hbench.store.folders import CHECKPOINT
from hbench.store.provenance import Piece
from hbench.store.records import Count, Record
from hbench.store.weights import check_finite, load_pickled

WITHOUT_EFFECT = {
    *("strategy", "keep", "nodes", "memory_budget", "checkpoint_blocks", "compile", "capture"),
    *("checkpoint_every", "sample_every"),
}
"""Settings of memory, time and output on the way, which change the result by rounding alone: resume with any."""
_LOST = "damaged: bring it back from a copy, or train again in another `out`"

Stage = Literal["pretrain", "discovery"]
"""Stage of training, by the section of its settings."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """Images of a training."""

    n: int
    """Number of images."""
    sha256: str
    """SHA-256 of their pixels, see :func:`hbench.store.account.content_sha256`."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """Pointer to the last checkpoint of a training, with its SHA-256 and the settings that it is of."""

    step: Count
    """Number of steps done."""
    seed: Count
    file: str
    """Name of the file beside this one."""
    sha256: str
    """SHA-256 of that file."""
    experiment: dict[str, Any]
    """Settings of the training."""
    model_sha256: str | None = None
    """SHA-256 of the frozen model beside it; None for a pretraining, and in the files of hbench 0.2."""
    pieces: tuple[Piece, ...] = ()
    """Processes that have trained so far."""
    images: TrainedOn | None = None
    """Images of the training; None for a discovery, which sees none, and in a checkpoint of an older hbench."""
    steps_before: tuple[int, ...] = ()
    """Numbers of steps that the training was to have before it was given another one."""


def save_checkpoint(
    folder: Path,
    experiment: Experiment,
    seed: int,
    step: int,
    state: Mapping[str, Any],
    pieces: Sequence[Piece] = (),
    images: TrainedOn | None = None,
    steps_before: Sequence[int] = (),
    model_sha256: str | None = None,
) -> None:
    """Write everything that training needs to go on after ``step`` steps as if it had never stopped.

    No state of a generator is needed: each step seeds them from (seed, step). The file is named by its content
    and ``checkpoint.json`` by one move points to it, so that no kill can part a checkpoint from its SHA-256.

    Args:
        folder: folder of the training.
        experiment: settings of the training.
        seed: random seed of the training.
        step: number of steps done.
        state: state of each part, by name.
        pieces: processes that have trained so far.
        images: images of the training, where it sees any.
        steps_before: numbers of steps that the training was to have before.
        model_sha256: SHA-256 of the file of the frozen model; None for a pretraining.

    Raises:
        HBenchError: a tensor is not finite, or the disk is full; the checkpoint before stays.
    """
    advice = "the last good checkpoint stays; train again in another `out` with a lower learning rate, or in float32"
    check_finite(dict(_named_tensors(state)), f"step {step}", advice)
    content = io.BytesIO()
    torch.save(dict(state), content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    file = f"checkpoint-{step:06d}-{digest[:8]}.pt"
    with replacing(folder / file) as temporary:
        temporary.write_bytes(content.getbuffer())
    values = experiment.model_dump(mode="json")
    about = Checkpoint(
        step=step,
        seed=seed,
        file=file,
        sha256=digest,
        experiment=values,
        model_sha256=model_sha256,
        pieces=tuple(pieces),
        steps_before=tuple(steps_before),
        images=images,
    )
    about.write(folder / CHECKPOINT)
    for other in folder.glob("checkpoint-*.pt"):
        if other.name != file:
            other.unlink(missing_ok=True)


def read_checkpoint(
    folder: Path, experiment: Experiment, seed: int, stage: Stage, images: TrainedOn | None = None
) -> Checkpoint | None:
    """Return the pointer to the last checkpoint of a training; None where there is none yet.

    The number of steps may be another one, if the training has not passed it.

    Raises:
        HBenchError: the checkpoint is of another seed, of other settings of the stage, the data, the model or the
            diffusion, of other images, of a newer hbench, damaged, gone from a finished training, or past the wanted
            steps.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        if any((folder / name).is_file() for name in ("provenance.json", "checkpoint.pt")):
            raise HBenchError(f"{folder}: holds a training, but no {CHECKPOINT} to go on from: choose another `out`")
        return None
    about = Checkpoint.read(path, _LOST)
    if about.seed != seed:
        raise HBenchError(f"{folder}: was started with `seed={about.seed}`, not {seed}: resume with that seed")
    # read back, so that a setting that an older hbench did not know has its default
    saved, wanted = parse_experiment(about.experiment, str(path)).model_dump(), experiment.model_dump()
    for section in ("data", "model", "diffusion", stage):
        for key, new in wanted[section].items():
            if (old := saved[section][key]) == new or key in WITHOUT_EFFECT:
                continue
            if key == "steps" and new < about.step:
                raise HBenchError(
                    f"{folder}: has taken {about.step} of {old} steps, and {section}.steps = {new} asks for fewer: "
                    f"make it {about.step} or more, or use another `out`"
                )
            if key != "steps":
                raise HBenchError(
                    f"{folder}: was started with {section}.{key} = {old!r}: resume with the same settings, "
                    "or use another `out`"
                )
    _check_images(folder, about.images, images)
    return about


def threads_of(folder: Path) -> int | None:
    """Return the number of CPU threads that a training in the folder, or in one of its folders, took last.

    None where there is no checkpoint yet, or an older hbench wrote it.
    """
    for path in (folder / CHECKPOINT, *sorted(folder.glob(f"*/{CHECKPOINT}"))):
        if path.is_file() and (pieces := Checkpoint.read(path, _LOST).pieces):
            return pieces[-1].threads
    return None


def _check_images(folder: Path, before: TrainedOn | None, now: TrainedOn | None) -> None:
    """Raise an HBenchError where a training would go on with other images than it was started with."""
    if now is None or now == before:
        return
    if before is None:
        log.warning("%s: an older hbench kept no hash of its images: nobody can tell if these are the same", folder)
    else:
        raise HBenchError(
            f"{folder}: was started on {before.n:,} images with the SHA-256 {before.sha256[:12]}, and these are "
            f"{now.n:,} with {now.sha256[:12]}: bring the same images back, or use another `out`"
        )


@dataclass(frozen=True)
class Saved:
    """Content of a checkpoint; empty for a new training."""

    step: int = 0
    """Number of steps done."""
    pieces: tuple[Piece, ...] = ()
    """Processes that did them."""
    state: dict[str, Any] = field(default_factory=dict)
    """State of each part after these steps."""
    settings: Pretrain | Discovery | None = None
    """Settings of the stage that the steps had; None for a new training."""
    steps_before: tuple[int, ...] = ()
    """Numbers of steps that the training was to have before the wanted one."""


def load_checkpoint(
    folder: Path,
    experiment: Experiment,
    seed: int,
    stage: Stage,
    parts: Collection[str],
    images: TrainedOn | None = None,
) -> Saved:
    """Return the checkpoint in the folder of a training, on the CPU; an empty one where there is none yet.

    Args:
        folder: folder of the training.
        experiment: settings to go on with.
        seed: random seed to go on with.
        stage: stage of training.
        parts: names of the parts that the checkpoint must hold.
        images: images to go on with, where the training sees any.

    Raises:
        HBenchError: as in :func:`read_checkpoint`, or the checkpoint is damaged, or of another command, or the model
            beside it is not the one that the training was started with.
    """
    about = read_checkpoint(folder, experiment, seed, stage, images)
    if about is None:
        return Saved()
    if not re.fullmatch(r"checkpoint-[0-9]+-[0-9a-f]{8}\.pt", about.file):
        raise HBenchError(f"{folder / CHECKPOINT}: {_LOST}")
    file = folder / about.file
    if not file.is_file() or sha256(file) != about.sha256:
        raise HBenchError(f"{file}: {_LOST}")
    model = folder / "model.safetensors"
    if about.model_sha256 and not (model.is_file() and sha256(model) == about.model_sha256):
        raise HBenchError(
            f"{model}: is not the model that the training was started with: bring it back from a copy, or train again "
            "in another `out`"
        )
    state = load_pickled(file)
    if state.keys() != set(parts):
        raise HBenchError(f"{folder}: was started by another command of hbench: choose another `out`")
    settings = _settings(parse_experiment(about.experiment, str(folder / CHECKPOINT)), stage)
    before = about.steps_before
    if settings.steps != _settings(experiment, stage).steps:
        before = (*before, settings.steps)
    return Saved(about.step, about.pieces, state, settings, before)


def _settings(experiment: Experiment, stage: Stage) -> Pretrain | Discovery:
    return experiment.pretrain if stage == "pretrain" else experiment.discovery


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts and lists, each with its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _named_tensors(each, f"{name}.{key}" if name else str(key))


# Metrics ------------------------------------------------------------------------------------------------------------


class Metrics:
    """Rows of numbers, one a step: ``metrics.jsonl``, up to date at each checkpoint, and ``metrics.csv`` from it.

    Opened again at a checkpoint's step, it drops the rows that came after that checkpoint.

    Raises:
        HBenchError: a row from before the checkpoint is missing.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "metrics.jsonl"
        kept: list[str] = []
        if step:
            try:
                lines = self._path.read_text(encoding="utf-8").splitlines()[:step]  # the rest came after the checkpoint
                rows = [json.loads(line) for line in lines]
                whole = [row["step"] for row in rows] == list(range(step)) and all(
                    row.keys() == rows[0].keys() and all(map(math.isfinite, row.values())) for row in rows
                )
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                whole = False
            if not whole:
                raise HBenchError(f"{self._path}: rows are missing: bring it back, or train again in another `out`")
            kept = [line + "\n" for line in lines]
        write_text(self._path, "".join(kept))
        self._pending: list[str] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row, in memory until the next flush."""
        self._pending.append(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        """Bring both files up to date; call it before each checkpoint."""
        import pandas as pd

        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(self._pending)
                file.flush()
                os.fsync(file.fileno())  # the checkpoint that follows must not outlive its rows
        except OSError as error:
            raise HBenchError(f"{self._path}: cannot write ({error.strerror}): free some space") from error
        self._pending.clear()
        if self._path.stat().st_size:
            with replacing(self._path.with_suffix(".csv")) as temporary:
                pd.read_json(self._path, lines=True).to_csv(temporary, index=False)
