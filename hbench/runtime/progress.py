"""How far long work has come: a bar on a terminal, a line a minute in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from hbench.runtime.distributed import rank

SECONDS = 60
"""Between two lines of a log; shorter work leaves none."""


class _Lines:
    """The standard error stream, on which a bar is not drawn over itself but written line by line."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(iterable: Iterable[Any] | None = None, *, quiet: bool = False, **named: Any) -> tqdm:
    """A bar of tqdm, with its arguments; lines where the output is no terminal, and nothing where ``quiet``."""
    named["disable"] = quiet or rank() > 0
    if sys.stderr.isatty():
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
