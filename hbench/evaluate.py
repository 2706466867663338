"""What a run's directions are worth: reconstructor accuracy, fidelity, and the pictures of each direction."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hbench.config import Experiment, Precision
from hbench.device import autocast
from hbench.diffusion import (
    DeltaH,
    alpha_bar_schedule,
    draw_x_T,
    generation_steps,
    pair_steps,
    run,
    seed_of,
    timesteps,
)
from hbench.directions import Source, own, scaled
from hbench.distributed import gathered, turns
from hbench.errors import HBenchError
from hbench.files import read_json
from hbench.images import soft_clip
from hbench.intervals import student, wilson
from hbench.load import Run
from hbench.models.adm import UNetModel
from hbench.models.shift import draw_shifts, magnitudes
from hbench.progress import progress
from hbench.training_step import judge

BATCH = 64  # of generated images, raw and shifted ones counted; no number depends on it, up to kernel rounding


class Pairs(NamedTuple):
    """Raw samples and what one random shift makes of each, on the run's device."""

    x_0: Tensor
    x_0_shifted: Tensor
    k: Tensor
    s: Tensor


@dataclass(frozen=True)
class RCA:
    """Reconstructor classification accuracy on fresh pairs (Sec. 5.5), with what must be read beside it."""

    n: int
    accuracy: float
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy."""
    chance: float
    """1/K."""
    magnitude_error: float
    """Mean absolute error of the predicted magnitude, in units of s."""
    magnitude_error_interval: tuple[float, float]
    per_direction: list[float]
    """Accuracy of each direction, nan where none was drawn."""
    per_direction_interval: list[tuple[float, float]]
    """95 % Wilson intervals."""
    confusion: list[list[int]]
    """Counts: true direction by predicted direction."""
    D_raw: float
    """The discriminator's mean output on raw samples; 0.5 is ideal."""
    D_raw_interval: tuple[float, float]
    D_shifted: float
    D_shifted_interval: tuple[float, float]
    outside: float
    """Share of shifted samples with a pixel beyond +-1.5; leaving the domain makes a high accuracy worthless."""
    outside_interval: tuple[float, float]

    def ranking(self) -> list[int]:
        """Directions, most accurate first."""
        return [int(k) for k in np.argsort(-np.nan_to_num(np.array(self.per_direction)), kind="stable")]


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
def sample_model(
    experiment: Experiment, model: UNetModel, count: int, M: int, seed: int = 0, quiet: bool = False
) -> Tensor:
    """``count`` samples of a diffusion model in M steps: float32 [count, C, H, W], unclamped, on the CPU.

    Several processes make them together, and each gets all.
    """
    device = next(model.parameters()).device
    shape = (experiment.data.channels, experiment.data.size, experiment.data.size)
    alpha_bar = alpha_bar_schedule(**experiment.diffusion.model_dump())
    steps = generation_steps(model.eval(), alpha_bar, timesteps(M, len(alpha_bar), experiment.discovery.spacing))
    images = []
    batches = turns(batches_of(count))
    with progress(total=sum(map(len, batches)), desc="samples", unit="image", quiet=quiet) as bar:
        for batch in batches:
            x_T = draw_x_T(seed, batch[0], len(batch), shape).to(device)
            with autocast(device, experiment.pretrain.precision):
                images.append(run(steps, x_T).cpu())
            bar.update(len(batch))
    return torch.cat(gathered(images))


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


@torch.no_grad()
def rca(
    run_: Run,
    count: int,
    seed: int = 0,
    quiet: bool = False,
    source: Source | None = None,
    on_pairs: Callable[[Pairs], None] | None = None,
) -> RCA:
    """Reconstructor classification accuracy on ``count`` fresh pairs of :func:`draw_pairs`.

    Cost: two chains a pair; ``on_pairs`` is called with each batch of them, for whoever needs the images too. Several
    processes share the batches, and each gets the result.
    """
    K, bound = run_.experiment.discovery.K, run_.experiment.discovery.soft_clip
    seen_of_each = []  # sample: k, its prediction, |s_hat - s|, D of both images, has the shifted one left the domain
    for batch in progress(turns(batches_of(count, BATCH // 2)), desc="RCA", unit="batch", quiet=quiet):
        pairs = draw_pairs(run_, seed, batch[0], len(batch), source)
        if on_pairs:
            on_pairs(pairs)
        x_0, x_0_shifted, k, s = pairs
        seen, seen_shifted = soft_clip(x_0, bound), soft_clip(x_0_shifted, bound)
        logits, s_hat = run_.reconstructor(seen, seen_shifted)
        judged = [judge(run_.discriminator, images).sigmoid() for images in (seen, seen_shifted)]
        outside = x_0_shifted.abs().amax((1, 2, 3)) > 1.5
        seen = torch.stack([k, logits.argmax(1), (s_hat - s).abs(), *judged, outside], dim=1)
        seen_of_each.append(seen.double().cpu().numpy())
    drawn_and_predicted, values = np.split(np.concatenate(gathered(seen_of_each)), [2], axis=1)
    confusion = np.zeros((K, K), dtype=int)
    np.add.at(confusion, tuple(drawn_and_predicted.astype(int).T), 1)
    magnitude_error, D_raw, D_shifted, share_outside = values.mean(0).tolist()
    bounds = [(float(low), float(high)) for low, high in zip(*student(values), strict=True)]
    right, drawn = confusion.diagonal(), confusion.sum(1)
    return RCA(
        n=count,
        accuracy=float(right.sum() / count),
        interval=wilson(int(right.sum()), count),
        chance=1 / K,
        magnitude_error=magnitude_error,
        magnitude_error_interval=bounds[0],
        per_direction=[float(c / n) if n else float("nan") for c, n in zip(right, drawn, strict=True)],
        per_direction_interval=[wilson(int(c), int(n)) for c, n in zip(right, drawn, strict=True)],
        confusion=confusion.tolist(),
        D_raw=D_raw,
        D_raw_interval=bounds[1],
        D_shifted=D_shifted,
        D_shifted_interval=bounds[2],
        outside=share_outside,
        outside_interval=wilson(int(values[:, 3].sum()), count),
    )


def read_rca(path: Path, run_: Run, direction_source: str = "own") -> RCA:
    """What ``hbench rca`` wrote, with its provenance beside it; HBenchError where it is of another run or source."""
    try:
        values = read_json(path)
        accuracy = [math.nan if each is None else each for each in values["per_direction"]]
        result = RCA(**values | {"per_direction": accuracy})
    except (TypeError, KeyError) as error:
        raise HBenchError(f'{path}: not a result of "hbench rca": give its rca.json') from error
    origin = read_json(path.with_name("provenance.json"))
    if origin.get("weights_sha256") != run_.hashes or origin.get("direction_source", "own") != direction_source:
        raise HBenchError(f"{path}: was measured on other weights or directions: give that of this run")
    return result


def traverse(
    run_: Run,
    directions: Sequence[int],
    examples: int,
    samples: int,
    seed: int = 0,
    quiet: bool = False,
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
    for chosen in progress(shifted.split(BATCH), desc="grids", unit="batch", quiet=quiet):
        k, example, column = grid[chosen].to(device).unbind(1)
        images[chosen] = generate(run_, x_T[example], source(k, values.to(device)[column])).cpu()
    return images.reshape(len(directions), examples, samples, *images.shape[1:])
