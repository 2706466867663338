"""What a diffusion model's samples are held against: real images, their classes, and the images of the training."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hbench.config import Data
from hbench.evaluation.features import Extractor
from hbench.evaluation.frechet import Reference, halves_of
from hbench.evaluation.nearest import find_nearest
from hbench.evaluation.real_images import real_images
from hbench.store.classifier import Classifier, load_classifier
from hbench.store.datasets import load_set
from hbench.store.labels import Labels
from hbench.store.registry import data_set

log = logging.getLogger(__name__)

TESTED = 2000
"""Number of test images whose nearest training images are looked for, at most."""


class Originals(NamedTuple):
    """The real images that samples are held against."""

    reference: Reference
    classifier: Classifier | None
    """Classifier behind the features; None if they are of another extractor."""
    halves: tuple[Tensor, Tensor] | None
    """Features [n, D] of two halves of the images, for measures of neighbours; None if there are none."""
    counts: Sequence[Tensor] | None
    """Number of images of each class, for each factor; None without labels."""
    training: Tensor | None
    """Training images, uint8 [n, C, H, W]; None if they are not at hand."""
    tested: Tensor | None
    """Distances [n] of test images to their nearest training images."""


def originals(
    data: Data,
    extractor: Extractor,
    cache: Path,
    device: torch.device,
    data_root: str | Path | None = None,
    download: bool = False,
) -> tuple[Originals, dict[str, Any]]:
    """Return the real images, or what the classifier's file keeps of them, with details for the provenance.

    Args:
        data: kind of the images.
        extractor: extractor of the features.
        cache: folder of images and features.
        device: device that computes them.
        data_root: folder of the images, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.

    Raises:
        HBenchError: no data, unreadable pictures, or too few.
    """
    reference, read = real_images(data, extractor, cache, device, data_root, download)
    classifier = load_classifier(extractor.weights) if extractor.is_classifier and extractor.weights else None
    if reference.images is None or reference.features is None:
        log.warning("no real images at hand, so no nearest training images: `data_root` takes their folder")
        if classifier is None:
            return Originals(reference, None, None, None, None, None), read
        kept = classifier.real
        halves = None if kept.features is None else halves_of(kept.features)
        return Originals(reference, classifier, halves, kept.test_counts, None, None), read
    train = load_set(data, data_root, "train", download)
    # the reference of a folder has its training images, too
    is_mixed = data_set(data.dataset).compared_whole
    test = load_set(data, data_root, "test", download).images if is_mixed else reference.images
    tested = find_nearest(test[:TESTED], train.images, device, mirror=data.flip).distance
    counts = predicted(classifier, reference.features).counts() if classifier else None
    read |= {"train_data": train.account.to_json()}
    return Originals(reference, classifier, halves_of(reference.features), counts, train.images, tested), read


@torch.no_grad()
def predicted(classifier: Classifier, found: Tensor) -> Labels:
    """Return the classes that a classifier gives images with features [n, D]."""
    classes = [logits.argmax(1) for logits in classifier.network.logits(found)]
    return Labels(classifier.factors, torch.stack(classes, dim=1))
