"""Pictures of metrics and results. Reads only what a run has written, so that each can be drawn again."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hbench.runs import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from hbench.evaluate import RCA
    from hbench.mos import Score

CURVES = {
    "loss": ["loss", "loss_k", "loss_s", "loss_adv", "loss_D"],
    "train accuracy": ["accuracy"],
    "D": ["D_raw", "D_shifted"],
}
"""Panels of the curve picture, and the metrics that each shows where they exist."""


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


def draw_directions(images: "Tensor", labels: list[str], S: float, title: str, path: Path) -> None:
    """Draws direction grids, one labelled panel each.

    Args:
        images: float in [-1, 1], [directions, examples, samples, C, H, W].
        labels: one line above each panel.
        S: largest magnitude, for the axis.
        title: of the figure.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    from hbench.images import to_uint8

    directions, examples, samples, channels, height, width = images.shape
    gap = 1
    panels = to_uint8(images)
    columns = min(4, directions)
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


def draw_mos(result: "Score", path: Path) -> None:
    """Draws the share of ones of every direction, highest first, a panel per run; untrained directions apart."""
    import warnings

    from matplotlib.figure import Figure

    shown = [[d for d in result.directions if d.run == run.run and d.mean is not None] for run in result.runs]
    longest = max(len(directions) for directions in shown)
    size = (min(24, 5 + 0.4 * longest), 4.2 * len(shown))
    figure = Figure(figsize=size, layout="constrained")
    for axis, run, directions in zip(figure.subplots(len(shown), squeeze=False)[:, 0], result.runs, shown, strict=True):
        directions.sort(key=lambda d: (d.control, -(d.mean or 0), d.direction))
        means = [d.mean or 0 for d in directions]
        spans = [d.interval or (mean, mean) for d, mean in zip(directions, means, strict=True)]
        errors = [
            [m - low for m, (low, _) in zip(means, spans, strict=True)],
            [high - m for m, (_, high) in zip(means, spans, strict=True)],
        ]
        colors = ["tab:grey" if d.control else "tab:blue" for d in directions]
        axis.bar(
            range(len(directions)), means, color=colors, yerr=errors, ecolor="black", error_kw={"lw": 0.8, "capsize": 2}
        )
        if run.mos.mean is not None:
            label = f"MOS {run.mos.mean:.2f}, n = {run.mos.n} directions"
            axis.axhline(run.mos.mean, color="tab:orange", linestyle="--", label=label)
            if run.mos.interval:
                axis.axhspan(*run.mos.interval, color="tab:orange", alpha=0.12, linewidth=0, label="95 % interval")
        if run.floor.mean is not None:
            label = f"untrained {run.floor.mean:.2f}, n = {run.floor.n}"
            axis.axhline(run.floor.mean, color="tab:grey", linestyle=":", label=label)
        step = max(1, len(directions) // 64)
        labels = [
            "untrained" if d.control else f"{d.direction}: {next(iter(d.names))[:24]}" if d.names else str(d.direction)
            for d in directions[::step]
        ]
        ticks = range(0, len(directions), step)
        axis.set_xticks(ticks, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7, parse_math=False)
        axis.set_title(f"{run.title}: marks of {result.sheets} assessors", parse_math=False)
        axis.set(ylabel="share of marks that are 1", ylim=(0, 1.02))
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name may hold any character
        save_figure(figure, path)
