"""Training of a classifier of labelled images, with a head for each factor.

Its features measure distances between sets of images, and its heads tell what an image shows.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hbench.config import Experiment
from hbench.core import seeds
from hbench.core.images import to_float
from hbench.core.intervals import wilson
from hbench.errors import HBenchError, check_at_least, check_seed, check_type
from hbench.evaluation.features import classifier_features
from hbench.evaluation.frechet import real_reference
from hbench.models.classifier import SMALLEST, ClassifierNetwork
from hbench.runtime.progress import duration, is_asked_for, progress
from hbench.store.classifier import FILE, LENET_METRIC, Classifier, RealImages, save_classifier
from hbench.store.datasets import load_set
from hbench.store.files import sha256, write_text
from hbench.store.labels import Labels
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Confusion, Interval, Positive, Share
from hbench.store.registry import Split, factors_of
from hbench.store.results import Result
from hbench.training.estimate import FEWEST, Parts, timed_steps, undone

if TYPE_CHECKING:
    from pandas import DataFrame


log = logging.getLogger(__name__)

BATCH = 128
"""Images of a training step."""
KEPT = 800
"""Number of test images whose features a file keeps."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained and written."""

    width: int
    """Factor on the channels of LeNet's first two convolutions."""
    epochs: int
    lr: float
    """Learning rate, the largest one if it decays."""
    decay: bool
    """One cycle of the learning rate (Smith & Topin 2018) instead of a constant one."""
    dtype: str
    """Precision of the weights in the file, to which they are rounded before anything is measured."""


LENET = Recipe(width=1, epochs=5, lr=1e-3, decay=False, dtype="float32")
"""Recipe for one factor, such as the digit: that of hbench 0.1, so that distances stay the same."""
WIDE = Recipe(width=4, epochs=20, lr=3e-3, decay=True, dtype="float16")
"""Recipe for several factors, some of which show in a few pixels; the wider network is written in half precision."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What one head of a classifier recognises in the test images."""

    factor: str
    """Name of the factor."""
    classes: list[str]
    """Names of its classes."""
    accuracy: Share
    """Share of test images whose class is recognised."""
    interval: Interval
    """95 % Wilson interval of the accuracy."""
    majority: Share
    """Share of the most frequent class, the accuracy of naming it always."""
    confusion: Confusion
    """Counts of test images: true class by predicted class."""

    def __post_init__(self) -> None:
        """Check that the counts are of these classes."""
        if len(self.confusion) != len(self.classes):
            raise ValueError(f"confusion is of {len(self.confusion)} classes, classes are {len(self.classes)}")

    @property
    def is_learned(self) -> bool:
        """True if the whole interval lies above the share of the most frequent class."""
        return self.interval[0] > self.majority


@dataclass(frozen=True, kw_only=True)
class TrainedClassifier(Result):
    """A classifier trained on labelled images, with the accuracy of each head on the test set.

    The folder also holds the weights, as ``classifier.safetensors``, and ``classes.csv`` with the accuracy on each
    class. Results of hbench 0.1, ``lenet.json``, are read as those of one head.
    """

    NAME: ClassVar[str] = "classifier"
    NAMES_BEFORE: ClassVar[tuple[str, ...]] = ("lenet",)
    SCHEMA: ClassVar[int] = 2

    n_train: Positive
    """Number of training images."""
    n_test: Positive
    """Number of test images."""
    heads: list[Head]
    metric: str
    """Name of a Frechet distance in the classifier's features."""
    halves: float
    """Frechet distance between two random halves of the test images, in the classifier's features."""
    halves_interval: Interval | None
    """95 % interval of it, by the jackknife; None in results of hbench 0.1."""
    trained: Aside = field(default=None, compare=False, repr=False)
    """The :class:`Classifier`, with the statistics of the test images; None in a result read back."""
    experiment: Aside = field(default=None, compare=False, repr=False)
    """The :class:`Experiment` with its images; None in a result read back."""

    def __post_init__(self) -> None:
        """Check that there is a head, and that its counts and the number of test images agree."""
        if not self.heads:
            raise ValueError("no head")
        for head in self.heads:
            if (counted := sum(map(sum, head.confusion))) != self.n_test:
                raise ValueError(f"confusion of {head.factor} counts {counted} images, n_test is {self.n_test}")

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the result of a LeNet of hbench 0.1, which knows digits alone, as one of a single head."""
        of_head = {name: values.pop(name) for name in ("accuracy", "interval", "confusion")}
        counts = of_head["confusion"]
        majority = max(map(sum, counts)) / values["n_test"]
        head = {"factor": "digit", "classes": [str(i) for i in range(len(counts))], "majority": majority, **of_head}
        return {**values, "heads": [head], "metric": LENET_METRIC, "halves_interval": None}

    def summary(self) -> str:
        """Return the accuracies beside the share of the most frequent class, and the distance between halves."""
        bounds = f" [{self.halves_interval[0]:.3f}, {self.halves_interval[1]:.3f}]" if self.halves_interval else ""
        shown = self.table().to_string(index=False, float_format="{:.4f}".format)
        half = f"n {self.n_test // 2:,} each"
        return f"{shown}\n{self.metric} between two halves of the test images {self.halves:.3f}{bounds}, {half}"

    def table(self) -> "DataFrame":
        """Return the accuracy of each head with its interval, the share of the most frequent class, chance and n."""
        import pandas as pd

        return pd.DataFrame(
            {
                "factor": head.factor,
                "accuracy": head.accuracy,
                "low": head.interval[0],
                "high": head.interval[1],
                "majority": head.majority,
                "chance": 1 / len(head.classes),
                "n": self.n_test,
            }
            for head in self.heads
        )

    def class_table(self) -> "DataFrame":
        """Return the accuracy on each class with its interval and n, a row a class of a factor."""
        import pandas as pd

        return pd.DataFrame(
            {
                "factor": head.factor,
                "class": name,
                "accuracy": right / n if n else math.nan,
                "low": wilson(right, n)[0],
                "high": wilson(right, n)[1],
                "n": n,
            }
            for head in self.heads
            for name, right, n in zip(head.classes, _diagonal(head.confusion), map(sum, head.confusion), strict=True)
        )

    def cautions(self) -> list[str]:
        """Return a word on each head that has learned nothing, and on images that are not the published ones."""
        found = [
            f"{head.factor}: the accuracy {head.accuracy:.3f} [{head.interval[0]:.3f}, {head.interval[1]:.3f}] does "
            f"not lie above {head.majority:.3f}, the share of the most frequent class: this head has learned nothing"
            for head in self.heads
            if not head.is_learned
        ]
        if not all(self.detail(name, {}).get("published", True) for name in ("data", "test_data")):
            found.append("learned on other images than those published under the name of the data set")
        return found

    def write_into(self, folder: Path) -> None:
        """Write the result, and the weights if they are at hand, into a folder that the caller has claimed."""
        result = self
        write_text(folder / "classes.csv", self.class_table().to_csv(index=False))
        if self.trained is not None:
            save_classifier(folder / FILE, self.trained, self.experiment, recipe_for(len(self.heads)).dtype)
            result = self.with_details(weights_sha256=sha256(folder / FILE))
        Result.write_into(result, folder)


def classifier(
    experiment: Experiment,
    *,
    epochs: int | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
) -> TrainedClassifier:
    """Train a classifier on an experiment's labelled images, on the CPU, since it is so small.

    Args:
        experiment: experiment with the images.
        epochs: number of passes over the training images, at least 1; by default 5 for one factor, and 20 for several.
            Cost: seconds each for 60,000 grey images of 16 pixels, or 20,000 in colour.
        data_root: folder of the images, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.
        seed: seed of the initial weights and of the batches.

    Raises:
        TypeError: not an experiment.
        ValueError: no epoch, or a number out of range.
        HBenchError: no data, or images that are too small or without labels.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_at_least(1, epochs=1 if epochs is None else epochs)
    check_seed(seed)
    data = experiment.data
    if not factors_of(data):
        raise HBenchError(f"{experiment.name}: its images carry no labels: use an experiment whose data set has some")
    if data.size < SMALLEST:
        raise HBenchError(f"data.size {data.size} is too small for a classifier: need at least {SMALLEST}")
    train, test = (load_set(data, data_root, split, download) for split in get_args(Split))
    assert train.labels is not None
    assert test.labels is not None
    accounts = {"data": train.account.to_json(), "test_data": test.account.to_json()}
    origin = provenance(experiment, torch.device("cpu"), seed, **accounts)
    trained = train_classifier(experiment, train.images, train.labels, epochs=epochs, seed=seed)
    trained = with_real_images(trained, train.labels, test.images, test.labels)
    found, real = heads_of(trained, test.images, test.labels), trained.real
    accuracy = {head.factor: head.accuracy for head in found}
    n_train, n_test = len(train.images), len(test.images)
    return TrainedClassifier(
        n_train=n_train,
        n_test=n_test,
        heads=found,
        metric=trained.metric,
        halves=real.halves,
        halves_interval=real.halves_interval,
        trained=trained,
        experiment=experiment,
        provenance=origin.finished(n_train=n_train, n_test=n_test, accuracy=accuracy, halves=real.halves),
    )


def recipe_for(factors: int) -> Recipe:
    """Return how a classifier of this number of factors is trained."""
    return LENET if factors == 1 else WIDE


@torch.random.fork_rng(devices=[])
def train_classifier(
    experiment: Experiment, images: Tensor, labels: Labels, *, epochs: int | None = None, seed: int = 0
) -> Classifier:
    """Return the classifier trained on uint8 images [N, C, H, W], on the sum of the cross entropies of all factors.

    It knows nothing of real test images yet, see :func:`with_real_images`.
    """
    recipe = recipe_for(len(labels.factors))
    epochs = epochs or recipe.epochs
    torch.manual_seed(seeds.initial_weights(seed))
    classes = [len(factor.classes) for factor in labels.factors]
    network = ClassifierNetwork(experiment.data.channels, experiment.data.size, classes, recipe.width)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    steps = epochs * math.ceil(len(images) / BATCH)

    def take_step(chosen: Tensor) -> dict[str, float]:
        logits = network(to_float(images[chosen]))
        columns = labels.values[chosen].T
        loss = torch.stack([F.cross_entropy(*each) for each in zip(logits, columns, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {}

    first = torch.arange(min(BATCH, len(images)))
    if len(first) > 1:
        _announce(steps, {"network": network, "optimizer": optimizer}, lambda step: take_step(first))
    schedule = None
    if recipe.decay:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps + 1, pct_start=0.05)
    for _ in progress(range(epochs), desc="classifier", unit="epoch"):
        for chosen in torch.randperm(len(images)).split(BATCH):
            if len(chosen) > 1:  # batch norm needs two
                take_step(chosen)
            if schedule:
                schedule.step()
    if recipe.dtype == "float16":  # all that is measured is then of the network as its file has it
        network.half().float()
    nothing = torch.full((network.FEATURES,), math.nan)
    unknown = RealImages(nothing, nothing.double().diag(), 0, math.nan)
    return Classifier(network.eval(), labels.factors, experiment.data, unknown)


@torch.random.fork_rng(devices=[])
def _announce(steps: int, parts: Parts, take_step: Callable[[int], dict[str, float]]) -> None:
    """Say how long the training takes, where progress is shown, by a few steps that are undone."""
    if steps < FEWEST or not is_asked_for():
        return
    with undone(parts):
        seconds, _ = timed_steps(take_step, torch.device("cpu"), steps)
    log.info("%s steps of %d images: about %s", f"{steps:,}", BATCH, duration(steps * seconds))


def with_real_images(trained: Classifier, learned: Labels, images: Tensor, labels: Labels) -> Classifier:
    """Return a classifier that keeps the statistics of real test images.

    Args:
        trained: the classifier.
        learned: labels of the images that it was trained on.
        images: test images, uint8 [N, C, H, W].
        labels: their labels.

    Raises:
        HBenchError: fewer than 6 test images.
    """
    found = classifier_features(trained, images)
    reference = real_reference(found)
    assert reference.halves_interval is not None
    mu, sigma = (torch.from_numpy(reference.statistics[name]) for name in ("mu", "sigma"))
    scale = found[:KEPT].amax(0).clamp(min=1e-6) / 255  # the features follow a ReLU, so none is negative
    real = RealImages(
        mu.float(),
        sigma.double(),
        reference.n,
        reference.halves,
        reference.halves_interval,
        learned.counts(),
        labels.counts(),
        (found[:KEPT] / scale).round().clamp(0, 255).to(torch.uint8),
        scale,
    )
    return Classifier(trained.network, trained.factors, trained.data, real)


@torch.no_grad()
def heads(trained: Classifier, images: Tensor, batch: int = 256) -> list[Tensor]:
    """Return the log-probabilities of the classes, float32 [N, classes] for each factor, on the CPU.

    Args:
        trained: the classifier.
        images: uint8 [N, C, H, W], or float in [-1, 1], clamped to that range.
        batch: images of a pass.
    """
    found = []
    for part in images.split(batch):
        floats = part.float().clamp(-1, 1) if part.is_floating_point() else to_float(part)
        found.append([logits.log_softmax(1) for logits in trained.network(floats.cpu())])
    return [torch.cat(of_factor) for of_factor in zip(*found, strict=True)]


def heads_of(trained: Classifier, images: Tensor, labels: Labels) -> list[Head]:
    """Return what each head recognises in images uint8 [N, C, H, W] with these labels."""
    found = []
    predictions = [each.argmax(1) for each in heads(trained, images)]
    for factor, truth, predicted in zip(labels.factors, labels.values.T, predictions, strict=True):
        counts = np.zeros((len(factor.classes), len(factor.classes)), dtype=int)
        np.add.at(counts, (truth.numpy(), predicted.numpy()), 1)
        n, right = len(images), int(counts.trace())
        found.append(
            Head(
                factor=factor.name,
                classes=list(factor.classes),
                accuracy=right / n,
                interval=wilson(right, n),
                majority=float(counts.sum(1).max() / n),
                confusion=counts.tolist(),
            )
        )
    return found


def _diagonal(counts: Confusion) -> list[int]:
    return [row[i] for i, row in enumerate(counts)]
