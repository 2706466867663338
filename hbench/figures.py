"""Pictures of metrics and results. Reads only what a run has written, so that each can be drawn again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hbench.runs import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from torch import Tensor

    from hbench.curves import Curves
    from hbench.evaluate import RCA

CURVES = {
    "loss": ["loss", "loss_k", "loss_s", "loss_adv", "loss_l1", "loss_D"],
    "train accuracy": ["accuracy"],
    "D": ["D_raw", "D_shifted"],
}
"""Panels of the curve picture, and the metrics that each shows where they exist."""
RUN_CURVES = {
    "D on raw (solid), shifted (dashed)": ["D_raw", "D_shifted"],
    "train accuracy": ["accuracy"],
    "CE(k_hat, k)": ["loss_k"],
    "|s_hat - s|": ["loss_s"],
    "fidelity loss: adversarial (solid), l1 (dashed)": ["loss_adv", "loss_l1"],
    "loss of D": ["loss_D"],
}
"""The same for several runs in one picture."""


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG in one move."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def draw_curves(folder: Path) -> None:
    """Draws ``metrics.csv`` of a run as ``curves.png``: losses, train accuracy, D's output on raw and shifted."""
    import pandas as pd
    from matplotlib.figure import Figure

    rows = pd.read_csv(folder / "metrics.csv")
    panels = [(title, [n for n in names if n in rows]) for title, names in CURVES.items()]
    panels = [(title, names) for title, names in panels if names]
    window = max(1, len(rows) // 50)
    figure = Figure(figsize=(5 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, names) in zip(axes, panels, strict=True):
        for name in names:
            (line,) = axis.plot(rows["step"], rows[name], alpha=0.2, linewidth=0.6)
            smooth = rows[name].rolling(window, min_periods=1).mean()
            axis.plot(rows["step"], smooth, color=line.get_color(), label=name)
        if title == "D":
            axis.axhline(0.5, color="grey", linestyle=":", label="ideal")
            axis.set_ylim(0, 1)
        elif title == "loss":
            axis.set_yscale("log")
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=8)
    save_figure(figure, folder / "curves.png")


def draw_run_curves(curves: "Sequence[Curves]", settings: Sequence[str], path: Path) -> None:
    """Draws the training of several runs, one colour each, smoothed over a twentieth of the run.

    ``settings`` says of each run how it differs from the others.
    """
    from textwrap import shorten

    from matplotlib import color_sequences
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    sequence = color_sequences["tab10" if len(curves) <= 10 else "tab20"]
    colours = [sequence[i % len(sequence)] for i in range(len(curves))]
    figure = Figure(figsize=(14, 7 + 0.25 * len(curves)), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, (title, names) in zip(axes, RUN_CURVES.items(), strict=True):
        for run, colour in zip(curves, colours, strict=True):
            window = max(1, len(run.rows) // 20)
            for name, style in zip(names, ("-", "--"), strict=False):
                if name in run.rows:
                    smooth = run.rows[name].rolling(window, min_periods=1).mean()
                    axis.plot(run.rows["step"], smooth, style, color=colour, linewidth=1.2)
        axis.set(title=title, xlabel="step")
    axes[0].axhline(0.5, color="grey", linestyle=":")
    axes[0].set_ylim(0, 1)
    axes[1].set_ylim(0, 1)
    labels = [
        shorten(f"{run.name}: {text}" if text else run.name, 110) for run, text in zip(curves, settings, strict=True)
    ]
    handles = [Line2D([], [], color=colour) for colour in colours]
    figure.legend(handles, labels, loc="outside lower center", fontsize=9)
    save_figure(figure, path)


def draw_ablations(table: "DataFrame", chance: float, title: str, path: Path) -> None:
    """Draws each variant's mean as a bar and its seeds as dots: one panel for each metric of the ablations."""
    from matplotlib.figure import Figure

    panels = {
        "RCA (dotted: chance)": (["rca"], chance),
        "share outside the domain": (["outside"], None),
        "D on raw (blue), shifted (orange), last third": (["D_raw", "D_shifted"], 0.5),
        "FD (LeNet digits) of shifted (dotted: raw)": (["fd_shifted"], table["fd_raw"].mean()),
    }
    shown = {name: panel for name, panel in panels.items() if table[panel[0]].notna().any(axis=None)}
    variants = list(table["variant"].unique())
    figure = Figure(figsize=(4 * len(shown), 4), layout="constrained")
    for axis, (name, (metrics, reference)) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        width = 0.8 / len(metrics)
        for i, variant in enumerate(variants):
            for j, metric in enumerate(metrics):
                values = table.loc[table["variant"] == variant, metric]
                x = i + (j - (len(metrics) - 1) / 2) * width
                axis.bar(x, values.mean(), width, color=f"C{j}", alpha=0.5)
                axis.plot([x] * len(values), values, "o", color="black", markersize=4)
        if reference is not None:
            axis.axhline(reference, color="grey", linestyle=":")
        axis.set_xticks(range(len(variants)), variants)
        axis.set_title(name, fontsize=10)
    figure.suptitle(title)
    save_figure(figure, path)


def draw_confusion(result: "RCA", title: str, path: Path) -> None:
    """Draws the confusion of directions and the accuracy of each, most accurate first."""
    import numpy as np
    from matplotlib.figure import Figure

    order = result.ranking()
    counts = np.array(result.confusion, dtype=float)[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    picture = left.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    left.set(title="share of predictions", xlabel="predicted direction", ylabel="true direction")
    step = max(1, len(order) // 32)
    ticks = range(0, len(order), step)
    left.set_xticks(ticks, [order[i] for i in ticks], fontsize=7)
    left.set_yticks(ticks, [order[i] for i in ticks], fontsize=7)
    figure.colorbar(picture, ax=left)
    right.bar(range(len(order)), [result.per_direction[k] for k in order])
    right.axhline(result.chance, color="grey", linestyle=":", label=f"chance {result.chance:.3f}")
    right.set_xticks(ticks, [order[i] for i in ticks], fontsize=7)
    low, high = result.interval
    right.set(
        title=f"accuracy {result.accuracy:.3f} [{low:.3f}, {high:.3f}], n = {result.n}", xlabel="direction", ylim=(0, 1)
    )
    right.legend()
    figure.suptitle(title)
    save_figure(figure, path)


def direction_label(k: int, result: "RCA", names: Mapping[int, str] | None = None) -> str:
    """A direction's index, its name where it has one, and its accuracy."""
    name = (names or {}).get(k)
    return f"{k}: {name} ({result.per_direction[k]:.2f})" if name else f"{k} ({result.per_direction[k]:.2f})"


def draw_directions(images: "Tensor", labels: list[str], S: float, title: str, path: Path, columns: int = 4) -> None:
    """Draws direction grids, one labelled panel each.

    Args:
        images: float in [-1, 1], [directions, examples, samples, C, H, W].
        labels: one line above each panel.
        S: largest magnitude, for the axis.
        title: of the figure.
        path: PNG to write.
        columns: panels side by side, at most.
    """
    from matplotlib.figure import Figure

    from hbench.images import to_uint8

    directions, examples, samples, channels, height, width = images.shape
    gap = 1
    panels = to_uint8(images)
    columns = min(columns, directions)
    rows = -(-directions // columns)
    figure = Figure(figsize=(0.55 * samples * columns + 1, (0.55 * examples + 0.45) * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, panel, label in zip(axes, panels, labels, strict=False):
        canvas = panel.new_full((channels, examples * (height + gap), samples * (width + gap)), 128)
        for row in range(examples):
            for column in range(samples):
                top, left = row * (height + gap), column * (width + gap)
                canvas[:, top : top + height, left : left + width] = panel[row, column]
        canvas = canvas[:, :-gap, :-gap].permute(1, 2, 0)
        axis.imshow(canvas.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(label, fontsize=9)
    figure.suptitle(f"{title}: s from {-S:g} to {S:g}, the middle column is the original")
    save_figure(figure, path)


def draw_growth(grown: "list[tuple[int, RCA]]", path: Path) -> None:
    """Draws the accuracy on fresh pairs over training steps, with its intervals and chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    steps = [step for step, _ in grown]
    values = [result.accuracy for _, result in grown]
    below = [result.accuracy - result.interval[0] for _, result in grown]
    above = [result.interval[1] - result.accuracy for _, result in grown]
    axis.errorbar(steps, values, yerr=[below, above], marker="o", capsize=3, label="RCA, 95 % interval")
    axis.axhline(grown[0][1].chance, color="grey", linestyle=":", label="chance")
    axis.set(xlabel="step", ylabel="accuracy on fresh pairs", ylim=(0, 1))
    axis.legend()
    save_figure(figure, path)
