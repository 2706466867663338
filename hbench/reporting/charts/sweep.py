"""Charts of memory and throughput of training, measured and predicted."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hbench.errors import counted
from hbench.reporting.charts.figure import COLORS, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hbench.evaluation.plan import Plan
    from hbench.evaluation.vram_sweep import VramSweep

_GENERATION_STEPS = "M, generation steps"


@styled
def draw_sweep(result: "VramSweep", path: Path) -> None:
    """Draw memory and throughput of training against M, one line per strategy, all axes logarithmic (Fig. 4).

    A sweep of one M has bars instead. Throughput has its quartiles. Crosses are cells that ran out of memory, the
    dashed line is the memory limit.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows, limit_mib = result.cells, result.detail("memory_limit_mib")
    found, Ms = {row.status for row in rows}, {row.M for row in rows}
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, strategy in enumerate(dict.fromkeys(row.strategy for row in rows)):
        color = COLORS[place % len(COLORS)]
        own = [row for row in rows if row.strategy == strategy]
        measured = [row for row in own if row.status == "ok"]
        rates = [row.batch_size / np.array(row.step_seconds) for row in measured]
        low, median, high = np.array([np.percentile(rate, [25, 50, 75]) for rate in rates]).reshape(-1, 3).T
        spread = [median - low, high - median]
        memory = [row.memory_mib or 0.0 for row in measured]
        at = {row.M: place if len(Ms) == 1 else row.M for row in own}
        x = [at[row.M] for row in measured]
        _draw(left, x, memory, bars=len(Ms) == 1, color=color, label=strategy)
        _draw(right, x, median.tolist(), bars=len(Ms) == 1, color=color, yerr=spread)
        for row in own:
            if row.status == "oom":
                cross = {"marker": "X", "markersize": 10, "color": color, "clip_on": False}
                if limit_mib is None:
                    left.plot(at[row.M], 1, transform=left.get_xaxis_transform(), **cross)  # at the panel's upper edge
                else:
                    left.plot(at[row.M], limit_mib, **cross)
                right.plot(at[row.M], 0, transform=right.get_xaxis_transform(), **cross)
    steps = counted(max(len(row.step_seconds) for row in rows), "step")
    left.set(
        title="memory in MiB", xlabel="\n".join([_GENERATION_STEPS, *sorted({r.memory_source or "" for r in rows})])
    )
    right.set(title="throughput in images / s", xlabel=f"{_GENERATION_STEPS}\nmedian and quartiles of {steps}")
    if limit_mib is not None:
        left.axhline(limit_mib, color="black", linestyle="--", label="memory limit")
    if "oom" in found:
        left.plot([], [], "X", color="grey", linestyle="none", markersize=10, label="out of memory")
    names = list(dict.fromkeys(row.strategy for row in rows))
    for axis in (left, right):  # a logarithmic axis needs at least one value
        _scale(axis, Ms, names, x=bool(found & {"ok", "oom"}), y="ok" in found)
    if left.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=6)
    settings = f"batch {rows[0].batch_size}, {rows[0].precision}"
    device = result.provenance.device if result.provenance else rows[0].device
    figure.suptitle(f"{result.title}{_varied(Ms)}: {settings}, {device}")
    save_figure(figure, path)


@styled
def draw_plan(result: "Plan", path: Path) -> None:
    """Draw predicted memory and throughput of training against M, one line per strategy, all axes logarithmic.

    The dotted lines are the memory budget and the experiment's own M.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names, Ms = list(dict.fromkeys(row.strategy for row in result.predictions)), {row.M for row in result.predictions}
    for place, strategy in enumerate(names):
        rows = [row for row in result.predictions if row.strategy == strategy]
        style = {"color": COLORS[place % len(COLORS)], "linestyle": "--" if strategy == "auto" else "-"}
        x = [place if len(Ms) == 1 else row.M for row in rows]
        _draw(left, x, [row.memory_mib for row in rows], bars=len(Ms) == 1, label=strategy, **style)
        _draw(right, x, [row.images_per_second for row in rows], bars=len(Ms) == 1, **style)
    left.axhline(result.budget_mib, color="black", linestyle=":", label="memory budget")
    left.set(title="predicted memory in MiB", xlabel=_GENERATION_STEPS)
    right.set(title="predicted throughput in images / s", xlabel=_GENERATION_STEPS)
    for axis in (left, right):
        _scale(axis, Ms, names)
        if len(Ms) > 1:
            axis.axvline(result.M, color="grey", label="M of the experiment" if axis is left else None)
    figure.legend(loc="outside lower center", ncols=6)
    device = result.provenance.device if result.provenance else ""
    figure.suptitle(f"{result.title}{_varied(Ms)}, {device}")
    save_figure(figure, path)


def _varied(Ms: Collection[int]) -> str:
    return ", M varied" if len(Ms) > 1 else ""


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw(axis: "Axes", x: Sequence[float], values: Sequence[float], *, bars: bool, **style: Any) -> None:
    """Draw the values of one strategy as a line over M, or as a bar with its number at the strategy's place."""
    if bars:
        style = {key: value for key, value in style.items() if key != "linestyle"} | {"label": None}
        axis.bar_label(axis.bar(x, values, 0.6, capsize=4, **style), fmt=_rounded, padding=3)
    else:
        axis.errorbar(x, values, marker="o", capsize=3, **style)


def _scale(axis: "Axes", Ms: Collection[int], names: list[str], *, x: bool = True, y: bool = True) -> None:
    """Make the axes over M logarithmic to base 2, with plain numbers; one M has the names of the strategies instead."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    if len(Ms) == 1:
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_xlabel(
            axis.get_xlabel().replace(_GENERATION_STEPS, f"M = {counted(next(iter(Ms)), 'generation step')}")
        )
        axis.margins(y=0.15)
        return
    if x:
        axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(Ms))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    if y:
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.margins(y=0.1)
    axis.grid(alpha=0.3)
