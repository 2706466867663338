"""Memory and time of a training, predicted from the parts of one step: arithmetic alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from hbench.config import Discovery, Experiment, Pretrain
from hbench.core.sampler import visited
from hbench.errors import HBenchError, counted
from hbench.runtime.distributed import local_world_size
from hbench.runtime.progress import duration
from hbench.store.records import Number

SHARE_OF_FREE = {"cuda": 0.9, "mps": 0.5, "cpu": 0.5}
"""Share of the free memory in the default budget, by kind of device; a CPU's memory is not training's alone, and a
Mac's GPU shares it."""


class DoesNotFitError(HBenchError):
    """Memory budget into which not even one training step fits."""


@dataclass(frozen=True)
class Pass:
    """Seconds of one generation step of a batch, and MiB of its graph."""

    forward: float
    """Seconds without a graph."""
    beside: float
    """Seconds without a graph, for raw and shifted samples at once."""
    both_ways: float
    """Seconds with a graph, and backward through it."""
    graph_mib: float
    """MiB of the graph."""
    kept: float | None = None
    """Seconds of ``both_ways`` of a step whose graph is kept, where those of a recomputed one are replayed."""


@dataclass(frozen=True)
class StepParts:
    """Parts of a training step, each measured by itself."""

    first: Pass
    """First shifted step, from x_T, which needs no gradient and is common to raw and shifted samples."""
    shifted: Pass
    """Later shifted step."""
    regular: Pass
    """Later regular step."""
    objective_mib: float
    """MiB of the graph of reconstructor and discriminator in the objective."""
    discriminator_mib: float
    """MiB of the graph of the discriminator's optimiser step."""
    node_mib: float
    """MiB of one node of the chain in the memory of the device; 0 where nodes wait in CPU memory instead."""
    other_seconds: float
    """Seconds of a whole step beside the generation steps: reconstructor, discriminator, optimisers."""


@dataclass(frozen=True)
class Probe(StepParts):
    """A training step, measured: its parts, and the memory of the whole."""

    free_mib: Number
    """MiB of the device that the process could take before its first step."""
    before_mib: float
    """MiB that it had on the GPU then; 0 on the CPU, where only the memory on top is counted."""
    other_mib: float
    """MiB of the peak on top of them that no graph and no node explains."""


@dataclass(frozen=True)
class Prediction:
    """Predicted memory and speed of one strategy at one M."""

    strategy: str
    M: int
    keep: int
    """Number of steps whose graphs are kept."""
    memory_mib: float
    """MiB as a sweep measures them: over those before the first step on the CPU, of the whole process on CUDA."""
    images_per_second: float


@dataclass(frozen=True)
class Whole:
    """Time and memory of a whole training, predicted."""

    stage: Literal["discovery", "pretraining"]
    steps: int
    batch_size: int
    strategy: str | None
    """Strategy of back-propagation; None for pretraining."""
    seconds: float
    """Seconds of all steps, with a discovery's pool and a pretraining's sample grids."""
    memory_mib: float

    def __str__(self) -> str:
        """Return the prediction in one line."""
        name, unit = ("this training", "pairs") if self.stage == "discovery" else ("its pretraining", "images")
        memory = f"{self.memory_mib:,.0f} MiB" + (f" with {self.strategy}" if self.strategy else "")
        return f"{name}: {counted(self.steps, 'step')} of {self.batch_size} {unit} = {duration(self.seconds)}, {memory}"


def passes(parts: StepParts, experiment: Experiment, M: int) -> list[Pass]:
    """Return the generation steps of a chain of M, x_T first."""
    shifted = [t >= experiment.discovery.t_shift for t in visited(experiment, M)]
    return [parts.first, *(parts.shifted if each else parts.regular for each in shifted[1:])]


def peak_mib(parts: StepParts, chain: Sequence[Pass], keep: int) -> tuple[float, float]:
    """Return the MiB of the graphs that a step holds at once at most, and of its nodes, with ``keep`` graphs kept."""
    recomputed, kept = chain[: len(chain) - keep], chain[len(chain) - keep :]
    largest = max((step.graph_mib for step in recomputed), default=0.0)
    others = max(sum(step.graph_mib for step in kept) + parts.objective_mib, parts.discriminator_mib)
    # the memory of a recording serves replays alone
    graphs = max(largest, others) if parts.shifted.kept is None else largest + others
    return graphs, len(recomputed) * parts.node_mib


def predict(probe: Probe, experiment: Experiment, M: int, keep: int, strategy: str) -> Prediction:
    """Return memory and speed of training with M steps of which the last ``keep`` graphs are kept."""
    settings = experiment.discovery
    chain = passes(probe, experiment, M)
    graphs, nodes = peak_mib(probe, chain, keep)
    memory = probe.before_mib + probe.other_mib + graphs + nodes
    recomputed = chain[: M - keep]
    seconds = probe.other_seconds + sum(step.both_ways for step in recomputed)
    seconds += sum(step.both_ways if step.kept is None else step.kept for step in chain[M - keep :])
    if settings.pool:
        seconds += sum(step.forward for step in recomputed)
    else:
        seconds += sum(step.beside for step in recomputed) + keep * probe.regular.forward
    return Prediction(strategy, M, keep, memory, settings.batch_size / seconds)


def whole_seconds(
    settings: Pretrain | Discovery,
    done: int,
    step: float,
    *,
    once: float = 0.0,
    checkpoint: float = 0.0,
    grid: float = 0.0,
) -> float:
    """Return the seconds of a training after ``done`` steps, from those of a step, a checkpoint and a sample grid."""

    def times(every: int) -> int:  # of what comes every so many steps and at the end
        return settings.steps // every - done // every + bool(settings.steps % every)

    grids = times(settings.sample_every) if isinstance(settings, Pretrain) else 0
    return once + (settings.steps - done) * step + times(settings.checkpoint_every) * checkpoint + grids * grid


def whole_discovery(probe: StepParts, experiment: Experiment, row: Prediction) -> Whole:
    """Return time and memory of an experiment's whole discovery, from the prediction for its M and strategy."""
    settings = experiment.discovery
    pool = settings.pool / settings.batch_size * sum(step.forward for step in passes(probe, experiment, settings.M))
    seconds = whole_seconds(settings, 0, settings.batch_size / row.images_per_second, once=pool)
    return Whole("discovery", settings.steps, settings.batch_size, row.strategy, seconds, row.memory_mib)


def predictions(probe: Probe, experiment: Experiment, Ms: Sequence[int], budget_mib: float) -> list[Prediction]:
    """Return the plan over M: ``node``, ``vanilla``, and ``auto`` where anything fits."""
    rows = [predict(probe, experiment, M, 0, "node") for M in Ms]
    rows += [predict(probe, experiment, M, M, "vanilla") for M in Ms]
    auto = [(M, best_keep(probe, experiment, M, budget_mib)) for M in Ms]
    return rows + [predict(probe, experiment, M, keep, "auto") for M, keep in auto if keep is not None]


def best_keep(probe: Probe, experiment: Experiment, M: int, budget_mib: float) -> int | None:
    """Return the number of graphs to keep, 0..M: as many as fit into the budget; None where not even one step does.

    Where recomputed steps are replayed, it is the fastest number that fits.
    """
    rows = [predict(probe, experiment, M, r, "auto") for r in range(M + 1)]
    fits = [row for row in rows if row.memory_mib <= budget_mib]
    if probe.shifted.kept is not None:
        fits.sort(key=lambda row: row.images_per_second)
    return fits[-1].keep if fits else None


def budget_of(experiment: Experiment, device: torch.device, probe: Probe) -> float:
    """Return the MiB that training may use: the experiment's ``memory_budget``, or a share of the free memory.

    The share comes on top of the memory that the process has on the GPU already.
    """
    if experiment.discovery.memory_budget is not None:
        return experiment.discovery.memory_budget * 1024
    sharing = local_world_size() if device.type == "cpu" else 1  # processes share no GPU
    return probe.before_mib + SHARE_OF_FREE[device.type] * probe.free_mib / sharing
