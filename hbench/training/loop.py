"""The loop that both trainings share: it goes on from a checkpoint, and may be stopped, or killed, at any step.

Everything random in a step follows from (seed, step), so a resumed training ends as if it had never stopped, on the CPU
with the same bits. Metrics and curves are written before the checkpoint that vouches for them, and the provenance last
of all: with it, the training is complete.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hbench.config import Discovery, Experiment, Pretrain
from hbench.core.backbone import DiffusionModel
from hbench.errors import HBenchError, check_seed, check_type
from hbench.experiments import warn_of_schedule
from hbench.runtime import distributed
from hbench.runtime.device import pick_device
from hbench.runtime.distributed import agreed, check_batch_size, launched, rank
from hbench.runtime.progress import progress
from hbench.runtime.threads import counted
from hbench.store.files import sha256
from hbench.store.folders import CHECKPOINT, claimed_folder
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance, checked_sha256, provenance
from hbench.store.run_files import ROLES, WEIGHTS
from hbench.store.weights import save_weights, write_experiment
from hbench.training.checkpoint import Metrics, Saved, Stage, TrainedOn, load_checkpoint, save_checkpoint
from hbench.training.estimate import Parts
from hbench.training.tracking import check_log_to, read_log, tracking

NAMES = {"pretrain": "pretrain", "discovery": "train"}
"""Names of the stages beside the progress bar."""
IN_BAR = ("loss", "accuracy", "D_raw", "D_shifted")
"""Metrics shown beside the progress bar, where the stage has them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Start of a training, or of its next part after a checkpoint."""

    experiment: Experiment
    stage: Stage
    settings: Pretrain | Discovery
    """Settings of the stage."""
    seed: int
    device: torch.device
    out: Path
    origin: Provenance
    """Provenance as known at the start of this process."""
    saved: Saved
    """Last checkpoint, to go on from."""
    is_complete: bool
    """True if nothing is left to do, the provenance included."""
    images: TrainedOn | None = None
    """Images of the training; None for a discovery, which sees none."""
    log_to: str | None = None
    """Program that the training is logged to, see :mod:`hbench.training.tracking`; None for none."""
    metrics: Metrics | None = None
    """Rows of the steps; None in all processes but the main one, and before :func:`begin`."""
    model_sha256: str | None = None
    """SHA-256 of the file of the frozen model; None in a pretraining, and where ``metrics`` are None."""

    def finished(self, **details: Any) -> Provenance:
        """Return the provenance of the complete training."""
        before = {"steps_before": list(self.saved.steps_before)} if self.saved.steps_before else {}
        return self.origin.finished(**before, **details)


@contextmanager
def started(
    experiment: Experiment,
    stage: Stage,
    out: str | Path,
    names: Collection[str],
    seed: int,
    device: str | torch.device,
    *,
    lr_factor: Callable[[Any, int], float],
    overwrite: bool,
    resume: bool,
    images: TrainedOn | None = None,
    log_to: str | None = None,
    **details: Any,
) -> Iterator[Start]:
    """Claim the folder of a training while the block runs, and yield its start. Nothing is written yet.

    PyTorch's global random state is that of before again when the block ends, though each step seeds it.

    Args:
        experiment: settings of the training.
        stage: stage of training.
        out: folder of the training, made where it is missing.
        names: names of the parts that a checkpoint must hold.
        seed: random seed.
        device: device to train on.
        lr_factor: function of the stage's settings and a step that returns the share of the learning rate.
        overwrite: accept a folder that already holds something.
        resume: go on from the folder's checkpoint, or from the start where there is none yet.
        images: images of the training, where it sees any.
        log_to: program to log to; None for none.
        details: details of the provenance.

    Raises:
        TypeError: not an experiment.
        ValueError: a seed out of range, or an unknown program.
        HBenchError: the program to log to is not installed, the processes cannot share a batch or read different
            images, the folder holds something else or is in use, its checkpoint or log is damaged, or the checkpoint
            of another training or of other images, or the weights of a complete training are not those that it wrote.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_seed(seed)
    check_log_to(log_to)
    if rank() == 0:
        warn_of_schedule(experiment)
    settings: Pretrain | Discovery = experiment.pretrain if stage == "pretrain" else experiment.discovery
    in_pairs = stage == "discovery" and bool(experiment.discovery.lambda_odd)
    check_batch_size(f"{stage}.batch_size", settings.batch_size, together=2 if in_pairs else 1)
    out, device = Path(out), pick_device(device)
    distributed.start(device)
    if images and len(set(distributed.all_gather([images.sha256]))) > 1:
        raise HBenchError("the processes read different images: give all of them the same folder as `data_root`")
    with (
        claimed_folder(out, overwrite=overwrite, resume=resume, of_training=True) if rank() == 0 else nullcontext(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        origin = provenance(experiment, device, seed, **details)
        saved = load_checkpoint(out, experiment, seed, stage, names, images) if resume else Saved()
        if log_to and rank() == 0:  # a damaged log is refused while the run is still whole
            read_log(out, log_to, saved.step)
        if device.type == "cpu" and saved.pieces and (before := saved.pieces[-1].threads) != origin.threads:
            log.warning(
                "%s: began with %s, goes on with %d: it rounds differently", out, counted(before), origin.threads
            )
        weights = [out / f"{role}{WEIGHTS}" for role in (ROLES if stage == "discovery" else ("model",))]
        is_complete = saved.step == settings.steps and all(file.is_file() for file in (out / PROVENANCE, *weights))
        if is_complete and rank() == 0:
            for file in weights:
                checked_sha256(file)
        check_schedule(saved, settings, lr_factor)
        yield Start(experiment, stage, settings, seed, device, out, origin, saved, is_complete, images, log_to)


def begin(start: Start, model: DiffusionModel | None = None) -> Start:
    """Write the first files of a training, or of its next part, and return its start with the rows of the steps.

    Call it when all networks are built, so that settings which cannot be built leave nothing behind. The experiment is
    the first file in a new folder: it tells a later resume that a training began here.

    Args:
        start: start of the training.
        model: frozen model of a discovery, which the folder of a new one keeps; None in a pretraining.
    """
    if rank():
        return start
    kept = start.out / f"model{WEIGHTS}"
    if not start.saved.step:  # a later resume would take an overwritten training for this one
        (start.out / CHECKPOINT).unlink(missing_ok=True)
    (start.out / PROVENANCE).unlink(missing_ok=True)  # it is complete no more, if it is to get more steps
    write_experiment(start.out, start.experiment)
    if model is not None and not start.saved.step:
        save_weights(kept, model, start.experiment, "model", start.experiment.pretrain.weights)
    found = sha256(kept) if model is not None else None
    return replace(start, metrics=Metrics(start.out, start.saved.step), model_sha256=found)


def check_schedule(saved: Saved, settings: Pretrain | Discovery, lr_factor: Callable[[Any, int], float]) -> None:
    """Log a notice where a training gets another number of steps, and whether it ends as if it had had them at once."""
    old = saved.settings
    if old is None or old.steps == settings.steps:
        return
    schedules = [settings.model_copy(update={"steps": steps}) for steps in (*saved.steps_before, settings.steps)]
    if len({tuple(lr_factor(each, step) for step in range(saved.step)) for each in schedules}) == 1:
        result = "it ends as if it had had them from the start"
    else:
        last, following = lr_factor(old, saved.step - 1), lr_factor(settings, min(saved.step, settings.steps - 1))
        result = (
            f"its learning rate, {last:.1%} by the schedule of {old.steps}, is {following:.1%} in the next step, so it "
            f"differs from one training of {settings.steps}; without decay it would not"
        )
    log.warning("goes on after step %d to %d steps instead of %d: %s", saved.step, settings.steps, old.steps, result)


def restore(start: Start, parts: Parts) -> None:
    """Load the state of the checkpoint into each part, and let go of it."""
    for name in tuple(start.saved.state):
        parts[name].load_state_dict(start.saved.state.pop(name))


def run_steps(
    start: Start,
    parts: Parts,
    take_step: Callable[[int], Mapping[str, float]],
    stop_reason: Callable[[], str | None],
    *,
    draw: Callable[[Path], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    after_checkpoint: Callable[[int], None] | None = None,
) -> bool:
    """Take the steps that are left, with checkpoints on the way. Return False if stopped early, with a last checkpoint.

    Args:
        start: start of the training.
        parts: networks and optimisers that the steps change.
        take_step: function that takes step i and returns its metrics; every process calls it.
        stop_reason: function that returns a reason to stop now, or None; a reason of one process stops all.
        draw: function that draws the curves of a folder, called before each checkpoint.
        after_step: function of the number of steps done, called by the main process before the checkpoint.
        after_checkpoint: function of the number of steps done, called by the main process after a regular checkpoint.

    Raises:
        HBenchError: a metric is not finite (the last good checkpoint stays), or folder or log cannot be written.
    """
    steps, every = start.settings.steps, start.settings.checkpoint_every

    def checkpoint(done: int) -> None:
        if start.metrics is None:
            return
        start.metrics.flush()
        if draw:
            draw(start.out)
        states = {name: part.state_dict() for name, part in parts.items()}
        pieces = [*start.saved.pieces, start.origin.piece()]
        save_checkpoint(
            start.out,
            start.experiment,
            start.seed,
            done,
            states,
            pieces,
            start.images,
            steps_before=start.saved.steps_before,
            model_sha256=start.model_sha256,
        )

    log_to = None if rank() else start.log_to
    with (
        tracking(start.out, start.experiment, start.seed, start.saved.step, log_to, start.device) as fill_log,
        progress(total=steps, initial=start.saved.step, desc=NAMES[start.stage], unit="step") as bar,
    ):
        for step in range(start.saved.step, steps):
            row = take_step(step)
            check_metrics(row, step, start.stage)
            done = step + 1

            # Maintenance: metrics, pictures, checkpoint.
            bar.set_postfix({name: f"{row[name]:.3g}" for name in IN_BAR if name in row}, refresh=False)
            bar.update()
            if start.metrics:
                start.metrics.log(step, row)
            if after_step and rank() == 0:
                after_step(done)
            is_due = done % every == 0 or done == steps
            if is_due:
                checkpoint(done)
                fill_log(done)
                if after_checkpoint and rank() == 0:
                    after_checkpoint(done)

            # Stop together, for the first reason that a process has.
            if done < steps and (reason := agreed(stop_reason())):
                if not is_due:
                    checkpoint(done)
                    fill_log(done)
                log.warning("stopped by %s after step %d of %d: go on with `resume=True`", reason, done, steps)
                return False
    return True


def check_metrics(row: Mapping[str, float], step: int, stage: Stage) -> None:
    """Raise an HBenchError where a metric of a step is not finite."""
    for name, value in row.items():
        if not math.isfinite(value):
            raise HBenchError(
                f"step {step}: the {name} is {value}: train again in another `out`, with a lower {stage}.lr "
                "or in float32"
            )


def check_minutes(max_minutes: float | None) -> None:
    """Raise a ValueError where ``max_minutes`` is not positive and finite; None is no limit."""
    if max_minutes is not None and not 0 < max_minutes < math.inf:
        raise ValueError(f"max_minutes must be positive and finite, got {max_minutes}")


@contextmanager
def stop_requests(max_minutes: float | None) -> Iterator[Callable[[], str | None]]:
    """Yield a function that returns a reason to stop after the current step, or None: SIGTERM, SIGINT, or the time.

    A second signal acts as it would without hbench. Under torchrun it changes nothing, since torchrun passes on a
    signal that the terminal or Slurm sent already. Only Python's main thread can listen for signals.

    Raises:
        ValueError: the time is not positive and finite.
    """
    check_minutes(max_minutes)
    reasons: list[str] = []
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    def on_signal(number: int, frame: FrameType | None) -> None:
        reasons.append(signal.Signals(number).name)
        if not launched():
            signal.signal(number, previous[number])

    def reason() -> str | None:
        if deadline is not None and time.monotonic() >= deadline and not reasons:
            reasons.append(f"`max_minutes={max_minutes:g}`")
        return reasons[0] if reasons else None

    heard = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    # None is a handler that Python did not set, and cannot set again
    previous: dict[int, Any] = {n: handler for n in heard if (handler := signal.getsignal(n)) is not None}
    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield reason
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
