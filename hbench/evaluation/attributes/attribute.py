"""What an attribute is, and a set of them, apart from the list of all sets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hbench.config import Data


@dataclass(frozen=True)
class Attribute:
    """A number that every image has, or at least most of them."""

    name: str
    """Name in plain words, as in "slant"."""
    more: str
    """Words for a direction that raises it, as in "slants right"."""
    less: str
    """Words for a direction that lowers it, as in "slants left"."""
    factor: str = ""
    """Factor of the data whose class it tells; empty if none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributeSet:
    """Attributes that are measured together."""

    name: str
    """Name of the set, for another package's that of its entry point."""
    attributes: tuple[Attribute, ...]
    """The attributes, at least one; names are unique within a set, not between sets."""
    measure: Callable[[Tensor], Tensor]
    """Function (float32 images [N, C, H, W] in about [-1, 1], on any device) -> float64 [N, attributes], nan where an
    attribute is undefined for an image. It clamps by itself, and an image's values depend on that image alone."""
    general: bool = False
    """True if the attributes are of any image: they name a direction only where none made for its images does."""
    suits: Callable[[Data], bool] = lambda data: True
    """Function (kind of images) -> True if the set measures such images; by default all."""

    def __post_init__(self) -> None:
        """Check that there are attributes, each of a name of its own."""
        names = [each.name for each in self.attributes]
        if not names or len({*names}) < len(names):
            raise ValueError(f'attribute set "{self.name}": needs attributes of different names, got {names}')


def unit_range(images: Tensor) -> Tensor:
    """Return images in about [-1, 1] as float64 in [0, 1], clamped, on the CPU."""
    return (images.detach().cpu().double().clamp(-1, 1) + 1) / 2


def centred(n: int) -> Tensor:
    """Return the coordinates of n pixels in a row, in pixels from their middle, float64 [n]."""
    return torch.arange(n, dtype=torch.float64) - (n - 1) / 2
