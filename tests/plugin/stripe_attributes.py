"""Attributes of stripes, which the package offers for its own data set alone."""

import torch
from torch import Tensor

from hbench.config import Data
from hbench.evaluation.attributes.attribute import Attribute, AttributeSet


def measure(images: Tensor) -> Tensor:
    across, along = (images.double().diff(dim=dim).abs().mean((1, 2, 3)) for dim in (3, 2))
    return torch.stack([across - along], 1)


def stripes(data: Data) -> AttributeSet | None:
    if data.dataset != "stripes":
        return None
    return AttributeSet(name="stripes", attributes=(Attribute("uprightness", "upright", "level"),), measure=measure)
