"""Training of the diffusion model: the eps-MSE of DDPM (Ho et al. 2020, Eq. 14) with an exponential moving average."""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hbench.config import Experiment, Pretrain
from hbench.core import seeds
from hbench.core.images import to_float
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.models import build_model
from hbench.models.adm import UNetModel
from hbench.reporting.charts import draw_curves
from hbench.runtime.device import autocast
from hbench.runtime.distributed import (
    agreed,
    all_reduce_mean,
    average_gradients,
    check_batch_size,
    rank,
    shard,
    world_size,
)
from hbench.runtime.progress import progress
from hbench.store.files import sha256
from hbench.store.pictures import save_grid
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import provenance
from hbench.store.weights import save_weights, tensors_sha256, write_experiment
from hbench.training.checkpoint import Metrics, load_checkpoint, save_checkpoint
from hbench.training.loop import stop_requests

GRID_SAMPLES, GRID_STEPS = 64, 20  # of the sample grids


def pretrain(
    experiment: Experiment,
    images: Tensor,
    out: Path,
    *,
    seed: int = 0,
    device: torch.device,
    resume: bool = False,
    max_minutes: float | None = None,
) -> bool:
    """Whether training is complete; False when it was stopped early, with a checkpoint to resume from.

    Writes to ``out``: ``model.safetensors`` (the average, when complete), sample grids, metrics, curves, checkpoint and
    provenance. Everything random in a step follows from (seed, step), so a resumed run ends as if it had never stopped,
    on the CPU with the same bits. Several processes call it alike and share each batch, and the first of them writes;
    only dropout depends on their number.

    Args:
        experiment: what to train and how.
        images: the training images, uint8 [N, C, H, W].
        out: an existing folder, empty unless ``resume``.
        seed: of initial weights, batches and noise.
        device: where to train.
        resume: go on from the checkpoint in ``out``, from the start where there is none yet.
        max_minutes: stop cleanly after this time.

    Raises:
        HBenchError: the processes cannot share a batch, the loss is not finite (the last good checkpoint stays), or
            ``out`` cannot be written.
    """
    settings = experiment.pretrain
    check_batch_size("pretrain.batch_size", settings.batch_size)
    origin = provenance(experiment, device, seed, n_images=len(images))
    torch.manual_seed(seeds.initial_weights(seed))
    model = build_model(experiment).to(device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    averaged_model = average.module
    assert isinstance(averaged_model, UNetModel)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    steps = min(GRID_STEPS, experiment.diffusion.T)
    sampler = Sampler.of(
        experiment, averaged_model.eval(), device, M=steps, spacing="trailing", precision=settings.precision
    )

    parts: dict[str, nn.Module | torch.optim.Optimizer] = {"model": model, "average": average, "optimizer": optimizer}

    first, earlier = 0, []
    if resume and (state := load_checkpoint(out, experiment, seed, "pretrain", parts.keys())):
        first, earlier = state["step"], state["pieces"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
        if first == settings.steps and (out / PROVENANCE).is_file():
            return True
    metrics = None
    if rank() == 0:
        write_experiment(out, experiment)
        metrics = Metrics(out, first)

    def checkpoint(step: int) -> None:
        if not metrics:
            return
        metrics.flush()
        draw_curves(out)  # before the checkpoint, after the last of which nothing would draw them
        states = {name: part.state_dict() for name, part in parts.items()}
        save_checkpoint(out, experiment, seed, step, states, [*earlier, origin.piece()])

    with (
        stop_requests(max_minutes) as stop_reason,
        progress(total=settings.steps, initial=first, desc="pretrain", unit="step") as bar,
    ):
        for step in range(first, settings.steps):
            torch.manual_seed(seeds.pretraining_step(seed, step))
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * lr_factor(settings, step)

            x_0 = to_float(images[torch.randint(len(images), (settings.batch_size,))])
            x_0, t, eps = (shard(v) for v in (x_0, *draw_noise(x_0, len(sampler.alpha_bar))))
            if world_size() > 1:
                torch.manual_seed(seeds.dropout(seed, step, rank()))
            loss = eps_mse(model, sampler.alpha_bar, x_0.to(device), t, eps.to(device), settings)
            optimizer.zero_grad()
            loss.backward()
            average_gradients(model.parameters())
            nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
            optimizer.step()
            average.update_parameters(model)

            value = all_reduce_mean({"loss": loss.item()})["loss"]  # the step's only reading from the device
            if not math.isfinite(value):
                raise HBenchError(
                    f"step {step}: the loss is {value}: train again in another --out, with a lower pretrain.lr "
                    "or in float32"
                )
            done = step + 1
            if metrics:
                metrics.log(step, {"loss": value})
            bar.set_postfix(loss=f"{value:.4f}", refresh=False)
            bar.update()
            if rank() == 0 and (done % settings.sample_every == 0 or done == settings.steps):
                draw_samples(sampler, out / "samples" / f"{done:06d}.png")
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                checkpoint(done)
            if done < settings.steps and (reason := agreed(stop_reason())):
                checkpoint(done)
                print(
                    f"stopped by {reason} after step {done} of {settings.steps}: go on with --resume", file=sys.stderr
                )
                return False

    if rank():
        return True
    weights = out / "model.safetensors"
    save_weights(weights, average.module, experiment, "model", settings.weights)
    found = origin.finished(weights_sha256=sha256(weights), model_tensors_sha256=tensors_sha256(weights))
    found.after(earlier).write(out / PROVENANCE)
    return True


def draw_noise(x_0: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Random timesteps [B] and noise eps for a whole batch x_0 [B, C, H, W], on the CPU.

    The timesteps are uniform over 0..T-1 but stratified over the batch, which lowers the variance of the loss.
    """
    batch = len(x_0)
    t = ((torch.arange(batch) + torch.rand(batch)) / batch * T).long().clamp(max=T - 1)
    return t, torch.randn(x_0.shape)


def eps_mse(model: UNetModel, alpha_bar: Tensor, x_0: Tensor, t: Tensor, eps: Tensor, settings: Pretrain) -> Tensor:
    """Mean squared error of the predicted eps at the timesteps t [B], which are on the CPU; scalar."""
    alpha_bar_t = alpha_bar[t].float().to(x_0.device)[:, None, None, None]
    x_t = alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps
    with autocast(x_0.device, settings.precision):
        output = model(x_t, t.to(x_0.device))
    return nn.functional.mse_loss(output[:, : x_0.shape[1]].float(), eps)


def lr_factor(settings: Pretrain, step: int) -> float:
    """The learning rate at a step, as a share of ``lr``: linear warm-up, then constant or falling linearly to 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if not settings.decay:
        return 1.0
    return (settings.steps - step) / max(1, settings.steps - settings.warmup_steps)


def draw_samples(sampler: Sampler, path: Path) -> None:
    """Write a grid of samples, always from the same x_T."""
    images = sampler.generate(sampler.noise(GRID_SAMPLES, seed=0))
    save_grid(images.float(), path, columns=8, scale=max(1, 64 // sampler.image_shape[-1]))
