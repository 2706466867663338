"""Distances of generated digits to real ones, in a digit LeNet's features, without files in between."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from hbench.config import Data
from hbench.core.images import to_uint8
from hbench.evaluation.features import lenet_features
from hbench.evaluation.frechet import Distance, Reference, distance, lenet_reference, real_reference
from hbench.evaluation.sampling import Pairs
from hbench.store.datasets import at_hand, load_reference
from hbench.store.lenet import load_lenet

log = logging.getLogger(__name__)


def real_digits(lenet: Path, data: Data, data_root: str | Path | None = None, download: bool = False) -> Reference:
    """Return the real images in a LeNet's features, or the statistics that its file carries if they are not at hand.

    Args:
        lenet: file of the LeNet.
        data: kind of the images.
        data_root: folder of the images, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.

    Raises:
        HBenchError: no data in the given folder, or too few images.
    """
    if at_hand(data, data_root, download):
        return real_reference(lenet_features(load_lenet(lenet), load_reference(data, data_root, download)))
    log.warning("no real images at hand, so no KID, only an FD: `data_root` takes their folder")
    return lenet_reference(lenet)


def digit_distances(pairs: Sequence[Pairs], lenet: Path, reference: Reference) -> tuple[Distance, Distance]:
    """Return the distances of the raw and of the shifted samples of pairs to the reference, in a LeNet's features.

    Raises:
        HBenchError: too few pairs for a covariance.
    """
    network = load_lenet(lenet)
    raw, shifted = (
        lenet_features(network, torch.cat([to_uint8(batch).cpu() for batch in batches]))
        for batches in ([pair.x_0 for pair in pairs], [pair.x_0_shifted for pair in pairs])
    )
    return distance(raw, reference), distance(shifted, reference)
