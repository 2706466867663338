"""Charts of memory and throughput of training, measured and predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hbench.reporting.charts.figure import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hbench.evaluation.plan import Plan
    from hbench.evaluation.vram_sweep import VramSweep


def draw_sweep(result: "VramSweep", path: Path) -> None:
    """Draw memory and throughput of training against M, one line per strategy, all axes logarithmic (Fig. 4).

    Throughput has its quartiles. Crosses are cells that ran out of memory, the dashed line is the memory limit.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows, limit_mib = result.cells, result.detail("memory_limit_mib")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for strategy in dict.fromkeys(row.strategy for row in rows):
        measured = [row for row in rows if row.strategy == strategy and row.status == "ok"]
        Ms = [row.M for row in measured]
        (line,) = left.plot(Ms, [row.memory_mib for row in measured], marker="o", label=strategy)
        rates = [row.batch_size / np.array(row.step_seconds) for row in measured]
        low, median, high = np.array([np.percentile(rate, [25, 50, 75]) for rate in rates]).reshape(-1, 3).T
        right.errorbar(Ms, median, yerr=[median - low, high - median], marker="o", capsize=3, label=strategy)
        for row in rows:
            if row.strategy == strategy and row.status == "oom":
                cross = {"marker": "X", "markersize": 10, "color": line.get_color(), "clip_on": False}
                if limit_mib is None:
                    left.plot(row.M, 1, transform=left.get_xaxis_transform(), **cross)  # at the panel's upper edge
                else:
                    left.plot(row.M, limit_mib, **cross)
                right.plot(row.M, 0, transform=right.get_xaxis_transform(), **cross)
    sources = sorted({row.memory_source for row in rows if row.memory_source})
    steps = max(len(row.step_seconds) for row in rows)
    left.set(title="memory", ylabel="MiB", xlabel="\n".join(["M", *sources]))
    right.set(title="throughput", ylabel="images / s", xlabel=f"M\nmedian and quartiles of {steps} steps")
    if limit_mib is not None:
        left.axhline(limit_mib, color="grey", linestyle="--", label="memory limit")
    if any(row.status == "oom" for row in rows):
        left.plot([], [], "X", color="grey", linestyle="none", markersize=10, label="out of memory")
    found = {row.status for row in rows}
    for axis in (left, right):  # a logarithmic axis needs at least one value
        _scale(axis, [row.M for row in rows], x=bool(found & {"ok", "oom"}), y="ok" in found)
    left.legend()
    settings = f"batch {rows[0].batch_size}, {rows[0].precision}"
    device = result.provenance.device if result.provenance else rows[0].device
    figure.suptitle(f"{result.title}, M varied: {settings}\n{device}")
    save_figure(figure, path)


def draw_plan(result: "Plan", path: Path) -> None:
    """Draw predicted memory and throughput of training against M, one line per strategy, all axes logarithmic.

    The dotted lines are the memory budget and the experiment's own M.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for strategy in dict.fromkeys(row.strategy for row in result.predictions):
        rows = [row for row in result.predictions if row.strategy == strategy]
        style = {"marker": "o", "linestyle": "--" if strategy == "auto" else "-", "label": strategy}
        Ms = [row.M for row in rows]
        left.plot(Ms, [row.memory_mib for row in rows], **style)
        right.plot(Ms, [row.images_per_second for row in rows], **style)
    left.axhline(result.budget_mib, color="grey", linestyle=":", label="memory budget")
    left.set(title="predicted memory", ylabel="MiB", xlabel="M")
    right.set(title="predicted throughput", ylabel="images / s", xlabel="M")
    for axis in (left, right):
        _scale(axis, [row.M for row in result.predictions])
        axis.axvline(result.M, color="black", linestyle=":", label="M of the experiment")
    left.legend()
    device = result.provenance.device if result.provenance else ""
    figure.suptitle(f"{result.title}, M varied\n{device}")
    save_figure(figure, path)


def _scale(axis: "Axes", Ms: Sequence[int], *, x: bool = True, y: bool = True) -> None:
    """Make the axes over M logarithmic to base 2, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    if x:
        axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(set(Ms)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    if y:
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.margins(y=0.1)
    axis.grid(alpha=0.3)
