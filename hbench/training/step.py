"""One step of discovery: shift block and reconstructor against a discriminator, through the whole frozen chain."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hbench.config import Discovery, Experiment
from hbench.core import seeds
from hbench.core.approximations import accumulate, per_step
from hbench.core.chain import recorded, run_chain
from hbench.core.diffusion import DeltaH
from hbench.core.directions import draw_shifts, own_direction
from hbench.core.images import soft_clip
from hbench.core.sampler import Sampler
from hbench.core.seeds import draw_x_T
from hbench.models import build_discriminator, build_reconstructor, build_shift_block
from hbench.models.adm import EncoderUNetModel
from hbench.models.batch_norm import share_batch_norm
from hbench.models.discriminator import frozen, judge
from hbench.models.recompute import checkpoint_blocks
from hbench.models.reconstructor import LeNet, ResNet18
from hbench.models.shift import AnyShift, ShiftBlock, keep_outputs
from hbench.runtime.device import autocast
from hbench.runtime.distributed import (
    all_gather,
    all_reduce,
    all_reduce_mean,
    average_gradients,
    shard,
    turns,
    world_size,
)
from hbench.runtime.progress import progress

Reconstructor = LeNet | ResNet18
DrawRaw = Callable[[], tuple[Tensor, Tensor | None]]
"""Function () -> x_T [B, C, H, W] of a batch, and x_0 of the regular process, or None where it is still to be made."""


@dataclass(frozen=True)
class Trained:
    """Everything that training changes, and so everything that a checkpoint holds."""

    shift_block: AnyShift
    reconstructor: Reconstructor
    discriminator: EncoderUNetModel
    optimizer: torch.optim.Optimizer
    """Optimiser of shift block and reconstructor."""
    optimizer_D: torch.optim.Optimizer


def initial(experiment: Experiment, sampler: Sampler, seed: int, shift_block: AnyShift | None = None) -> Trained:
    """Return the networks with initial weights, on the sampler's device, and their optimisers.

    A ``shift_block`` that is given has its directions already, and is not trained.
    """
    settings, device = experiment.discovery, sampler.device
    torch.manual_seed(seeds.initial_weights(seed))
    if shift_block is None:
        shift_block = build_shift_block(experiment, sampler.backbone).to(device)
    reconstructor = build_reconstructor(experiment)
    share_batch_norm(reconstructor, all_reduce, world_size())
    reconstructor.to(device)
    discriminator = build_discriminator(experiment).to(device).eval()  # its dropout stays off, as the model's
    checkpoint_blocks(discriminator, settings.checkpoint_blocks)
    return Trained(
        shift_block,
        reconstructor,
        discriminator,
        torch.optim.Adam([*shift_block.parameters(), *reconstructor.parameters()], lr=settings.lr, fused=True),
        torch.optim.Adam(discriminator.parameters(), lr=settings.lr_discriminator, fused=True),
    )


def raw_pairs(experiment: Experiment, sampler: Sampler, seed: int) -> DrawRaw:
    """Return a function that draws a batch of x_T and x_0 of the regular process, from a pool of pairs made now.

    Without a pool x_T is new and x_0 None, for it is then made in the passes of x'_0. Each of several processes gets
    its slice of the batch; they make the pool together. Cost: one chain for each pair of the pool.
    """
    settings, device = experiment.discovery, sampler.device

    def draw_new() -> tuple[Tensor, None]:
        return shard(torch.randn(settings.batch_size, *sampler.image_shape)).to(device), None

    if not settings.pool:
        return draw_new
    noise = draw_x_T(seeds.pool(seed), 0, settings.pool, sampler.image_shape)
    chunks = progress(turns(noise.split(settings.batch_size)), desc="raw samples", unit="batch")
    images = torch.cat(all_gather([sampler.generate(chunk.to(device)).cpu() for chunk in chunks]))

    def draw_pooled() -> tuple[Tensor, Tensor]:
        chosen = shard(torch.randint(settings.pool, (settings.batch_size,)))
        return noise[chosen].to(device), images[chosen].to(device)

    return draw_pooled


def train_step(
    experiment: Experiment, sampler: Sampler, trained: Trained, draw_raw: DrawRaw, seed: int, step: int
) -> dict[str, float]:
    """Take step ``step`` of training and return its metrics; everything random in it follows from (seed, step).

    Each process takes it on its slice of the batch; the metrics are those of the whole batch.
    """
    settings = experiment.discovery
    factor = lr_factor(settings, step)
    trained.optimizer.param_groups[0]["lr"] = settings.lr * factor
    trained.optimizer_D.param_groups[0]["lr"] = settings.lr_discriminator * factor

    # Draw raw samples, directions and magnitudes.
    torch.manual_seed(seeds.discovery_step(seed, step))
    x_T, x_0 = draw_raw()
    k, s = draw_shifts(settings.batch_size, settings.K, settings.S, settings.min_magnitude)
    if settings.lambda_odd:
        x_T, x_0, k, s = antithetic(x_T, x_0, k, s)
    k, s = (shard(v).to(x_T.device) for v in (k, s))
    noise = None
    if settings.reconstructor_noise:
        unit = torch.randn(settings.batch_size, 2, *sampler.image_shape)
        noise = settings.reconstructor_noise * shard(unit).to(x_T.device)

    # Train shift block and reconstructor, then the discriminator on the same samples.
    row, x_0, x_0_shifted = train_shift(experiment, sampler, trained, x_T, x_0, k, s, noise)
    row |= train_discriminator(settings, trained, x_0, x_0_shifted)

    values = torch.stack(list(row.values())).tolist()  # the step's only reading from the device
    return all_reduce_mean(dict(zip(row, values, strict=True)))


def antithetic(x_T: Tensor, x_0: Tensor | None, k: Tensor, s: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return a batch of pairs: rows 2i and 2i + 1 share the x_T and k of the former, with its s and -s."""

    def twice(x: Tensor) -> Tensor:
        return x[::2].repeat_interleave(2, 0)

    s = twice(s)
    s[1::2] *= -1
    return twice(x_T), None if x_0 is None else twice(x_0), twice(k), s


def lr_factor(settings: Discovery, step: int) -> float:
    """Return the learning rates at a step, as a share of their full values: constant, then falling linearly to 0."""
    falling = settings.decay * settings.steps
    return min(1.0, (settings.steps - step) / falling) if falling else 1.0


# Shift block and reconstructor --------------------------------------------------------------------------------------


def train_shift(
    experiment: Experiment,
    sampler: Sampler,
    trained: Trained,
    x_T: Tensor,
    x_0: Tensor | None,
    k: Tensor,
    s: Tensor,
    noise: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Train shift block and reconstructor on one batch.

    It takes one optimiser step by ``discovery.gradient``, or with "per-step" one at every shifted timestep. The metrics
    of the latter are averaged; its accuracy flatters, since all but the first step know the batch.

    Args:
        experiment: settings, with a strategy that is not "auto".
        sampler: frozen model and chain.
        trained: networks and optimisers.
        x_T: starting noise, [B, C, H, W].
        x_0: raw samples from it, [B, C, H, W]; None to make them here.
        k: directions, [B].
        s: magnitudes, [B].
        noise: noise that the reconstructor sees on x_0 and on x'_0, [B, 2, C, H, W]; None for none.

    Returns:
        The metrics, the raw samples x_0 and the shifted ones x'_0.
    """
    settings, optimizer = experiment.discovery, trained.optimizer
    delta_h = own_direction(trained.shift_block, k, s)

    # Make raw samples, in the same passes as the nodes that the shifted process will need.
    nodes = None
    if x_0 is None:
        x_0, nodes = run_pairs(settings, sampler, delta_h, x_T)

    # Define the objective, which leaves its metrics behind.
    raw, rows = x_0, []

    def objective(x_0_shifted: Tensor) -> Tensor:
        row = losses(settings, trained, raw, x_0_shifted, k, s, noise)
        rows.append({name: value.detach() for name, value in row.items()})
        return row["loss"]

    # Accumulate gradients and update weights.
    trained.reconstructor.train()
    optimizer.zero_grad()
    with frozen(trained.discriminator):
        if settings.gradient == "per-step":

            def descend() -> None:
                update(optimizer)
                optimizer.zero_grad()

            _, x_0_shifted = per_step(sampler, delta_h, x_T, objective, descend)
        else:
            _, x_0_shifted = accumulate(settings, sampler, delta_h, x_T, objective, nodes)
            update(optimizer)
    if settings.keep_size:
        assert isinstance(trained.shift_block, ShiftBlock)  # fixed directions are not trained
        keep_outputs(trained.shift_block, settings.start)

    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}, raw, x_0_shifted


@torch.no_grad()
def run_pairs(
    settings: Discovery, sampler: Sampler, delta_h: DeltaH, x_T: Tensor
) -> tuple[Tensor, list[Tensor] | None]:
    """Return x_0, and the nodes of the shifted process that ``strategy = "node"`` needs, from passes that serve both.

    The nodes are x_T and the output of each recomputed step; None where no step is recomputed.
    """
    through_all = settings.gradient in ("chain", "linear")
    joint = settings.M - settings.keep if settings.strategy == "node" and through_all else 0
    B = len(x_T)
    x, nodes = x_T, [x_T]
    with sampler.autocast():
        for step in sampler.pair_steps(delta_h)[:joint]:
            x = step(x)
            nodes.append(recorded(x[-B:].clone(), settings.nodes))  # not a view, which would keep the raw samples too
        x_0 = run_chain(sampler.steps()[joint:], x[:B])
    return x_0, nodes if joint else None


def losses(
    settings: Discovery,
    trained: Trained,
    x_0: Tensor,
    x_0_shifted: Tensor,
    k: Tensor,
    s: Tensor,
    noise: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the loss of shift block and reconstructor, its parts and the accuracy, all scalars.

    The loss is CE(k_hat, k) + lambda_reg |s_hat - s|, and by ``fidelity`` plus lambda_adv BCE(D(x'_0), real) (Sec. 4.1
    and 4.3), the weighted l1 loss lambda_l1/|s| mean |x'_0 - x_0| (Sec. 4.3, Fig. 3), or nothing. With lambda_odd it is
    also lambda_odd (1 + cos(x'_0(s) - x_0, x'_0(-s) - x_0)), of :func:`antithetic` pairs. Only the reconstructor sees
    the ``noise`` [B, 2, C, H, W].
    """
    raw, seen = soft_clip(x_0, settings.soft_clip), soft_clip(x_0_shifted, settings.soft_clip)
    pair = (raw, seen) if noise is None else (raw + noise[:, 0], seen + noise[:, 1])
    logits, s_hat = trained.reconstructor(*pair)
    parts = {"loss_k": F.cross_entropy(logits.float(), k), "loss_s": (s_hat.float() - s).abs().mean()}
    loss = parts["loss_k"] + settings.lambda_reg * parts["loss_s"]
    if settings.fidelity == "adversarial":
        parts["loss_adv"] = F.softplus(-judge(trained.discriminator, seen)).mean()
        loss = loss + settings.lambda_adv * parts["loss_adv"]
    elif settings.fidelity == "l1":
        parts["loss_l1"] = ((x_0_shifted - x_0).abs().mean((1, 2, 3)) / s.abs()).mean()
        loss = loss + settings.lambda_l1 * parts["loss_l1"]
    if settings.lambda_odd:
        change = (x_0_shifted - x_0).flatten(1)
        parts["loss_odd"] = 1 + F.cosine_similarity(change[::2], change[1::2]).mean()
        loss = loss + settings.lambda_odd * parts["loss_odd"]
    return {"loss": loss, **parts, "accuracy": (logits.argmax(1) == k).float().mean()}


# Discriminator ------------------------------------------------------------------------------------------------------


def train_discriminator(settings: Discovery, trained: Trained, x_0: Tensor, x_0_shifted: Tensor) -> dict[str, Tensor]:
    """Take one optimiser step of D and return its metrics: raw samples are real, shifted ones fake (Sec. 4.3)."""
    both = soft_clip(torch.cat([x_0, x_0_shifted]), settings.soft_clip)
    with autocast(both.device, settings.precision):
        raw, shifted = judge(trained.discriminator, both).chunk(2)
    loss = F.softplus(-raw).mean() + F.softplus(shifted).mean()
    trained.optimizer_D.zero_grad()
    loss.backward()
    update(trained.optimizer_D)
    return {
        "loss_D": loss.detach(),
        "D_raw": raw.detach().sigmoid().mean(),
        "D_shifted": shifted.detach().sigmoid().mean(),
    }


def update(optimizer: torch.optim.Optimizer) -> None:
    """Update weights by the gradients of the whole batch, which are the means of those of its slices."""
    average_gradients(optimizer.param_groups[0]["params"])
    optimizer.step()
