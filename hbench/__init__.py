"""Interpretable directions in the h-space of frozen, pretrained diffusion models, and measures of their quality.

Names are loaded when they are first used, so that ``import hbench`` imports no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hbench.config import Experiment as Experiment
    from hbench.core.backbone import Backbone as Backbone
    from hbench.core.chain import backpropagate as backpropagate
    from hbench.core.sampler import Sampler as Sampler
    from hbench.errors import HBenchError as HBenchError
    from hbench.evaluation import evaluate as evaluate
    from hbench.evaluation.export import export as export
    from hbench.evaluation.find.find import find as find
    from hbench.experiments import load_experiment as load_experiment
    from hbench.reporting.artifacts import plot as plot
    from hbench.reporting.explore import explore as explore
    from hbench.reporting.share import share as share
    from hbench.runtime.progress import show_progress as show_progress
    from hbench.runtime.threads import choose_threads as choose_threads
    from hbench.store.datasets import load_images as load_images
    from hbench.store.datasets import load_set as load_set
    from hbench.store.datasets import read_images as read_images
    from hbench.store.directions import direction_source as direction_source
    from hbench.store.directions import directions_run as directions_run
    from hbench.store.directions_file import StoredDirections as StoredDirections
    from hbench.store.directions_file import model_sha256 as model_sha256
    from hbench.store.directions_file import read_directions as read_directions
    from hbench.store.imported import import_model as import_model
    from hbench.store.labels import Factor as Factor
    from hbench.store.labels import Labels as Labels
    from hbench.store.model import load_model as load_model
    from hbench.store.pictures import Grid as Grid
    from hbench.store.registry import DataSet as DataSet
    from hbench.store.registry import Pictures as Pictures
    from hbench.store.registry import Wanted as Wanted
    from hbench.store.run import Run as Run
    from hbench.store.run import load_run as load_run
    from hbench.training.discover import train as train
    from hbench.training.pretrain import pretrain as pretrain
    from hbench.training.reconstruct import reconstruct as reconstruct

__version__ = "0.2.0"

_HOME = {
    "load_run": "hbench.store.run",
    "Run": "hbench.store.run",
    "Grid": "hbench.store.pictures",
    "direction_source": "hbench.store.directions",
    "directions_run": "hbench.store.directions",
    "export": "hbench.evaluation.export",
    "share": "hbench.reporting.share",
    "find": "hbench.evaluation.find.find",
    "read_directions": "hbench.store.directions_file",
    "StoredDirections": "hbench.store.directions_file",
    "model_sha256": "hbench.store.directions_file",
    "evaluate": "hbench.evaluation",
    "plot": "hbench.reporting.artifacts",
    "explore": "hbench.reporting.explore",
    "load_experiment": "hbench.experiments",
    "Experiment": "hbench.config",
    "load_images": "hbench.store.datasets",
    "load_set": "hbench.store.datasets",
    "read_images": "hbench.store.datasets",
    "Labels": "hbench.store.labels",
    "Factor": "hbench.store.labels",
    "DataSet": "hbench.store.registry",
    "Wanted": "hbench.store.registry",
    "Pictures": "hbench.store.registry",
    "pretrain": "hbench.training.pretrain",
    "train": "hbench.training.discover",
    "reconstruct": "hbench.training.reconstruct",
    "load_model": "hbench.store.model",
    "import_model": "hbench.store.imported",
    "Backbone": "hbench.core.backbone",
    "Sampler": "hbench.core.sampler",
    "backpropagate": "hbench.core.chain",
    "show_progress": "hbench.runtime.progress",
    "choose_threads": "hbench.runtime.threads",
    "HBenchError": "hbench.errors",
}
"""Modules of the public names, in the order of docs/api.md."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hbench' has no attribute {name!r}")
    home = _HOME[name]
    value = import_module(f"{home}.evaluate") if name == "evaluate" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
