"""Discovery of directions: the training loop, with checkpoints, curves and a clean stop."""

import math
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from hbench.config import Experiment
from hbench.core.sampler import Sampler, visited
from hbench.errors import HBenchError
from hbench.models.adm import UNetModel
from hbench.reporting.charts import draw_curves
from hbench.runtime.distributed import agreed, barrier, check_batch_size, rank
from hbench.runtime.progress import progress
from hbench.store.files import sha256
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import provenance
from hbench.store.run import Run
from hbench.store.weights import load_weights, save_weights, tensors_sha256, write_experiment
from hbench.training.checkpoint import Metrics, load_checkpoint, save_checkpoint
from hbench.training.freeze import freeze
from hbench.training.loop import stop_requests
from hbench.training.step import Trained, initial, raw_pairs, train_step
from hbench.training.strategy import resolve_once


def train(
    experiment: Experiment,
    model: UNetModel,
    out: Path,
    *,
    seed: int = 0,
    device: torch.device,
    resume: bool = False,
    max_minutes: float | None = None,
    on_checkpoint: Callable[[int, Run], None] | None = None,
) -> bool:
    """Whether discovery is complete; False when it was stopped early, with a checkpoint to resume from.

    Writes to ``out``: the frozen model, shift block, reconstructor and discriminator as safetensors, metrics, curves,
    checkpoint and provenance; the folder needs nothing but itself. Everything random in a step follows from
    (seed, step), so a resumed run ends as if it had never stopped, on the CPU with the same bits. Several processes
    call it alike and share each batch; the first of them writes.

    Args:
        experiment: what to train and how.
        model: the diffusion model; a frozen copy is trained on.
        out: an existing folder, empty unless ``resume``.
        seed: of initial weights, x_T, k and s.
        device: where to train.
        resume: go on from the checkpoint in ``out``, from the start where there is none yet.
        max_minutes: stop cleanly after this time, but not before a first step.
        on_checkpoint: called with the number of steps done and the run as it stands, in eval mode.

    Raises:
        HBenchError: no timestep is shifted, the processes cannot share a batch, a loss is not finite (the last good
            checkpoint stays), or ``out`` cannot be written.
    """
    settings = experiment.discovery
    if (latest := visited(experiment)[0]) < settings.t_shift:
        raise HBenchError(
            f"discovery.t_shift = {settings.t_shift} shifts no timestep: need at most {latest}, or more M"
        )
    check_batch_size("discovery.batch_size", settings.batch_size)
    origin = provenance(experiment, device, seed)
    names = [field.name for field in fields(Trained)]
    state = load_checkpoint(out, experiment, seed, "discovery", names) if resume else None
    first, earlier = (state["step"], state["pieces"]) if state else (0, [])
    if first == settings.steps and (out / PROVENANCE).is_file():
        return True
    if rank() == 0:
        write_experiment(out, experiment)
    if rank() == 0 and not first:
        save_weights(out / "model.safetensors", model, experiment, "model", experiment.pretrain.weights)
    barrier()
    load_weights(out / "model.safetensors", model, "model")  # what is trained on is what the folder holds, bit by bit
    model = freeze(experiment, model, device)
    sampler = Sampler.of(experiment, model, device)
    trained = initial(experiment, sampler, seed)
    parts: dict[str, nn.Module | torch.optim.Optimizer] = vars(trained)
    if state:
        for name, part in parts.items():
            part.load_state_dict(state.pop(name))
    metrics = Metrics(out, first) if rank() == 0 else None

    def checkpoint(step: int) -> None:
        if not metrics:
            return
        metrics.flush()
        draw_curves(out)  # before the checkpoint, after the last of which nothing would draw them
        states = {name: part.state_dict() for name, part in parts.items()}
        save_checkpoint(out, experiment, seed, step, states, [*earlier, origin.piece()])

    with stop_requests(max_minutes) as stop_reason:
        running = resolve_once(experiment, sampler, seed, out)
        draw_raw = raw_pairs(running, sampler, seed)
        with progress(total=settings.steps, initial=first, desc="train", unit="step") as bar:
            for step in range(first, settings.steps):
                row = train_step(running, sampler, trained, draw_raw, seed, step)
                for name, value in row.items():
                    if not math.isfinite(value):
                        raise HBenchError(
                            f"step {step}: {name} is {value}: train again in another --out, with a lower discovery.lr "
                            "or in float32"
                        )

                done = step + 1
                if metrics:
                    metrics.log(step, row)
                bar.set_postfix({n: f"{row[n]:.2f}" for n in ("loss", "accuracy", "D_raw", "D_shifted")}, refresh=False)
                bar.update()
                if done % settings.checkpoint_every == 0 or done == settings.steps:
                    checkpoint(done)
                    if on_checkpoint and rank() == 0:
                        networks = (trained.shift_block, trained.reconstructor.eval(), trained.discriminator)
                        on_checkpoint(done, Run(experiment, device, model, *networks))
                if done < settings.steps and (reason := agreed(stop_reason())):
                    checkpoint(done)
                    print(
                        f"stopped by {reason} after step {done} of {settings.steps}: go on with --resume",
                        file=sys.stderr,
                    )
                    return False

    if rank():
        return True
    hashes = {"model": sha256(out / "model.safetensors")}
    for role in ("shift_block", "reconstructor", "discriminator"):
        module = parts[role]
        assert isinstance(module, nn.Module)
        save_weights(out / f"{role}.safetensors", module, experiment, role, settings.weights)
        hashes[role] = sha256(out / f"{role}.safetensors")
    strategy = {"strategy": running.discovery.strategy, "keep": running.discovery.keep}
    trained_on = tensors_sha256(out / "model.safetensors")
    found = origin.finished(weights_sha256=hashes, model_tensors_sha256=trained_on, **strategy)
    found.after(earlier).write(out / PROVENANCE)
    return True
