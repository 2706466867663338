"""Real images: scikit-learn's digits, MNIST, or any folder of pictures, all as one uint8 tensor.

Everything fits in memory: the largest set of the paper, CelebAHQ at 128 pixels, takes 1.5 GB.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple, assert_never, get_args

import numpy as np
import torch
from torch import Tensor

from hbench.config import Data
from hbench.errors import HBenchError, counted
from hbench.runtime.progress import progress
from hbench.store.files import sha256

DOWNLOADS = Path.home() / ".cache" / "hbench"
EXTENSIONS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
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
Split = Literal["train", "test"]


def load_images(
    data: Data, data_root: str | Path | None = None, split: Split = "train", download: bool = False
) -> Tensor:
    """Return the images of an experiment's data set.

    Args:
        data: data set, and the size and channels that the images get.
        data_root: folder of the set: for "mnist", the one that holds ``MNIST/raw``; for "folder", that of the pictures,
            searched recursively; unused by "digits". Default: the environment variable HBENCH_DATA, then earlier
            downloads.
        split: "train" or "test". Only MNIST comes split; every tenth image of the others is "test".
        download: let torchvision download MNIST if it is missing.

    Returns:
        uint8 [N, channels, size, size].

    Raises:
        ValueError: no such split.
        HBenchError: no data there, unreadable pictures, or too few.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be {' or '.join(get_args(Split))}, got {split!r}")
    images, _ = load_labelled(data, data_root, split, download)
    if len(images) < 2:
        raise HBenchError(
            f"{data_root or data.dataset}: found {counted(len(images), f'{split} image')}, need at least 2: add some"
        )
    return images


def load_labelled(
    data: Data, data_root: str | Path | None = None, split: Split = "train", download: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the images as :func:`load_images` does, and their class labels [N], or None where the set has none."""
    match data.dataset:
        case "digits":
            return _load_digits(data, split)
        case "mnist":
            return _load_mnist(data, _find_root(data, data_root, download), split, download)
        case "folder":
            return _split(_load_folder(data, _find_root(data, data_root, download)), split), None
        case unknown:
            assert_never(unknown)


def load_reference(data: Data, data_root: str | Path | None = None, download: bool = False) -> Tensor:
    """Return the real images to compare samples with: the test images of MNIST and the digits, all of a folder."""
    if data.dataset == "folder":
        return _load_folder(data, _find_root(data, data_root, download))
    return load_labelled(data, data_root, "test", download)[0]


def at_hand(data: Data, data_root: str | Path | None = None, download: bool = False) -> bool:
    """Return whether the folder of the images is known, or none is needed."""
    return data.dataset == "digits" or _known_root(data, data_root, download) is not None


def _known_root(data: Data, data_root: str | Path | None, download: bool) -> Path | None:
    given = data_root or os.environ.get("HBENCH_DATA")
    root = None if given is None else Path(given)
    if root is None and data.dataset == "mnist" and (download or any(DOWNLOADS.glob("MNIST/raw/*-images-idx3-ubyte*"))):
        root = DOWNLOADS
    return root


def _find_root(data: Data, data_root: str | Path | None, download: bool) -> Path:
    root = _known_root(data, data_root, download)
    if root is None:
        raise HBenchError(
            f'data set "{data.dataset}" needs its folder: give it with `data_root=FOLDER` or set HBENCH_DATA'
            + (", or add `download=True`" if data.dataset == "mnist" else "")
        )
    return root


def _split(values: Tensor, split: Split) -> Tensor:
    test = torch.arange(len(values)) % 10 == 9
    return values[test] if split == "test" else values[~test]


def _fit(images: Tensor, data: Data) -> Tensor:
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


def _load_digits(data: Data, split: Split) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    return _split(_fit(images.round().to(torch.uint8), data), split), _split(torch.from_numpy(digits.target), split)


def _load_mnist(data: Data, root: Path, split: Split, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import MNIST

    if not root.is_dir() and not download:
        raise HBenchError(
            f"{root}: no such folder: give the one that holds MNIST/raw with `data_root`, or add `download=True`"
        )
    try:
        mnist = MNIST(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError, ValueError, AssertionError, KeyError) as error:  # absent, unreachable or damaged
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise HBenchError(
            f"{root}: cannot read MNIST ({problem}): give the folder that holds MNIST/raw with "
            "`data_root`, or add `download=True`"
        ) from error
    return _fit(mnist.data[:, None], data), mnist.targets


def _load_folder(data: Data, root: Path) -> Tensor:
    if not root.is_dir():
        raise HBenchError(f"{root}: no such folder: give the folder of your images with `data_root`")
    paths = image_files(root)
    images = torch.empty(len(paths), data.channels, data.size, data.size, dtype=torch.uint8)
    for i, path in enumerate(progress(paths, desc="reading images", unit="image")):
        images[i], _ = read_image(path, data)
    return images


def image_files(path: Path) -> list[Path]:
    """Return the image itself, or all images below a folder, sorted.

    Raises:
        HBenchError: nothing is at the path, or no image in the folder.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise HBenchError(f"{path}: no such image or folder: give the path of an existing one")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    if not found:
        raise HBenchError(f"{path}: no images there (looked for {', '.join(sorted(EXTENSIONS))})")
    return found


class RealImage(NamedTuple):
    """An image file, read in the form that an experiment's images have."""

    file: Path
    pixels: Tensor
    """Pixels, uint8 [channels, size, size]."""
    done: str
    """Conversion of it in words, as in "28x28 RGB -> 16x16 L"."""
    sha256: str
    """SHA-256 of the file."""


def read_images(paths: Sequence[str | Path], data: Data) -> list[RealImage]:
    """Read image files of any size.

    Args:
        paths: image files, and folders that are searched for them.
        data: size and channels that the images get.

    Raises:
        HBenchError: nothing at a path, a folder without images, or a file that :func:`read_image` refuses.
    """
    files = [file for path in paths for file in image_files(Path(path))]
    return [RealImage(file, *read_image(file, data), sha256(file)) for file in files]


def read_image(path: Path, data: Data) -> tuple[Tensor, str]:
    """Read an image file in the form that an experiment's images have.

    The image is turned upright as its EXIF data says, its short side resized, its centre cropped, transparency dropped,
    and 16 bits scaled to 8.

    Returns:
        Pixels, uint8 [channels, size, size], and the conversion in words, for example "28x28 RGB -> 16x16 L".

    Raises:
        HBenchError: not a readable image, fewer than 8x8 pixels, or more than Pillow takes for harmless.
    """
    import warnings

    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional as F

    mode = "L" if data.channels == 1 else "RGB"
    try:
        with warnings.catch_warnings(), ExitStack() as opened:
            warnings.simplefilter("ignore", UserWarning)  # damage beside the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = opened.enter_context(Image.open(path))
            if picture.mode == "F":  # its range is unknown
                raise ValueError("floating-point pixels; save it with 8 or 16 bits")
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip to white instead of scaling
                upright = Image.fromarray((np.asarray(upright) / 257).clip(0, 255).round().astype(np.uint8))
            pixels = F.pil_to_tensor(upright.convert(mode))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise HBenchError(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS:,} pixels, like a file made to fill the memory: "
            "make it smaller or remove it"
        ) from error
    except UNREADABLE as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise HBenchError(f"{path}: not a readable image ({problem}): repair or remove it") from error
    height, width = pixels.shape[1:]
    if min(height, width) < 8:
        raise HBenchError(f"{path}: {width}x{height} pixels are too few, need at least 8x8: remove it")
    done = f"{width}x{height} {picture.mode} -> {data.size}x{data.size} {mode}"
    return _fit(pixels[None], data)[0], done + (", centre crop" if height != width else "")
