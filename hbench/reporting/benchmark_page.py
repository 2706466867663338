"""The page of a bench: one file, that needs no other."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from hbench.evaluation.benchmark.result import COUNTS, Benchmark, MeasuredMethod, OverSeeds
from hbench.reporting.report import html_template
from hbench.store.files import write_text

PICTURES = {
    "benchmark.png": ("Side by side", "Dots with intervals: a panel for each number, a row for each method."),
    "methods.png": (
        "The most visible directions",
        "Image grids of the four most visible directions of each method, all from the same noise, with proposed names.",
    ),
}


class Line(NamedTuple):
    """A number of the methods."""

    field: str
    name: str
    meaning: str
    better: int
    """1 where more is better, -1 where less, 0 where neither."""


class Cell(NamedTuple):
    """A number of one method, in words."""

    value: str
    detail: str
    best: bool


NUMBERS = (
    Line("visible_change", "visible change", "median between -S and S, equal for all searches", 0),
    Line("rca", "RCA", "share of pairs that a fresh reconstructor recognises", 1),
    Line("rca_visible", "RCA, visible", "the same over directions that a person sees", 1),
    Line("visible", "visible", "directions that a person sees", 1),
    Line("distinct", "distinct", "clusters of them", 1),
    Line("named", "named", "directions that an attribute names", 1),
    Line("effective_rank", "effective rank", "independent changes among the visible", 1),
    Line("specificity", "specificity", "leading effect over the mean of the others", 1),
    Line("oddness", "oddness", "1 where the signs do opposite things", 1),
    Line("kept_half", "kept at S/2", "share of samples that keep their classes", 1),
    Line("fd_ratio", "distance, shifted / raw", "over visible directions; 1 where a shift costs no fidelity", -1),
    Line("precision", "precision", "shifted samples among raw ones", 1),
    Line("recall", "recall", "raw samples among shifted ones", 1),
    Line("seconds", "seconds", "of the search", -1),
    Line("memory_mib", "MiB", "of the search", -1),
)
"""Lines of the table."""
COSTS = ("seconds", "memory_mib")
"""Numbers without an interval that span orders of magnitude."""
OF_K = ("rca", "rca_visible", "visible", "distinct", "named", "effective_rank")
"""Numbers that depend on the number of directions, and compare only between methods with the same."""


def write_page(result: Benchmark, folder: Path) -> Path:
    """Write ``benchmark.html`` beside the pictures of a result, and return its path."""
    rows = [
        {"name": line.name, "meaning": line.meaning, "cells": cells(line, result.methods)}
        for line in NUMBERS
        if any(_number(line, each) is not None for each in result.methods)
    ]
    found = {(each.factor, each.method): each for each in result.factors}
    factors = {
        name: [found.get((name, each.name)) for each in result.methods]
        for name in dict.fromkeys(each.factor for each in result.factors)
    }
    over: dict[str, dict[str, OverSeeds]] = {}
    for each in result.over_seeds():
        over.setdefault(each.number, {})[each.method] = each
    seeds = {each.method: each.seeds for each in result.over_seeds()}
    names = {line.field: line.name for line in NUMBERS}
    pictures = [(folder / name, *words) for name, words in PICTURES.items() if (folder / name).is_file()]
    page: dict[str, Any] = {"result": result, "rows": rows, "factors": factors, "pictures": pictures}
    page |= {"over": over, "seeds": seeds, "names": names}
    path = folder / "benchmark.html"
    write_text(path, html_template("benchmark.html").render(page))
    return path


def cells(line: Line, methods: list[MeasuredMethod]) -> list[Cell]:
    """Return a number of each method, the best one marked, where they compare; a dash where it was not measured."""
    values = [_number(line, each) for each in methods]
    compares = line.field not in OF_K or len({each.K for each in methods}) == 1
    known = [line.better * value for value in values if value is not None]
    made = []
    for each, value in zip(methods, values, strict=True):
        low, high = getattr(each, f"{line.field}_interval", (math.nan, math.nan))
        detail = "" if math.isnan(low) else f"[{low:.3f}, {high:.3f}]"
        words = "–" if value is None else f"{value:,.0f}" if _is_whole(line, value) else f"{value:.3f}"
        if line.field == "visible":
            words = f"{len(each.visible)} of {each.K}"
        is_best = bool(line.better) and compares and value is not None and line.better * value == max(known)
        made.append(Cell(words, detail, is_best))
    return made


def _is_whole(line: Line, value: float) -> bool:
    """Return whether a number is shown without decimals: a count, or so large a cost that they say nothing."""
    return line.field in COUNTS or (line.field in COSTS and value >= 10)


def _number(line: Line, each: MeasuredMethod) -> float | None:
    """Return a number of a method; None where it was not measured."""
    value = getattr(each, line.field)
    value = float(len(value) if isinstance(value, list) else value)
    return None if math.isnan(value) else value
