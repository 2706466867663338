"""The real images that samples are compared with, and what makes a comparison with them doubtful."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hbench.evaluation.features import Extractor, features
from hbench.evaluation.frechet import Reference, frechet_distance, real_reference, stored_reference
from hbench.evaluation.sample_cache import image_folder, pngs
from hbench.store.classifier import Classifier, load_classifier
from hbench.store.datasets import at_hand, load_set
from hbench.store.results import Result
from hbench.store.run import Run

SURE = 0.9
"""Mean confidence of a classifier below which it hardly knows the images, unless they are those it was tested on."""
ALIKE = 3
"""Largest distance to a classifier's own test images, over that between their halves, of images that are like them."""


def real_images(
    run: Run, extractor: Extractor, cache: Path, data_root: str | Path | None, download: bool
) -> tuple[Reference, dict[str, Any]]:
    """Return the reference of the real images, or that in the classifier's file if the images are not at hand.

    Args:
        run: run whose samples are compared.
        extractor: extractor of the features.
        cache: folder of images and features.
        data_root: folder of the real images, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.

    Returns:
        The reference, and details for the provenance: the account ``data`` of the images that were read; with a
        classifier, its mean ``confidence`` on them, 0..1, and ``as_learned``, True if they are like its own test
        images.

    Raises:
        HBenchError: no data, unreadable pictures, or too few.
    """
    data = run.experiment.data
    if extractor.is_classifier and extractor.weights and not at_hand(data, data_root, download):
        return stored_reference(extractor.weights), {}
    real = load_set(data, data_root, "reference", download)
    found = features(pngs(image_folder(real.images, cache), len(real.images)), extractor, cache, run.device)
    reference = real_reference(found)
    about: dict[str, Any] = {"data": real.account.to_json()}
    if extractor.is_classifier and extractor.weights:
        learned = stored_reference(extractor.weights)
        distance = frechet_distance(reference.statistics, learned.statistics)
        about["confidence"] = confidence(load_classifier(extractor.weights), found)
        about["as_learned"] = bool(distance < ALIKE * learned.halves)
    return reference, about


@torch.no_grad()
def confidence(classifier: Classifier, found: Tensor) -> float:
    """Return the mean over images and factors of the largest class probability, 0..1, for features [n, 120]."""
    largest = [logits.softmax(1).amax(1) for logits in classifier.network.logits(found)]
    return float(torch.stack(largest).mean())


def classifier_cautions(result: Result) -> list[str]:
    """Return what makes a classifier's word on a result's real images doubtful, a sentence each."""
    sure = result.detail("confidence")
    if sure is None:  # no classifier, or no images at hand
        return []
    said = []
    if not result.detail("data", {}).get("published", True):
        said.append("measured by a classifier on other images than those published under the name of the data set")
    if sure < SURE and not result.detail("as_learned"):
        said.append(
            f"the classifier gives the classes of the real images a probability of only {sure:.2f} on average: they "
            "are not such images as it learned"
        )
    return said
