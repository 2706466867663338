"""Distances of generated images to real ones, in a classifier's features, without files in between."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from hbench.config import Data, Experiment
from hbench.core.images import to_uint8
from hbench.errors import HBenchError
from hbench.evaluation.features import classifier_features
from hbench.evaluation.frechet import Distance, Reference, distance, real_reference, stored_reference
from hbench.evaluation.sampling import Pairs
from hbench.models.classifier import ClassifierNetwork
from hbench.store.classifier import fits, load_classifier, shipped_classifier
from hbench.store.datasets import at_hand, load_set

log = logging.getLogger(__name__)


def choose_classifier(given: str | Path | None, experiment: Experiment, pairs: int) -> Path | None:
    """Return the file of the classifier for KID and FD: the given one, or the shipped one that fits, else None.

    Raises:
        HBenchError: the given one does not fit the images, or the pairs are too few for its features.
    """
    if given and not fits(Path(given), experiment.data):
        raise HBenchError(f"{given}: was trained on other images: train a classifier on those of {experiment.name}")
    chosen = Path(given) if given else shipped_classifier(experiment.data)
    if chosen and pairs <= (most := ClassifierNetwork.FEATURES):
        raise HBenchError(f"n = {pairs} is too small for the FD: need more pairs than its {most} features")
    return chosen


def real_reference_of(
    classifier: Path, data: Data, data_root: str | Path | None = None, download: bool = False
) -> Reference:
    """Return the real images in a classifier's features, or the statistics that its file carries without them.

    Args:
        classifier: file of the classifier.
        data: kind of the images.
        data_root: folder of the images, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.

    Raises:
        HBenchError: no data in the given folder, or too few images.
    """
    if at_hand(data, data_root, download):
        return real_reference(
            classifier_features(load_classifier(classifier), load_set(data, data_root, "reference", download).images)
        )
    log.warning("no real images at hand, so no KID, only an FD: `data_root` takes their folder")
    return stored_reference(classifier)


def pair_distances(pairs: Sequence[Pairs], classifier: Path, reference: Reference) -> tuple[Distance, Distance]:
    """Return the distances of the raw and of the shifted samples of pairs to the reference, in a classifier's features.

    Raises:
        HBenchError: too few pairs for a covariance.
    """
    loaded = load_classifier(classifier)
    raw, shifted = (
        classifier_features(loaded, torch.cat([to_uint8(batch).cpu() for batch in batches]))
        for batches in ([pair.x_0 for pair in pairs], [pair.x_0_shifted for pair in pairs])
    )
    return distance(raw, reference), distance(shifted, reference)
