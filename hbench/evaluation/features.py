"""Features of images, by the extractors of torch-fidelity, among them classifiers and a random network of ours.

Inception knows neither digits nor drawn faces, so their FID says little. Distances in the features of a classifier of
such images have the same formulas, but are never called FID.
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.hub import get_dir
from torch_fidelity import register_feature_extractor
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from hbench.config import Data
from hbench.core.images import to_float
from hbench.errors import HBenchError, is_out_of_memory
from hbench.evaluation.random_features import RANDOM, RandomExtractor
from hbench.models.classifier import ClassifierNetwork
from hbench.runtime.progress import progress_is_shown
from hbench.store.account import content_sha256
from hbench.store.classifier import (
    ROLE,
    Classifier,
    are_digits,
    fits,
    load_classifier,
    metric_of,
    shipped_classifier,
)
from hbench.store.files import replacing, sha256
from hbench.store.registry import factors_of
from hbench.store.weights import load_pickled, read_experiment, read_metadata

INCEPTION = "inception-v3-compat"
CLASSIFIER, LENET = ROLE, "lenet-digits"
"""Names of the classifier as an extractor; the second one, for digits, names results since hbench 0.1."""


class ClassifierExtractor(FeatureExtractorBase):  # type: ignore[misc]
    """A classifier as a feature extractor of torch-fidelity; the weights path names the classifier's file."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name, features_list)
        assert feature_extractor_weights_path is not None
        classifier = load_classifier(Path(feature_extractor_weights_path))
        self.network, self.channels = classifier.network, classifier.data.channels

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the one layer: the features before the head."""
        return (str(ClassifierNetwork.FEATURES),)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the only layer."""
        return str(ClassifierNetwork.FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        """Return False, since the network is tiny."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Return an image that is never used."""
        return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the features [B, 120] of uint8 RGB images; grey images come with their channel repeated."""
        return (self.network.backbone(to_float(images)[:, : self.channels]),)


def extractors() -> Mapping[str, type[FeatureExtractorBase]]:
    """Return torch-fidelity's feature extractors by name, after registering ours among them."""
    for name, extractor in (
        (CLASSIFIER, ClassifierExtractor),
        (LENET, ClassifierExtractor),
        (RANDOM, RandomExtractor),
    ):
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(name, extractor)
    registered: Mapping[str, type[FeatureExtractorBase]] = FEATURE_EXTRACTORS_REGISTRY
    return registered


@dataclass(frozen=True)
class Extractor:
    """A feature extractor of torch-fidelity, and the file of its weights."""

    name: str
    weights: Path | None = None
    """File of the weights; None for torch-fidelity's, which it downloads where they are missing."""

    @property
    def is_classifier(self) -> bool:
        """True for a classifier of ours."""
        return self.name in (CLASSIFIER, LENET)

    @property
    def metric(self) -> str:
        """Name of a Frechet distance in these features: "FID" only with Inception's."""
        if self.is_classifier and self.weights:
            return metric_of(read_experiment(self.weights).data)
        return {INCEPTION: "FID", RANDOM: "FD (random ResNet-18)"}.get(self.name, f"FD ({self.name})")

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the weights file; None for torch-fidelity's weights."""
        return sha256(self.weights) if self.weights else None


def choose_extractor(data: Data, name: str | None = None, weights: str | Path | None = None) -> Extractor:
    """Return the extractor for images of this kind, after a check of its weights.

    Args:
        data: kind of the images.
        name: registered name; by default Inception, as in the paper, or the classifier for labelled images.
        weights: file of its weights; by default torch-fidelity's, or the classifier that hbench ships.

    Raises:
        HBenchError: an unknown extractor, or weights that are missing, unfit or hold code.
    """
    name = name or (CLASSIFIER if factors_of(data) else INCEPTION)
    if name not in extractors():
        raise HBenchError(f'no feature extractor "{name}": choose one of {", ".join(sorted(extractors()))}')
    if name.startswith(("clip-", "dinov2-")):
        raise HBenchError(
            f"{name}: comes as code that would be run, not as plain weights: "
            f"choose {INCEPTION}, vgg16, {RANDOM} or {CLASSIFIER}"
        )
    if name in (CLASSIFIER, LENET):
        return _choose_classifier(data, weights)
    if weights is not None and name == RANDOM:
        raise HBenchError(f"{name}: has random weights of its own: leave `weights` out")
    if weights is not None:
        load_pickled(Path(weights))  # torch-fidelity would load it without this care
    return Extractor(name, Path(weights) if weights else None)


def _choose_classifier(data: Data, weights: str | Path | None) -> Extractor:
    chosen = Path(weights) if weights else shipped_classifier(data)
    if chosen is None:
        raise HBenchError("no classifier of such images is shipped: train one on these, and pass its `weights`")
    if not fits(chosen, data):
        raise HBenchError(
            f"{chosen}: was trained on other images than the run: train a classifier on these, and pass its `weights`"
        )
    return Extractor(LENET if are_digits(data) else CLASSIFIER, chosen)


def features(paths: list[Path], extractor: Extractor, cache: Path, device: torch.device) -> Tensor:
    """Return the features [N, D] of image files, from the cache if they are there.

    Args:
        paths: PNGs of one size; grey ones become RGB by repeating their channel.
        extractor: extractor of the features.
        cache: folder of the features, at most 4 D bytes an image.
        device: device that computes them.

    Raises:
        HBenchError: the weights cannot be loaded or fetched, or a file is damaged.
    """
    digest = hashlib.sha256(f"{extractor.name} {extractor.sha256 or ''}".encode())
    for path in paths:
        digest.update(path.read_bytes())
    file = cache / "features" / f"{digest.hexdigest()[:32]}.safetensors"
    if file.is_file():
        return _kept(file, len(paths))
    layer = extractors()[extractor.name].get_default_feature_layer_for_metric("fid")
    cuda = device.type == "cuda"
    with torch.cuda.device(device) if cuda else nullcontext():  # torch-fidelity takes the current GPU
        network = _network(extractor, layer, cuda)
        shown = progress_is_shown() and sys.stderr.isatty()
        try:
            found = get_featuresdict_from_dataset(ImagesPathDataset(paths), network, 64, cuda, not cuda, shown)[layer]
        except (OSError, SyntaxError) as error:  # Pillow raises them
            problem = (str(error).splitlines() or ["no more is known"])[-1]
            raise HBenchError(
                f"{cache}: an image is damaged ({problem}): remove it, and it will be made again"
            ) from error
    with replacing(file) as temporary:
        save_file({"features": found.contiguous()}, temporary, {"sha256": content_sha256(found)})
    result: Tensor = found
    return result


def _kept(file: Path, n: int) -> Tensor:
    """Return the features of n images in a file of the cache.

    Raises:
        HBenchError: the file is damaged, or not as it was written.
    """
    try:
        kept = load_file(file)["features"]
    except (SafetensorError, KeyError) as error:
        raise HBenchError(f"{file}: damaged ({error}): remove it, and it will be made again") from error
    if len(kept) != n or content_sha256(kept) != read_metadata(file).get("sha256"):
        raise HBenchError(f"{file}: holds other features than were written: remove it, and it will be made again")
    return kept


@torch.no_grad()
def classifier_features(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the features [N, 120] of uint8 images [N, C, H, W], the same as :func:`features` has of their files."""
    return torch.cat([classifier.network.backbone(to_float(batch)) for batch in images.split(256)])


def _network(extractor: Extractor, layer: str, cuda: bool) -> FeatureExtractorBase:
    weights = extractor.weights
    try:
        with no_code_in_weights():
            return create_feature_extractor(
                extractor.name,
                [layer],
                cuda=cuda,
                feature_extractor_weights_path=None if weights is None else str(weights),
                verbose=False,
            )
    except (RuntimeError, KeyError, TypeError, UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise HBenchError(
            f"{weights or get_dir()}: holds no weights of {extractor.name} ({problem}): get the file again"
        ) from error
    except URLError as error:
        inception = extractor.name == INCEPTION
        file_name = URL_INCEPTION_V3.rpartition("/")[2] if inception else "the file of its documentation"
        raise HBenchError(
            f"the weights of {extractor.name} cannot be fetched ({error.reason}): "
            f"put {file_name} into {get_dir()}/checkpoints, or pass it as `weights`, "
            f"or compare other features with `extractor={RANDOM}`"
        ) from error


@contextmanager
def no_code_in_weights() -> Iterator[None]:
    """Let PyTorch load nothing but tensors in the block, even if torch-fidelity asks for more: pickles hold code."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
