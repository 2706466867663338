"""The reconstructors R(x_0, x'_0) -> (logits of the K directions, magnitude)."""

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """LeNet with batch norm, twice the classic input: a pair of images, concatenated on channels.

    As in GANLatentDiscovery: 5x5 convolutions of 6, 16 and 120 channels times ``width / 2``, 2x2 max-pool after the first
    two, global average, and two heads with one hidden layer of 84 * width / 2. Images below 32 pixels get padding 2 on the
    first two convolutions and a 3x3 third one [reconstructed].

    Args:
        in_channels: of the input; twice the image's for pairs.
        size: height and width of the images.
        K: number of classes.
        width: 2 gives the sizes above.
    """

    def __init__(self, in_channels: int, size: int, K: int, width: int = 2) -> None:
        super().__init__()
        small = size < 32
        c1, c2, self.features, hidden = 3 * width, 8 * width, 60 * width, 42 * width

        def conv(inputs: int, outputs: int, kernel: int, padding: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.backbone = nn.Sequential(
            *conv(in_channels, c1, 5, 2 if small else 0),
            nn.MaxPool2d(2),
            *conv(c1, c2, 5, 2 if small else 0),
            nn.MaxPool2d(2),
            *conv(c2, self.features, 3 if small else 5, 0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.direction = head(self.features, hidden, K)
        self.magnitude = head(self.features, hidden, 1)

    def forward(self, x_0: Tensor, x_0_shifted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and magnitudes [B] of pairs of images, each [B, C, H, W]."""
        features = self.backbone(torch.cat([x_0, x_0_shifted], dim=1))
        return self.direction(features), self.magnitude(features).squeeze(1)


class ResNet18(nn.Module):
    """torchvision's ResNet-18 on a pair of images, concatenated on channels, with linear heads on its 512 features.

    The arguments are those of :class:`LeNet`; ``size`` is not needed.
    """

    def __init__(self, in_channels: int, size: int, K: int) -> None:
        super().__init__()
        from torchvision.models import resnet18

        del size
        self.backbone = resnet18(weights=None)
        self.backbone.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        features = self.backbone.fc.in_features
        self.backbone.fc = nn.Identity()
        self.direction = nn.Linear(features, K)
        self.magnitude = nn.Linear(features, 1)

    def forward(self, x_0: Tensor, x_0_shifted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and magnitudes [B] of pairs of images, each [B, C, H, W]."""
        features = self.backbone(torch.cat([x_0, x_0_shifted], dim=1))
        return self.direction(features), self.magnitude(features).squeeze(1)


def head(features: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two linear layers with batch norm and ReLU between, LeNet's classifier."""
    return nn.Sequential(
        nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
