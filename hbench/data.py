"""Real images: scikit-learn's digits, MNIST, or any folder of pictures, all as one uint8 tensor.

Everything fits in memory: the largest set of the paper, CelebAHQ at 128 pixels, takes 1.5 GB.
"""

import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hbench.config import Data
from hbench.errors import HBenchError

DOWNLOADS = Path.home() / ".cache" / "hbench"
EXTENSIONS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
Split = Literal["train", "test"]


def load_images(
    data: Data, data_root: Path | None = None, split: Split = "train", download: bool = False, minimum: int = 2
) -> Tensor:
    """The images of an experiment's data set.

    Args:
        data: which set, and the size and channels that the images get.
        data_root: folder of the set: for "mnist", the one that holds ``MNIST/raw``; for "folder", the pictures,
            searched recursively; unused by "digits". Default: the environment variable HBENCH_DATA, then earlier
            downloads.
        split: "train" or "test". Only MNIST comes split; of the others every tenth image is "test".
        download: let torchvision download MNIST if it is missing.
        minimum: fewest images that are acceptable.

    Returns:
        uint8 [N, channels, size, size].

    Raises:
        HBenchError: no data there, unreadable pictures, or too few.
    """
    images, _ = load_labelled(data, data_root, split, download)
    if len(images) < minimum:
        raise HBenchError(
            f"{data_root or data.dataset}: found {len(images)} {split} images, need at least {minimum}: "
            "add images or lower the batch size"
        )
    return images


def load_labelled(
    data: Data, data_root: Path | None = None, split: Split = "train", download: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The images as of :func:`load_images`, and their class labels [N], or None where the set has none."""
    if data.dataset == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.from_numpy(digits.images)[:, None] * (255 / 16)
        return _split(_fit(images.round().to(torch.uint8), data), split), _split(torch.from_numpy(digits.target), split)
    root = _find_root(data, data_root, download)
    if data.dataset == "mnist":
        return _load_mnist(data, root, split, download)
    return _split(_load_folder(data, root), split), None


def load_reference(data: Data, data_root: Path | None = None, download: bool = False) -> Tensor:
    """The real images that samples are compared with: the test images of MNIST and the digits, all of a folder."""
    if data.dataset == "folder":
        return _load_folder(data, _find_root(data, data_root, download))
    return load_labelled(data, data_root, "test", download)[0]


def _find_root(data: Data, data_root: Path | None, download: bool) -> Path:
    root = data_root or (Path(os.environ["HBENCH_DATA"]) if "HBENCH_DATA" in os.environ else None)
    if root is None and data.dataset == "mnist" and (download or DOWNLOADS.is_dir()):
        root = DOWNLOADS
    if root is None:
        raise HBenchError(
            f'data set "{data.dataset}" needs its folder: pass --data-root FOLDER or set HBENCH_DATA'
            + (", or add --download" if data.dataset == "mnist" else "")
        )
    return root


def _split(values: Tensor, split: Split) -> Tensor:
    test = torch.arange(len(values)) % 10 == 9
    return values[test] if split == "test" else values[~test]


def _fit(images: Tensor, data: Data) -> Tensor:
    """uint8 [N, C, H, W]: short side resized to ``size`` (antialiased), centre crop, channels as asked for."""
    from torchvision.transforms.v2 import functional as F

    channels = images.shape[1]
    if data.channels == 1 and channels == 3:
        images = F.rgb_to_grayscale(images)
    elif data.channels == 3 and channels == 1:
        images = images.repeat(1, 3, 1, 1)
    resized = F.resize(images, [data.size], antialias=True)
    cropped: Tensor = F.center_crop(resized, [data.size, data.size])
    return cropped


def _load_mnist(data: Data, root: Path, split: Split, download: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import MNIST

    try:
        mnist = MNIST(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError, ValueError) as error:  # absent, unreachable or damaged
        raise HBenchError(
            f"{root}: cannot read MNIST ({str(error).splitlines()[0]}): give the folder that holds MNIST/raw with "
            "--data-root, or add --download"
        ) from error
    return _fit(mnist.data[:, None], data), mnist.targets


def _load_folder(data: Data, root: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError
    from torchvision.transforms.v2 import functional as F
    from tqdm import tqdm

    if not root.is_dir():
        raise HBenchError(f"{root}: no such folder: give the folder of your images with --data-root")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise HBenchError(f"{root}: no images there (looked for {', '.join(sorted(EXTENSIONS))})")
    images = torch.empty(len(paths), data.channels, data.size, data.size, dtype=torch.uint8)
    for i, path in enumerate(tqdm(paths, desc="reading images", unit="image", disable=None)):
        try:
            with Image.open(path) as picture:
                pixels = F.pil_to_tensor(picture.convert("L" if data.channels == 1 else "RGB"))
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise HBenchError(f"{path}: not a readable image ({error}): repair or remove it") from error
        if min(pixels.shape[1:]) < 8:
            height, width = pixels.shape[1:]
            raise HBenchError(f"{path}: {width}x{height} pixels are too few, need at least 8x8: remove it")
        images[i] = _fit(pixels[None], data)[0]
    return images
