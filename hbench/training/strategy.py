"""The back-propagation strategy that "auto" stands for: "node" with as many graphs as pay and fit into the budget.

Every graph pays, unless recomputed steps are replayed as CUDA graphs: then the times decide.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from hbench.config import Experiment
from hbench.core.chain import Nodes
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.runtime.distributed import all_gather, rank, world_size
from hbench.runtime.memory import UnknownMemoryError
from hbench.store.records import Count, Positive, Record
from hbench.training.cost import DoesNotFitError, Probe, best_keep, budget_of, predict
from hbench.training.probe import measure, measure_apart

log = logging.getLogger(__name__)

STRATEGY = "strategy.json"
"""Name of the file that keeps a training's choice."""
ONE_GRAPH = ("one-step", "per-step")
"""Gradients that hold the graph of one step, whatever the strategy is."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Everything that the choice of a strategy depends on, the free memory apart."""

    memory_budget: float | None
    checkpoint_blocks: bool
    processes: Positive
    device: str
    nodes: Nodes = "device"


@dataclass(frozen=True, kw_only=True)
class Choice(Record):
    """Choice of "auto" in a training, so that one that goes on gets the same bits."""

    SCHEMA: ClassVar[int] = 2

    asked: Question
    keep: Count
    """Number of steps whose graphs are kept."""


def resolve(experiment: Experiment, sampler: Sampler, seed: int) -> Experiment:
    """Return the experiment with "auto" replaced by what fits into its memory budget, for training with this sampler.

    The replacement is "node" with no graph kept where NVML does not say how much memory is used. Cost: with "auto", two
    short training steps of throw-away networks and some passes; else nothing.

    Raises:
        DoesNotFitError: not even one step fits, on one of the processes.
        HBenchError: "offload" without a GPU.
    """
    settings = experiment.discovery
    if settings.gradient in ONE_GRAPH:
        return with_keep(experiment, 0)
    if settings.strategy == "offload" and sampler.device.type != "cuda":
        raise HBenchError(
            'discovery.strategy = "offload" moves graphs from CUDA\'s memory to the CPU\'s: take "auto" here'
        )
    if settings.strategy != "auto":
        return experiment
    keeps, refusals = zip(*all_gather([keep_or_refusal(experiment, sampler, seed)]), strict=True)
    for refusal in refusals:  # raised together: a process that goes on alone would wait for the others
        if refusal:
            raise DoesNotFitError(refusal)
    return with_keep(experiment, min(keeps))


def keep_or_refusal(experiment: Experiment, sampler: Sampler, seed: int) -> tuple[int, str | None]:
    """Return how many graphs fit on this process, and why not even one step does, or None."""
    try:
        probe = measure(experiment, sampler, seed, repeats=0)
    except UnknownMemoryError as error:
        log.warning('%s; until then "auto" is "node"', error)
        return 0, None
    try:
        return fitting_keep(probe, experiment, budget_of(experiment, sampler.device, probe)), None
    except DoesNotFitError as error:
        return 0, str(error)


def resolve_once(experiment: Experiment, sampler: Sampler, seed: int, out: Path) -> Experiment:
    """Return the experiment of :func:`resolve`, and note the choice in ``out``: going on there gives the same bits.

    The choice is made anew for another budget, number of processes, kind of device or place of nodes.
    """
    settings, device = experiment.discovery, sampler.device
    if settings.strategy != "auto":
        return resolve(experiment, sampler, seed)
    asked = Question(
        memory_budget=settings.memory_budget,
        checkpoint_blocks=settings.checkpoint_blocks,
        processes=world_size(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        nodes=settings.nodes,
    )
    path = out / STRATEGY
    noted = Choice.read(path, "remove it, and it is chosen anew") if path.is_file() else None
    keep = noted.keep if noted and noted.asked == asked and noted.keep in range(settings.M + 1) else None
    keeps = all_gather([keep])  # together: to choose anew takes all processes
    if keep is not None and None not in keeps:
        return with_keep(experiment, keep)
    running = resolve(experiment, sampler, seed)
    if rank() == 0:
        Choice(asked=asked, keep=running.discovery.keep).write(path)
    return running


def resolve_apart(experiment: Experiment, device: str, seed: int, limit_mib: float | None = None) -> Experiment:
    """Return the experiment of :func:`resolve`, found out in a fresh process, for a training with initial weights.

    Raises:
        DoesNotFitError: not even one step fits into the budget, or into ``limit_mib``.
        HBenchError: the probe failed.
    """
    if experiment.discovery.gradient in ONE_GRAPH:
        return with_keep(experiment, 0)
    probe = measure_apart(experiment, device, seed, repeats=0)
    budget = budget_of(experiment, torch.device(device), probe)
    return with_keep(
        experiment, fitting_keep(probe, experiment, budget if limit_mib is None else min(budget, limit_mib))
    )


def with_keep(experiment: Experiment, keep: int) -> Experiment:
    """Return the experiment with "auto" replaced by "node" that keeps ``keep`` graphs; other strategies stay."""
    if experiment.discovery.strategy != "auto":
        return experiment
    replaced = {"strategy": "node", "keep": keep, "memory_budget": None}
    return experiment.model_copy(update={"discovery": experiment.discovery.model_copy(update=replaced)})


def fitting_keep(probe: Probe, experiment: Experiment, budget_mib: float) -> int:
    """Return how many graphs fit into the budget.

    Raises:
        DoesNotFitError: not even one step fits.
    """
    keep = best_keep(probe, experiment, experiment.discovery.M, budget_mib)
    if keep is None:
        raise DoesNotFitError(what_would_fit(probe, experiment, budget_mib))
    return keep


def what_would_fit(probe: Probe, experiment: Experiment, budget_mib: float) -> str:
    """Return advice, in one line, for a budget into which no strategy fits."""
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
