"""Memory and throughput of training against M (Fig. 4), each cell of the table measured in a fresh process.

A cell takes training steps as :func:`hbench.train` does without a pool: draw x_T, generate x_0 (M passes of the model),
one optimiser step of shift block and reconstructor through the whole chain, one of the discriminator. The networks are
the experiment's with initial weights: their values, the shift block's zeros included, change neither memory nor speed.

The meaning of ``memory_mib`` depends on the device, and ``memory_source`` names its source:

| device | memory_mib | source |
|---|---|---|
| CPU | peak resident memory minus that just before the first step | Linux's high-water mark, else polled |
| CUDA | all that the process holds on the GPU, its CUDA context included | NVML, by process or by device |

NVML has no peak, and needs none here: PyTorch's allocator keeps all memory that it once reserved, so the reading after
the last step is the peak. Resident memory includes freed memory that glibc has not yet returned, as in any training;
returning it at once would halve the speed, which is measured in the same steps.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from pydantic import Field

from hbench.config import Experiment, Precision
from hbench.core import seeds
from hbench.core.backbone import DiffusionModel
from hbench.core.chain import Strategy
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError, as_list, check_at_least, check_seed, check_type, is_out_of_memory
from hbench.experiments import parse_experiment, without_pool
from hbench.models import build_model
from hbench.runtime.device import pick_device, wall_seconds
from hbench.runtime.fresh_process import die_first, reason_of, run_apart, was_killed
from hbench.runtime.memory import MIB, gpu_memory, gpu_processes, saved_tensors_peak, watch_resident
from hbench.runtime.progress import progress
from hbench.store.provenance import Provenance, provenance
from hbench.store.records import Count, Positive
from hbench.store.results import Result
from hbench.training.cost import DoesNotFitError
from hbench.training.freeze import freeze
from hbench.training.loop import stop_requests
from hbench.training.step import initial, raw_pairs, train_step
from hbench.training.strategy import resolve, resolve_apart

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

Status = Literal["ok", "oom", "failed"]
WARM_UP = 2
"""Number of discarded steps: the first allocates Adam's state and lets the libraries choose their kernels."""
STRATEGIES = tuple(name for name in get_args(Strategy) if name != "offload")
"""Default strategies of a sweep: all that run on every device."""
SAME_TO_RESUME = (
    "experiment", "git", "versions", "device", "driver", "threads", "seed", "repeats", "memory_limit_mib"
)  # fmt: skip
"""Values of the provenance that two halves of a sweep must agree in."""
SHOWN = ["strategy", "M", "keep", "memory_mib", "images_per_second", "images_per_second_iqr", "status"]
"""Columns of the summary."""


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
        HBenchError: an unknown strategy, or more steps than the schedule has.
    """

    def cell(strategy: str, M: int) -> Cell:
        values = experiment.model_dump()
        discovery = values["discovery"]
        discovery |= {"strategy": strategy, "M": M, "pool": 0}
        discovery["keep"] = min(discovery["keep"], M) if strategy == "node" else 0
        if strategy != "auto":
            discovery["memory_budget"] = None
        return Cell(parse_experiment(values, f"{strategy}, M = {M}"), device, seed, repeats, memory_limit_mib)

    return [cell(strategy, M) for strategy in dict.fromkeys(strategies) for M in sorted(set(Ms))]


def default_steps(experiment: Experiment) -> list[int]:
    """Return half, one, two and four times the experiment's M, at most T."""
    M, T = experiment.discovery.M, experiment.diffusion.T
    return sorted({max(1, M // 2), M, min(2 * M, T), min(4 * M, T)})


# Sweep --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class VramSweep(Result):
    """Memory and throughput of training against M, for each strategy of back-propagation (Fig. 4)."""

    NAME: ClassVar[str] = "vram-sweep"

    cells: list[Row]
    """Rows of the table, by strategy and M."""

    def __post_init__(self) -> None:
        """Check that each measured cell has its numbers."""
        for row in self.cells:
            if row.status == "ok" and (row.memory_mib is None or not row.step_seconds):
                raise ValueError(f"{row.strategy}, M = {row.M} is ok, but lacks memory_mib or step_seconds")

    def failed(self) -> list[Row]:
        """Return the cells that ended with another error than lack of memory."""
        return [row for row in self.cells if row.status == "failed"]

    def summary(self) -> str:
        """Return memory, throughput and status of each cell, a line a cell, and how many steps were timed."""
        lines: str = self.table()[SHOWN].to_string(index=False, float_format="{:.1f}".format, na_rep="-")
        timed = sorted({len(cell.step_seconds) for cell in self.cells if cell.step_seconds})
        return f"{lines}\nn = {' or '.join(map(str, timed))} timed steps a cell" if timed else lines

    def table(self) -> "DataFrame":
        """Return all numbers except the seconds of single steps, a row a cell."""
        import pandas as pd

        columns = [each.name for each in fields(Row)]
        return pd.DataFrame([asdict(row) for row in self.cells], columns=columns).drop(columns="step_seconds")


def vram_sweep(
    experiment: Experiment,
    *,
    strategies: str | Sequence[str] | None = None,
    steps: int | Sequence[int] | None = None,
    batch_size: int | None = None,
    precision: Precision | None = None,
    repeats: int = 5,
    memory_limit_mib: float | None = None,
    allow_busy: bool = False,
    device: str | torch.device = "auto",
    seed: int = 0,
    resume_from: VramSweep | None = None,
    on_row: Callable[[VramSweep], None] | None = None,
) -> VramSweep:
    """Measure memory and throughput of training over generation steps, for each strategy of back-propagation.

    The cells take real training steps in fresh processes, one after the other; a cell that runs out of memory gets a
    row too. SIGTERM and SIGINT stop the sweep after a cell: the result then lacks the later cells, and its detail
    "complete" is False. Cost: 2 + ``repeats`` training steps a cell.

    Args:
        experiment: settings of the training; the pool is left out.
        strategies: ways to back-propagate, as in ``discovery.strategy``; all but "auto" and "offload" by default.
        steps: numbers of generation steps M, 1..T; M/2, M, 2M and 4M of the experiment by default.
        batch_size: number of pairs of a training step, at least 2; the experiment's for sweeps by default.
        precision: precision of the networks; the experiment's by default.
        repeats: number of timed steps of each cell, at least 1.
        memory_limit_mib: memory of a smaller card, beyond which a cell is out of memory; None for no limit.
        allow_busy: measure although another process computes on the GPU.
        device: device to measure: "auto" is a GPU where there is one, else the CPU.
        seed: seed of the training steps.
        resume_from: earlier part of the same sweep; all its cells but failed ones are kept.
        on_row: function that is called with the sweep so far, before the first cell and after each.

    Raises:
        TypeError: not an experiment.
        ValueError: no timed step, no strategy, no M, or a number out of range.
        HBenchError: an unknown strategy, more steps than the schedule has, ``resume_from`` was measured differently, or
            another process computes on the GPU.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    strategies = list(STRATEGIES) if strategies is None else as_list(strategies)
    steps = default_steps(experiment) if steps is None else as_list(steps)
    check_at_least(1, repeats=repeats, strategies=len(strategies), steps=len(steps))
    check_seed(seed)
    if memory_limit_mib is not None and not 0 < memory_limit_mib < math.inf:
        raise ValueError(f"memory_limit_mib must be positive and finite, got {memory_limit_mib}")
    experiment = without_pool(experiment, batch_size, precision)
    device = pick_device(device)
    check_measurable(device)
    wanted = cells(
        experiment,
        strategies,
        steps,
        device=str(device),
        seed=seed,
        repeats=repeats,
        memory_limit_mib=memory_limit_mib,
    )
    origin = provenance(
        experiment, device, seed, repeats=repeats, memory_limit_mib=memory_limit_mib, allow_busy=allow_busy
    )
    rows = {row.key: row for row in kept(resume_from, origin)} if resume_from else {}

    def so_far() -> VramSweep:
        complete = all(cell.key in rows and rows[cell.key].status != "failed" for cell in wanted)
        return VramSweep(cells=[rows[key] for key in sorted(rows)], provenance=origin.finished(complete=complete))

    def add(row: Row) -> None:
        rows[row.key] = row
        if on_row:
            on_row(so_far())

    if on_row:
        on_row(so_far())
    measure_all([cell for cell in wanted if cell.key not in rows], add, allow_busy=allow_busy)
    return so_far()


def check_measurable(device: torch.device) -> None:
    """Raise an HBenchError where the memory of a training step cannot be measured exactly."""
    if device.type == "mps":
        raise HBenchError("the memory of a Mac's GPU (mps) cannot be measured exactly: use `device=cpu`")


def kept(earlier: VramSweep, origin: Provenance) -> list[Row]:
    """Return the rows of an earlier part of a sweep that a sweep of this provenance keeps: all but the failed ones.

    Raises:
        HBenchError: the earlier part was measured differently.
    """
    before, now = (each.to_json() if each else {} for each in (earlier.provenance, origin))
    for name in SAME_TO_RESUME:
        key, old, new = _difference(name, before.get(name), now[name])
        if old != new:
            raise HBenchError(
                f"the sweep to resume was measured with {key} = {old!r}, not {new!r}: resume with the same settings, "
                "or use another `out`"
            )
    return [row for row in earlier.cells if row.status != "failed"]


def _difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return _difference(f"{name}.{key}", old.get(key), new.get(key))
    return name, old, new


def measure_all(todo: Sequence[Cell], on_row: Callable[[Row], None], *, allow_busy: bool = False) -> bool:
    """Measure cells, each in a fresh process. Return False if stopped after a cell, by SIGTERM or SIGINT.

    Args:
        todo: cells to measure.
        on_row: function that is called with each row as soon as it is known.
        allow_busy: measure although another process computes on the GPU; ``other_processes`` counts them.

    Raises:
        HBenchError: another process computes on the GPU, unless ``allow_busy``.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the cells need the memory that this process still holds in reserve
    with stop_requests(None) as stop_reason, progress(total=len(todo), unit="cell") as bar:
        for number, cell in enumerate(todo, start=1):
            strategy, M = cell.key
            bar.set_description_str(f"{strategy}, M = {M}")
            others = _other_processes(torch.device(cell.device))
            if others and not allow_busy:
                raise HBenchError(
                    f"another process is on the GPU (PID {', '.join(map(str, others))}): wait for it to end, or "
                    "measure beside it with `allow_busy=True`"
                )
            row = replace(measure_apart(cell), other_processes=None if others is None else len(others))
            on_row(row)
            bar.update()
            if row.status != "ok":
                log.warning("%s, M = %d: %s: %s", strategy, M, row.status, row.error)
            if number < len(todo) and (reason := stop_reason()):
                log.warning("stopped by %s after %d of %d cells: go on with `resume=True`", reason, number, len(todo))
                return False
    return True


def _other_processes(device: torch.device) -> list[int] | None:
    if device.type != "cuda":
        return None
    pids = list(gpu_processes(device))
    if os.getpid() in pids:
        pids.remove(os.getpid())
    elif torch.cuda.max_memory_reserved(device):  # it has computed there, so in this container PIDs are the host's
        pids = pids[1:]
    return pids


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
        "hbench.evaluation.vram_sweep", {**vars(cell), "experiment": cell.experiment.model_dump(mode="json")}
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
