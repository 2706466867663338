"""Classifiers of labelled images on disk, as safetensors that carry what is known of the real test images.

A file holds the network, the names of factors and classes, mean and covariance of the features of the real test set,
the number of images of each class, and some real features for measures of neighbours; so distances, and the balance of
classes, are measured where no data set is at hand. Files of hbench 0.1, ``lenet.safetensors``, hold a network of one
factor, the digit, with mean and covariance alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from hbench.config import Data, Experiment
from hbench.errors import HBenchError
from hbench.models.classifier import SMALLEST, ClassifierNetwork
from hbench.store.labels import Factor
from hbench.store.places import experiment_folders
from hbench.store.provenance import checked_sha256
from hbench.store.registry import DIGIT, factors_of
from hbench.store.shipped import SHIPPED
from hbench.store.weights import check_finite, load_tensors, read_experiment, read_metadata, save_weights

FILE = "classifier.safetensors"
"""Name of the file in a folder of results, and in that of a shipped run."""
ROLE = "classifier"
"""Role in such a file."""
LENET_FILE, LENET_ROLE = "lenet.safetensors", "lenet"
"""Name and role of the files of hbench 0.1."""
LENET_METRIC = "FD (LeNet digits)"
"""Name of a Fréchet distance in the features of a classifier of digits, since hbench 0.1."""
REAL = "real_"
"""Beginning of the names of the tensors that are no weights."""
TRIANGLE = tuple(torch.triu_indices(ClassifierNetwork.FEATURES, ClassifierNetwork.FEATURES))
"""Indices of the upper triangle of a covariance, which is all that a file keeps of it."""


@dataclass(frozen=True, eq=False)
class RealImages:
    """What a file keeps of the images that its classifier learned, and of the real test images."""

    mu: Tensor
    """Mean of the features of the test images, float32 or float64 [120]."""
    sigma: Tensor
    """Covariance of the same, float64 [120, 120]."""
    n: int
    """Number of test images."""
    halves: float
    """Fréchet distance between two random halves of the test images."""
    halves_interval: tuple[float, float] | None = None
    """95 % interval of ``halves``; None in files of hbench 0.1, as all fields below."""
    train_counts: tuple[Tensor, ...] | None = None
    """Number of training images of each class, int64 [classes] for each factor."""
    test_counts: tuple[Tensor, ...] | None = None
    """Number of test images of each class."""
    rows: Tensor | None = None
    """Features of the first test images in 8 bits, uint8 [rows, 120]; precision and recall on them are the same."""
    scale: Tensor | None = None
    """Size of one step of each feature's 8 bits, float32 [120]."""

    @property
    def features(self) -> Tensor | None:
        """Features of the first test images, float32 [rows, 120], for measures of neighbours; None as above."""
        return None if self.rows is None or self.scale is None else self.rows * self.scale


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier, in eval mode, on the CPU."""

    network: ClassifierNetwork
    factors: tuple[Factor, ...]
    """Factor of each head."""
    data: Data
    """Kind of the images that it knows."""
    real: RealImages

    @property
    def metric(self) -> str:
        """Name of a Fréchet distance in its features."""
        return metric_of(self.data)


def are_digits(data: Data) -> bool:
    """Return whether the images are digits, whose distances go by the name that hbench 0.1 gave them."""
    return factors_of(data) == (DIGIT,)


def metric_of(data: Data) -> str:
    """Return the name of a Fréchet distance in the features of a classifier of these images."""
    return LENET_METRIC if are_digits(data) else f"FD ({data.label} classifier)"


def save_classifier(path: Path, classifier: Classifier, experiment: Experiment, dtype: str = "float32") -> None:
    """Write a classifier, its weights in the given precision, as they must be already: statistics depend on them."""
    real = classifier.real
    assert real.halves_interval is not None
    assert real.train_counts is not None
    assert real.test_counts is not None
    assert real.rows is not None
    assert real.scale is not None
    beside = {
        "mu": real.mu.float(),
        "sigma": real.sigma.float()[TRIANGLE],
        "n": torch.tensor(real.n),
        "halves": torch.tensor(real.halves),
        "halves_interval": torch.tensor(real.halves_interval),
        "train_counts": torch.cat(real.train_counts).int(),
        "test_counts": torch.cat(real.test_counts).int(),
        "rows": real.rows,
        "scale": real.scale,
    }
    names = json.dumps([{"name": factor.name, "classes": factor.classes} for factor in classifier.factors])
    save_weights(
        path,
        classifier.network,
        experiment,
        ROLE,
        dtype,
        beside={f"{REAL}{name}": value.contiguous() for name, value in beside.items()},
        facts={"factors": names},
    )


def load_classifier(path: Path) -> Classifier:
    """Return the classifier in a file, in eval mode, on the CPU.

    Raises:
        HBenchError: missing or damaged file, one that holds something else, or not the one of the provenance beside it.
    """
    metadata = read_metadata(path)
    found = metadata.get("role")
    if found not in (ROLE, LENET_ROLE):
        raise HBenchError(f"{path}: holds {found or 'foreign weights'}, need a classifier: train one and give its file")
    checked_sha256(path)
    data, tensors = read_experiment(path).data, load_file(path)
    kept = {name.removeprefix(REAL): tensors.pop(name) for name in list(tensors) if name.startswith(REAL)}
    factors = _factors(metadata, path) if found == ROLE else (DIGIT,)
    if data.size < SMALLEST:
        raise HBenchError(f"{path}: damaged: its images have {data.size} pixels, fewer than a classifier takes")
    first = tensors.get("backbone.0.weight", torch.empty(6))
    width = max(1, len(first) // 6) if first.ndim else 1
    network = ClassifierNetwork(data.channels, data.size, [len(each.classes) for each in factors], width)
    load_tensors(network, tensors, str(path))
    return Classifier(network.eval(), factors, data, _real(kept, network.classes, path))


def _factors(metadata: dict[str, str], path: Path) -> tuple[Factor, ...]:
    """Return the factors that the metadata name.

    Raises:
        HBenchError: there are none, or they are no lists of names.
    """
    try:
        values = json.loads(metadata["factors"])
        factors = tuple(Factor(str(each["name"]), tuple(map(str, each["classes"]))) for each in values)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise HBenchError(f"{path}: names no factors, so it is damaged: train the classifier again") from error
    if not factors or any(len(each.classes) < 2 for each in factors):
        raise HBenchError(f"{path}: names a factor of fewer than two classes, so it is damaged: train it again")
    return factors


def _real(kept: dict[str, Tensor], classes: tuple[int, ...], path: Path) -> RealImages:
    """Return what a file keeps of the real images, after a check of its names and shapes.

    Raises:
        HBenchError: something is missing, or has another shape.
    """
    D = ClassifierNetwork.FEATURES
    needed: dict[str, tuple[int, ...]] = {"mu": (D,), "sigma": (D, D), "n": (), "halves": ()}
    if len(kept) > len(needed):
        needed |= {"sigma": (D * (D + 1) // 2,), "halves_interval": (2,)}
        needed |= {"train_counts": (sum(classes),), "test_counts": (sum(classes),)}
        needed |= {"rows": (len(kept.get("rows", ())), D), "scale": (D,)}
    found = {name: tuple(value.shape) for name, value in kept.items()}
    if differing := sorted(name for name in needed | found if needed.get(name) != found.get(name)):
        raise HBenchError(f"{path}: its statistics are damaged ({', '.join(differing)}): train the classifier again")
    check_finite(kept, str(path), "it is damaged: train the classifier again")
    sigma = kept["sigma"].double()
    real = RealImages(kept["mu"].float(), sigma, int(kept["n"]), float(kept["halves"]))
    if "rows" not in kept:
        return real
    whole = torch.zeros(D, D, dtype=torch.float64)
    whole[TRIANGLE] = sigma
    low, high = kept["halves_interval"].tolist()
    return replace(
        real,
        sigma=whole + whole.triu(1).T,
        halves_interval=(low, high),
        train_counts=kept["train_counts"].long().split(classes),
        test_counts=kept["test_counts"].long().split(classes),
        rows=kept["rows"],
        scale=kept["scale"].float(),
    )


def shipped_classifier(data: Data) -> Path | None:
    """Return the file of the shipped classifier that knows images of this kind; None if there is none.

    Raises:
        HBenchError: it is not the one of the provenance beside it.
    """
    return next((path for path in _files(sorted(SHIPPED.iterdir())) if fits(path, data)), None)


def classifier_for(experiment: Experiment, around: Path | None = None) -> Path | None:
    """Return the classifier of an experiment's images: a shipped one where it fits, else that in its folder, else None.

    Args:
        experiment: experiment of the images.
        around: run of the experiment, beside which the classifier may lie too.
    """
    if not factors_of(experiment.data):
        return None
    if shipped := shipped_classifier(experiment.data):
        return shipped
    folders = experiment_folders(experiment.name, around)
    own = _files([folder / name for folder in folders for name in (ROLE, LENET_ROLE)])
    return next((path for path in own if fits(path, experiment.data)), None)


def _files(folders: list[Path]) -> Iterator[Path]:
    """Yield the files of classifiers in folders, those of hbench 0.1 last in each."""
    yield from (path for folder in folders for name in (FILE, LENET_FILE) if (path := folder / name).is_file())


def fits(path: Path, data: Data) -> bool:
    """Return whether the classifier in a file was trained on images of this kind: data set, size and channels.

    Raises:
        HBenchError: missing or damaged file, or one that fits and is not the one of the provenance beside it.
    """
    if not is_same_kind(read_experiment(path).data, data):
        return False
    checked_sha256(path)  # before hours of work that end with it
    return True


def is_same_kind(trained_on: Data, data: Data) -> bool:
    """Return whether images are of the kind that a classifier was trained on: data set, size and channels."""
    return (trained_on.dataset, trained_on.size, trained_on.channels) == (data.dataset, data.size, data.channels)
