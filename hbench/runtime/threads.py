"""Threads on the CPU: how they wait for each other, and how many pay, which is measured.

The threads of OpenMP meet after each operation. Beside other work one of them is late every time, and the others wait,
spinning on the cores that the late one needs: all cores can then be fifty times as slow as one thread. Waiting asleep
makes it a few times, and one thread does not wait at all.

The number is chosen once, at the start of a command, and kept: other threads round sums otherwise. Calls from Python
change neither number nor waiting unless they ask for it.
"""

import os
import re
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from hbench.runtime.distributed import world_size

if TYPE_CHECKING:
    from torch import Tensor

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Environment variables by which a user says how threads wait."""
NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user says how many threads there are."""
ROUNDS, SLICE = 3, 0.04
"""Rounds of the measurement, in which the numbers of threads take turns, and seconds of a turn."""
WORTH = 1.05
"""Speed-up that makes more threads worth their cores."""


@dataclass(frozen=True)
class Threads:
    """Number of threads, and the reason for it in words."""

    number: int
    reason: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{counted(self.number)} of {cores()} core{'s' * (cores() != 1)}{self.reason}"


def wait_asleep() -> None:
    """Let threads sleep while they wait, unless the environment says how; in time only before torch is imported."""
    if "torch" not in sys.modules and not any(map(os.environ.get, WAITING)):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def wait_policy() -> str | None:
    """Return how threads wait, as the environment says; None where it says nothing."""
    return next((f"{name}={os.environ[name]}" for name in WAITING if os.environ.get(name)), None)


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def counted(threads: int) -> str:
    """Return "1 thread" or "2 threads"."""
    return f"{threads} thread{'s' * (threads != 1)}"


def choose_threads(number: int | None = None, *, earlier: int | None = None) -> Threads:
    """Set the number of threads of torch in this process, and return it with the reason.

    The environment comes before all but ``number``. Cost: 0.3 s on two cores, to measure; more on many.

    Args:
        number: number of threads; None to choose it.
        earlier: number of threads of the work that goes on now, which keeps it for the sake of its bits.
    """
    import torch

    chosen = Threads(number, ", by `threads`") if number else _chosen(earlier)
    if chosen.number != torch.get_num_threads():
        torch.set_num_threads(chosen.number)
    return chosen


def _chosen(earlier: int | None) -> Threads:
    """Return the number of threads by the environment, by the work that goes on, or by measuring."""
    import torch

    if name := next((name for name in NUMBER if re.match(r"\s*[1-9]", os.environ.get(name, ""))), None):
        return Threads(torch.get_num_threads(), f", by {name}")
    if world_size() > 1 or cores() == 1:
        return Threads(torch.get_num_threads(), "")
    if earlier and earlier > cores():
        return Threads(cores(), f": it began with {earlier}, so the rounding changes")
    seconds = measure_threads()
    if earlier:
        best = _best(seconds)
        gain = seconds.get(earlier, 0.0) / seconds[best]
        advice = f"; {best} would be {gain:.1f} times as fast now, with other rounding: `threads={best}`"
        return Threads(earlier, ", as it began" + (advice if gain > 1.5 else ""))
    best, most = _best(seconds), max(seconds)
    if best == most:
        return Threads(best, "")
    return Threads(best, f": beside other work {most} would be {seconds[most] / seconds[best]:.1f} times as slow")


def _best(seconds: dict[int, float]) -> int:
    """Return the fewest threads that no larger number beats by more than it is worth."""
    return min(number for number, each in seconds.items() if each <= WORTH * min(seconds.values()))


def measure_threads() -> dict[int, float]:
    """Return the seconds of a piece of work like a network's, medians, by the number of threads: all cores, halves, 1.

    It leaves the number of threads as the last measured one.
    """
    import torch

    numbers = [cores()]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    with torch.random.fork_rng(devices=[]):
        x, kernels = torch.randn(32, 32, 16, 16), torch.randn(3, 32, 32, 3, 3, requires_grad=True)
    seconds: dict[int, list[float]] = {number: [] for number in numbers}
    for turn in range(1 + ROUNDS):
        for number in numbers:
            torch.set_num_threads(number)
            each = _seconds_of_work(x, kernels, SLICE if turn else 0.0)
            if turn:  # the first call of a number starts its threads
                seconds[number].append(each)
    return {number: median(each) for number, each in seconds.items()}


def _seconds_of_work(x: "Tensor", kernels: "Tensor", at_least: float) -> float:
    """Return the mean seconds of a small network's passes forward and backward, over at least so many seconds."""
    import torch
    from torch.nn import functional as F

    calls, began = 0, time.perf_counter()
    while not calls or time.perf_counter() < began + at_least:
        h = x
        for kernel in kernels:
            h = F.silu(F.group_norm(F.conv2d(h, kernel, stride=2, padding=1), 8))
        torch.autograd.grad(h.sum(), kernels)
        calls += 1
    return (time.perf_counter() - began) / calls
