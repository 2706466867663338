"""Real images: scikit-learn's digits, MNIST, or any folder of pictures, all as one uint8 tensor.

Everything fits in memory: the largest set of the paper, CelebAHQ at 128 pixels, takes 1.5 GB.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, assert_never, get_args

import torch
from torch import Tensor

from hbench.config import Data
from hbench.errors import HBenchError, as_list, check_type, counted
from hbench.store.account import Account, account
from hbench.store.files import sha256
from hbench.store.labels import Factor, Labels
from hbench.store.picture_files import Seen, fit, read_all
from hbench.store.picture_folders import find_pictures

DOWNLOADS = Path.home() / ".cache" / "hbench"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of MNIST's files, unpacked."""
Split = Literal["train", "test"]
DIGIT = Factor("digit", tuple("0123456789"))


@dataclass(frozen=True)
class DataSet:
    """Images that were read, and the account of how."""

    images: Tensor
    """Images, uint8 [N, channels, size, size]."""
    labels: Labels | None
    """Classes of the images; None where the set has none."""
    account: Account


def load_images(
    data: Data, data_root: str | Path | None = None, split: Split = "train", download: bool = False
) -> Tensor:
    """Return the images of an experiment's data set.

    Args:
        data: data set, and the size and channels that the images get.
        data_root: folder of the set: for "mnist", the one that holds ``MNIST/raw``; for "folder", that of the pictures,
            searched recursively; unused by "digits". Default: ``data.root``, then the environment variable
            HBENCH_DATA, then earlier downloads.
        split: "train" or "test". Only MNIST comes split; every tenth image of the others is "test".
        download: let torchvision download MNIST if it is missing.

    Returns:
        uint8 [N, channels, size, size].

    Raises:
        ValueError: no such split.
        HBenchError: no data there, unreadable pictures, or too few.
    """
    return load_set(data, data_root, split, download).images


def load_set(
    data: Data,
    data_root: str | Path | None = None,
    split: Split | Literal["reference"] = "train",
    download: bool = False,
) -> DataSet:
    """Return the images as :func:`load_images` does, with labels and an account, which is logged too.

    The split "reference" is for comparisons with samples: the test images of MNIST and the digits, all of a folder.
    """
    check_type(Data, "the data of an experiment", data=data)
    if split not in (*get_args(Split), "reference"):
        raise ValueError(f"split must be {' or '.join(get_args(Split))}, got {split!r}")
    part: Split = "test" if split == "reference" else split
    match data.dataset:
        case "digits":
            found = _load_digits(data, part)
        case "mnist":
            found = _load_mnist(data, _find_root(data, data_root, download), part, download)
        case "faces":
            found = _load_faces(data, part)
        case "folder":
            found = _load_folder(data, _find_root(data, data_root, download), split)
        case unknown:
            assert_never(unknown)
    if len(found.images) < 2:
        count = counted(len(found.images), f"{split} image")
        raise HBenchError(f"{data_root or data.dataset}: found {count}, need at least 2: add some")
    found.account.say()
    return found


def at_hand(data: Data, data_root: str | Path | None = None, download: bool = False) -> bool:
    """Return whether the folder of the images is known, or none is needed."""
    return data.dataset in ("digits", "faces") or _known_root(data, data_root, download) is not None


def _known_root(data: Data, data_root: str | Path | None, download: bool) -> Path | None:
    given = (data_root, data.root, os.environ.get("HBENCH_DATA"))
    # an empty variable is an unset one
    root = next((Path(each).expanduser() for each in given if each is not None and str(each).strip()), None)
    if root is None and data.dataset == "mnist" and (download or any(DOWNLOADS.glob("MNIST/raw/*-images-idx3-ubyte*"))):
        root = DOWNLOADS
    return root


def _find_root(data: Data, data_root: str | Path | None, download: bool) -> Path:
    root = _known_root(data, data_root, download)
    if root is None:
        raise HBenchError(
            f'data set "{data.dataset}" needs its folder: give it with `data_root=FOLDER`, set HBENCH_DATA, or write '
            "data.root into an experiment's file, of which a run keeps none"
            + (", or add `download=True`" if data.dataset == "mnist" else "")
        )
    if root.is_file():
        raise HBenchError(
            f"{root}: is a file, not a folder; an archive must be unpacked: give the folder of the images with "
            "`data_root`"
        )
    return root


def _split(values: Tensor, split: Split) -> Tensor:
    test = torch.arange(len(values)) % 10 == 9
    return values[test] if split == "test" else values[~test]


def _load_digits(data: Data, split: Split) -> DataSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    images, labels = (_split(each, split) for each in (pixels.round().to(torch.uint8), torch.from_numpy(digits.target)))
    seen = [Seen("L", (8, 8))] * len(digits.target)
    images = fit(images, data)
    return DataSet(images, Labels((DIGIT,), labels[:, None]), account("digits", images, seen, data, split))


def _load_mnist(data: Data, root: Path, split: Split, download: bool) -> DataSet:
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
    images = fit(mnist.data[:, None], data)
    height, width = mnist.data.shape[1:]
    seen = [Seen("L", (width, height))] * len(images)
    own = "train" if split == "train" else "t10k"
    files = [Path(mnist.raw_folder) / name for name in MNIST_SHA256 if name.startswith(own)]
    published = all(sha256(file) == MNIST_SHA256[file.name] for file in files)
    labels = Labels((DIGIT,), mnist.targets[:, None])
    return DataSet(images, labels, account(f"MNIST in {root}", images, seen, data, split, published=published))


def _load_faces(data: Data, split: Split) -> DataSet:
    from hbench.store.faces import COUNTS, SIZE, draw_faces

    images, labels = draw_faces(0, split, COUNTS[split])
    seen = [Seen("RGB", (SIZE, SIZE))] * len(images)
    images = fit(images, data)
    return DataSet(images, labels, account("drawn faces", images, seen, data, split))


def _load_folder(data: Data, root: Path, split: Split | Literal["reference"]) -> DataSet:
    if not root.is_dir():
        raise HBenchError(f"{root}: no such folder: give the folder of your images with `data_root`")
    found = find_pictures(root)
    images, seen = read_all(found.files, data, found.problems)
    used = images if split == "reference" else _split(images, split)
    return DataSet(used, None, account(f"pictures in {root}", used, seen, data, split, found.left_out))


class RealImage(NamedTuple):
    """An image file, read in the form that an experiment's images have."""

    file: Path
    pixels: Tensor
    """Pixels, uint8 [channels, size, size]."""
    done: str
    """Conversion of it in words, as in "28x28 RGB -> 16x16 L"."""
    sha256: str
    """SHA-256 of the file."""


def read_images(paths: str | Path | Sequence[str | Path], data: Data) -> list[RealImage]:
    """Read image files of any size, and log the account of them.

    Args:
        paths: image files, and folders that are searched for them; one or several.
        data: size and channels that the images get.

    Raises:
        HBenchError: nothing at a path, a folder without images, or files that cannot be read.
    """
    check_type(Data, "the data of an experiment", data=data)
    found = [find_pictures(Path(path)) for path in as_list(paths)]
    files = [file for each in found for file in each.files]
    images, seen = read_all(files, data, [problem for each in found for problem in each.problems])
    left_out: dict[str, list[str]] = {}
    for each in found:
        for reason, names in each.left_out.items():
            left_out.setdefault(reason, []).extend(names)
    account("pictures", images, seen, data, "reference", left_out).say()
    return [
        RealImage(file, pixels, facts.done(data), sha256(file))
        for file, pixels, facts in zip(files, images, seen, strict=True)
    ]
