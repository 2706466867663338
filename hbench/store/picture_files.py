"""Picture files read as pixels, in the size and the channels that an experiment's images have."""

import struct
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hbench.config import Data
from hbench.errors import HBenchError
from hbench.runtime.progress import progress

if TYPE_CHECKING:
    from PIL import Image

SMALLEST = 8
"""Smallest height and width of a picture that is read, in pixels."""
SHOWN = 5
"""Number of unreadable pictures that a message names."""
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
"""Errors that Pillow raises for damaged images."""


@dataclass(frozen=True)
class Seen:
    """Facts about a picture as its file has it."""

    mode: str
    """Pillow's name of the kind of pixels, such as "RGB" or "I;16"."""
    size: tuple[int, int]
    """Width and height, upright."""
    stored: tuple[int, int] | None = None
    """Smallest and largest value of a picture of 16 or 32 bits; None for others."""
    transparent: bool = False
    """True if it lets a background through somewhere."""
    more_frames: bool = False
    """True if it has further frames or pages, which are not read."""

    def done(self, data: Data) -> str:
        """Return the conversion in words, as in "28x28 RGB -> 16x16 L, centre crop"."""
        width, height = self.size
        words = [f"{width}x{height} {self.mode} -> {data.size}x{data.size} {data.mode}"]
        words += [f"on {data.background}"] * self.transparent
        words += ["centre crop"] * (width != height)
        words += ["first frame alone"] * self.more_frames
        return ", ".join(words)


class Read(NamedTuple):
    """A picture in the form that an experiment's images have, and what its file was like."""

    pixels: Tensor
    """Pixels, uint8 [channels, size, size]."""
    seen: Seen


def read_all(files: Sequence[Path], data: Data, problems: Sequence[str] = ()) -> tuple[Tensor, list[Seen]]:
    """Read picture files: uint8 [N, channels, size, size], and what each was like.

    Args:
        files: picture files.
        data: size, channels and background that the images get.
        problems: what is wrong already, each with its remedy.

    Raises:
        HBenchError: files that :func:`read_picture` refuses; the message counts them all and names the first.
    """
    images = torch.empty(len(files), data.channels, data.size, data.size, dtype=torch.uint8)
    seen, refused = [], list(problems)
    for i, file in enumerate(progress(files, desc="reading images", unit="image")):
        try:
            images[i], facts = read_picture(file, data)
            seen.append(facts)
        except HBenchError as error:
            refused.append(str(error))
    if len(refused) == 1:
        raise HBenchError(refused[0])
    if refused:
        named = "; ".join(problem.rpartition(": ")[0] for problem in refused[:SHOWN])
        others = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        raise HBenchError(
            f"{len(refused)} of {len(files) + len(problems)} pictures cannot be used: {named}{others}: "
            "repair or remove them"
        )
    return images, seen


def read_picture(path: Path, data: Data) -> Read:
    """Read a picture file in the form that an experiment's images have.

    The picture is turned upright as its EXIF data says, its short side resized, its centre cropped, transparency put
    on ``data.background``, and 16 bits scaled to 8.

    Raises:
        HBenchError: not a readable image, fewer than 8x8 pixels, or more than Pillow takes for harmless.
    """
    import warnings

    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional as F

    try:
        with warnings.catch_warnings(), ExitStack() as opened:
            warnings.simplefilter("ignore", UserWarning)  # damage beside the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = opened.enter_context(Image.open(path))
            if picture.mode == "F":  # its range is unknown
                raise ValueError("floating-point pixels; save it with 8 or 16 bits")
            # a phone's MPO holds a preview beside the photo
            more_frames = picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
            upright = ImageOps.exif_transpose(picture)
            stored = None
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip to white instead of scaling
                values = np.asarray(upright)
                stored = int(values.min()), int(values.max())
                upright = Image.fromarray((values / 257).clip(0, 255).round().astype(np.uint8))
            backed = _on_background(upright, data.background)
            pixels = F.pil_to_tensor((backed or upright).convert(data.mode))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise HBenchError(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels, like a file made to fill the memory: "
            "make it smaller or remove it"
        ) from error
    except UNREADABLE as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise HBenchError(f"{path}: not a readable image ({problem}): repair or remove it") from error
    height, width = pixels.shape[1:]
    if min(height, width) < SMALLEST:
        raise HBenchError(
            f"{path}: {width}x{height} pixels are too few, need at least {SMALLEST}x{SMALLEST}: remove it"
        )
    seen = Seen(picture.mode, (width, height), stored, backed is not None, more_frames)
    return Read(fit(pixels[None], data)[0], seen)


def _on_background(picture: "Image.Image", background: str) -> "Image.Image | None":
    """Return the picture on a background, RGBA; None if it lets none through."""
    from PIL import Image

    if "A" not in picture.getbands() and "a" not in picture.getbands() and "transparency" not in picture.info:
        return None
    rgba = picture.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return None
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)


def fit(images: Tensor, data: Data) -> Tensor:
    """Return uint8 [N, C, H, W] of ``size`` and ``channels``: short side resized (antialiased), centre cropped."""
    from torchvision.transforms.v2 import functional as F

    channels = images.shape[1]
    if data.channels == 1 and channels == 3:
        images = F.rgb_to_grayscale(images)
    elif data.channels == 3 and channels == 1:
        images = images.repeat(1, 3, 1, 1)
    resized = F.resize(images, [data.size], antialias=True)
    cropped: Tensor = F.center_crop(resized, [data.size, data.size])
    return cropped
