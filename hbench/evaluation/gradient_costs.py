"""Costs of training steps with cheap gradients: memory in fresh processes, time in turns, and steps of equal time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
from pydantic import Field

from hbench.config import Experiment
from hbench.core.approximations import check_reached
from hbench.core.backbone import DiffusionModel
from hbench.core.sampler import Sampler, visited
from hbench.errors import HBenchError
from hbench.evaluation.sweep_cells import WARM_UP, Cell, measure_apart
from hbench.experiments import parse_experiment
from hbench.runtime.device import wall_seconds
from hbench.runtime.progress import progress
from hbench.store.records import Nonnegative, Positive, Record
from hbench.training.freeze import freeze
from hbench.training.step import initial, raw_pairs, train_step

EXACT = "exact"
"""Name of the exact gradient: that of the strategy "vanilla", and the training by the faster exact strategy."""
NODE = "node"
"""Name of the exact gradient node by node, which equals the other up to rounding."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a training step with one gradient, and the training of equal time that follows from it."""

    method: str
    strategy: str
    """Strategy of back-propagation; "one-step" and "per-step" hold the graph of one step in any case."""
    seconds: Nonnegative
    """Median of ``step_seconds``; nan, as the other numbers, where ``reason`` says why there is none."""
    step_seconds: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Wall time of each timed step."""
    memory_mib: Nonnegative
    """Memory of a training step, as ``memory_source`` tells."""
    memory_source: str | None = None
    saved_tensors_mib: Nonnegative
    """Bytes that autograd holds at most at one time, exactly, in MiB; on the CPU only."""
    steps: Positive | None = None
    """Steps of the training that takes as long as the exact one; None where nothing is trained."""
    reason: str | None = None
    """Reason for there being no number, in words."""


@dataclass(frozen=True, kw_only=True)
class GradientCosts(Record):
    """Costs of all gradients, kept so that trainings which go on have the same numbers of steps."""

    experiment: dict[str, Any]
    device: str
    costs: list[Cost]


def changed(experiment: Experiment, **discovery: Any) -> Experiment:
    """Return the experiment with the exact gradient by "vanilla", or with other settings of the discovery."""
    values = experiment.model_dump()
    values["discovery"] |= {"gradient": "chain", "last_steps": None, "strategy": "vanilla", "keep": 0}
    values["discovery"] |= {"nodes": "device", "memory_budget": None, **discovery}
    return parse_experiment(values, experiment.name)


def costs_of(
    experiments: Mapping[str, Experiment],
    model: DiffusionModel,
    file: Path,
    repeats: int,
    seed: int,
    device: torch.device,
) -> list[Cost]:
    """Measure the cost of each gradient, and keep it in a file; costs that are there already are read.

    Raises:
        HBenchError: the file has the costs of other settings, or the exact gradient has none.
    """
    exact = experiments[EXACT]
    if file.is_file():
        kept = GradientCosts.read(file, "remove it, and the costs are measured anew")
        names = [cost.method for cost in kept.costs]
        if (kept.experiment, kept.device, names) != (exact.model_dump(mode="json"), str(device), list(experiments)):
            raise HBenchError(f"{file}: was measured with other settings, gradients or device: choose another `out`")
        return kept.costs
    # a step with a pool makes no raw samples, and a pool of one batch is enough for it
    pooled = {
        name: changed(
            each, **each.discovery.model_dump() | {"pool": min(each.discovery.pool, each.discovery.batch_size)}
        )
        for name, each in experiments.items()
    }
    costs = [
        memory_of(name, each, seed, device) for name, each in progress(pooled.items(), desc="memory", unit="gradient")
    ]
    fitting = [cost.method for cost in costs if not cost.reason]
    if not {EXACT, NODE} & set(fitting):
        raise HBenchError(f"the exact gradient has no cost ({costs[1].reason}): lower discovery.batch_size")
    seconds = seconds_of({name: pooled[name] for name in fitting}, model, repeats, seed, device)
    best = min((median(seconds[name]), name) for name in (EXACT, NODE) if name in seconds)
    for i, cost in enumerate(costs):
        if cost.method in seconds:
            typical = median(seconds[cost.method])
            trains = cost.method == best[1] or cost.method not in (EXACT, NODE)
            steps = max(1, round(exact.discovery.steps * best[0] / typical)) if trains else None
            costs[i] = replace(cost, seconds=typical, step_seconds=tuple(seconds[cost.method]), steps=steps)
    GradientCosts(experiment=exact.model_dump(mode="json"), device=str(device), costs=costs).write(file)
    return costs


def memory_of(name: str, experiment: Experiment, seed: int, device: torch.device) -> Cost:
    """Measure the memory of a training step in a fresh process; the cost has no seconds yet."""
    settings, nan = experiment.discovery, math.nan
    nothing = Cost(method=name, strategy=settings.strategy, seconds=nan, memory_mib=nan, saved_tensors_mib=nan)
    try:
        check_reached(settings, visited(experiment))
    except HBenchError as error:
        return replace(nothing, reason=str(error))
    row = measure_apart(Cell(experiment, str(device), seed, repeats=1, memory_limit_mib=None))
    if row.status != "ok":
        return replace(nothing, reason=f"{row.status}: {row.error}")
    return replace(
        nothing,
        memory_mib=nan if row.memory_mib is None else row.memory_mib,
        memory_source=row.memory_source,
        saved_tensors_mib=nan if row.saved_tensors_mib is None else row.saved_tensors_mib,
    )


@torch.random.fork_rng(devices=[])
def seconds_of(
    experiments: Mapping[str, Experiment], model: DiffusionModel, repeats: int, seed: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of training steps of each experiment, taken in turns, so that other work slows all alike."""
    any_of_them = next(iter(experiments.values()))
    frozen = freeze(any_of_them, model, device)
    steps = {}
    for name, each in experiments.items():
        sampler = Sampler.of(each, frozen, device)
        steps[name] = partial(
            train_step, each, sampler, initial(each, sampler, seed), raw_pairs(each, sampler, seed), seed
        )
    seconds: dict[str, list[float]] = {name: [] for name in experiments}
    for i in progress(range(WARM_UP + repeats), desc="time", unit="turn"):
        for name, step in steps.items():
            seconds[name].append(wall_seconds(partial(step, i), device))
    return {name: values[WARM_UP:] for name, values in seconds.items()}
