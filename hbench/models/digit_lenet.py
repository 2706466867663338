"""A LeNet that classifies digits, whose features measure distances between sets of images."""

import torch
from torch import Tensor, nn

from hbench.models.reconstructor import LENET_FEATURES, lenet_backbone, lenet_head


class DigitLeNet(nn.Module):
    """A LeNet classifier of single images, and the statistics of its features over the real test set.

    The statistics are buffers, so that they lie in the weights file: mean, covariance and number of the real features,
    and the Fréchet distance between two halves of the real images.

    Args:
        channels: channels of the images.
        size: height and width of the images.
        classes: number of classes.
    """

    def __init__(self, channels: int, size: int, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = lenet_backbone(channels, size)
        self.head = lenet_head(classes)
        self.real_mu: Tensor
        self.real_sigma: Tensor
        self.real_n: Tensor
        self.real_halves: Tensor
        self.register_buffer("real_mu", torch.zeros(LENET_FEATURES))
        self.register_buffer("real_sigma", torch.zeros(LENET_FEATURES, LENET_FEATURES, dtype=torch.float64))
        self.register_buffer("real_n", torch.tensor(0))
        self.register_buffer("real_halves", torch.tensor(float("nan"), dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] of float images [B, C, H, W] in [-1, 1]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits
