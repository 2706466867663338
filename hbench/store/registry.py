"""The data sets that hbench knows: one :class:`DataSet` each, those of other packages by an entry point.

Nothing here imports PyTorch, so that a command refuses a wrong name at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hbench.config import Data
from hbench.errors import HBenchError
from hbench.runtime.entry_points import from_package, offered
from hbench.store.drawn import can_read, read_drawn
from hbench.store.faces import FACES
from hbench.store.labels import Factor, Labels
from hbench.store.peeps import PEEPS

if TYPE_CHECKING:
    from torch import Tensor

    from hbench.store.picture_files import Seen

GROUP = "hbench.datasets"
"""Group of the entry points of other packages' data sets; the name is what ``data.dataset`` says."""
Split = Literal["train", "test"]
DIGIT = Factor("digit", tuple("0123456789"))
GARMENT = Factor(
    "garment",
    (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Images that a data set shall read."""

    data: Data
    """Size and channels that the images get; they may also be read in their own."""
    split: Split
    """Part of the set, for those that come split; the others read all."""
    root: Path | None
    """Folder of the set, for those that need one."""
    download: bool
    """True if missing files may be downloaded."""
    cache: Path
    """Folder for what shall be kept between two commands, which may not be there yet."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Images that a data set has read."""

    images: "Tensor"
    """Images, uint8 [N, 1 or 3, height, width], of any size: hbench resizes and crops them."""
    labels: Labels | None = None
    """Their classes, for a set that has factors."""
    seen: "Sequence[Seen] | None" = None
    """What each picture's file was like; None if the images are all there is to know."""
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of files and folders that were left out, by reason; those of folders end with a slash."""
    unlike: str = ""
    """How they differ from those published under the set's name, and what follows; empty where they do not."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set: all that hbench knows of it without reading it, and the function that reads it."""

    title: str
    """Name in a line of text, as in "MNIST"."""
    read: Callable[[Wanted], Pictures]
    """Function that reads the images; HBenchError with a remedy where it cannot."""
    source: str = ""
    """Authors of the images, and who draws them."""
    licence: str = ""
    """Licence of the images."""
    size: int | None = None
    """Height and width of its images in pixels; None if they differ."""
    channels: Literal[1, 3] | None = None
    """Number of channels of its images; None if they differ."""
    factors: tuple[Factor, ...] = ()
    """Properties by which its images are labelled; none for a set without labels."""
    needs_root: bool = False
    """True if its files lie in a folder that must be named."""
    is_here: Callable[[Path], bool] = lambda cache: True
    """Function (folder of what is kept) -> True if a set that needs no root can be read on this machine."""
    downloads_to: str = ""
    """Folder below the root into which torchvision downloads it; empty if nothing can be downloaded."""
    comes_split: bool = False
    """True if it has test images of its own; else each tenth image is one."""
    compared_whole: bool = False
    """True if samples are compared with all of its images, not with the test images alone."""
    mirrors: bool = True
    """True if a mirrored image is one of the set too, so that ``data.flip`` makes sense."""

    @property
    def credit(self) -> str:
        """Source and licence, as in "Zalando, MIT"; empty if neither is known."""
        return ", ".join(filter(None, [self.source, self.licence]))


def _digits(wanted: Wanted) -> Pictures:
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    return Pictures(
        images=pixels.round().to(torch.uint8), labels=Labels((DIGIT,), torch.from_numpy(digits.target)[:, None])
    )


def _mnist(wanted: Wanted) -> Pictures:
    from hbench.store.idx import read_mnist

    return read_mnist(wanted, DIGIT)


def _fashion(wanted: Wanted) -> Pictures:
    from hbench.store.idx import read_fashion

    return read_fashion(wanted, GARMENT)


def _folder(wanted: Wanted) -> Pictures:
    from hbench.store.picture_files import read_all
    from hbench.store.picture_folders import find_pictures

    assert wanted.root is not None
    found = find_pictures(wanted.root)
    images, seen = read_all(found.files, wanted.data, found.problems)
    return Pictures(images=images, seen=seen, left_out=found.left_out)


DATASETS: dict[str, DataSet] = {
    "digits": DataSet(
        title="digits",
        read=_digits,
        source="E. Alpaydin and C. Kaynak, UCI, with scikit-learn",
        licence="CC BY 4.0",
        size=8,
        channels=1,
        factors=(DIGIT,),
        mirrors=False,
    ),
    "mnist": DataSet(
        title="MNIST",
        read=_mnist,
        source="Y. LeCun, C. Cortes and C. Burges",
        licence="CC BY-SA 3.0",
        size=28,
        channels=1,
        factors=(DIGIT,),
        needs_root=True,
        downloads_to="MNIST/raw",
        comes_split=True,
        mirrors=False,
    ),
    "fashion": DataSet(
        title="Fashion-MNIST",
        read=_fashion,
        source="H. Xiao, K. Rasul and R. Vollgraf, Zalando",
        licence="MIT",
        size=28,
        channels=1,
        factors=(GARMENT,),
        needs_root=True,
        downloads_to="FashionMNIST/raw",
        comes_split=True,
    ),
    **{
        style.name: DataSet(
            title=style.name,
            read=partial(read_drawn, style),
            is_here=partial(can_read, style),
            source=style.source,
            licence=style.licence,
            size=style.size,
            channels=3,
            factors=style.factors,
            comes_split=True,
            mirrors=style.mirrors,
        )
        for style in (FACES, PEEPS)
    },
    "folder": DataSet(title="pictures", read=_folder, needs_root=True, compared_whole=True),
}
"""The data sets of hbench by name."""


def data_set(name: str) -> DataSet:
    """Return a data set by its name, from :data:`DATASETS` or from another package's entry point.

    Raises:
        HBenchError: no such data set, or the package that has it is broken.
    """
    if found := _registered(name):
        return found
    known = sorted({*DATASETS, *offered(GROUP)})
    raise HBenchError(f'no data set "{name}": choose one of {", ".join(known)}, or install its package')


def factors_of(data: Data) -> tuple[Factor, ...]:
    """Return the factors by which an experiment's images are labelled; none if they are not, or the set is unknown.

    A data set of a package that is not installed here is unknown, but runs and results of it can be read.
    """
    found = _registered(data.dataset)
    return found.factors if found else ()


def needs_root(data: Data) -> bool:
    """Return whether the images lie in a folder that must be named; True for an unknown set."""
    found = _registered(data.dataset)
    return found.needs_root if found else True


def credit_of(data: Data) -> str:
    """Return the set of an experiment's images with its source and licence; empty where those are not known."""
    found = _registered(data.dataset)
    return f"{found.title} ({found.credit})" if found and found.credit else ""


def check_data(data: Data) -> DataSet:
    """Return the data set of an experiment that is to be worked on, after a check of its settings.

    Raises:
        HBenchError: no such data set, or images are mirrored that must not be.
    """
    found = data_set(data.dataset)
    if data.flip and not found.mirrors:
        raise HBenchError(f"data.flip = true: {found.title} holds no mirrored images: leave it out")
    return found


def _registered(name: str) -> DataSet | None:
    if name in DATASETS:
        return DATASETS[name]
    return from_package(GROUP, name, "data set", DataSet)
