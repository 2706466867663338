"""Edited real images as a result: their reconstructions and inverted x_T, and what the edits cost."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from hbench.core.directions import Edit
from hbench.errors import counted
from hbench.evaluation.edit_cost import EditCost
from hbench.store.pictures import save_image
from hbench.store.records import Aside, Count, Interval, Number
from hbench.store.results import Result

if TYPE_CHECKING:
    from pandas import DataFrame

GOOD_PSNR = 30
"""PSNR in dB that a reconstruction should reach: an error of 3 % of the range, about that of strong JPEG, from which on
it is plain to the eye. The run mnist16 0.1 reaches 39 to 48 on digits in 100 steps."""
GOOD_CORRELATION = 0.9
"""Correlation that inverted and true x_T should reach: then x_T explains 81 % of the variance of the inverted one."""
STD_TOLERANCE = 0.15
"""Difference from 1 that the standard deviation of an inverted x_T may have: more than three standard errors, 0.13, of
that of the smallest images' noise, 256 values. Larger images differ less."""

Decibels = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""Ratio in dB; without any error it is inf in Python and null in JSON."""


def label(edit: Edit) -> str:
    """Return an edit as the command line takes it, as in "3=2.5 7=-1"."""
    return " ".join(f"{k}={s:g}" for k, s in edit.items())


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


def _is_noise(std: float) -> bool:
    return math.isnan(std) or abs(std - 1) <= STD_TOLERANCE


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
        images = counted(len(self.images), "image")
        said: list[str] = []
        if poor := [image for image in self.images if image.psnr < GOOD_PSNR]:
            worst = min(poor, key=lambda image: image.psnr)
            said.append(
                f"{len(poor)} of {images} reconstructed at less than {GOOD_PSNR} dB, the worst at {worst.psnr:.1f} dB "
                f"({Path(worst.image).name}): edits start from another picture; more steps help, unless it is unlike "
                "those of the training"
            )
        if odd := [image.x_T_std for image in self.images if not _is_noise(image.x_T_std)]:
            span = f"{min(odd):.2f} to {max(odd):.2f}" if len(odd) > 1 else f"{odd[0]:.2f}"
            said.append(
                f"the inverted x_T of {len(odd)} of {images} has a standard deviation of {span} instead of 1: the "
                "directions were found on other noise, so edits may differ from those of samples"
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
