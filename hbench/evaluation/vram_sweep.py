"""Memory and throughput of training against M (Fig. 4).

:mod:`hbench.evaluation.sweep_cells` measures each cell of the table.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch

from hbench.config import Experiment, Precision
from hbench.core.chain import Strategy
from hbench.core.sampler import visited
from hbench.errors import HBenchError, as_list, check_at_least, check_seed, check_type, counted
from hbench.evaluation.sweep_cells import WARM_UP, Cell, Row, cells, check_measurable, measure_apart
from hbench.experiments import without_pool
from hbench.runtime.device import pick_device
from hbench.runtime.memory import gpu_processes
from hbench.runtime.progress import duration, progress, progress_is_shown, ticking
from hbench.store.provenance import Provenance, provenance
from hbench.store.results import Result
from hbench.training.loop import stop_requests

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

STRATEGIES = tuple(name for name in get_args(Strategy) if name != "offload")
"""Default strategies of a sweep: all that run on every device."""
SAME_TO_RESUME = (
    "experiment", "git", "versions", "device", "driver", "threads", "seed", "repeats", "memory_limit_mib"
)  # fmt: skip
"""Values of the provenance that two halves of a sweep must agree in."""
SHOWN = ["strategy", "M", "keep", "memory_mib", "images_per_second", "images_per_second_iqr", "status"]
"""Columns of the summary."""


def default_steps(experiment: Experiment) -> list[int]:
    """Return half, one, two and four times the experiment's M, at most T, and enough to shift a timestep."""
    settings, T = experiment.discovery, experiment.diffusion.T
    M = settings.M
    Ms = {max(1, M // 2), M, min(2 * M, T), min(4 * M, T)}
    return sorted(each for each in Ms if each == M or visited(experiment, each)[0] >= settings.t_shift)


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
        counts = [*map(str, timed[:-1]), *(counted(most, "timed step") for most in timed[-1:])]
        return f"{lines}\nn = {' or '.join(counts)} a cell" if counts else lines

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
    with stop_requests(None) as stop_reason, progress(total=len(todo), desc="sweep", unit="cell") as bar:
        for number, cell in enumerate(todo, start=1):
            strategy, M = cell.key
            others = _other_processes(torch.device(cell.device))
            if others and not allow_busy:
                raise HBenchError(
                    f"another process is on the GPU (PID {', '.join(map(str, others))}): wait for it to end, or "
                    "measure beside it with `allow_busy=True`"
                )
            began = time.monotonic()
            with ticking(bar, f"{strategy}, M = {M}"):
                row = replace(measure_apart(cell), other_processes=None if others is None else len(others))
            on_row(row)
            if number == 1 and row.step_seconds and todo[1:] and progress_is_shown():
                rest = seconds_of_rest(row, todo[1:], time.monotonic() - began)
                log.info("%d more cells: about %s", len(todo) - 1, duration(rest))
            if row.status != "ok":
                log.warning("%s, M = %d: %s: %s", strategy, M, row.status, row.error)
            if number < len(todo) and (reason := stop_reason()):
                log.warning("stopped by %s after %d of %d cells: go on with `resume=True`", reason, number, len(todo))
                return False
    return True


def seconds_of_rest(first: Row, rest: Sequence[Cell], seconds: float) -> float:
    """Return the seconds of the rest of a sweep, from its first cell: steps take as long as they have M.

    Args:
        first: row of the first cell.
        rest: cells to come.
        seconds: seconds of the first cell.
    """
    steps = sum(first.step_seconds) / len(first.step_seconds) * (WARM_UP + len(first.step_seconds))
    start = max(0.0, seconds - steps)
    return sum(start + steps * cell.experiment.discovery.M / first.M for cell in rest)


def _other_processes(device: torch.device) -> list[int] | None:
    if device.type != "cuda":
        return None
    pids = list(gpu_processes(device))
    if os.getpid() in pids:
        pids.remove(os.getpid())
    elif torch.cuda.max_memory_reserved(device):  # it has computed there, so in this container PIDs are the host's
        pids = pids[1:]
    return pids
