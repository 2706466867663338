"""Single cells of the table of memory and throughput against M, each measured in a fresh process.

A cell takes training steps as :func:`hbench.train` does without a pool: draw x_T, generate x_0 (M passes of the model),
one optimiser step of shift block and reconstructor through the whole chain, one of the discriminator. The networks are
the experiment's with initial weights: their values, the shift block's zeros included, change neither memory nor speed.

The meaning of ``memory_mib`` depends on the device, and ``memory_source`` names its source:

| device | memory_mib | source |
|---|---|---|
| CPU | peak resident memory minus that just before the first step | Linux's high-water mark, else polled |
| CUDA | all that the process holds on the GPU, its CUDA context included | NVML, by process or by device |

NVML has no peak, and needs none here: PyTorch's allocator keeps all memory that it once reserved, so the reading after
the last step is the peak, except for what it gives back around the recording of a CUDA graph, in the first step alone;
``max_memory_reserved_mib`` has that too. Resident memory includes freed memory that glibc has not yet returned, as in
any training; returning it at once would halve the speed, which is measured in the same steps.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from hbench.config import Experiment
from hbench.core import seeds
from hbench.core.backbone import DiffusionModel
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError, is_out_of_memory
from hbench.experiments import parse_experiment
from hbench.models import build_model
from hbench.runtime.device import pick_device, wall_seconds
from hbench.runtime.fresh_process import die_first, reason_of, run_apart, was_killed
from hbench.runtime.memory import MIB, gpu_memory, saved_tensors_peak, watch_resident
from hbench.store.records import Count, Positive
from hbench.training.cost import DoesNotFitError
from hbench.training.discover import check_shift_interval
from hbench.training.freeze import freeze
from hbench.training.step import initial, raw_pairs, train_step
from hbench.training.strategy import resolve, resolve_apart

Status = Literal["ok", "oom", "failed"]
WARM_UP = 2
"""Number of discarded steps: the first allocates Adam's state and lets the libraries choose their kernels."""


@dataclass(frozen=True)
class Cell:
    """One cell of the table, to be measured; the experiment holds strategy, M, batch size and precision."""

    experiment: Experiment
    device: str
    seed: int
    repeats: int
    """Number of timed steps."""
    memory_limit_mib: float | None

    @property
    def key(self) -> tuple[str, int]:
        """Strategy and M, which tell the cells of a sweep apart."""
        return self.experiment.discovery.strategy, self.experiment.discovery.M


@dataclass(frozen=True)
class Row:
    """Numbers of one measured cell; None for those that do not apply."""

    strategy: str
    M: Positive
    batch_size: Positive
    precision: str
    device: str
    memory_mib: Annotated[float, Field(ge=0)] | None = None
    memory_source: str | None = None
    images_per_second: float | None = None
    """Median over the timed steps; an image is a training pair."""
    images_per_second_iqr: float | None = None
    """Interquartile range of ``images_per_second``."""
    status: Status = "ok"
    error: str | None = None
    keep: Count = 0
    """Number of steps whose graph "node" or "auto" kept."""
    baseline_mib: float | None = None
    """Memory of the process just before the first step: subtracted from memory_mib on the CPU, included on CUDA."""
    saved_tensors_mib: float | None = None
    """Peak of :func:`saved_tensors_peak`; on the CPU only, and not for torch-checkpoint."""
    max_memory_allocated_mib: float | None = None
    max_memory_reserved_mib: float | None = None
    other_processes: int | None = None
    """Number of other processes on the GPU when the cell started."""
    step_seconds: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Wall time of each timed step."""

    @property
    def key(self) -> tuple[str, int]:
        """Strategy and M, which tell the rows of a sweep apart."""
        return self.strategy, self.M


def cells(
    experiment: Experiment,
    strategies: Iterable[str],
    Ms: Iterable[int],
    *,
    device: str,
    seed: int = 0,
    repeats: int = 5,
    memory_limit_mib: float | None = None,
) -> list[Cell]:
    """Return the cells of a sweep, strategy by strategy, M ascending; the experiment's pool is left out.

    Raises:
        HBenchError: an unknown strategy, or more steps than the schedule has, or too few to shift one.
    """

    def cell(strategy: str, M: int) -> Cell:
        values = experiment.model_dump()
        discovery = values["discovery"]
        discovery |= {"strategy": strategy, "M": M, "pool": 0}
        discovery["keep"] = min(discovery["keep"], M) if strategy == "node" else 0
        if strategy != "auto":
            discovery["memory_budget"] = None
        if strategy not in ("auto", "node"):
            discovery["nodes"] = "device"
        changed = parse_experiment(values, f"{strategy}, M = {M}")
        check_shift_interval(changed, M)
        return Cell(changed, device, seed, repeats, memory_limit_mib)

    return [cell(strategy, M) for strategy in dict.fromkeys(strategies) for M in sorted(set(Ms))]


def check_measurable(device: torch.device) -> None:
    """Raise an HBenchError where the memory of a training step cannot be measured exactly."""
    if device.type == "mps":
        raise HBenchError("the memory of a Mac's GPU (mps) cannot be measured exactly: use `device=cpu`")


def measure_apart(cell: Cell) -> Row:
    """Measure a cell in a fresh process. Return a failed row, with the error, if the process dies of one.

    The strategy that "auto" takes is found in another process: the probe would leave memory behind.
    """
    if cell.experiment.discovery.strategy == "auto":
        try:
            running = resolve_apart(cell.experiment, cell.device, cell.seed, cell.memory_limit_mib)
        except HBenchError as error:
            return _empty(cell, "oom" if isinstance(error, DoesNotFitError) else "failed", str(error))
        return replace(measure_apart(replace(cell, experiment=running)), strategy="auto")
    done = run_apart(
        "hbench.evaluation.sweep_cells", {**vars(cell), "experiment": cell.experiment.model_dump(mode="json")}
    )
    if was_killed(done):
        return _empty(cell, "oom", "killed by the system, as it does when memory runs out")
    if done.returncode:
        return _empty(cell, "failed", reason_of(done))
    return read_row(json.loads(done.stdout.splitlines()[-1]))


def read_row(values: dict[str, Any]) -> Row:
    """Return the row with these JSON values."""
    return Row(**values | {"step_seconds": tuple(values["step_seconds"])})


def measure(cell: Cell) -> Row:
    """Measure memory and throughput of real training steps, in a process that has done nothing else.

    A cell is out of memory if an allocation fails, or if the memory after a step exceeds the limit. On CUDA the limit
    also binds PyTorch's allocator, which then fails as that of a smaller card would. On the CPU nothing stops a step
    halfway: the system's limits count address space, most of which is never touched.
    """
    device = pick_device(cell.device)
    try:
        return _measure_cuda(cell, device) if device.type == "cuda" else _measure_cpu(cell, device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _empty(cell, "oom", (str(error) or "MemoryError").splitlines()[0])


def _measure_cpu(cell: Cell, device: torch.device) -> Row:
    step = step_taker(cell.experiment, _initial_model(cell), cell.seed, device)
    with watch_resident() as (baseline, peak, source):
        seconds = _take_steps(cell, step, device, lambda: peak() - baseline)
        memory = peak() - baseline
    row = replace(_timed_row(cell, seconds), memory_mib=memory, memory_source=source, baseline_mib=baseline)
    if cell.experiment.discovery.strategy == "torch-checkpoint":
        return row
    return replace(row, saved_tensors_mib=saved_tensors_peak(lambda: step(WARM_UP + cell.repeats)) / MIB)


def _measure_cuda(cell: Cell, device: torch.device) -> Row:
    idle = torch.cuda.device_memory_used(device)  # before this process has a CUDA context
    step = step_taker(cell.experiment, _initial_model(cell), cell.seed, device)
    baseline, _ = gpu_memory(device, idle)
    if cell.memory_limit_mib is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        outside = baseline - torch.cuda.memory_reserved(device) / MIB  # the context, which the allocator does not count
        room = max(0.0, cell.memory_limit_mib - outside) * MIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, room / total), device.index or 0)
    seconds = _take_steps(cell, step, device, lambda: gpu_memory(device, idle)[0])
    memory, source = gpu_memory(device, idle)
    return replace(
        _timed_row(cell, seconds),
        memory_mib=memory,
        memory_source=source,
        baseline_mib=baseline,
        max_memory_allocated_mib=torch.cuda.max_memory_allocated(device) / MIB,
        max_memory_reserved_mib=torch.cuda.max_memory_reserved(device) / MIB,
    )


# Steps --------------------------------------------------------------------------------------------------------------


def step_taker(
    experiment: Experiment, model: DiffusionModel, seed: int, device: torch.device
) -> Callable[[int], dict[str, float]]:
    """Return a function that takes step i of a training with initial networks and returns the metrics."""
    frozen = freeze(experiment, model, device)
    sampler = Sampler.of(experiment, frozen, device)
    running = resolve(experiment, sampler, seed)
    trained, draw_raw = initial(running, sampler, seed), raw_pairs(running, sampler, seed)
    return partial(train_step, running, sampler, trained, draw_raw, seed)


def _initial_model(cell: Cell) -> DiffusionModel:
    torch.manual_seed(seeds.initial_weights(cell.seed))
    return build_model(cell.experiment)


def _take_steps(
    cell: Cell, step: Callable[[int], object], device: torch.device, memory_mib: Callable[[], float]
) -> list[float]:
    """Return the seconds of the timed steps, after the warm-up.

    Raises:
        MemoryError: the memory after a step exceeds the limit.
    """
    seconds = []
    for i in range(WARM_UP + cell.repeats):
        seconds.append(wall_seconds(partial(step, i), device))
        limit = cell.memory_limit_mib
        if limit is not None and (used := memory_mib()) > limit:
            raise MemoryError(f"{used:.0f} MiB pass the memory limit of {limit:g} MiB")
    return seconds[WARM_UP:]


def _empty(cell: Cell, status: Status, error: str) -> Row:
    return replace(_row(cell), status=status, error=error)


def _timed_row(cell: Cell, seconds: list[float]) -> Row:
    row = _row(cell)
    low, median, high = np.percentile(row.batch_size / np.array(seconds), [25, 50, 75]).tolist()
    return replace(row, images_per_second=median, images_per_second_iqr=high - low, step_seconds=tuple(seconds))


def _row(cell: Cell) -> Row:
    settings = cell.experiment.discovery
    return Row(settings.strategy, settings.M, settings.batch_size, settings.precision, cell.device, keep=settings.keep)


if __name__ == "__main__":
    die_first()
    values = json.load(sys.stdin)
    given = Cell(**values | {"experiment": parse_experiment(values["experiment"], "cell")})
    print(json.dumps(asdict(measure(given))))
