"""Experiments made from models: all that a discovery in a model of somebody else's needs."""

from pathlib import Path

import torch

from hbench.config import Experiment
from hbench.core.domain import h_deviation
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.runtime.device import pick_device
from hbench.store.model import load_model, model_experiment, model_file
from hbench.store.pipeline import experiment_of, find_pipeline, model_name
from hbench.store.weights import carries_experiment

SAMPLES, STEPS = 2, 10
"""Samples over which the size of h_t is measured, and their generation steps."""


def import_model(
    path: str | Path,
    name: str | None = None,
    *,
    class_label: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Experiment:
    """Return an experiment for directions in a model, with its network, its noise schedule and its place.

    The discovery suits the size of the model's images; its ``h_scale`` is the standard deviation of h_t. An experiment
    that the model carries stays as it is. Cost: a generation of two samples in ten steps.

    Args:
        path: model, as for :func:`load_model`.
        name: name of the experiment; by default that of the model.
        class_label: class of a class-conditional model.
        seed: seed of the samples.
        device: device to generate on; "auto" is a GPU where there is one, else the CPU.

    Raises:
        HBenchError: no such model, a state dict, which does not know its settings, or none that hbench has.
    """
    name, device = name or model_name(path), pick_device(device)
    pipeline = find_pipeline(path)
    if not pipeline and not carries_experiment(model_file(path)):
        raise HBenchError(
            f"{path}: a state dict does not know its settings: write its experiment by hand, from the flags of its "
            "training, as docs/guide.md shows"
        )
    found = experiment_of(pipeline, name, class_label) if pipeline else model_experiment(path)
    found = found.model_copy(update={"name": name, "model": found.model.model_copy(update={"path": str(path)})})
    model = load_model(path, found, device=device)
    if not pipeline:
        return found
    sampler = Sampler.of(found, model, device, M=min(STEPS, found.diffusion.T))
    deviation = h_deviation(sampler, sampler.noise(SAMPLES, seed=seed))
    if not 0 < deviation < 1e6:
        raise HBenchError(f"{path}: h_t of its samples has a standard deviation of {deviation}: give a trained model")
    discovery = found.discovery.model_copy(update={"h_scale": float(f"{deviation:.2g}")})
    return found.model_copy(update={"discovery": discovery})
