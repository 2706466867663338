"""Progress of long work: a bar on a terminal, a line a minute in a log. It is off until somebody asks for it."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from tqdm import tqdm

from hbench.runtime.distributed import rank

_shown = False

SECONDS = 60
"""Seconds between two lines of a log; shorter work leaves none."""


class _Lines:
    """The standard error stream, on which a bar is not drawn over itself but written line by line."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def show_progress(shown: bool = True) -> None:
    """Show the progress of all long work from now on, or hide it again. The command line does so once a command."""
    global _shown
    _shown = shown


def is_asked_for() -> bool:
    """Return whether progress was asked for, the same in all processes, of which one shows it."""
    return _shown


def duration(seconds: float) -> str:
    """Return a time in words: "40 s", "12 min", "4.7 h" or "3.2 days"."""
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def progress_is_shown() -> bool:
    """Return whether this process shows progress: it was asked for, and this is the main process."""
    return _shown and rank() == 0


def progress(iterable: Iterable[Any] | None = None, **named: Any) -> tqdm:
    """Return a tqdm bar with these arguments, which writes lines where stderr is no terminal."""
    named["disable"] = not progress_is_shown() or sys.stderr is None  # Python has none where there is no console
    if named["disable"] or sys.stderr.isatty():
        return tqdm(iterable, **named)
    form = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left, {rate_fmt}{postfix}"
    return tqdm(
        iterable,
        file=_Lines(),
        bar_format=form,
        miniters=1,
        mininterval=SECONDS,
        delay=SECONDS,
        **named,
    )


@contextmanager
def ticking(bar: tqdm, name: str) -> Iterator[None]:
    """Name the block, which is one unit of the bar, and keep the bar's clock going while it runs.

    On a terminal that is every second, in a log a line at the block's start and one a minute.
    """
    if bar.disable:
        yield
        return
    over = Event()

    def tick() -> None:
        while not over.wait(1 if sys.stderr.isatty() else SECONDS):
            bar.refresh()

    bar.set_description_str(f"{bar.desc.partition(':')[0]}: {name}")
    Thread(target=tick, daemon=True).start()
    try:
        yield
        bar.update()
    finally:
        over.set()
