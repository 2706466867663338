"""Labels of images: the class of each image in each of one or several factors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """A property that every image of a data set has, such as the digit, or the colour of the hair."""

    name: str
    """Name in plain words, as in "hair colour"."""
    classes: tuple[str, ...]
    """Names of its classes, at least two, by their number."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of N images in F factors."""

    factors: tuple[Factor, ...]
    values: "Tensor"
    """Number of the class, int64 [N, F]."""

    def __post_init__(self) -> None:
        """Check that every value is the number of a class."""
        if self.values.ndim != 2 or self.values.shape[1] != len(self.factors):
            raise ValueError(f"labels must be [N, {len(self.factors)}], got {list(self.values.shape)}")
        for column, factor in zip(self.values.T, self.factors, strict=True):
            if len(column) and not 0 <= int(column.min()) <= int(column.max()) < len(factor.classes):
                raise ValueError(f"{factor.name}: classes are 0..{len(factor.classes) - 1}, got others")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.values)

    def of(self, chosen: "Tensor") -> "Labels":
        """Return the labels of the chosen images: numbers, or a mask [N]."""
        return Labels(self.factors, self.values[chosen])

    def counts(self) -> "tuple[Tensor, ...]":
        """Return the number of images of each class, int64 [classes] for each factor."""
        columns = zip(self.values.T, self.factors, strict=True)
        return tuple(column.bincount(minlength=len(factor.classes)) for column, factor in columns)

    def table(self) -> "DataFrame":
        """Return the names of the classes, a row an image, a column a factor."""
        import numpy as np
        import pandas as pd

        columns = zip(self.factors, self.values.T.numpy(), strict=True)
        return pd.DataFrame({factor.name: np.array(factor.classes)[column] for factor, column in columns})
