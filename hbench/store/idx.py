"""MNIST and Fashion-MNIST in torchvision's folders: the published files, read and checked."""

import gzip
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torchvision.datasets

from hbench.errors import HBenchError
from hbench.store.files import sha256
from hbench.store.labels import Factor, Labels
from hbench.store.registry import Pictures, Wanted

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of MNIST's files, unpacked."""


def read_mnist(wanted: Wanted, factor: Factor) -> Pictures:
    """Return a split of MNIST, whose files are compared with the published ones.

    Raises:
        HBenchError: the files are missing or damaged.
    """
    mnist = _read(wanted, "MNIST")
    is_mnist = all(sha256(file) == MNIST_SHA256[file.name] for file in _files(mnist))
    unlike = (
        "its files are not those published as MNIST: features of a classifier of digits say little about other images"
    )
    return _pictures(mnist, factor, "" if is_mnist else unlike)


def read_fashion(wanted: Wanted, factor: Factor) -> Pictures:
    """Return a split of Fashion-MNIST, whose files are compared with the published archives where those lie beside.

    Raises:
        HBenchError: the files are missing or damaged.
    """
    fashion = _read(wanted, "FashionMNIST")
    published = dict(fashion.resources)  # MD5 of the archives; none of the files was published
    is_fashion = all(_unpacked(file, published[f"{file.name}.gz"]) for file in _files(fashion))
    unlike = "its files are not those published as Fashion-MNIST: take them for another data set"
    return _pictures(fashion, factor, "" if is_fashion else unlike)


def _read(wanted: Wanted, name: str) -> "MNIST":
    try:
        read: MNIST = getattr(torchvision.datasets, name)(
            str(wanted.root), train=wanted.split == "train", download=wanted.download
        )
        return read
    except (RuntimeError, OSError, ValueError, AssertionError, KeyError) as error:  # absent, unreachable or damaged
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise HBenchError(
            f"{wanted.root}: cannot read {name} ({problem}): give the folder that holds {name}/raw with `data_root`, "
            "or add `download=True`"
        ) from error


def _files(read: "MNIST") -> list[Path]:
    """Return the files that were read."""
    own = "train" if read.train else "t10k"
    return [Path(read.raw_folder) / name for name in MNIST_SHA256 if name.startswith(own)]


def _unpacked(file: Path, md5: str) -> bool:
    """Return False where a file is MNIST's, or not the content of the archive beside it, or that is not of this MD5."""
    own = sha256(file)
    archive = file.with_name(f"{file.name}.gz")
    if own == MNIST_SHA256[file.name] or not archive.is_file():
        return own != MNIST_SHA256[file.name]
    packed = archive.read_bytes()
    if hashlib.md5(packed, usedforsecurity=False).hexdigest() != md5:
        return False
    return hashlib.sha256(gzip.decompress(packed)).hexdigest() == own


def _pictures(read: "MNIST", factor: Factor, unlike: str) -> Pictures:
    return Pictures(images=read.data[:, None], labels=Labels((factor,), read.targets[:, None]), unlike=unlike)
