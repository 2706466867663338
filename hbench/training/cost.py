"""Memory and time of a training, predicted from the parts of one step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hbench.config import Experiment
from hbench.core.sampler import visited
from hbench.errors import HBenchError
from hbench.runtime.distributed import local_world_size
from hbench.store.records import Number


class DoesNotFitError(HBenchError):
    """Not even one training step fits into the memory budget."""


SHARE_OF_FREE = {"cuda": 0.9, "cpu": 0.5}
"""The default memory budget; a CPU's memory is not training's alone."""


@dataclass(frozen=True)
class Pass:
    """Seconds of one generation step of a batch, and MiB of its graph."""

    forward: float
    """Without a graph."""
    beside: float
    """Without a graph, for raw and shifted samples at once."""
    both_ways: float
    """With a graph, and backward through it."""
    graph_mib: float


@dataclass(frozen=True)
class Probe:
    """What a training step is made of, measured."""

    first: Pass
    """The first shifted step, from x_T, which needs no gradient and is common to raw and shifted samples."""
    shifted: Pass
    regular: Pass
    objective_mib: float
    """Graph of reconstructor and discriminator in the objective."""
    discriminator_mib: float
    """Graph of the discriminator's own step."""
    node_mib: float
    """One node of the chain."""
    free_mib: Number
    """What the process could take of the device's memory before its first step."""
    before_mib: float
    """What it had on the GPU then; 0 on the CPU, where only what comes on top is counted."""
    other_mib: float
    """Of the measured peak on top of that, what no graph and no node explains."""
    other_seconds: float
    """Of a whole step, all but the generation steps: reconstructor, discriminator, optimisers."""


@dataclass(frozen=True)
class Prediction:
    """One line of the plan."""

    strategy: str
    M: int
    keep: int
    """Steps of which the graph is kept."""
    memory_mib: float
    """As in ``hbench vram-sweep``: over the memory before the first step on the CPU, of the whole process on CUDA."""
    images_per_second: float


def predict(probe: Probe, experiment: Experiment, M: int, keep: int, strategy: str) -> Prediction:
    """Memory and speed of training with M steps of which the last ``keep`` graphs are kept."""
    settings = experiment.discovery
    shifted = [t >= settings.t_shift for t in visited(experiment, M)]
    steps = [probe.first, *(probe.shifted if each else probe.regular for each in shifted[1:])]
    recomputed, kept = steps[: M - keep], steps[M - keep :]
    graphs = max(
        sum(step.graph_mib for step in kept) + probe.objective_mib,
        max((step.graph_mib for step in recomputed), default=0.0),
        probe.discriminator_mib,
    )
    seconds = probe.other_seconds + sum(step.both_ways for step in steps)
    if settings.pool:
        seconds += sum(step.forward for step in recomputed)
    else:
        seconds += sum(step.beside for step in recomputed) + keep * probe.regular.forward
    memory = probe.before_mib + probe.other_mib + graphs + len(recomputed) * probe.node_mib
    return Prediction(strategy, M, keep, memory, settings.batch_size / seconds)


def predictions(probe: Probe, experiment: Experiment, Ms: Sequence[int], budget_mib: float) -> list[Prediction]:
    """The plan over M: ``node``, ``vanilla``, and what ``auto`` takes where anything fits."""
    rows = [predict(probe, experiment, M, 0, "node") for M in Ms]
    rows += [predict(probe, experiment, M, M, "vanilla") for M in Ms]
    auto = [(M, largest_keep(probe, experiment, M, budget_mib)) for M in Ms]
    return rows + [predict(probe, experiment, M, keep, "auto") for M, keep in auto if keep is not None]


def largest_keep(probe: Probe, experiment: Experiment, M: int, budget_mib: float) -> int | None:
    """The most graphs that fit into the budget, 0..M; None where not even one step does."""
    fits = [r for r in range(M + 1) if predict(probe, experiment, M, r, "auto").memory_mib <= budget_mib]
    return max(fits, default=None)


def budget_of(experiment: Experiment, device: torch.device, probe: Probe) -> float:
    """MiB that training may use: the experiment's ``memory_budget``, or a share of what is free.

    To the latter comes what the process has on the GPU already.
    """
    if experiment.discovery.memory_budget is not None:
        return experiment.discovery.memory_budget * 1024
    sharing = local_world_size() if device.type == "cpu" else 1  # each process has a GPU of its own
    return probe.before_mib + SHARE_OF_FREE[device.type] * probe.free_mib / sharing
