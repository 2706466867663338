"""Real images: any registered data set as one uint8 tensor, with labels where it has some, and picture files.

Everything fits in memory: the largest set of the paper, CelebAHQ at 128 pixels, takes 1.5 GB.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from hbench.config import Data
from hbench.errors import HBenchError, as_list, check_type, counted
from hbench.experiments import with_home
from hbench.store.account import Account, account
from hbench.store.files import sha256
from hbench.store.labels import Labels
from hbench.store.picture_files import Seen, fit, read_all
from hbench.store.picture_folders import find_pictures
from hbench.store.registry import DataSet, Pictures, Split, Wanted, check_data, data_set


def _home() -> Path:
    """Return the home folder; for a user without any, as containers have them, the one that Docker gives: "/"."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


DOWNLOADS = _home() / ".cache" / "hbench"
"""Folder of downloads, and of images that are drawn once and kept."""


@dataclass(frozen=True)
class LoadedSet:
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
        data_root: folder of the set: for "mnist", the one that holds ``MNIST/raw``; for "fashion", the one that holds
            ``FashionMNIST/raw``; for "folder", that of the pictures, searched recursively; unused by sets that need
            none. Default: ``data.root``, then the environment variable HBENCH_DATA, then earlier downloads.
        split: "train" or "test". Every tenth image is "test" where a set does not come split.
        download: let torchvision download MNIST or Fashion-MNIST if it is missing.

    Returns:
        uint8 [N, channels, size, size].

    Raises:
        ValueError: no such split.
        HBenchError: no such data set, no data there, unreadable pictures, or too few.
    """
    return load_set(data, data_root, split, download).images


def load_set(
    data: Data,
    data_root: str | Path | None = None,
    split: Split | Literal["reference"] = "train",
    download: bool = False,
) -> LoadedSet:
    """Return the images as :func:`load_images` does, with labels and an account, which is logged too.

    The ``labels`` have a ``table()``. The split "reference" is for comparisons with samples: the test images, or all
    of a folder.
    """
    check_type(Data, "the data of an experiment", data=data)
    if split not in (*get_args(Split), "reference"):
        raise ValueError(f"split must be {' or '.join(get_args(Split))}, got {split!r}")
    known = check_data(data)
    part: Split = "test" if split == "reference" else split
    root = _find_root(data, data_root, download) if known.needs_root else None
    found = known.read(Wanted(data=data, split=part, root=root, download=download, cache=DOWNLOADS))
    _check_form(found, known, data.dataset)
    images, labels = found.images, found.labels
    if not (known.comes_split or (known.compared_whole and split == "reference")):
        is_used = (torch.arange(len(images)) % 10 == 9) == (part == "test")
        images, labels = images[is_used], labels and labels.of(is_used)
    if images.shape[1:] != data.image_shape and len(images):
        images = fit(images, data)
    if len(images) < 2:
        count = counted(len(images), f"{split} image")
        raise HBenchError(f"{data_root or data.dataset}: found {count}, need at least 2: add some")
    height, width = found.images.shape[2:]
    mode = "L" if found.images.shape[1] == 1 else "RGB"
    credit = f" ({known.credit})" if known.credit else ""
    told = account(
        f"{known.title} in {root}{credit}" if root else f"{known.title}{credit}",
        images,
        found.seen or [Seen(mode, (width, height))] * len(found.images),
        data,
        split if known.compared_whole else part,
        found.left_out,
        unlike=found.unlike,
    )
    told.say()
    return LoadedSet(images, labels, told)


def at_hand(data: Data, data_root: str | Path | None = None, download: bool = False) -> bool:
    """Return whether the images can be read: their folder is known, or none is needed and what draws them is here.

    Raises:
        HBenchError: no such data set.
    """
    known = data_set(data.dataset)
    return _known_root(data, data_root, download) is not None if known.needs_root else known.is_here(DOWNLOADS)


def _known_root(data: Data, data_root: str | Path | None, download: bool) -> Path | None:
    given = (data_root, data.root, os.environ.get("HBENCH_DATA"))
    # an empty variable is an unset one
    root = next((with_home(each) for each in given if each is not None and str(each).strip()), None)
    downloaded = data_set(data.dataset).downloads_to
    if root is None and downloaded and (download or any(DOWNLOADS.glob(f"{downloaded}/*"))):
        root = DOWNLOADS
    return root


def _find_root(data: Data, data_root: str | Path | None, download: bool) -> Path:
    root, downloaded = _known_root(data, data_root, download), data_set(data.dataset).downloads_to
    if root is None:
        raise HBenchError(
            f'data set "{data.dataset}" needs its folder: give it with `data_root=FOLDER`, set HBENCH_DATA, or write '
            "data.root into an experiment's file, of which a run keeps none"
            + (", or add `download=True`" if downloaded else "")
        )
    if root.is_file():
        raise HBenchError(
            f"{root}: is a file, not a folder; an archive must be unpacked: give the folder of the images with "
            "`data_root`"
        )
    if not root.is_dir() and downloaded and not download:
        raise HBenchError(
            f"{root}: no such folder: give the one that holds {downloaded} with `data_root`, or add `download=True`"
        )
    if not root.is_dir() and not downloaded:
        raise HBenchError(f"{root}: no such folder: give the folder of your images with `data_root`")
    return root


def _check_form(found: Pictures, known: DataSet, name: str) -> None:
    """Raise a ValueError where a data set has read images of another form, or labels that are not theirs."""
    images, labels = found.images, found.labels
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{name}: images must be uint8 [N, 1 or 3, H, W], got {images.dtype} {list(images.shape)}")
    if (labels.factors if labels else ()) != known.factors:
        raise ValueError(f"{name}: the labels have other factors than the DataSet")
    if labels and len(labels) != len(images):
        raise ValueError(f"{name}: {len(images)} images have {len(labels)} labels")


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
