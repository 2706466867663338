"""Samples, pairs and traversals that the measurements are made of."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hbench.config import Experiment, Precision
from hbench.core.diffusion import DeltaH, alpha_bar_schedule, generation_steps, pair_steps, run, timesteps
from hbench.core.directions import Source, own, scaled
from hbench.core.seeds import draw_x_T, seed_of
from hbench.errors import HBenchError
from hbench.models.adm import UNetModel
from hbench.models.shift import draw_shifts, magnitudes
from hbench.runtime.device import autocast
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.run import Run

BATCH = 64  # of generated images, raw and shifted ones counted; no number depends on it, up to kernel rounding


class Pairs(NamedTuple):
    """Raw samples and what one random shift makes of each, on the run's device."""

    x_0: Tensor
    x_0_shifted: Tensor
    k: Tensor
    s: Tensor


@torch.no_grad()
def generate(
    run_: Run, x_T: Tensor, delta_h: DeltaH | None = None, M: int | None = None, precision: Precision | None = None
) -> Tensor:
    """x_0 of the regular process from x_T [B, C, H, W], or x'_0 with h_t shifted by delta_h; float32, unclamped.

    ``M`` and ``precision`` are the run's unless given. Each shifted step adds its whole shift to P_t, however short
    the step, so with another M delta_h is scaled by (shifted steps of the run) / (shifted steps of this chain), as in
    Asyrp (Kwon et al. 2023) [reconstructed]: magnitudes keep their meaning.
    """
    settings = run_.experiment.discovery
    alpha_bar = alpha_bar_schedule(**run_.experiment.diffusion.model_dump())
    descending = timesteps(M or settings.M, len(alpha_bar), settings.spacing)
    shift = None if delta_h is None else _of_steps(run_, delta_h, M)
    steps = generation_steps(run_.model, alpha_bar, descending, shift, settings.t_shift)
    with autocast(x_T.device, precision or settings.precision):
        x_0: Tensor = run(steps, x_T)
    return x_0


def _of_steps(run_: Run, delta_h: DeltaH, M: int | None) -> DeltaH:
    """delta_h for a generation in M steps, see :func:`generate`."""
    if M in (None, run_.experiment.discovery.M):
        return delta_h
    return scaled(delta_h, len(shift_interval(run_)) / len(shift_interval(run_, M)))


def shift_interval(run_: Run, M: int | None = None) -> list[int]:
    """The timesteps t >= t_shift of a generation in M steps, by default the run's; descending.

    Raises:
        HBenchError: there is none.
    """
    settings = run_.experiment.discovery
    visited = timesteps(M or settings.M, run_.experiment.diffusion.T, settings.spacing)
    shifted = [t for t in visited if t >= settings.t_shift]
    if not shifted:
        raise HBenchError(f"no timestep of {len(visited)} steps reaches t_shift = {settings.t_shift}: take more steps")
    return shifted


@torch.no_grad()
def sample_model(experiment: Experiment, model: UNetModel, count: int, M: int, seed: int = 0) -> Tensor:
    """``count`` samples of a diffusion model in M steps: float32 [count, C, H, W], unclamped, on the CPU.

    Several processes make them together, and each gets all.
    """
    device = next(model.parameters()).device
    shape = (experiment.data.channels, experiment.data.size, experiment.data.size)
    alpha_bar = alpha_bar_schedule(**experiment.diffusion.model_dump())
    steps = generation_steps(model.eval(), alpha_bar, timesteps(M, len(alpha_bar), experiment.discovery.spacing))
    images = []
    batches = turns(batches_of(count))
    with progress(total=sum(map(len, batches)), desc="samples", unit="image") as bar:
        for batch in batches:
            x_T = draw_x_T(seed, batch[0], len(batch), shape).to(device)
            with autocast(device, experiment.pretrain.precision):
                images.append(run(steps, x_T).cpu())
            bar.update(len(batch))
    return torch.cat(all_gather(images))


def batches_of(count: int, size: int = BATCH) -> list[range]:
    """The indices of ``count`` images, batch by batch: the same batches however many processes share them."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


@torch.no_grad()
def draw_pairs(
    run_: Run, seed: int, first: int, count: int, source: Source | None = None, M: int | None = None
) -> Pairs:
    """Fresh pairs ``first`` .. ``first + count - 1`` with random k and s; pair i depends only on (seed, i).

    Shifted by each sample's own direction, or that of another ``source``, in M steps, as :func:`generate` takes them.
    Both are made in the same passes.
    """
    source = source or partial(own, run_.shift_block)
    settings = run_.experiment.discovery
    alpha_bar = alpha_bar_schedule(**run_.experiment.diffusion.model_dump())
    descending = timesteps(M or settings.M, len(alpha_bar), settings.spacing)
    x_T = noise(run_, seed, first, count)
    shifts = []
    for i in range(first, first + count):
        generator = torch.Generator().manual_seed(seed_of(seed, i, 1))
        shifts.append(draw_shifts(1, settings.K, settings.S, settings.min_magnitude, generator))
    k, s = (torch.cat(values).to(x_T.device) for values in zip(*shifts, strict=True))
    delta_h = _of_steps(run_, source(k, s), M)
    steps = pair_steps(run_.model, alpha_bar, descending, delta_h, settings.t_shift)
    with autocast(x_T.device, settings.precision):
        x_0, x_0_shifted = run(steps, x_T).chunk(2)
    return Pairs(x_0, x_0_shifted, k, s)


def noise(run_: Run, seed: int, first: int, count: int) -> Tensor:
    """x_T of images ``first`` .. ``first + count - 1`` for this run, on its device."""
    data = run_.experiment.data
    x_T = draw_x_T(seed, first, count, (data.channels, data.size, data.size))
    return x_T.to(next(run_.model.parameters()).device)


def traverse(
    run_: Run,
    directions: Sequence[int],
    examples: int,
    samples: int,
    seed: int = 0,
    source: Source | None = None,
) -> Tensor:
    """Images along each direction: float32 [directions, examples, samples, C, H, W], on the CPU.

    Row by row one x_T, the same for every direction; s runs evenly from -S to S, so the middle of an odd number of
    samples is the original (Fig. 1). Shifted by each sample's own direction, or that of another ``source``.
    """
    source = source or partial(own, run_.shift_block)
    x_T = noise(run_, seed, 0, examples)
    device = x_T.device
    values = torch.tensor(magnitudes(run_.experiment.discovery.S, samples))
    grid = torch.cartesian_prod(torch.tensor(directions), torch.arange(examples), torch.arange(samples))
    images = generate(run_, x_T).cpu()[grid[:, 1]]
    shifted = values[grid[:, 2]].nonzero().squeeze(1)
    for chosen in progress(shifted.split(BATCH), desc="grids", unit="batch"):
        k, example, column = grid[chosen].to(device).unbind(1)
        images[chosen] = generate(run_, x_T[example], source(k, values.to(device)[column])).cpu()
    return images.reshape(len(directions), examples, samples, *images.shape[1:])
