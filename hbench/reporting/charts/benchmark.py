"""Pictures of a bench: a panel for each number with a row for each method, and grids on the same x_T."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hbench.reporting.charts.figure import COLORS, at_hand, plain, save_figure, styled
from hbench.reporting.grids import draw_directions

if TYPE_CHECKING:
    from hbench.evaluation.benchmark.result import Benchmark

COLUMNS = 4
"""Panels side by side."""


@styled
def draw_benchmark(result: "Benchmark", path: Path) -> None:
    """Draw the numbers of all methods with their intervals, one row a method."""
    from matplotlib.figure import Figure

    panels = {
        "rca": "RCA of a fresh reconstructor →",
        "rca_visible": "RCA over visible directions →",
        "visible": "visible directions →",
        "distinct": "distinct among them →",
        "named": "named by an attribute →",
        "specificity": "specificity →",
        "oddness": "oddness →",
        "kept_half": "classes kept at S/2 →",
        "fd_ratio": f"← {result.metric}, shifted / raw",
        "precision": "shifted samples among raw ones →",
        "recall": "raw samples among shifted ones →",
        "seconds": "← seconds of the search",
    }
    values = {name: [_value(getattr(each, name)) for each in result.methods] for name in panels}
    shown = [name for name in panels if any(not math.isnan(value) for value in values[name])]
    rows = -(-len(shown) // COLUMNS)
    height = 0.9 + 0.3 * len(result.methods)
    figure = Figure(figsize=(15, rows * (height + 0.6) + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flat)
    for axis, name in zip(axes, shown, strict=False):
        for row, (each, value) in enumerate(zip(result.methods, values[name], strict=True)):
            color = COLORS[row % len(COLORS)]
            low, high = getattr(each, f"{name}_interval", (math.nan, math.nan))
            axis.plot([low, high], [row, row], color=color, lw=2)
            axis.plot(value, row, "o", color=color)
        if name == "rca":
            axis.axvline(1 / result.methods[0].K, color="grey", linestyle=":")
        axis.set_title(panels[name], fontsize=11)
        axis.locator_params(axis="x", nbins=5)
        axis.set_yticks(range(len(result.methods)), [plain(each.name) for each in result.methods])
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    axes[0].set_ylim(len(result.methods) - 0.5, -0.5)
    figure.suptitle(
        plain(f"{result.title}: methods at equal visible change, 95 % intervals; dotted: chance of the first")
    )
    save_figure(figure, path)


def draw_methods(result: "Benchmark", path: Path) -> None:
    """Draw the most visible directions of each method, a row of grids a method, all on the same x_T."""
    import torch

    grids = at_hand(result, result.grids)
    columns = min(len(labels) for _, labels in grids.values())
    images = torch.cat([images[:columns] for images, _ in grids.values()])
    labels = [label for _, labels in grids.values() for label in labels[:columns]]
    title = f"{result.title}: the {columns} most visible directions of each method, from -S to S on the same x_T"
    draw_directions(images, labels, None, title, path, columns)


def _value(value: list[int] | float) -> float:
    return float(len(value) if isinstance(value, list) else value)
