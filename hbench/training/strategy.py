"""The back-propagation strategy that "auto" stands for: what fits into the memory budget."""

import logging
from pathlib import Path
from typing import Any

import torch

from hbench.config import Experiment
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.runtime.distributed import all_gather, rank, world_size
from hbench.runtime.memory import UnknownMemoryError
from hbench.store.files import read_json, write_json
from hbench.training.cost import DoesNotFitError, Probe, budget_of, largest_keep, predict
from hbench.training.probe import measure, measure_apart

log = logging.getLogger(__name__)


def resolve(experiment: Experiment, sampler: Sampler, seed: int) -> Experiment:
    """Return the experiment with "auto" replaced by the strategy that fits into its memory budget.

    The replacement is "node" where NVML does not say how much memory is used. Cost: with "auto", two short training
    steps of throw-away networks and some passes; else nothing.

    Raises:
        DoesNotFitError: not even one step fits, on one of the processes.
        HBenchError: "offload" without a GPU.
    """
    settings = experiment.discovery
    device = sampler.device
    if settings.gradient == "per-step":
        return chosen(experiment, 0)
    if settings.strategy == "offload" and device.type == "cpu":
        raise HBenchError('discovery.strategy = "offload" moves graphs to the CPU, and this is one: take "auto"')
    if settings.strategy != "auto":
        return experiment
    here: int | str = 0
    try:
        probe = measure(experiment, sampler, seed, repeats=0)
    except UnknownMemoryError as error:
        log.warning('%s; until then "auto" is "node"', error)
    else:
        budget = budget_of(experiment, device, probe)
        keep = largest_keep(probe, experiment, settings.M, budget)
        here = what_would_fit(probe, experiment, budget) if keep is None else keep
    found = all_gather([here])
    if refusals := [each for each in found if isinstance(each, str)]:
        raise DoesNotFitError(refusals[0])
    return chosen(experiment, min(each for each in found if isinstance(each, int)))


def resolve_once(experiment: Experiment, sampler: Sampler, seed: int, out: Path) -> Experiment:
    """Return the :func:`resolve` of a training, and note it in its folder, so that a resumed one gets the same bits.

    Another budget, number of processes or kind of device makes it measure anew.
    """
    settings = experiment.discovery
    if settings.strategy != "auto":
        return resolve(experiment, sampler, seed)
    device = sampler.device
    asked = {
        "memory_budget": settings.memory_budget,
        "checkpoint_blocks": settings.checkpoint_blocks,
        "processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    note = out / "strategy.json"
    noted: Any = read_json(note) if note.is_file() else None
    keep: Any = noted.get("keep") if isinstance(noted, dict) and noted.get("asked") == asked else None
    if all(all_gather([keep in range(settings.M + 1)])):  # together: a new measurement takes all processes
        return chosen(experiment, keep)
    running = resolve(experiment, sampler, seed)
    if rank() == 0:
        write_json(note, {"asked": asked, "keep": running.discovery.keep})
    return running


def resolve_apart(experiment: Experiment, device: str, seed: int, limit_mib: float | None = None) -> Experiment:
    """Return the experiment as :func:`resolve` does, measured in a fresh process, for a training with initial weights.

    Args:
        experiment: settings of the training.
        device: device of the training.
        seed: random seed.
        limit_mib: upper bound of the memory budget.

    Raises:
        DoesNotFitError: not even one step fits.
    """
    if experiment.discovery.gradient == "per-step":
        return chosen(experiment, 0)
    probe = measure_apart(experiment, device, seed, repeats=0)
    budget = budget_of(experiment, torch.device(device), probe)
    budget = budget if limit_mib is None else min(budget, limit_mib)
    keep = largest_keep(probe, experiment, experiment.discovery.M, budget)
    if keep is None:
        raise DoesNotFitError(what_would_fit(probe, experiment, budget))
    return chosen(experiment, keep)


def chosen(experiment: Experiment, keep: int) -> Experiment:
    """Return the experiment with "auto" replaced by "node" that keeps ``keep`` graphs; other strategies stay."""
    if experiment.discovery.strategy != "auto":
        return experiment
    replaced = {"strategy": "node", "keep": keep, "memory_budget": None}
    return experiment.model_copy(update={"discovery": experiment.discovery.model_copy(update=replaced)})


def what_would_fit(probe: Probe, experiment: Experiment, budget_mib: float) -> str:
    """Return the advice for a budget into which no strategy fits, in one line."""
    settings = experiment.discovery
    needed = predict(probe, experiment, settings.M, 0, "node").memory_mib
    smaller = int(settings.batch_size * budget_mib / needed) // world_size() * world_size()
    advice = f"discovery.batch_size={smaller}" if smaller >= 2 else "a smaller discovery.batch_size"
    if not settings.checkpoint_blocks:
        advice += " or discovery.checkpoint_blocks=true"
    return (
        f"one training step needs {needed:,.0f} MiB even with one graph at a time, and the memory budget is "
        f"{budget_mib:,.0f} MiB: try {advice}, or a larger discovery.memory_budget"
    )
