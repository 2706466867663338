"""Training of the diffusion model: the mean squared error of what it predicts, and an exponential moving average.

For a model that predicts eps, the loss is the simple one of DDPM (Ho et al. 2020, Eq. 14).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hbench.config import Experiment, Pretrain
from hbench.core import seeds
from hbench.core.backbone import DiffusionModel
from hbench.core.diffusion import training_target
from hbench.core.domain import log_look
from hbench.core.images import to_float
from hbench.core.sampler import Sampler
from hbench.errors import check_type
from hbench.models import build_model
from hbench.runtime.capture import Graphs, graphs_of
from hbench.runtime.device import autocast, wall_seconds
from hbench.runtime.distributed import all_reduce_mean, average_gradients, rank, shard, world_size
from hbench.store.account import Account, content_sha256
from hbench.store.files import sha256
from hbench.store.metrics import FILE as METRICS
from hbench.store.pictures import save_grid
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.registry import check_data
from hbench.store.weights import save_weights, tensors_sha256
from hbench.training.checkpoint import TrainedOn
from hbench.training.estimate import announce, training_seconds
from hbench.training.loop import begin, restore, run_steps, started, stop_requests

GRID_SAMPLES, GRID_STEPS = 64, 20
"""Images of a sample grid, and the generation steps of each."""


@dataclass(frozen=True)
class Pretrained:
    """Everything that pretraining changes, and so everything that a checkpoint holds."""

    model: DiffusionModel
    average: AveragedModel
    """Exponential moving average of the model's weights."""
    optimizer: torch.optim.Optimizer

    @property
    def averaged_model(self) -> DiffusionModel:
        """Model with the average weights."""
        return cast(DiffusionModel, self.average.module)


def pretrain(
    experiment: Experiment,
    images: Tensor,
    out: str | Path,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    overwrite: bool = False,
    resume: bool = False,
    max_minutes: float | None = None,
    draw: Callable[[Path], None] | None = None,
    account: Account | None = None,
    log_to: str | None = None,
) -> bool:
    """Train a diffusion model and write it to ``out``. Return False if stopped early, with a checkpoint to resume from.

    The folder gets the average as ``model.safetensors``, sample grids, metrics, checkpoint and provenance. A resumed
    training ends as if it had never stopped, on the CPU with the same bits, even with more ``pretrain.steps`` than
    before, unless their learning rate had begun to decay. A line at the end says what the samples look like, with a
    warning where they are noise. Several processes call this alike and share each batch, and the main one writes; only
    dropout depends on their number.

    Args:
        experiment: settings.
        images: training images, uint8 [N, C, H, W].
        out: output folder, made where it is missing.
        seed: random seed of initial weights, batches and noise.
        device: device to train on: "auto", "cpu", "cuda", "cuda:N", "mps" or a torch device.
        overwrite: accept a folder that already holds something.
        resume: go on from the checkpoint in ``out``, from the start where there is none yet; the images must be the
            same.
        max_minutes: stop cleanly after this time, but not before a first step.
        draw: function that draws the curves of a folder, called before each checkpoint.
        account: how the images were read, for the provenance.
        log_to: program that gets the metrics, settings and sample grids: "tensorboard", "wandb", "trackio" or "mlflow";
            None for none. See docs/guide.md.

    Raises:
        TypeError: not an experiment, or no tensor of images.
        ValueError: images of another form, a seed or a time out of range, or an unknown program.
        HBenchError: the processes cannot share a batch, the loss is not finite (the last good checkpoint stays),
            ``out`` holds something else or cannot be written, or was started with other images, or the program to log
            to is not installed or refuses.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_type(Tensor, "as load_images returns it", images=images)
    check_data(experiment.data)
    shape = experiment.data.image_shape
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images) or tuple(images.shape[1:]) != shape:
        needed, got = ", ".join(map(str, shape)), f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images must be uint8 [N, {needed}] with N of at least 1, got {got}")
    settings = experiment.pretrain
    names = [field.name for field in fields(Pretrained)]
    trained_on = TrainedOn(n=len(images), sha256=content_sha256(images))
    read = account.to_json() if account else {"used": trained_on.n, "sha256": trained_on.sha256}
    options = {"overwrite": overwrite, "resume": resume}
    with (
        started(
            experiment,
            "pretrain",
            out,
            names,
            seed,
            device,
            lr_factor=lr_factor,
            images=trained_on,
            n_images=trained_on.n,
            data=read,
            log_to=log_to,
            **options,
        ) as start,
        stop_requests(max_minutes) as stop_reason,
    ):
        if start.is_complete:
            return True

        # Set up: the model, its moving average, and the sampler of the average for the grids.
        trained = initial(experiment, seed, start.device)
        restore(start, vars(trained))
        start = begin(start)
        sampler = grid_sampler(experiment, trained, start.device)

        # Train.
        take_step = partial(
            train_step,
            settings,
            trained,
            sampler,
            images,
            seed,
            flip=experiment.data.flip,
            graphs=recordings(settings, trained.model, start.device),
        )

        announce(
            settings,
            start.saved.step,
            "images",
            lambda: training_seconds(
                settings,
                start.saved.step,
                vars(trained),
                take_step,
                start.device,
                draw=draw,
                grid=grid_seconds(experiment, sampler),
            ),
        )

        def after_step(done: int) -> None:
            if done % settings.sample_every == 0 or done == settings.steps:
                samples = draw_samples(sampler, start.out / "samples" / f"{done:06d}.png")
                if done == settings.steps:
                    log_look(samples)

        if not run_steps(start, vars(trained), take_step, stop_reason, draw=draw, after_step=after_step):
            return False

        # Finish: the average, then the provenance, which says that it is complete.
        if rank() == 0:
            weights = start.out / "model.safetensors"
            save_weights(weights, trained.averaged_model, experiment, "model", settings.weights)
            hashes = {
                "weights_sha256": sha256(weights),
                "model_tensors_sha256": tensors_sha256(weights),
                "metrics_sha256": sha256(start.out / METRICS),
            }
            start.finished(**hashes).after(start.saved.pieces).write(start.out / PROVENANCE)
    return True


def initial(experiment: Experiment, seed: int, device: torch.device) -> Pretrained:
    """Return initial weights, their average, and the optimiser."""
    settings = experiment.pretrain
    torch.manual_seed(seeds.initial_weights(seed))
    model = build_model(experiment).to(device).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    return Pretrained(model, average, torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True))


def grid_sampler(experiment: Experiment, trained: Pretrained, device: torch.device) -> Sampler:
    """Return the sampler of the average, for sample grids."""
    return Sampler.of(
        experiment,
        trained.averaged_model.eval(),
        device,
        M=min(GRID_STEPS, experiment.diffusion.T),
        spacing="trailing",
        precision=experiment.pretrain.precision,
    )


def recordings(settings: Pretrain, model: DiffusionModel, device: torch.device) -> Graphs | None:
    """Return a place for the recording of a step; None where steps run as they are.

    With dropout they do: a recording would draw other masks than the step that it replaces.
    """
    drops = any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
    return None if settings.capture == "never" or drops else graphs_of(device)


def train_step(
    settings: Pretrain,
    trained: Pretrained,
    sampler: Sampler,
    images: Tensor,
    seed: int,
    step: int,
    *,
    flip: bool = False,
    graphs: Graphs | None = None,
) -> dict[str, float]:
    """Take step ``step`` of pretraining and return its loss; everything random in it follows from (seed, step).

    Each process takes it on its slice of the batch; the loss is that of the whole batch. What ``graphs`` has recorded
    is replayed: the pass forward and backward, not what the processes say to each other, nor the optimiser.
    """
    model, optimizer = trained.model, trained.optimizer
    alpha_bar, device = sampler.alpha_bar, sampler.device
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * lr_factor(settings, step)

    # Draw the whole batch, and take this process's slice of it.
    torch.manual_seed(seeds.pretraining_step(seed, step))
    x_0 = to_float(images[torch.randint(len(images), (settings.batch_size,))])
    if flip:
        x_0 = flipped(x_0, seed, step)
    x_0, t, eps = (shard(v) for v in (x_0, *draw_noise(x_0, len(alpha_bar))))

    # Compute gradients.
    if world_size() > 1:
        torch.manual_seed(seeds.dropout(seed, step, rank()))  # other masks on each process
    work = partial(_loss_and_gradients, model, settings)
    inputs = [v.to(device) for v in (x_0, eps, t, alpha_bar[t].float()[:, None, None, None])]
    loss, *gradients = graphs.run("pretraining", work, inputs) if graphs else work(*inputs)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    average_gradients(model.parameters())

    # Update weights.
    nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
    optimizer.step()

    # Update the moving average.
    trained.average.update_parameters(model)

    return all_reduce_mean({"loss": cast(Tensor, loss).item()})  # the step's only reading from the device


def flipped(x_0: Tensor, seed: int, step: int) -> Tensor:
    """Return a whole batch x_0 [B, C, H, W] with about half of its images mirrored, left to right."""
    generator = torch.Generator().manual_seed(seeds.flips(seed, step))
    chosen = torch.rand(len(x_0), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], x_0.flip(-1), x_0)


def draw_noise(x_0: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """Return random timesteps [B] and noise eps for a whole batch x_0 [B, C, H, W], on the CPU.

    The timesteps are uniform over 0..T-1 but stratified over the batch, which lowers the variance of the loss.
    """
    batch = len(x_0)
    t = ((torch.arange(batch) + torch.rand(batch)) / batch * T).long().clamp(max=T - 1)
    return t, torch.randn(x_0.shape)


def prediction_mse(
    model: DiffusionModel, settings: Pretrain, x_0: Tensor, eps: Tensor, t: Tensor, alpha_bar_t: Tensor
) -> Tensor:
    """Return the mean squared error of the prediction at the timesteps t [B], with their alpha_bar [B, 1, 1, 1]."""
    x_t = alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps
    with autocast(x_0.device, settings.precision):
        output = model.decode(*model.encode(x_t, t))
    target = training_target(model, x_0, eps, alpha_bar_t)
    return nn.functional.mse_loss(output[:, : x_0.shape[1]].float(), target)


@torch.enable_grad()
def _loss_and_gradients(model: DiffusionModel, settings: Pretrain, *inputs: Tensor) -> list[Tensor | None]:
    """Return :func:`prediction_mse`, and its gradient by each of the model's parameters, None where there is none."""
    loss = prediction_mse(model, settings, *inputs)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


def lr_factor(settings: Pretrain, step: int) -> float:
    """Return the learning rate at a step, as a share of ``lr``: linear warm-up, then constant or linear decay to 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if not settings.decay:
        return 1.0
    return (settings.steps - step) / max(1, settings.steps - settings.warmup_steps)


def grid_seconds(experiment: Experiment, sampler: Sampler) -> float:
    """Return the seconds of a sample grid, from one pass of the sampler's network after another."""
    one = Sampler.of(experiment, sampler.backbone, sampler.device, M=1, precision=sampler.precision)
    x_T = one.noise(GRID_SAMPLES, seed=0)
    one.generate(x_T)
    return len(sampler.timesteps) * wall_seconds(lambda: one.generate(x_T), sampler.device)


def draw_samples(sampler: Sampler, path: Path) -> Tensor:
    """Write a grid of samples, always from the same x_T, and return them: [64, C, H, W]."""
    images = sampler.generate(sampler.noise(GRID_SAMPLES, seed=0)).float()
    save_grid(images, path, columns=8, scale=max(1, 64 // sampler.image_shape[-1]))
    return images
