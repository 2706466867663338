"""Digit LeNets on disk, as safetensors that carry the statistics of the real test set."""

from pathlib import Path

from safetensors.torch import load_file

from hbench.config import Data, Experiment
from hbench.errors import HBenchError
from hbench.models.digit_lenet import DigitLeNet
from hbench.store.places import experiment_folders
from hbench.store.provenance import checked_sha256
from hbench.store.registry import factors_of
from hbench.store.shipped import SHIPPED
from hbench.store.weights import load_tensors, read_experiment, read_metadata

FILE = "lenet.safetensors"
"""Name of the file in a folder of results."""
ROLE = "lenet"
"""Role in such a file."""
SHIPPED_LENET = SHIPPED / "mnist16" / FILE
"""The LeNet that hbench ships, trained on MNIST at 16 pixels."""


def load_lenet(path: Path) -> DigitLeNet:
    """Return the classifier in a file, in eval mode, on the CPU.

    Raises:
        HBenchError: missing or damaged file, one that holds something else, or not the one of the provenance beside it.
    """
    if (found := read_metadata(path).get("role")) != ROLE:
        raise HBenchError(f"{path}: holds {found or 'foreign weights'}, need a LeNet: train one and give its file")
    checked_sha256(path)
    data = read_experiment(path).data
    tensors = load_file(path)
    lenet = DigitLeNet(data.channels, data.size, len(tensors.get("head.3.bias", ())))
    load_tensors(lenet, tensors, str(path))
    return lenet.eval()


def lenet_for(experiment: Experiment, around: Path | None = None) -> Path | None:
    """Return the LeNet for an experiment's images: the shipped one where it fits, else that in its folder, else None.

    Args:
        experiment: experiment of the images.
        around: run of the experiment, beside which the LeNet may lie too.
    """
    if not factors_of(experiment.data):
        return None
    own = [folder / "lenet" / FILE for folder in experiment_folders(experiment.name, around)]
    return next((path for path in (SHIPPED_LENET, *own) if path.is_file() and fits(path, experiment.data)), None)


def fits(path: Path, data: Data) -> bool:
    """Return whether the LeNet in a file was trained on images of this kind: data set, size and channels.

    Raises:
        HBenchError: missing or damaged file, or not the one of the provenance beside it.
    """
    trained_on = read_experiment(path).data
    checked_sha256(path)  # before hours of work that end with it
    return (trained_on.dataset, trained_on.size, trained_on.channels) == (data.dataset, data.size, data.channels)
