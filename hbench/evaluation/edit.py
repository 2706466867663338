"""Edits of real images by DDIM inversion (Fig. 8), and how good the inversion is.

A good reconstruction does not show that the inversion found the noise of the image: another x_T may give the same image
and react to edits in another way.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import BeforeValidator, Field, WithJsonSchema
from torch import Tensor

from hbench.config import Precision
from hbench.core.directions import Edit, Source, edited, magnitudes
from hbench.core.images import to_float
from hbench.core.intervals import student
from hbench.core.sampler import BATCH
from hbench.errors import HBenchError, as_list, check_at_least, check_type
from hbench.evaluation.edit_cost import EditCost, edit_costs
from hbench.runtime.progress import progress
from hbench.store.account import content_sha256
from hbench.store.classifier import classifier_for, load_classifier
from hbench.store.datasets import RealImage
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.pictures import save_image
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Count, Interval, Number
from hbench.store.results import Result
from hbench.store.run import Run, refuse_overflow

if TYPE_CHECKING:
    from pandas import DataFrame

RECOVERED = 16
"""Number of generated images that are inverted: enough to tell 0.5 from 1, at the cost of some edits."""
GOOD_PSNR = 30
"""PSNR in dB that a reconstruction should reach: an error of 3 % of the range, about that of strong JPEG, from which on
it is plain to the eye. The run mnist16 0.1 reaches 39 to 48 on digits in 100 steps."""
GOOD_CORRELATION = 0.9
"""Correlation that inverted and true x_T should reach: then x_T explains 81 % of the variance of the inverted one."""
STD_TOLERANCE = 0.15
"""Difference from 1 that the standard deviation of an inverted x_T may have: more than three standard errors, 0.13, of
that of the smallest images' noise, 256 values. Larger images differ less."""
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
    x_T_mean: Number
    """Mean of the inverted x_T over its values: 0 for noise; nan in older results."""
    x_T_std: Number
    """Standard deviation of the inverted x_T over its values: 1 for noise; nan in older results."""
    files: str
    """First part of the names of its pictures in ``images``; numbered, since two folders may hold the same name."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Agreement of the inverted x_T of generated images with the x_T that they were generated from."""

    n: int
    """Number of images, x_T 0 .. n - 1 of seed 0."""
    correlation: Number
    """Pearson's correlation over the values of an image's x_T, mean over images: 1 where it is found again."""
    interval: Interval
    """Student's 95 % interval over images."""
    x_T_std: Number
    """Standard deviation of the inverted x_T, mean over images: 1 for noise."""
    x_T_std_interval: Interval

    def __str__(self) -> str:
        """Return correlation and standard deviation with intervals and n, in words."""
        (low, high), (below, above) = self.interval, self.x_T_std_interval
        return (
            f"correlation of inverted and true x_T {self.correlation:.3f} [{low:.3f}, {high:.3f}] (1 expected)  "
            f"std {self.x_T_std:.3f} [{below:.3f}, {above:.3f}] (1 expected)  n {self.n}"
        )


@dataclass(frozen=True, kw_only=True)
class EditedImages(Result):
    """Edits of real images. The folder also holds ``images``, with every picture in its own size."""

    NAME: ClassVar[str] = "edit"
    SCHEMA: ClassVar[int] = 4

    edits: list[list[tuple[Count, float]]]
    """Directions and magnitudes of each edit."""
    images: Annotated[list[Reconstruction], Field(min_length=1)]
    recovery: Recovery | None
    """Inversion of generated images; None in older results."""
    costs: list[list[EditCost]] | None
    """What each edit changes in each image, [images][edits]; None in older results."""
    pictures: Aside = field(default=None, compare=False, repr=False)
    """Original, reconstruction and edits of each image: float32 [images, 2 + edits, C, H, W], unclamped, on the CPU;
    None in a result read back."""
    names: Aside = field(default_factory=dict, compare=False, repr=False)
    """Names of directions, for the labels of the picture."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values without what older results do not know of x_T and of costs."""
        unknown = {"x_T_mean": None, "x_T_std": None}
        images = [unknown | image for image in values["images"]]
        costs = values.get("costs") and [[{"lpips": None} | cost for cost in row] for row in values["costs"]]
        return {"recovery": None, **values, "images": images, "costs": costs}

    def __post_init__(self) -> None:
        """Check that there is a cost of every edit of every image."""
        if self.costs is not None and [len(row) for row in self.costs] != [len(self.edits)] * len(self.images):
            raise ValueError("costs are of other images or edits")

    @property
    def psnrs(self) -> list[float]:
        """PSNR of each reconstruction, in dB."""
        return [image.psnr for image in self.images]

    def summary(self) -> str:
        """Return the error of each reconstruction and its x_T, a line an image, and lines for all images."""
        lines = [
            f"{i.image}  reconstruction MSE {i.mse:.3g}  PSNR {i.psnr:.1f} dB"
            + ("" if math.isnan(i.x_T_std) else f"  x_T mean {i.x_T_mean:.3f} std {i.x_T_std:.3f}")
            for i in self.images
        ]
        if len(lines) > 1:
            lines.append(
                f"n {len(lines)}  MSE mean {mean(image.mse for image in self.images):.3g}  "
                f"PSNR median {median(self.psnrs):.1f} dB, {min(self.psnrs):.1f} to {max(self.psnrs):.1f}"
            )
        if self.recovery:
            lines.append(f"x_T std median {median(self.x_T_stds):.3f} (1 expected)  n {len(self.images)}")
            lines.append(f"generated images inverted: {self.recovery}")
        for j, each in enumerate(self.edits):
            if self.costs:
                lines.append(f"edit {label(dict(each))}: {cost_in_words([row[j] for row in self.costs])}")
        return "\n".join(lines)

    def cautions(self) -> list[str]:
        """Return what is wrong with the inversion: poor reconstructions, and an x_T that is no noise or another one."""
        n = len(self.images)
        said: list[str] = []
        if poor := [image for image in self.images if image.psnr < GOOD_PSNR]:
            worst = min(poor, key=lambda image: image.psnr)
            said.append(
                f"{_count(poor, n)} reconstructed at less than {GOOD_PSNR} dB, the worst at {worst.psnr:.1f} dB "
                f"({Path(worst.image).name}): edits start from another picture; more steps help, unless it is unlike "
                "those of the training"
            )
        if odd := [image.x_T_std for image in self.images if not _is_noise(image.x_T_std)]:
            span = f"{min(odd):.2f} to {max(odd):.2f}" if len(odd) > 1 else f"{odd[0]:.2f}"
            said.append(
                f"the inverted x_T of {_count(odd, n)} has a standard deviation of {span} instead of 1: the directions "
                "were found on other noise, so edits may differ from those of samples"
            )
        if self.recovery and not self.recovery.correlation >= GOOD_CORRELATION:  # or undefined
            (low, high), found = self.recovery.interval, self.recovery.correlation
            said.append(
                f"the inversion does not find the true x_T of generated images: correlation {found:.2f} "
                f"[{low:.2f}, {high:.2f}], n = {self.recovery.n}; a good PSNR does not show this"
            )
        return said

    @property
    def x_T_stds(self) -> list[float]:
        """Standard deviation of the inverted x_T of each image."""
        return [image.x_T_std for image in self.images]

    def table(self) -> "DataFrame":
        """Return each image's reconstruction and what the edit costs, a row for each image and edit.

        Results of older versions know no cost, and have a row an image. The correlation of generated images is beside.
        """
        import pandas as pd

        table = pd.DataFrame(self.images)
        if self.costs:
            edits = [label(dict(each)) for each in self.edits]
            table = pd.DataFrame(
                {**asdict(image), "edit": edit, **asdict(cost)}
                for image, row in zip(self.images, self.costs, strict=True)
                for edit, cost in zip(edits, row, strict=True)
            )
        if found := self.recovery:
            low, high = found.interval
            table = table.assign(
                generated_correlation=found.correlation, generated_low=low, generated_high=high, generated_n=found.n
            )
        return table

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
    mask: RealImage | None = None,
) -> EditedImages:
    """Invert real images to x_T and generate them again, as they are and with each edit.

    Some images are also generated from known x_T and inverted, which shows whether the inversion finds x_T: always from
    the first x_T of seed 0. Cost: for each image ``steps`` passes of the model to invert it, as many to reconstruct it,
    and almost twice as many for each edit; twice ``steps`` for each of the 16 generated ones.

    Args:
        run: run whose directions are applied.
        images: images, as :func:`hbench.read_images` reads them; at least one.
        edits: directions and magnitudes of each edit, as in ``[{3: 2.5}, {3: 2.5, 7: -1.0}]``; at least one.
        steps: number of inversion and of generation steps, 1..T.
        precision: precision of the network's passes; "bfloat16" inverts a little less exactly.
        source: kind of direction; each sample's own by default.
        mask: picture, as :func:`hbench.read_images` reads it, that is light where the edits may change the images.

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
    within = None if mask is None else read_mask(mask, run)
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
        **({"mask_sha256": {str(mask.file): mask.sha256}} if mask else {}),
        **source.details,
    )
    x_0 = to_float(pixels)
    x_T = run.invert(x_0, steps=steps, precision=precision)
    reconstructed = edit_each(run, x_T, [{}], source, steps, precision)
    errors = mean_square_error(reconstructed[:, 0], x_0).tolist()
    means, stds = x_T.mean((1, 2, 3)).tolist(), x_T.std((1, 2, 3)).tolist()
    edits_of_each = edit_each(run, x_T, edits, source, steps, precision)
    file = classifier_for(run.experiment, run.folder)
    known = load_classifier(file) if file else None
    return EditedImages(
        edits=[[(int(k), float(s)) for k, s in each.items()] for each in edits],
        images=[
            Reconstruction(
                image=str(image.file),
                mse=mse,
                psnr=psnr(mse),
                x_T_mean=means[i],
                x_T_std=stds[i],
                files=f"{i:02d}-{image.file.stem}",
            )
            for i, (image, mse) in enumerate(zip(images, errors, strict=True))
        ],
        recovery=recover(run, steps, precision),
        costs=edit_costs(reconstructed[:, 0], edits_of_each, known, within),
        pictures=torch.cat([x_0[:, None], reconstructed, edits_of_each], dim=1),
        names=run.names,
        provenance=origin.finished(n=len(images)),
    )


def read_mask(mask: RealImage, run: Run) -> Tensor:
    """Return where a picture is light, bool [H, W].

    Raises:
        TypeError: not such a picture.
        HBenchError: it has another size than the run's images, or is light or dark everywhere.
    """
    check_type(RealImage, "as read_images returns it", mask=mask)
    light = mask.pixels.float().mean(0) >= 128
    if light.shape != run.image_shape[1:]:
        found, wanted = ("x".join(map(str, shape)) for shape in (light.shape, run.image_shape[1:]))
        raise HBenchError(f"{mask.file}: the mask has {found} pixels, the images have {wanted}")
    if light.all() or not light.any():
        kind = "light" if light.all() else "dark"
        raise HBenchError(f"{mask.file}: the mask is {kind} everywhere: paint white where edits may change the images")
    return light


def cost_in_words(costs: Sequence[EditCost]) -> str:
    """Return the mean cost of one edit over images."""
    means = {
        "change": mean(cost.change for cost in costs),
        "SSIM": mean(cost.ssim for cost in costs),
        "LPIPS": mean(cost.lpips for cost in costs),
        "classes kept": mean(cost.kept for cost in costs),
        "change outside the mask": mean(cost.change_outside for cost in costs),
    }
    words = [f"{name} {value:.3f}" for name, value in means.items() if not math.isnan(value)]
    return "  ".join([*words, f"n {len(costs)}"])


def recover(run: Run, M: int, precision: Precision = "float32", n: int = RECOVERED) -> Recovery:
    """Generate n images in M steps from known x_T, invert them, and compare. Cost: 2 M passes of the model for each."""
    sampler = replace(run.sampler.with_steps(M), precision=precision)
    x_T = run.noise(n)
    # not by Run.invert, which refuses what a bad model may generate
    inverted = sampler.invert(sampler.generate(x_T)).cpu().flatten(1).double().numpy()
    true = x_T.cpu().flatten(1).double().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # nan where an image is inverted to a constant
        values = np.array([[np.corrcoef(a, b)[0, 1], b.std()] for a, b in zip(true, inverted, strict=True)])
    (correlation, std), (lows, highs) = values.mean(0).tolist(), student(values)
    return Recovery(
        n=n,
        correlation=correlation,
        interval=(float(lows[0]), float(highs[0])),
        x_T_std=std,
        x_T_std_interval=(float(lows[1]), float(highs[1])),
    )


def _is_noise(std: float) -> bool:
    return math.isnan(std) or abs(std - 1) <= STD_TOLERANCE


def _count(found: Sequence[object], n: int) -> str:
    return f"{len(found)} of {n} image{'s' * (n > 1)}"


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
