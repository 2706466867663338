"""Pictures of the quality of a diffusion model's samples: its numbers, and samples beside real images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hbench.reporting.charts.figure import at_hand, legend_below, plain, save_figure, show_pixels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from hbench.evaluation.balance import Balance
    from hbench.evaluation.quality import Quality

COLUMNS = 3
"""Number of panels side by side."""
LETTERS = 36
"""Number of letters that fit below a panel of a third of the figure; longer names of classes are turned."""


@styled
def draw_quality(result: "Quality", path: Path) -> None:
    """Draw distance, precision, recall and nearest training images against M, and the balance of each factor."""
    from matplotlib.figure import Figure

    factors = result.at_shown.balances
    rows = 1 + -(-len(factors) // COLUMNS)
    figure = Figure(figsize=(14, 4.6 + 3.2 * (rows - 1)), layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS, height_ratios=[4.6] + [3.2] * (rows - 1))
    distance, precision, nearest = (figure.add_subplot(grid[0, i]) for i in range(3))
    _draw_distance(distance, result)
    _draw_precision(precision, result)
    _draw_nearest(nearest, result)
    for i, balance in enumerate(factors):
        row, column = divmod(i, COLUMNS)
        wide = len(factors) == 1
        axis = figure.add_subplot(grid[1 + row, :] if wide else grid[1 + row, column])
        _draw_balance(axis, balance, result, LETTERS * (COLUMNS if wide else 1))
        if i == 0:
            axis.legend(fontsize=9)
    figure.suptitle(plain(f"{_name(result)}: {result.n:,} samples for each M, {result.n_real:,} real images"))
    save_figure(figure, path)


@styled
def draw_beside(result: "Quality", path: Path) -> None:
    """Draw samples beside real images, and below them samples above their nearest training images."""
    from matplotlib.figure import Figure

    shown = at_hand(result, result.images)
    height = 6.6 if shown.beside is None else 11.8
    figure = Figure(figsize=(12, height), layout="constrained")
    ratios = [6] if shown.beside is None else [6, 4.4]
    grid = figure.add_gridspec(len(ratios), 2, height_ratios=ratios)
    seed = result.provenance.seed if result.provenance else 0
    _show(figure.add_subplot(grid[0, 0]), shown.samples, 8, f"samples, M = {result.shown}: the first of seed {seed}")
    right = figure.add_subplot(grid[0, 1])
    if shown.real is None:
        right.set_axis_off()
        right.text(0.5, 0.5, "no real images at hand", ha="center", va="center", transform=right.transAxes)
    else:
        _show(right, shown.real, 8, "real images: the first ones")
    if shown.beside is not None:
        for column, (name, rows) in enumerate(
            (("the first samples", shown.beside[:2]), ("the samples that are nearest of all", shown.beside[2:]))
        ):
            _show_pairs(figure.add_subplot(grid[1, column]), rows, shown.distances[column], name)
    figure.suptitle(plain(_name(result)))
    save_figure(figure, path)


def _name(result: "Quality") -> str:
    """Return the name of the model's experiment."""
    experiment = result.provenance.experiment if result.provenance else None
    return f"{experiment['name']}" if experiment else "diffusion model"


def _draw_distance(axis: "Axes", result: "Quality") -> None:
    x = range(len(result.steps))
    values = [each.distance.fd for each in result.steps]
    _draw_numbers(axis, x, values, [each.distance.interval for each in result.steps], f"n = {result.n:,}", "C0")
    ends = [
        (i, each.distance.infinity, each.distance.infinity_interval)
        for i, each in enumerate(result.steps)
        if each.distance.infinity is not None and each.distance.infinity_interval
    ]
    if ends:
        places, infinities, bounds = zip(*ends, strict=True)
        _draw_numbers(axis, [i + 0.1 for i in places], infinities, bounds, "n to infinity", "C1")
    label = f"floor: halves of the real images, n = {result.n_real // 2:,}"
    axis.axhline(result.halves, color="grey", linestyle=":", label=label)
    times = ", ".join(f"{each.multiple:.1f}" for each in result.steps)
    axis.set(title=f"times the floor: {times}", ylabel=result.metric, ylim=(0, None))
    _steps_below(axis, result)
    legend_below(axis, columns=1)


def _draw_precision(axis: "Axes", result: "Quality") -> None:
    found = [(i, each.precision_recall) for i, each in enumerate(result.steps) if each.precision_recall]
    for shift, name, color in ((-0.05, "precision", "C0"), (0.05, "recall", "C2")):
        values = [getattr(each, name) for _, each in found]
        bounds = [getattr(each, f"{name}_interval") for _, each in found]
        if found:
            _draw_numbers(axis, [i + shift for i, _ in found], values, bounds, name, color)
        if result.perfect:
            axis.axhline(getattr(result.perfect, name), color=color, linestyle=":", label=f"{name} of real images")
    if not found:
        _left_out(axis)
    else:
        n, n_real = found[0][1].n, found[0][1].n_real
        axis.set_title(f"n = {n:,} against {n_real:,} real images")
    axis.set(ylabel="precision, recall", ylim=(0, 1.02))
    _steps_below(axis, result)
    if found:
        legend_below(axis, columns=2)


def _draw_nearest(axis: "Axes", result: "Quality") -> None:
    """Draw quartiles of the distances to the nearest training image, and how many are very near."""
    found = [each.nearest for each in result.steps if each.nearest]
    if result.tested is None or result.near is None:
        _left_out(axis)
        axis.set_axis_off()
        return
    every = [*found, result.tested]
    for x, each in enumerate(every):
        color = "C0" if x < len(found) else "grey"
        axis.bar(x, each.upper - each.lower, bottom=each.lower, width=0.5, color=color, alpha=0.5)
        axis.hlines(each.median, x - 0.25, x + 0.25, color="black")
        low, high = each.near_interval
        words = f"{each.near:.1%}" + (f"\n[{low:.1%}, {high:.1%}]" if x < len(found) else "")
        axis.annotate(words, (x, 0), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    label = f"very near: up to {result.near:.3f}; their share below"
    axis.axhline(result.near, color="C1", linestyle="--", label=label)
    names = [f"M = {each.M}\nn = {found[0].n:,}" for each in result.steps if each.nearest]
    axis.set_xticks(range(len(every)), [*names, f"test images\nn = {result.tested.n:,}"])
    axis.set(title="nearest training image: median, quartiles", ylabel="RMS distance of pixels", ylim=(0, None))
    legend_below(axis, columns=1)


def _draw_balance(axis: "Axes", balance: "Balance", result: "Quality", letters: int) -> None:
    """Draw the share of each class among samples as bars, and among real images as dots."""
    import numpy as np

    shares, real = np.array(balance.shares), np.array(balance.real)
    x, bounds = np.arange(len(shares)), np.array(balance.intervals).T
    errors = {"lw": 0.8, "capsize": 2}
    axis.bar(x, shares, yerr=np.abs(bounds - shares), alpha=0.6, error_kw=errors, label=f"samples, n = {result.n:,}")
    axis.plot(x, real, "o", color="C1", markersize=4, label="real images")
    turned = sum(len(name) + 2 for name in balance.classes) > letters
    axis.set_xticks(x, [plain(name) for name in balance.classes], rotation=90 * turned, fontsize=8 if turned else 10)
    low, high = balance.distance_interval
    axis.set_title(
        f"{plain(balance.factor)}, M = {result.shown}\n"
        f"off by {balance.distance:.3f} [{low:.3f}, {high:.3f}], by chance {balance.floor:.3f}",
        fontsize=10,
    )
    axis.set(ylabel="share", ylim=(0, 1.3 * max(bounds.max(), real.max())))  # room for a legend


def _draw_numbers(axis: "Axes", x: Any, values: Any, intervals: Any, label: str, color: str) -> None:
    """Draw numbers with their intervals as points on a line."""
    errors = [
        [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
    ]
    axis.errorbar(list(x), values, yerr=errors, marker="o", markersize=4, capsize=4, color=color, label=label)


def _steps_below(axis: "Axes", result: "Quality") -> None:
    axis.set_xticks(range(len(result.steps)), [str(each.M) for each in result.steps])
    axis.set(xlabel="generation steps M", xlim=(-0.5, len(result.steps) - 0.5))


def _left_out(axis: "Axes") -> None:
    axis.text(0.5, 0.5, "left out: no real images\nat hand", ha="center", va="center", transform=axis.transAxes)


def _show(axis: "Axes", images: "Tensor", columns: int, title: str) -> None:
    """Show images side by side in a panel."""
    from hbench.core.images import tile

    tiles = tile(images, columns, edge=1, background=(128, 128, 128))
    show_pixels(axis, tiles.pixels, grey=images.shape[1] == 1)
    axis.set_axis_off()
    axis.set_title(title, fontsize=11)


def _show_pairs(axis: "Axes", rows: "Tensor", distances: list[float], name: str) -> None:
    """Show samples and their nearest training images, [2, columns, C, H, W], in pairs, half of them in a line each."""
    import torch

    columns = -(-rows.shape[1] // 2)
    lines, words = [], []
    for first in range(0, rows.shape[1], columns):
        part = rows[:, first : first + columns]
        empty = part.new_full((2, columns - part.shape[1], *part.shape[2:]), 128)
        lines.append(torch.cat([part, empty], dim=1))
        words.append(", ".join(f"{d:.2f}" for d in distances[first : first + columns]))
    _show(axis, torch.cat([line.flatten(0, 1) for line in lines]), columns, "")
    axis.set_title(f"{name}, each above its nearest training image;\nRMS distances {'; '.join(words)}", fontsize=10)
