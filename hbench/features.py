"""Frechet distance (FD) in the features of a digit LeNet, through torch-fidelity.

Inception knows no digits, so plain FID says little of them: the distance here is the same formula on the 120 features
of a LeNet that classifies these digits, and is never called FID.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset
from tqdm import tqdm

from hbench.config import Experiment
from hbench.diffusion import seed_of
from hbench.errors import HBenchError
from hbench.evaluate import pairs
from hbench.images import to_float, to_rgb, to_uint8
from hbench.load import Run
from hbench.models.reconstructor import LENET_FEATURES, lenet_backbone, lenet_head
from hbench.runs import read_experiment, save_weights

EXTRACTOR = "lenet-digits"
FILE = "lenet.safetensors"


class DigitLeNet(nn.Module):
    """A LeNet classifier of single images, and the statistics of its features over the real test set."""

    def __init__(self, channels: int, size: int, classes: int = 10) -> None:
        super().__init__()
        self.backbone = lenet_backbone(channels, size)
        self.head = lenet_head(classes)
        self.real_mu: Tensor
        self.real_sigma: Tensor
        self.real_n: Tensor
        self.register_buffer("real_mu", torch.zeros(LENET_FEATURES))
        self.register_buffer("real_sigma", torch.zeros(LENET_FEATURES, LENET_FEATURES))
        self.register_buffer("real_n", torch.tensor(0))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of float images [B, C, H, W]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class LeNetExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """The LeNet as torch-fidelity's feature extractor; its weights path is a file of :func:`train_lenet`."""

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


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = to_rgb(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def features(images: Tensor, weights: Path) -> Tensor:
    """LeNet features [N, 120] of uint8 images [N, C, H, W], by torch-fidelity."""
    if EXTRACTOR not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(EXTRACTOR, LeNetExtractor)
    layer = str(LENET_FEATURES)
    extractor = create_feature_extractor(
        EXTRACTOR, [layer], cuda=False, feature_extractor_weights_path=str(weights), verbose=False
    )
    found = get_featuresdict_from_dataset(_Images(images), extractor, 256, False, True, False)
    result: Tensor = found[layer]
    return result


def statistics(found: Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance of features [N, D], float64."""
    if len(found) <= found.shape[1]:
        raise HBenchError(
            f"{len(found)} images for {found.shape[1]} features give a rank-deficient covariance: use more samples"
        )
    stats: dict[str, np.ndarray] = fid_features_to_statistics(found.double())
    return stats


def frechet_distance(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Frechet distance of two Gaussians given as mean and covariance."""
    return float(fid_statistics_to_metric(first, second, False)["frechet_inception_distance"])


def load_lenet(path: Path) -> DigitLeNet:
    """The classifier of :func:`train_lenet`, in eval mode."""
    data = read_experiment(path).data
    tensors = load_file(path)
    lenet = DigitLeNet(data.channels, data.size, len(tensors["head.3.bias"]))
    lenet.load_state_dict(tensors)
    return lenet.eval()


def real_statistics(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Statistics of the real test set, as stored with the LeNet, and the number of images behind them."""
    lenet = load_lenet(path)
    return {"mu": lenet.real_mu.double().numpy(), "sigma": lenet.real_sigma.double().numpy()}, int(lenet.real_n)


@dataclass(frozen=True)
class Fidelity:
    """FD (LeNet digits) of raw and of shifted samples to the real test set, each with its 95 % bootstrap interval."""

    n: int
    """Samples of each kind."""
    n_real: int
    raw: float
    raw_interval: tuple[float, float]
    shifted: float
    shifted_interval: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Shifted over raw; 1 = shifting costs no fidelity."""
        return self.shifted / self.raw


def fidelity(run_: Run, weights: Path, count: int, seed: int = 0, quiet: bool = False) -> Fidelity:
    """FD of ``count`` raw and as many shifted samples, from the same x_T, with random k and s (Table 2).

    Cost: two chains a sample.
    """
    if read_experiment(weights).data != run_.experiment.data:
        raise HBenchError(
            f'{weights}: was trained on other images than the run: make one with "hbench lenet" and pass --lenet'
        )
    made = [(to_uint8(p.x_0).cpu(), to_uint8(p.x_0_shifted).cpu()) for p in pairs(run_, count, seed, quiet, "samples")]
    real, n_real = real_statistics(weights)
    raw, shifted = (features(torch.cat(kind), weights) for kind in zip(*made, strict=True))
    return Fidelity(
        n=count,
        n_real=n_real,
        raw=frechet_distance(statistics(raw), real),
        raw_interval=_bootstrap(raw, real, seed),
        shifted=frechet_distance(statistics(shifted), real),
        shifted_interval=_bootstrap(shifted, real, seed),
    )


def _bootstrap(found: Tensor, real: dict[str, np.ndarray], seed: int, resamples: int = 100) -> tuple[float, float]:
    """95 % interval of the FD over resampled features; the bias that resampling adds is taken off (basic bootstrap)."""
    generator = torch.Generator().manual_seed(seed_of(seed))
    center = frechet_distance(statistics(found), real)
    draws = [
        frechet_distance(statistics(found[torch.randint(len(found), (len(found),), generator=generator)]), real)
        for _ in range(resamples)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(2 * center - high), float(2 * center - low)


def train_lenet(
    experiment: Experiment,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    path: Path,
    *,
    epochs: int = 5,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, float]:
    """Trains the classifier on (uint8 images, labels), and writes it with the statistics of the test images.

    Returns:
        its test accuracy, and the FD between two halves of the test set: the floor of every FD measured with it.
    """
    torch.manual_seed(seed_of(seed))
    images, labels = train
    lenet = DigitLeNet(experiment.data.channels, experiment.data.size, int(labels.max()) + 1)
    optimizer = torch.optim.Adam(lenet.parameters(), lr=1e-3)
    for _ in tqdm(range(epochs), desc="LeNet", unit="epoch", disable=quiet or None):
        for chosen in torch.randperm(len(images)).split(128):
            if len(chosen) > 1:  # batch norm needs two
                loss = F.cross_entropy(lenet(to_float(images[chosen])), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    lenet.eval()
    save_weights(path, lenet, experiment, "lenet")

    found = features(test[0], path)
    stats = statistics(found)
    lenet.real_mu.copy_(torch.from_numpy(stats["mu"]))
    lenet.real_sigma.copy_(torch.from_numpy(stats["sigma"]))
    lenet.real_n.fill_(len(found))
    save_weights(path, lenet, experiment, "lenet")
    half = torch.randperm(len(found)).chunk(2)
    with torch.no_grad():
        accuracy = (lenet(to_float(test[0])).argmax(1) == test[1]).float().mean().item()
    return {"accuracy": accuracy, "floor": frechet_distance(*(statistics(found[i]) for i in half))}
