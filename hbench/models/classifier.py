"""A small network with a head for each factor, whose features measure distances between sets of images."""

from collections.abc import Sequence

from torch import Tensor, nn

from hbench.models.reconstructor import LENET_FEATURES, lenet_backbone, lenet_head

SMALLEST = 12
"""Height and width of the smallest images that LeNet's convolutions take."""


class ClassifierNetwork(nn.Module):
    """LeNet on single images; the logits of all factors are outputs of one head on its 120 features.

    Args:
        channels: channels of the images.
        size: height and width of the images in pixels, at least 12.
        classes: number of classes of each factor.
        width: factor on the channels of the first two convolutions.
    """

    FEATURES = LENET_FEATURES

    def __init__(self, channels: int, size: int, classes: Sequence[int], width: int = 1) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.backbone = lenet_backbone(channels, size, width)
        self.head = lenet_head(sum(classes))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return logits [B, classes] of each factor, for float images [B, C, H, W] in [-1, 1]."""
        return self.logits(self.backbone(images))

    def logits(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return logits [B, classes] of each factor, for features [B, 120]."""
        found: tuple[Tensor, ...] = self.head(features).split(self.classes, dim=1)
        return found
