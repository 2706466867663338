"""The reconstructors R(x_0, x'_0) -> (logits of the K directions, magnitude)."""

import torch
from torch import Tensor, nn

from hbench.config import Experiment

LENET_FEATURES = 120
"""Features before LeNet's heads."""


def build_reconstructor(experiment: Experiment) -> "LeNet | ResNet18":
    """Return R for pairs of the experiment's images."""
    if experiment.discovery.reconstructor == "lenet":
        return LeNet(2 * experiment.data.channels, experiment.data.size, experiment.discovery.K)
    return ResNet18(2 * experiment.data.channels, experiment.discovery.K)


def lenet_backbone(in_channels: int, size: int, width: int = 1) -> nn.Sequential:
    """Return LeNet's convolutions: [B, in_channels, size, size] -> [B, 120]; ``width`` widens the first two.

    As in GANLatentDiscovery at width 2: 5x5 convolutions of 6, 16 and 120 channels, each with batch norm and ReLU, 2x2
    max-pool after the first two, global average. Images below 32 pixels get padding 2 on the first two convolutions
    and a 3x3 third one [reconstructed].
    """
    padding, last_kernel = (2, 3) if size < 32 else (0, 5)

    def conv(inputs: int, outputs: int, kernel: int, padding: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *conv(in_channels, 6 * width, 5, padding),
        nn.MaxPool2d(2),
        *conv(6 * width, 16 * width, 5, padding),
        nn.MaxPool2d(2),
        *conv(16 * width, LENET_FEATURES, last_kernel, 0),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def lenet_head(outputs: int) -> nn.Sequential:
    """Return LeNet's classifier: [B, 120] -> [B, outputs], one hidden layer of 84."""
    return nn.Sequential(nn.Linear(LENET_FEATURES, 84), nn.BatchNorm1d(84), nn.ReLU(), nn.Linear(84, outputs))


class LeNet(nn.Module):
    """LeNet on a pair of images, concatenated on channels, with two heads.

    Args:
        in_channels: channels of the input, twice the image's.
        size: height and width of the images.
        K: number of directions.
    """

    def __init__(self, in_channels: int, size: int, K: int) -> None:
        super().__init__()
        self.backbone = lenet_backbone(in_channels, size)
        self.direction = lenet_head(K)
        self.magnitude = lenet_head(1)

    def forward(self, x_0: Tensor, x_0_shifted: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, K] and magnitudes [B] of pairs of images, each [B, C, H, W]."""
        features = self.backbone(torch.cat([x_0, x_0_shifted], dim=1))
        return self.direction(features), self.magnitude(features).squeeze(1)


class ResNet18(nn.Module):
    """ResNet-18 of torchvision on a pair of images, concatenated on channels, with linear heads on its 512 features.

    Args:
        in_channels: channels of the input, twice the image's.
        K: number of directions.
    """

    def __init__(self, in_channels: int, K: int) -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.backbone = resnet18(weights=None)
        self.backbone.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        features = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.direction = nn.Linear(features, K)
        self.magnitude = nn.Linear(features, 1)

    def forward(self, x_0: Tensor, x_0_shifted: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, K] and magnitudes [B] of pairs of images, each [B, C, H, W]."""
        features = self.backbone(torch.cat([x_0, x_0_shifted], dim=1))
        return self.direction(features), self.magnitude(features).squeeze(1)
