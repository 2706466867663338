"""Features of a network that nobody trained: a Fréchet distance for any images, without a download.

A convolutional network with random weights already tells images apart by their textures, edges and layout, so distances
in its features tell worse samples from better ones, without knowing any class. Naeem et al. 2020 (arXiv 2002.09797)
take 64 features of a random VGG16; ours is a ResNet-18, ten times cheaper. These distances are never called FID.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torchvision.models import resnet18

from hbench.core.images import to_float

RANDOM = "random-resnet18"
"""Name among torch-fidelity's feature extractors."""
FEATURES = 64
"""Number of features."""
SIZE = 64
"""Height and width in pixels to which images are brought, since the network halves them five times."""
SEED = 0
"""Seed of the weights; another one gives another distance."""


@torch.random.fork_rng(devices=[])
def random_resnet18() -> nn.Module:
    """Return a ResNet-18 with random weights, the same in every process, whose features have a readable size.

    The features of smooth noise are centred and scaled to a standard deviation of 1, by the weights of the last layer.
    """
    torch.manual_seed(SEED)
    network: nn.Module = resnet18(weights=None, num_classes=FEATURES).eval()
    noise = nn.functional.interpolate(torch.rand(64, 3, 8, 8) * 2 - 1, size=SIZE, mode="bilinear")
    last = network.get_submodule("fc")
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        spread, centre = torch.std_mean(network(noise), dim=0)
        last.weight /= spread[:, None]
        last.bias.copy_((last.bias - centre) / spread)
    return network.requires_grad_(False)


class RandomExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """The random ResNet-18 as a feature extractor of torch-fidelity; it has no weights file."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.network = random_resnet18()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the one layer: the outputs."""
        return (str(FEATURES),)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the only layer."""
        return str(FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        """Return False, since compilation would take longer than the features."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Return an image that is never used."""
        return torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the features [B, 64] of uint8 RGB images of any size."""
        sized = nn.functional.interpolate(to_float(images), size=(SIZE, SIZE), mode="bilinear", antialias=True)
        return (self.network(sized),)
