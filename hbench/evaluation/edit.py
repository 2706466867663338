"""Edits of real images (Fig. 8): which ones, how they are called, and how well an image is reconstructed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import wrap

import torch
from torch import Tensor

from hbench.config import Precision
from hbench.core.directions import Edit, Source, edited, magnitudes
from hbench.core.sampler import BATCH
from hbench.runtime.progress import progress
from hbench.store.run import Run


def edit_each(
    run: Run, x_T: Tensor, edits: Sequence[Edit], source: Source, M: int, precision: Precision = "float32"
) -> Tensor:
    """Return every edit of every x_T [N, C, H, W], generated in M steps: [N, len(edits), C, H, W], on the CPU.

    The empty edit is the reconstruction. Nothing is clamped.
    """
    sampler = replace(run.sampler.with_steps(M), precision=precision)
    pairs = [(image, edit) for image in range(len(x_T)) for edit in edits]
    images = []
    for first in progress(range(0, len(pairs), BATCH), desc="edits", unit="batch"):
        chosen, shown = zip(*pairs[first : first + BATCH], strict=True)
        images.append(sampler.generate(x_T[list(chosen)], edited(source, shown, run.device)).cpu())
    return torch.cat(images).reshape(len(x_T), len(edits), *x_T.shape[1:])


def singly_and_together(edit: Edit) -> list[Edit]:
    """Return each shift of an edit alone, and where there are several, all at once."""
    return [{k: s} for k, s in edit.items()] + ([edit] if len(edit) > 1 else [])


def sweep(k: int, S: float, samples: int) -> list[Edit]:
    """Return one direction at ``samples`` magnitudes, evenly from -S to S."""
    return [{k: s} for s in magnitudes(S, samples)]


def grid(first: int, second: int, S: float, samples: int) -> list[Edit]:
    """Return two directions at once, row by row: the second from S down to -S, in each row the first from -S to S."""
    values = magnitudes(S, samples)
    return [{first: s, second: u} for u in reversed(values) for s in values]


def label(edit: Edit) -> str:
    """Return an edit as the command line takes it, as in "3=2.5 7=-1"."""
    return " ".join(f"{k}={s:g}" for k, s in edit.items())


def caption(edit: Edit, names: Mapping[int, str] | None = None) -> str:
    """Return the lines above a picture: each direction with its s, and its name where it is the only one."""
    lines = [f"{k}, s = {s:.3g}" for k, s in edit.items()]
    if len(edit) == 1 and (name := (names or {}).get(next(iter(edit)))):
        lines += wrap(name, 18)
    return "\n".join(lines)


def mean_square_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the error of each image [B], between images in [-1, 1], after clamping them to that range, as shown."""
    return (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(1)


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [-1, 1]; inf for equal images.

    Their peak-to-peak range is 2.
    """
    return 10 * math.log10(4 / mse) if mse else math.inf
