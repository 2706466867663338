"""Discovery of directions in the h-space of a frozen diffusion model."""

import copy
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hbench.config import Experiment
from hbench.core.approximations import check_reached
from hbench.core.backbone import Backbone, DiffusionModel
from hbench.core.domain import h_deviation, log_h_scale, log_look
from hbench.core.sampler import Sampler, visited
from hbench.errors import HBenchError, check_type
from hbench.models.adm import UNetModel, unet_config
from hbench.models.shift import AnyShift, FixedDirections
from hbench.models.unet2d import SplitUNet2D
from hbench.runtime.distributed import rank
from hbench.store.files import sha256
from hbench.store.metrics import FILE as METRICS
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.run import Run
from hbench.store.run_files import WEIGHTS
from hbench.store.weights import load_weights, save_weights, tensors_sha256
from hbench.training.estimate import announce, discovery_seconds
from hbench.training.freeze import freeze
from hbench.training.loop import Start, begin, restore, run_steps, started, stop_requests
from hbench.training.step import Trained, initial, lr_factor, raw_pairs, train_step
from hbench.training.strategy import resolve, resolve_once

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
    shift_block: AnyShift | None = None,
    log_to: str | None = None,
) -> bool:
    """Discover directions and write them to ``out``. Return False if stopped early, with a checkpoint to resume from.

    With ``shift_block`` the directions are there already, and stay as they are: a fresh reconstructor and discriminator
    are trained for them. Cost of a step then: a shifted chain a pair, without gradients.

    The folder gets the frozen model, shift block, reconstructor and discriminator as safetensors, metrics, checkpoint
    and provenance, and needs nothing but itself. A resumed training ends as if it had never stopped, on the CPU with
    the same bits, even with more ``discovery.steps`` than before, unless they had begun to decay. Several processes
    call this alike and share each batch; the main one writes. A line at the start says what raw samples look like, with
    a warning where they are noise.

    Args:
        experiment: settings.
        model: diffusion model, of which a frozen copy is used.
        out: output folder, made where it is missing.
        seed: random seed of initial weights, x_T, k and s.
        device: device to train on: "auto", "cpu", "cuda", "cuda:N", "mps" or a torch device.
        overwrite: accept a folder that already holds something.
        resume: go on from the checkpoint in ``out``, from the start where there is none yet.
        max_minutes: stop cleanly after this time, but not before a first step.
        draw: function that draws the curves of a folder, called before each checkpoint.
        on_checkpoint: function of the number of steps done and the run so far, in eval mode.
        shift_block: directions that are kept, as those of a run; ``discovery.K`` must be theirs.
        log_to: program that gets the metrics and settings: "tensorboard", "wandb", "trackio" or "mlflow"; None for
            none. See docs/guide.md.

    Raises:
        TypeError: not an experiment or not a model.
        ValueError: a seed or a time out of range, or an unknown program.
        HBenchError: the model has other settings, no timestep is shifted, the processes cannot share a batch, a loss is
            not finite (the last good checkpoint stays), ``out`` holds something else or cannot be written, or the
            program to log to is not installed or refuses.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_type(Backbone, "as load_model returns it", model=model)
    check_shift_interval(experiment)
    check_settings(experiment, model)
    if shift_block is not None and shift_block.K != experiment.discovery.K:
        raise ValueError(f"shift_block has K = {shift_block.K}, the experiment {experiment.discovery.K}")
    names = [field.name for field in fields(Trained)]
    with (
        started(
            experiment,
            "discovery",
            out,
            names,
            seed,
            device,
            lr_factor=lr_factor,
            overwrite=overwrite,
            resume=resume,
            log_to=log_to,
        ) as start,
        stop_requests(max_minutes) as stop_reason,
    ):
        kept = kept_model(start, model)
        check_directions(start, shift_block)
        if start.is_complete:
            return True

        # Set up: the frozen model, the networks to train, and the strategy of back-propagation.
        frozen = freeze(experiment, kept, start.device)
        sampler = Sampler.of(experiment, frozen, start.device)
        if rank() == 0 and not start.saved.step:
            x_T = sampler.noise(min(LOOKED_AT, experiment.discovery.batch_size))
            log_look(sampler.generate(x_T))
            log_h_scale(h_deviation(sampler, x_T), experiment.discovery.h_scale)
        if shift_block is not None:
            shift_block = copy.deepcopy(shift_block).to(start.device).requires_grad_(False)
        trained = initial(experiment, sampler, seed, shift_block)
        restore(start, vars(trained))
        start = begin(start, kept)
        # nothing in the chain is trained then, so that no graph of it is ever made
        running = (
            resolve_once(experiment, sampler, seed, start.out) if shift_block is None else _forward_only(experiment)
        )

        # Train.
        announce(
            running.discovery,
            start.saved.step,
            "pairs",
            partial(discovery_seconds, running, sampler, trained, seed, start.saved.step, draw),
        )
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


def _forward_only(experiment: Experiment) -> Experiment:
    """Return the experiment for a training that passes no gradient through the chain."""
    changed = {"strategy": "vanilla", "keep": 0, "nodes": "device", "memory_budget": None}
    changed |= {"gradient": "chain", "last_steps": None}
    changed |= {"fidelity": "none", "lambda_odd": 0.0, "keep_size": False}  # they reach the directions alone
    return experiment.model_copy(update={"discovery": experiment.discovery.model_copy(update=changed)})


def check_settings(experiment: Experiment, model: DiffusionModel) -> None:
    """Raise an HBenchError where a UNet was built with other settings than those that its run would keep."""
    if isinstance(model, SplitUNet2D):
        wanted = (experiment.model.unet2d, experiment.diffusion.prediction)
        if (model.settings, model.prediction) != wanted:
            raise HBenchError("the model has other settings than [model.unet2d] of the experiment: give both the same")
    elif isinstance(model, UNetModel):
        configs = (model.config, unet_config(experiment))
        for each in fields(model.config):
            found, value = (getattr(config, each.name) for config in configs)
            if found != value:
                raise HBenchError(f"the model has {each.name} = {found}, the experiment {value}: give both the same")


@torch.random.fork_rng(devices=[])
def estimated_seconds(
    experiment: Experiment,
    model: DiffusionModel,
    *,
    seed: int = 0,
    device: torch.device,
    draw: Callable[[Path], None] | None = None,
) -> float:
    """Return the seconds that :func:`train` takes with these arguments. Cost: a few steps of throw-away networks."""
    sampler = Sampler.of(experiment, freeze(experiment, model, device), device)
    running = resolve(experiment, sampler, seed)
    return discovery_seconds(running, sampler, initial(running, sampler, seed), seed, draw=draw)


def check_shift_interval(experiment: Experiment, M: int | None = None) -> None:
    """Raise an HBenchError where no visited timestep of M reaches ``discovery.t_shift``; M is the experiment's own.

    With its own M, at least one of these must get a gradient.
    """
    descending = visited(experiment, M)
    t_shift, latest = experiment.discovery.t_shift, descending[0]
    if latest < t_shift:
        steps = "" if M is None else f" of M = {M}"
        raise HBenchError(f"discovery.t_shift = {t_shift} shifts no timestep{steps}: need at most {latest}, or more M")
    if M is None:  # others only generate
        check_reached(experiment.discovery, descending)


def check_directions(start: Start, shift_block: AnyShift | None) -> None:
    """Raise an HBenchError where a training that was begun has other directions that stay, or has them alone."""
    before: dict[str, Tensor] = start.saved.state.get("shift_block", {})
    same = "delta_h" not in before  # which fixed directions have
    if shift_block is not None and start.saved.step:
        now = {name: value.cpu() for name, value in shift_block.state_dict().items()}
        same = now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)
    if not same:
        raise HBenchError(f"{start.out}: was started with other directions: give those, or choose another `out`")


def kept_model(start: Start, model: DiffusionModel) -> DiffusionModel:
    """Return a copy of the model as the folder holds it, bit by bit.

    Raises:
        HBenchError: the training was started with another model.
    """
    kept = copy.deepcopy(model)
    stored_as = getattr(torch, start.experiment.pretrain.weights)
    kept.load_state_dict(
        {name: value.to(stored_as) if value.is_floating_point() else value for name, value in kept.state_dict().items()}
    )
    if start.saved.step:
        before = copy.deepcopy(model)
        load_weights(start.out / f"model{WEIGHTS}", before, "model")
        now = kept.state_dict()
        if not all(torch.equal(value, now[name]) for name, value in before.state_dict().items()):
            raise HBenchError(f"{start.out}: was started with another model than the given one: leave `model` out")
    return kept


def write_run(start: Start, trained: Trained, **strategy: str | int) -> None:
    """Write the trained networks beside the model, and the provenance last."""
    hashes = {"model": sha256(start.out / "model.safetensors")}
    for role in ("shift_block", "reconstructor", "discriminator"):
        path = start.out / f"{role}.safetensors"
        module = getattr(trained, role)
        # those of a file come back bit by bit
        dtype = "float32" if isinstance(module, FixedDirections) else start.experiment.discovery.weights
        save_weights(path, module, start.experiment, role, dtype)
        hashes[role] = sha256(path)
    found = start.finished(
        weights_sha256=hashes,
        model_tensors_sha256=tensors_sha256(start.out / "model.safetensors"),
        metrics_sha256=sha256(start.out / METRICS),
        **strategy,
    )
    found.after(start.saved.pieces).write(start.out / PROVENANCE)
