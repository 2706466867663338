"""Discovery of directions in the h-space of a frozen diffusion model."""

import copy
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.core.domain import log_look
from hbench.core.sampler import Sampler, visited
from hbench.errors import HBenchError
from hbench.runtime.distributed import barrier, rank
from hbench.store.files import sha256
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.run import Run
from hbench.store.weights import load_weights, save_weights, tensors_sha256
from hbench.training.freeze import freeze
from hbench.training.loop import Start, restore, run_steps, started, stop_requests
from hbench.training.step import Trained, initial, raw_pairs, train_step
from hbench.training.strategy import resolve_once

LOOKED_AT = 64
"""Raw samples at most that are looked at before a training, since one on noise finds nothing."""


def train(
    experiment: Experiment,
    model: DiffusionModel,
    out: str | Path,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    resume: bool = False,
    max_minutes: float | None = None,
    draw: Callable[[Path], None] | None = None,
    on_checkpoint: Callable[[int, Run], None] | None = None,
) -> bool:
    """Discover directions and write them to ``out``. Return False if stopped early, with a checkpoint to resume from.

    The folder gets the frozen model, shift block, reconstructor and discriminator as safetensors, metrics, checkpoint
    and provenance, and needs nothing but itself. A resumed training ends as if it had never stopped, on the CPU with
    the same bits. Several processes call this alike and share each batch; the main one writes. A line at the start says
    what raw samples look like, with a warning where they are noise.

    Args:
        experiment: settings.
        model: diffusion model, of which a frozen copy is used.
        out: output folder, made where it is missing.
        seed: random seed of initial weights, x_T, k and s.
        device: device to train on: "auto", "cpu", "cuda", "cuda:N" or a torch device.
        overwrite: accept a folder that already holds something.
        resume: go on from the checkpoint in ``out``, from the start where there is none yet.
        max_minutes: stop cleanly after this time, but not before a first step.
        draw: function that draws the curves of a folder, called before each checkpoint.
        on_checkpoint: function of the number of steps done and the run so far, in eval mode.

    Raises:
        HBenchError: no timestep is shifted, the processes cannot share a batch, a loss is not finite (the last good
            checkpoint stays), or ``out`` holds something else or cannot be written.
    """
    check_shift_interval(experiment)
    names = [field.name for field in fields(Trained)]
    with (
        started(experiment, "discovery", out, names, seed, device, overwrite=overwrite, resume=resume) as start,
        stop_requests(max_minutes) as stop_reason,
    ):
        if start.is_complete:
            return True

        # Set up: the frozen model, the networks to train, and the strategy of back-propagation.
        frozen = freeze(experiment, kept_model(start, model), start.device)
        sampler = Sampler.of(experiment, frozen, start.device)
        if rank() == 0 and not start.saved.step:
            log_look(sampler.generate(sampler.noise(min(LOOKED_AT, experiment.discovery.batch_size))))
        trained = initial(experiment, sampler, seed)
        restore(start, vars(trained))
        running = resolve_once(experiment, sampler, seed, start.out)

        # Train.
        take_step = partial(train_step, running, sampler, trained, raw_pairs(running, sampler, seed), seed)

        def after_checkpoint(done: int) -> None:
            if on_checkpoint:
                networks = (trained.shift_block, trained.reconstructor.eval(), trained.discriminator)
                on_checkpoint(done, Run(experiment, start.device, frozen, *networks))

        if not run_steps(start, vars(trained), take_step, stop_reason, draw=draw, after_checkpoint=after_checkpoint):
            return False

        # Finish: the weights, then the provenance, which says that they are complete.
        if rank() == 0:
            write_run(start, trained, strategy=running.discovery.strategy, keep=running.discovery.keep)
    return True


def check_shift_interval(experiment: Experiment) -> None:
    """Raise an HBenchError where no visited timestep reaches ``discovery.t_shift``."""
    t_shift, latest = experiment.discovery.t_shift, visited(experiment)[0]
    if latest < t_shift:
        raise HBenchError(f"discovery.t_shift = {t_shift} shifts no timestep: need at most {latest}, or more M")


def kept_model(start: Start, model: DiffusionModel) -> DiffusionModel:
    """Return a copy of the model as the folder holds it, bit by bit, after keeping it there in a new training."""
    path = start.out / "model.safetensors"
    if rank() == 0 and not start.saved.step:
        save_weights(path, model, start.experiment, "model", start.experiment.pretrain.weights)
    barrier()
    kept = copy.deepcopy(model)
    load_weights(path, kept, "model")
    return kept


def write_run(start: Start, trained: Trained, **strategy: str | int) -> None:
    """Write the trained networks beside the model, and the provenance last."""
    hashes = {"model": sha256(start.out / "model.safetensors")}
    for role in ("shift_block", "reconstructor", "discriminator"):
        path = start.out / f"{role}.safetensors"
        save_weights(path, getattr(trained, role), start.experiment, role, start.experiment.discovery.weights)
        hashes[role] = sha256(path)
    trained_on = tensors_sha256(start.out / "model.safetensors")
    found = start.origin.finished(weights_sha256=hashes, model_tensors_sha256=trained_on, **strategy)
    found.after(start.saved.pieces).write(start.out / PROVENANCE)
