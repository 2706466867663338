"""Pictures of edited images: the grid of each direction, its three sources side by side, edits of real images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hbench.reporting.charts import plain, save_figure, show_pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from hbench.evaluation.rca import RCA


def direction_label(k: int, result: "RCA", names: Mapping[int, str] | None = None) -> str:
    """A direction's index, its name where it has one, and its accuracy."""
    name = (names or {}).get(k)
    return f"{k}: {plain(name)} ({result.per_direction[k]:.2f})" if name else f"{k} ({result.per_direction[k]:.2f})"


def draw_directions(
    images: "Tensor", labels: list[str], S: float | None, title: str, path: Path, columns: int = 4
) -> None:
    """Draws direction grids, one labelled panel each.

    Args:
        images: float in [-1, 1], [directions, examples, samples, C, H, W].
        labels: one line above each panel.
        S: largest magnitude, for the title; None where each panel has its own.
        title: of the figure.
        path: PNG to write.
        columns: panels side by side, at most.
    """
    from matplotlib.figure import Figure

    from hbench.core.directions import magnitudes

    directions, examples, samples = images.shape[:3]
    columns = min(columns, directions)
    rows = -(-directions // columns)
    figure = Figure(figsize=(0.55 * samples * columns + 1, (0.55 * examples + 0.45) * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for i, (axis, panel, label) in enumerate(zip(axes, images, labels, strict=False)):
        across, _ = _show_tiles(axis, panel)
        if i < columns and S is not None:
            axis.set_axis_on()
            axis.set_xticks(across, [f"{s:.3g}" for s in magnitudes(S, samples)], fontsize=7)
            axis.xaxis.tick_top()
        axis.set_title(label, fontsize=9)
    middle = ", the middle column is the original" if samples % 2 else ""
    span = "-S to S" if S is None else f"{-S:g} to {S:g}"
    figure.suptitle(f"{title}: s from {span}{middle}; RCA in brackets")
    save_figure(figure, path)


def draw_sources(images: "Tensor", labels: list[str], magnitudes: list[float], title: str, path: Path) -> None:
    """Draws the same edits with the three sources of delta_h (Fig. 9), one labelled panel a direction.

    Args:
        images: float in [-1, 1], [directions, examples, 1 + 3 * magnitudes, C, H, W]: the original, then own, mean and
            time-invariant edit of each magnitude.
        labels: one line above each panel.
        magnitudes: s of each three columns.
        title: of the figure.
        path: PNG to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    directions, examples, samples = images.shape[:3]
    breaks = range(1, samples, 3)
    columns = min(2, directions)
    rows = -(-directions // columns)
    size = (0.5 * samples * columns, (0.5 * examples + 0.95) * rows + 0.3)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, panel, label in zip(axes, images, labels, strict=False):
        axis.set_axis_on()
        centers, _ = _show_tiles(axis, panel, breaks)
        names = ["original", *["own", "mean", "global"] * len(magnitudes)]
        axis.set_xticks(centers, names, rotation=60, fontsize=7)
        above = axis.secondary_xaxis("top")
        above.set_xticks(centers[2::3], [f"s = {s:g}" for s in magnitudes], fontsize=8)
        above.tick_params(length=0)
        above.spines[:].set_visible(False)
        axis.set_title(label, fontsize=9)
    figure.suptitle(f"{title}: the sample's own direction, the mean over samples, and the time-invariant one")
    save_figure(figure, path)


def draw_edits(
    images: "Tensor", columns: list[str], rows: list[str], breaks: Sequence[int], title: str, path: Path
) -> None:
    """Draws edited images in labelled rows and columns (Fig. 8).

    Args:
        images: float in [-1, 1], [rows, columns, C, H, W]; nan draws an empty tile.
        columns: label of each column.
        rows: label of each row.
        breaks: columns with a gap before them.
        title: of the figure.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    count, samples = images.shape[:2]
    width = max(7.0, 0.9 * samples + 1.8)
    figure = Figure(figsize=(width, 0.92 * count + 1.5), layout="constrained")
    axis = figure.subplots()
    across, down = _show_tiles(axis, images, breaks)
    axis.set_xticks(across, [plain(column) for column in columns], fontsize=8)
    axis.set_yticks(down, [plain(row) for row in rows], fontsize=8)
    axis.xaxis.tick_top()
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _show_tiles(axis: "Axes", images: "Tensor", breaks: Sequence[int] = ()) -> tuple[list[float], list[float]]:
    """Shows images [rows, columns, C, H, W] side by side; returns the centres of the columns and of the rows.

    Each image has a thin grey frame, so that one gone white shows; a wide white line comes before each column of
    ``breaks``; nan stays white.
    """
    from hbench.core.images import GREY, tile, to_uint8

    columns, height, width = images.shape[1], *images.shape[-2:]
    gap, wide = max(1, width // 16), max(4, width // 4)
    each = images.flatten(0, 1)
    pixels, lefts, tops = tile(
        to_uint8(each.nan_to_num()),
        columns,
        gap=gap,
        edge=gap,
        frames=dict.fromkeys(range(columns), GREY),
        frame_width=gap,
        breaks=breaks,
        break_width=wide,
        shown=~each.isnan().flatten(1).any(1),
    )
    show_pixels(axis, pixels, grey=images.shape[2] == 1)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_yticks([])
    return [left + (width - 1) / 2 for left in lefts], [top + (height - 1) / 2 for top in tops]
