"""Edits of real images by DDIM inversion (Fig. 8), and the error of their reconstructions."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import BeforeValidator, Field, WithJsonSchema
from torch import Tensor

from hbench.config import Precision
from hbench.core.directions import Edit, Source, edited, magnitudes
from hbench.core.images import to_float
from hbench.core.sampler import BATCH
from hbench.errors import as_list, check_at_least, check_type
from hbench.runtime.progress import progress
from hbench.store.account import content_sha256
from hbench.store.datasets import RealImage
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.pictures import save_image
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Count
from hbench.store.results import Result
from hbench.store.run import Run, refuse_overflow

if TYPE_CHECKING:
    from pandas import DataFrame

FAR = 10
"""Multiple of S beyond which a magnitude leaves the domain for sure."""

log = logging.getLogger(__name__)

Decibels = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""Ratio in dB; without any error it is inf in Python and null in JSON."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """The error of one real image after inversion and generation without an edit."""

    image: str
    """Path of the image's file, as it was given."""
    mse: Annotated[float, Field(ge=0)]
    """Mean square error of the reconstruction, between images in [-1, 1]."""
    psnr: Decibels
    """Peak signal-to-noise ratio of the reconstruction."""
    files: str
    """First part of the names of its pictures in ``images``; numbered, since two folders may hold the same name."""


@dataclass(frozen=True, kw_only=True)
class EditedImages(Result):
    """Edits of real images. The folder also holds ``images``, with every picture in its own size."""

    NAME: ClassVar[str] = "edit"

    edits: list[list[tuple[Count, float]]]
    """Directions and magnitudes of each edit."""
    images: Annotated[list[Reconstruction], Field(min_length=1)]
    pictures: Aside = field(default=None, compare=False, repr=False)
    """Original, reconstruction and edits of each image: float32 [images, 2 + edits, C, H, W], unclamped, on the CPU;
    None in a result read back."""
    names: Aside = field(default_factory=dict, compare=False, repr=False)
    """Names of directions, for the labels of the picture."""

    @property
    def psnrs(self) -> list[float]:
        """PSNR of each reconstruction, in dB."""
        return [image.psnr for image in self.images]

    def summary(self) -> str:
        """Return the error of each reconstruction, a line an image, and for several images a last line for all."""
        lines = [f"{i.image}  reconstruction MSE {i.mse:.3g}  PSNR {i.psnr:.1f} dB" for i in self.images]
        if len(lines) > 1:
            lines.append(
                f"n {len(lines)}  MSE mean {mean(image.mse for image in self.images):.3g}  "
                f"PSNR median {median(self.psnrs):.1f} dB, {min(self.psnrs):.1f} to {max(self.psnrs):.1f}"
            )
        return "\n".join(lines)

    def table(self) -> "DataFrame":
        """Return the reconstruction of each image, a row an image."""
        import pandas as pd

        return pd.DataFrame(self.images)

    def write_into(self, folder: Path) -> None:
        """Write the result into a folder that the caller has claimed, every picture as PNG below ``images``."""
        if self.pictures is not None:
            for earlier in (folder / "images").glob("*.png"):
                earlier.unlink()
            kinds = ["original", "reconstruction", *(label(dict(edit)) for edit in self.edits)]
            for image, row in zip(self.images, self.pictures, strict=True):
                for kind, picture in zip(kinds, row, strict=True):
                    save_image(picture, folder / "images" / f"{image.files}-{kind.replace(' ', '_')}.png")
        super().write_into(folder)


def edit(
    run: Run,
    images: Sequence[RealImage],
    edits: Edit | Sequence[Edit],
    *,
    steps: int = 100,
    precision: Precision = "float32",
    source: DirectionSource | None = None,
) -> EditedImages:
    """Invert real images to x_T and generate them again, as they are and with each edit.

    Nothing is random. Cost: for each image ``steps`` passes of the model to invert it, as many to reconstruct it, and
    almost twice as many for each edit.

    Args:
        run: run whose directions are applied.
        images: images, as :func:`hbench.read_images` reads them; at least one.
        edits: directions and magnitudes of each edit, as in ``[{3: 2.5}, {3: 2.5, 7: -1.0}]``; at least one.
        steps: number of inversion and of generation steps, 1..T.
        precision: precision of the network's passes; "bfloat16" inverts a little less exactly.
        source: kind of direction; each sample's own by default.

    Raises:
        TypeError: not a run, or not such images.
        ValueError: nothing to edit, no such direction, a magnitude that is not finite, or steps out of range.
        HBenchError: an edited image is not finite.
    """
    check_type(Run, "as load_run returns it", run=run)
    images, edits = as_list(images), [edits] if isinstance(edits, Mapping) else as_list(edits)
    check_at_least(1, images=len(images), edits=len(edits))
    for each in edits:
        run.check_edit(each)
    check_type(RealImage, "as read_images returns it", **{f"images[{i}]": image for i, image in enumerate(images)})
    warn_of_magnitudes(edits, run.S)
    source = source or direction_source(run)
    pixels = torch.stack([image.pixels for image in images])
    origin = provenance(
        run.experiment,
        run.device,
        None,
        weights_sha256=run.hashes,
        M=steps,
        precision=precision,
        images_sha256={str(image.file): image.sha256 for image in images},
        data={"used": len(pixels), "sha256": content_sha256(pixels)},
        **source.details,
    )
    x_0 = to_float(pixels)
    x_T = run.invert(x_0, steps=steps, precision=precision)
    reconstructed = edit_each(run, x_T, [{}], source, steps, precision)
    errors = mean_square_error(reconstructed[:, 0], x_0).tolist()
    edits_of_each = edit_each(run, x_T, edits, source, steps, precision)
    return EditedImages(
        edits=[[(int(k), float(s)) for k, s in each.items()] for each in edits],
        images=[
            Reconstruction(image=str(image.file), mse=mse, psnr=psnr(mse), files=f"{i:02d}-{image.file.stem}")
            for i, (image, mse) in enumerate(zip(images, errors, strict=True))
        ],
        pictures=torch.cat([x_0[:, None], reconstructed, edits_of_each], dim=1),
        names=run.names,
        provenance=origin.finished(n=len(images)),
    )


def edit_each(
    run: Run, x_T: Tensor, edits: Sequence[Edit], source: Source, M: int, precision: Precision = "float32"
) -> Tensor:
    """Return every edit of every x_T [N, C, H, W], generated in M steps: [N, len(edits), C, H, W], on the CPU.

    The empty edit gives the reconstruction. Nothing is clamped.
    """
    sampler = replace(run.sampler.with_steps(M), precision=precision)
    pairs = [(image, edit) for image in range(len(x_T)) for edit in edits]
    images = []
    for first in progress(range(0, len(pairs), BATCH), desc="edits", unit="batch"):
        chosen, shown = zip(*pairs[first : first + BATCH], strict=True)
        images.append(sampler.generate(x_T[list(chosen)], edited(source, shown, run.device)).cpu())
    refuse_overflow(torch.cat(images), edits)
    return torch.cat(images).reshape(len(x_T), len(edits), *x_T.shape[1:])


def warn_of_magnitudes(edits: Sequence[Edit], S: float) -> None:
    """Log a warning of each direction whose magnitude is more than FAR times S."""
    for k, s in dict.fromkeys((k, s) for each in edits for k, s in each.items()):
        if abs(s) > FAR * S:
            log.warning(
                "direction %d at s = %.3g is beyond %d times S = %g, the largest magnitude of the training: expect no "
                "image of the domain",
                k,
                s,
                FAR,
                S,
            )


def singly_and_together(edit: Edit) -> list[Edit]:
    """Return each shift of an edit alone, and if there are several, all of them at once."""
    return [{k: s} for k, s in edit.items()] + ([edit] if len(edit) > 1 else [])


def sweep(k: int, S: float, samples: int) -> list[Edit]:
    """Return edits along direction k at ``samples`` magnitudes, evenly from -S to S."""
    return [{k: s} for s in magnitudes(S, samples)]


def grid(first: int, second: int, S: float, samples: int) -> list[Edit]:
    """Return edits along two directions at once, row by row.

    The second direction goes from S down to -S over the rows, and in each row the first goes from -S to S.
    """
    values = magnitudes(S, samples)
    return [{first: s, second: u} for u in reversed(values) for s in values]


def label(edit: Edit) -> str:
    """Return an edit as the command line takes it, as in "3=2.5 7=-1"."""
    return " ".join(f"{k}={s:g}" for k, s in edit.items())


def caption(edit: Edit, names: Mapping[int, str] | None = None) -> str:
    """Return the lines above a picture: each direction with its s, and for a single one its name."""
    lines = [f"{k}, s = {s:.3g}" for k, s in edit.items()]
    if len(edit) == 1 and (name := (names or {}).get(next(iter(edit)))):
        lines += wrap(name, 18)
    return "\n".join(lines)


def mean_square_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean square error of each image, [B], after clamping both images to [-1, 1], as pictures do."""
    return (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(1)


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [-1, 1]; inf for equal images.

    Their peak-to-peak range is 2.
    """
    return 10 * math.log10(4 / mse) if mse else math.inf
