"""What every training loop shares: requests to stop."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hbench.runtime.distributed import launched


@contextmanager
def stop_requests(max_minutes: float | None) -> Iterator[Callable[[], str | None]]:
    """A function that says why to stop after the current step, or None: SIGTERM, SIGINT, or ``max_minutes`` are over.

    A second signal acts as it would without hbench; but torchrun passes on what the terminal or Slurm sent already, so
    under torchrun it changes nothing.
    """
    reasons: list[str] = []
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    def on_signal(number: int, frame: FrameType | None) -> None:
        reasons.append(signal.Signals(number).name)
        if not launched():
            signal.signal(number, previous[number])

    def reason() -> str | None:
        if deadline is not None and time.monotonic() >= deadline and not reasons:
            reasons.append(f"--max-minutes {max_minutes:g}")
        return reasons[0] if reasons else None

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield reason
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
