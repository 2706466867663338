"""Pictures of metrics and results. Reads only what a run has written, so that each can be drawn again."""

from pathlib import Path
from typing import TYPE_CHECKING

from hbench.runs import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
