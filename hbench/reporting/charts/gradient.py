"""Chart of cheap gradients beside the exact one."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hbench.errors import counted
from hbench.evaluation.agreement import ANOTHER
from hbench.evaluation.gradient import STAGES
from hbench.evaluation.gradient_costs import EXACT, NODE
from hbench.reporting.charts.figure import COLORS, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hbench.evaluation.gradient import Gradients

IN_WORDS = {
    NODE: "exact, node by node",
    "linear": "linear (DRTune)",
    "one-step": "one-step (ReFL)",
    "per-step": "per-step (Sec. 4.4)",
    ANOTHER: "exact, of another batch",
}
OUTCOMES = {
    "RCA (dotted: chance)": ("rca", "chance"),
    "RCA over visible directions": ("rca_visible", "chance"),
    "{metric} of shifted (dotted: raw)": ("fd_shifted", "fd_raw"),
    "share outside the domain": ("outside", None),
}
"""Panels of the trainings, each with a metric and its reference."""


@styled
def draw_gradients(result: "Gradients", path: Path) -> None:
    """Draw cosines and ratios of norms over the timesteps at each stage, and the trainings of equal time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 11.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2, 0.9), squeeze=False)[:, 0]
    axes = upper.subplots(2, len(STAGES), sharex=True, sharey="row")
    shown = [*result.methods, ANOTHER]
    for column, stage in enumerate(STAGES):
        for axis, name in zip(axes[:, column], ("cosine", "ratio"), strict=True):
            for method in shown if name == "cosine" else result.methods:
                _draw_method(axis, result, stage, method, name)
            axis.axhline(1, color="black", linewidth=0.8, zorder=0)
            axis.grid(axis="y", alpha=0.3)
            axis.axvline(len(result.shifted_timesteps) - 0.25, color="grey", linewidth=0.8)
        axes[0, column].axhline(0, color="grey", linestyle=":", zorder=0)
        axes[0, column].set_title(f"{stage} of the training")
        axes[1, column].set_xlabel("shifted timestep, first one left")
    places = [*range(len(result.shifted_timesteps)), len(result.shifted_timesteps) + 0.5]
    axes[1, 0].set_xticks(places, [*map(str, result.shifted_timesteps), "all"])
    axes[1, 0].set_yscale("log")
    axes[0, 0].set_ylabel("cosine with the exact gradient")
    axes[1, 0].set_ylabel("norm / exact norm")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    upper.legend(handles, labels, loc="outside lower center", ncols=4)
    _draw_outcomes(lower.subplots(1, len(OUTCOMES), sharey=True), result)
    n = counted(max(row.n for row in result.agreements), "batch", "batches")
    upper.suptitle(f"{result.title}: gradients of the shift block, means and 95 % intervals over {n}")
    seeds = counted(len({run.seed for run in result.runs}), "training seed")
    lower.suptitle(f"Trained for the same time: {seeds} (dots) and means (bars), n = {result.runs[0].n:,} pairs each")
    save_figure(figure, path)


def _color(result: "Gradients", method: str) -> str:
    if method in (EXACT, NODE):
        return "black"
    others = [name for name in result.methods if name != NODE]
    return COLORS[others.index(method) % (len(COLORS) - 1)] if method in others else "grey"


def _label(result: "Gradients", method: str) -> str:
    label = IN_WORDS.get(method) or f"{method.replace('-', ', last ')} (DRaFT)"
    return f"{label}: no gradient" if method in result.without_gradient() else label


def _draw_method(axis: "Axes", result: "Gradients", stage: str, method: str, name: str) -> None:
    """Draw one gradient over the timesteps as a line with a band, and the whole one with a bar."""
    rows = [row for row in result.agreements if (row.stage, row.method) == (stage, method)]
    parts, (whole,) = [row for row in rows if row.t is not None], [row for row in rows if row.t is None]
    color, values = _color(result, method), np.array([getattr(row, name) for row in parts])
    others = [*result.methods, ANOTHER]
    size = 3 + 1.2 * (len(others) - others.index(method))  # the first ones are below, and show as rings
    x, dashes = np.arange(len(parts)), ":" if method == ANOTHER else "-"
    axis.plot(x, values, dashes, color=color, marker="o", markersize=size, label=_label(result, method))
    low, high = np.array([getattr(row, f"{name}_interval") for row in parts]).T
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    if whole.n:
        place = len(parts) + 0.2 + 0.6 * others.index(method) / len(others)  # side by side
        value, (low, high) = getattr(whole, name), getattr(whole, f"{name}_interval")
        axis.errorbar(place, value, yerr=[[value - low], [high - value]], color=color, marker="o", capsize=3)


def _draw_outcomes(axes: "np.ndarray", result: "Gradients") -> None:
    """Draw what the trainings came to, a row a gradient; those that have none say so."""
    table = result.trainings.table()
    trained = list(dict.fromkeys(table["variant"]))
    names = [EXACT, *(name for name in result.methods if name != NODE)]
    steps = {EXACT if cost.method == NODE else cost.method: cost.steps for cost in result.costs if cost.steps}
    for axis, (title, (metric, reference)) in zip(axes, OUTCOMES.items(), strict=True):
        axis.set_title(title.format(metric=result.trainings.metric))
        for y, name in enumerate(names):
            values = table.loc[table["variant"] == name, metric].dropna()
            if len(values):
                axis.barh(y, values.mean(), 0.7, color=_color(result, name), alpha=0.5)
                axis.plot(values, [y] * len(values), "o", color="black", markersize=3)
            else:
                why = "not defined" if name in trained else "no gradient"
                why = why if name in trained or name in result.without_gradient() else "not trained"
                axis.text(0.02, y, why, transform=axis.get_yaxis_transform(), va="center", color="grey")
        if reference:
            axis.axvline(table[reference].mean(), color="grey", linestyle=":")
    labels = [f"{name}, {counted(steps[name], 'step')}" if name in steps else name for name in names]
    axes[0].set_yticks(range(len(names)), labels)
    axes[0].set_ylim(len(names) - 0.4, -0.6)  # the first one on top
