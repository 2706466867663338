"""Metrics of a training, read back: a row a step, in ``metrics.csv``."""

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

from hbench.errors import HBenchError, counted
from hbench.store.provenance import REMEDY

if TYPE_CHECKING:
    from pandas import DataFrame

FILE = "metrics.csv"
"""Name of the file in the folder of a training."""
SHARES = ("accuracy", "D_raw", "D_shifted")
"""Columns, of those that there are, whose values lie in 0..1."""


def read_metrics(path: Path, steps: int | None = None) -> "DataFrame":
    """Return the rows of a training's ``metrics.csv``: whole ones of finite numbers, of the steps 0 .. n - 1.

    Args:
        path: file to read.
        steps: number of rows that there must be; None for any.

    Raises:
        HBenchError: missing, cut, or changed; the message names the line.
    """
    import pandas as pd

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HBenchError(f"{path}: cannot be read ({error}): {REMEDY}") from error
    columns, *rows = csv.reader(text.splitlines()) if text.strip() else [[]]
    if columns[:1] != ["step"] or len(set(columns)) < len(columns) or not rows:
        raise HBenchError(f"{path}: holds no metrics of a training: {REMEDY}")
    for i, row in enumerate(rows):
        problem = _problem(columns, row, i)
        if problem is None and i == len(rows) - 1 and not text.endswith("\n"):
            problem = "is cut"
        if problem:
            raise HBenchError(f"{path}, line {i + 2}: {problem}: {REMEDY}")
    if steps not in (None, len(rows)):
        raise HBenchError(f"{path}: holds {len(rows)} steps of a training of {steps}: {REMEDY}")
    return pd.read_csv(path)


def _problem(columns: list[str], row: list[str], step: int) -> str | None:
    """Return what is wrong with a row, in words; None for a whole one."""
    if len(row) != len(columns):
        return f"{counted(len(row), 'value')}, need {len(columns)}"
    for name, value in zip(columns, row, strict=True):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            return f"{name} is {value!r}, need a finite number"
        if name in SHARES and not 0 <= number <= 1:
            return f"{name} is {value!r}, need 0 to 1"
    return None if row[0] == str(step) else f"step {row[0]}, need {step}"
