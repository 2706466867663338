"""Training of the digit LeNet whose features measure distances between sets of digits."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hbench.config import Experiment
from hbench.core import seeds
from hbench.core.images import to_float
from hbench.core.intervals import wilson
from hbench.errors import HBenchError, check_at_least, check_seed, check_type
from hbench.evaluation.features import lenet_features
from hbench.evaluation.frechet import keep_reference, real_reference
from hbench.models.digit_lenet import DigitLeNet
from hbench.runtime.progress import duration, is_asked_for, progress
from hbench.store.datasets import load_set
from hbench.store.files import sha256
from hbench.store.lenet import FILE, ROLE
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Confusion, Interval, Positive, Share
from hbench.store.registry import Split, factors_of
from hbench.store.results import Result
from hbench.store.weights import save_weights
from hbench.training.estimate import FEWEST, Parts, timed_steps, undone

if TYPE_CHECKING:
    from pandas import DataFrame


log = logging.getLogger(__name__)

BATCH = 128
"""Images of a training step."""


@dataclass(frozen=True, kw_only=True)
class TrainedLeNet(Result):
    """A LeNet trained on labelled digits, with its accuracy on the test set.

    The folder also holds the weights, as ``lenet.safetensors``.
    """

    NAME: ClassVar[str] = "lenet"

    n_train: Positive
    """Number of training images."""
    n_test: Positive
    """Number of test images."""
    accuracy: Share
    """Share of test images whose class is recognised."""
    interval: Interval
    """95 % Wilson interval of the accuracy."""
    halves: float
    """Frechet distance between two random halves of the test images, in the LeNet's features."""
    confusion: Confusion
    """Counts: true class by predicted class."""
    network: Aside = field(default=None, compare=False, repr=False)
    """The :class:`DigitLeNet`, in eval mode, with the statistics of the test images; None in a result read back."""
    experiment: Aside = field(default=None, compare=False, repr=False)
    """The :class:`Experiment` with its images; None in a result read back."""

    def __post_init__(self) -> None:
        """Check that the counts and the number of test images agree."""
        if (counted := sum(map(sum, self.confusion))) != self.n_test:
            raise ValueError(f"confusion counts {counted} images, n_test is {self.n_test}")

    def summary(self) -> str:
        """Return accuracy and distance between halves, in one line."""
        low, high = self.interval
        return (
            f"test accuracy {self.accuracy:.4f}  95% [{low:.4f}, {high:.4f}]  n {self.n_test}  "
            f"FD (LeNet digits) between two halves of the test images {self.halves:.3f}, n {self.n_test // 2} each"
        )

    def table(self) -> "DataFrame":
        """Return the accuracy on each digit with its interval and n, a row a digit."""
        import pandas as pd

        counts = np.array(self.confusion)
        pairs = [(int(right), int(n)) for right, n in zip(counts.diagonal(), counts.sum(1), strict=True)]
        return pd.DataFrame(
            {
                "digit": digit,
                "accuracy": right / n if n else math.nan,
                "low": wilson(right, n)[0],
                "high": wilson(right, n)[1],
                "n": n,
            }
            for digit, (right, n) in enumerate(pairs)
        )

    def cautions(self) -> list[str]:
        """Return a word on files that are not MNIST's."""
        if all(self.detail(name, {}).get("published", True) for name in ("data", "test_data")):
            return []
        return ["learned on images that are not MNIST: their files differ from those published as MNIST"]

    def write_into(self, folder: Path) -> None:
        """Write the result, and the weights if they are at hand, into a folder that the caller has claimed."""
        result = self
        if self.network is not None:
            save_weights(folder / FILE, self.network, self.experiment, ROLE)
            result = self.with_details(weights_sha256=sha256(folder / FILE))
        Result.write_into(result, folder)


def lenet(
    experiment: Experiment,
    *,
    epochs: int = 5,
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> TrainedLeNet:
    """Train a LeNet on an experiment's labelled images, on the CPU, since it is so small.

    Args:
        experiment: experiment with the images.
        epochs: number of passes over the training images, at least 1. Cost: seconds each for 60,000 images.
        data_root: folder of the images, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.
        seed: seed of the initial weights and of the batches.

    Raises:
        TypeError: not an experiment.
        ValueError: no epoch, or a number out of range.
        HBenchError: no data, or images without labels.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_at_least(1, epochs=epochs)
    check_seed(seed)
    if not factors_of(experiment.data):
        raise HBenchError(f"{experiment.name}: its images carry no labels: use an experiment on a data set with labels")
    train, test = (load_set(experiment.data, data_root, split, download) for split in get_args(Split))
    images, test_images = train.images, test.images
    assert train.labels is not None
    assert test.labels is not None
    labels, test_labels = train.labels.values[:, 0], test.labels.values[:, 0]
    accounts = {"data": train.account.to_json(), "test_data": test.account.to_json()}
    origin = provenance(experiment, torch.device("cpu"), seed, **accounts)
    network = train_lenet(experiment, images, labels, epochs=epochs, seed=seed)
    reference = real_reference(lenet_features(network, test_images))
    keep_reference(network, reference)
    predicted = classify(network, test_images)
    confusion = np.zeros((network.classes, network.classes), dtype=int)
    np.add.at(confusion, (test_labels.numpy(), predicted.numpy()), 1)
    n_train, n_test, halves = len(images), len(test_images), reference.halves
    accuracy = float((predicted == test_labels).float().mean())
    return TrainedLeNet(
        n_train=n_train,
        n_test=n_test,
        accuracy=accuracy,
        interval=wilson(int(confusion.trace()), n_test),
        halves=halves,
        confusion=confusion.tolist(),
        network=network,
        experiment=experiment,
        provenance=origin.finished(n_train=n_train, n_test=n_test, accuracy=accuracy, halves=halves),
    )


@torch.random.fork_rng(devices=[])
def train_lenet(
    experiment: Experiment, images: Tensor, labels: Tensor, *, epochs: int = 5, seed: int = 0
) -> DigitLeNet:
    """Return the classifier trained on uint8 images [N, C, H, W] and labels [N], in eval mode."""
    torch.manual_seed(seeds.initial_weights(seed))
    network = DigitLeNet(experiment.data.channels, experiment.data.size, int(labels.max()) + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def take_step(chosen: Tensor) -> dict[str, float]:
        loss = F.cross_entropy(network(to_float(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {}

    first = torch.arange(min(BATCH, len(images)))
    if len(first) > 1:
        steps = epochs * math.ceil(len(images) / BATCH)
        _announce(steps, {"network": network, "optimizer": optimizer}, lambda step: take_step(first))
    for _ in progress(range(epochs), desc="LeNet", unit="epoch"):
        for chosen in torch.randperm(len(images)).split(BATCH):
            if len(chosen) > 1:  # batch norm needs two
                take_step(chosen)
    return network.eval()


@torch.random.fork_rng(devices=[])
def _announce(steps: int, parts: Parts, take_step: Callable[[int], dict[str, float]]) -> None:
    """Say how long the training takes, where progress is shown, by a few steps that are undone."""
    if steps < FEWEST or not is_asked_for():
        return
    with undone(parts):
        seconds, _ = timed_steps(take_step, torch.device("cpu"), steps)
    log.info("%s steps of %d images: about %s", f"{steps:,}", BATCH, duration(steps * seconds))


@torch.no_grad()
def classify(lenet: DigitLeNet, images: Tensor) -> Tensor:
    """Return the predicted class [N] of uint8 images [N, C, H, W]."""
    logits: Tensor = lenet(to_float(images))
    return logits.argmax(1)
