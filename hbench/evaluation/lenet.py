"""A LeNet that classifies digits, and its features as an extractor of torch-fidelity.

Inception knows no digits, so plain FID says little of them. The distances in these features are the same formulas, and
are never called FID.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from hbench.config import Data, Experiment
from hbench.core import seeds
from hbench.core.images import to_float
from hbench.errors import HBenchError
from hbench.models.digit_lenet import DigitLeNet
from hbench.models.reconstructor import LENET_FEATURES
from hbench.runtime.progress import progress
from hbench.store.weights import load_tensors, read_experiment, read_metadata, save_weights

EXTRACTOR = "lenet-digits"
FILE = "lenet.safetensors"


class LeNetExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """The LeNet as torch-fidelity's feature extractor; its weights path is a file of :func:`save_lenet`."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name, features_list)
        assert feature_extractor_weights_path is not None
        self.lenet = load_lenet(Path(feature_extractor_weights_path))
        self.channels = self.lenet.backbone[0].in_channels

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """One layer: the features before the head."""
        return (str(LENET_FEATURES),)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The only layer."""
        return str(LENET_FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        """Not needed: the network is tiny."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Never used."""
        return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features [B, 120] of uint8 RGB images; grey ones had their channel repeated."""
        return (self.lenet.backbone(to_float(images)[:, : self.channels]),)


if EXTRACTOR not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(EXTRACTOR, LeNetExtractor)


def load_lenet(path: Path) -> DigitLeNet:
    """The classifier in a file of :func:`save_lenet`, in eval mode.

    Raises:
        HBenchError: missing or damaged file, or one that holds something else.
    """
    if (found := read_metadata(path).get("role")) != "lenet":
        raise HBenchError(f'{path}: holds {found or "foreign weights"}, need a LeNet: make one with "hbench lenet"')
    data = read_experiment(path).data
    tensors = load_file(path)
    lenet = DigitLeNet(data.channels, data.size, len(tensors.get("head.3.bias", ())))
    load_tensors(lenet, tensors, str(path))
    return lenet.eval()


def fits(path: Path, data: Data) -> bool:
    """Whether the LeNet in a file was trained on images of this kind: data set, size and channels."""
    own = read_experiment(path).data
    return (own.dataset, own.size, own.channels) == (data.dataset, data.size, data.channels)


def train_lenet(
    experiment: Experiment, images: Tensor, labels: Tensor, *, epochs: int = 5, seed: int = 0
) -> DigitLeNet:
    """The classifier trained on uint8 images [N, C, H, W] and labels [N], in eval mode."""
    torch.manual_seed(seeds.initial_weights(seed))
    lenet = DigitLeNet(experiment.data.channels, experiment.data.size, int(labels.max()) + 1)
    optimizer = torch.optim.Adam(lenet.parameters(), lr=1e-3)
    for _ in progress(range(epochs), desc="LeNet", unit="epoch"):
        for chosen in torch.randperm(len(images)).split(128):
            if len(chosen) > 1:  # batch norm needs two
                loss = F.cross_entropy(lenet(to_float(images[chosen])), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return lenet.eval()


@torch.no_grad()
def single_features(lenet: DigitLeNet, images: Tensor) -> Tensor:
    """Features [N, 120] of uint8 images [N, C, H, W], as the extractor gives them."""
    return torch.cat([lenet.backbone(to_float(batch)) for batch in images.split(256)])


@torch.no_grad()
def accuracy(lenet: DigitLeNet, images: Tensor, labels: Tensor) -> float:
    """Share of uint8 images [N, C, H, W] whose class is recognised."""
    return float((lenet(to_float(images)).argmax(1) == labels).float().mean())


def save_lenet(
    path: Path, lenet: DigitLeNet, experiment: Experiment, statistics: dict[str, np.ndarray], n: int, halves: float
) -> None:
    """Writes the classifier with the statistics of n real images, and the FD between their two halves."""
    lenet.real_mu.copy_(torch.from_numpy(statistics["mu"]))
    lenet.real_sigma.copy_(torch.from_numpy(statistics["sigma"]))
    lenet.real_n.fill_(n)
    lenet.real_halves.fill_(halves)
    save_weights(path, lenet, experiment, "lenet")
