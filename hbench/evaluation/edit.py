"""Edits of real images (Fig. 8): DDIM inversion to x_T, then generation with one or several directions."""

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap

import torch
from torch import Tensor

from hbench.config import Precision
from hbench.core.diffusion import alpha_bar_schedule, inversion_steps, run, timesteps
from hbench.core.directions import Source, together
from hbench.evaluation.sampling import BATCH, generate
from hbench.models.shift import magnitudes
from hbench.runtime.device import autocast
from hbench.runtime.progress import progress
from hbench.store.run import Run

Edit = tuple[tuple[int, float], ...]
"""Terms (k, s) that are added up: the sum over i of s_i f_k_i."""


@torch.no_grad()
def invert(run_: Run, x_0: Tensor, M: int, precision: Precision = "float32") -> Tensor:
    """x_T of images x_0 [B, C, H, W] in [-1, 1] by DDIM inversion in M steps, on the run's device.

    The timesteps are those of a generation in M steps, and nothing is clipped. Cost: M passes of the UNet.
    """
    experiment = run_.experiment
    device = next(run_.model.parameters()).device
    alpha_bar = alpha_bar_schedule(**experiment.diffusion.model_dump())
    steps = inversion_steps(run_.model, alpha_bar, timesteps(M, len(alpha_bar), experiment.discovery.spacing))
    found = []
    for images in progress(x_0.split(BATCH), desc="inversion", unit="batch"):
        with autocast(device, precision):
            found.append(run(steps, images.to(device)))
    return torch.cat(found)


def edit(
    run_: Run,
    x_T: Tensor,
    edits: Sequence[Edit],
    source: Source,
    M: int,
    precision: Precision = "float32",
) -> Tensor:
    """Every edit of every x_T [N, C, H, W], generated in M steps: [N, len(edits), C, H, W], on the CPU, unclamped.

    The edit without terms, ``()``, is the reconstruction.
    """
    terms = max(1, *(len(each) for each in edits))
    padded = [[*each, *[(0, 0.0)] * (terms - len(each))] for each in edits]  # a magnitude of 0 adds nothing
    k = torch.tensor([[term[0] for term in each] for each in padded], device=x_T.device)
    s = torch.tensor([[term[1] for term in each] for each in padded], device=x_T.device)
    grid = torch.cartesian_prod(torch.arange(len(x_T)), torch.arange(len(edits))).to(x_T.device)
    images = []
    for image, which in progress([chunk.unbind(1) for chunk in grid.split(BATCH)], desc="edits", unit="batch"):
        delta_h = together(*(source(k[which, i], s[which, i]) for i in range(terms)))
        images.append(generate(run_, x_T[image], delta_h, M, precision).cpu())
    return torch.cat(images).reshape(len(x_T), len(edits), *x_T.shape[1:])


def singly_and_together(shifts: Edit) -> list[Edit]:
    """Each shift alone, and where there are several, all at once."""
    return [(shift,) for shift in shifts] + ([shifts] if len(shifts) > 1 else [])


def sweep(k: int, S: float, samples: int) -> list[Edit]:
    """One direction at ``samples`` magnitudes, evenly from -S to S."""
    return [((k, s),) for s in magnitudes(S, samples)]


def grid(first: int, second: int, S: float, samples: int) -> list[Edit]:
    """Two directions at once, row by row: the second from S down to -S, in each row the first from -S to S."""
    values = magnitudes(S, samples)
    return [((first, s), (second, u)) for u in reversed(values) for s in values]


def label(edit: Edit) -> str:
    """An edit as the command line takes it, as in "3=2.5 7=-1"."""
    return " ".join(f"{k}={s:g}" for k, s in edit)


def caption(edit: Edit, names: Mapping[int, str] | None = None) -> str:
    """An edit in lines above a picture: each direction with its s, and its name where it is the only one."""
    lines = [f"{k}, s = {s:.3g}" for k, s in edit]
    if len(edit) == 1 and (name := (names or {}).get(edit[0][0])):
        lines += wrap(name, 18)
    return "\n".join(lines)


def mean_square_error(a: Tensor, b: Tensor) -> Tensor:
    """Of each image [B], between images in [-1, 1] after clamping them to that range, as they are shown."""
    return (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(1)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], whose peak-to-peak range is 2; inf for equal images."""
    return 10 * math.log10(4 / mse) if mse else math.inf
