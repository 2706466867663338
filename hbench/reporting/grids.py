"""Pictures of edited images: grids and strips of directions, the three sources of delta_h, edits of real images."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hbench.errors import counted
from hbench.reporting.charts.figure import at_hand, plain, save_figure, show_pixels, styled, title_of
from hbench.reporting.charts.training import title_of_training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from hbench.core.directions import Edit
    from hbench.evaluation.ablations import Ablations
    from hbench.evaluation.attributes.result import Attributes
    from hbench.evaluation.edited_images import EditedImages
    from hbench.evaluation.properties import Properties
    from hbench.evaluation.sample import Samples
    from hbench.evaluation.traverse import Traversal
    from hbench.store.results import Result

MOST_ROWS = 40
"""Number of rows in the picture of edits, at most; further ones are left out."""
LONGEST = 24
"""Number of characters of the name beside a row, at most."""
LONGEST_DIRECTION = 40
"""Number of characters of a direction's name above a panel, at most."""
STRIP, WRAPPED = 3, 26
"""Number of directions of a strip, and characters of a line of their names."""


@styled
def draw_traversal(result: "Traversal", path: Path) -> None:
    """Draw the grid of each direction, most recognisable first."""
    from hbench.evaluation.traverse import direction_label

    grid = at_hand(result, result.grid)
    labels = [
        plain(
            direction_label(
                each.direction,
                each.accuracy,
                _shortened(each.name, LONGEST_DIRECTION),
                is_hidden=each.visible is False,
            )
        )
        for each in result.directions
    ]
    faint = [i for i, each in enumerate(result.directions) if each.visible is False]
    S = grid.magnitudes[-1]
    caption = directions_caption(S, result.samples, result.pairs)
    title = f"{title_of(result)}\n{caption}\n{rows_caption(result)}".rstrip()
    draw_directions(grid.images, labels, S, title, path, faint=faint)


def directions_caption(S: float | None, samples: int, pairs: int) -> str:
    """Return what columns and brackets of direction grids show; ``S`` is None if each panel has another."""
    span = "-S to S" if S is None else f"{-S:g} to {S:g}"
    middle = ", the middle column is the original" if samples % 2 else ""
    return f"s from {span}{middle}; in brackets the RCA of the direction, ranked by n = {counted(pairs, 'pair')}"


def rows_caption(result: "Result") -> str:
    """Return which x_T the rows show and by what rule, as in "rows: x_T 0, 1, 3 of seed 0, the first x_T"."""
    indices = result.detail("x_T")
    if not indices:
        return ""
    return f"rows: x_T {', '.join(map(str, indices))} of seed {result.provenance.seed}, {result.detail('x_T_rule')}"


@styled
def draw_directions(
    images: "Tensor",
    labels: list[str],
    S: float | None,
    title: str,
    path: Path,
    columns: int = 4,
    faint: Sequence[int] = (),
) -> None:
    """Draw direction grids, one labelled panel each.

    Args:
        images: images in [-1, 1], float [directions, examples, samples, C, H, W].
        labels: line above each panel.
        S: largest magnitude, for the numbers above the columns; None if each panel has another.
        title: title of the figure.
        path: PNG file to write.
        columns: number of panels side by side, at most.
        faint: panels that are drawn faintly, of directions that nobody sees.
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
        axis.set_title(label, fontsize=9, color="grey" if i in faint else "black")
        for picture in axis.images if i in faint else []:
            picture.set_alpha(0.4)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


@styled
def draw_variants(result: "Ablations", path: Path) -> None:
    """Draw the most accurate directions of each variant's first training, the same number of each."""
    import torch

    shown = at_hand(result, result.shown)
    columns = min(len(each.directions) for each in shown)  # fewer where a variant has fewer directions
    images = torch.cat([each.images[:columns] for each in shown])
    labels = [label for each in shown for label in each.labels[:columns]]
    spans = {each.S for each in shown}
    S = spans.pop() if len(spans) == 1 else None
    caption = directions_caption(S, images.shape[2], result.runs[0].n)
    title = f"{title_of_training(result)}, training seed {result.seeds[0]}\n{caption}\n{rows_caption(result)}".rstrip()
    draw_directions(images, labels, S, title, path, columns)


def draw_samples(result: "Samples", path: Path) -> None:
    """Draw the samples in about as many rows as columns, each pixel enlarged."""
    from hbench.store.pictures import save_grid

    images = at_hand(result, result.images)
    columns, scale = max(1, round(result.n**0.5)), max(1, 64 // images.shape[-1])
    save_grid(images, path, columns=columns, scale=scale)


@styled
def draw_sources(result: "Properties", path: Path) -> None:
    """Draw the same edits with the three sources of delta_h (Fig. 9), one labelled panel a direction."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = at_hand(result, result.examples)
    directions, examples, samples = shown.images.shape[:3]
    breaks = range(1, samples, 3)
    columns = min(2, directions)
    rows = -(-directions // columns)
    size = (0.5 * samples * columns, (0.5 * examples + 0.95) * rows + 0.3)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.06))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, panel, label in zip(axes, shown.images, shown.labels, strict=False):
        axis.set_axis_on()
        centers, _ = _show_tiles(axis, panel, breaks)
        names = ["original", *["own", "mean", "global"] * len(shown.magnitudes)]
        axis.set_xticks(centers, names, rotation=60, fontsize=7)
        above = axis.secondary_xaxis("top")
        above.set_xticks(centers[2::3], [f"s = {s:g}" for s in shown.magnitudes], fontsize=8)
        above.tick_params(length=0)
        above.spines[:].set_visible(False)
        axis.set_title(plain(_shortened(label, LONGEST_DIRECTION)), fontsize=9)
    figure.suptitle(
        f"{title_of(result)}: the sample's own direction, the mean over samples, and the time-invariant one (global)\n"
        f"{rows_caption(result)}".rstrip(),
        fontsize=10,
    )
    save_figure(figure, path)


@styled
def draw_edits(result: "EditedImages", path: Path) -> None:
    """Draw edited images in labelled rows and columns (Fig. 8), a row an image.

    If two directions are crossed, an image has a row for each magnitude of the second.
    """
    import torch
    from matplotlib.figure import Figure

    pictures = at_hand(result, result.pictures)
    names = {k: _shortened(name, LONGEST_DIRECTION) for k, name in result.names.items()}
    labels = _edit_labels([dict(edit) for edit in result.edits], names)
    height = len(labels.rows)
    ends = torch.full_like(pictures[:, None, :2].expand(-1, height, -1, -1, -1, -1), float("nan"))
    ends[:, 0] = pictures[:, :2]
    edits = pictures[:, 2:].unflatten(1, (height, -1))
    images = torch.cat([ends, edits], dim=2).flatten(0, 1)
    columns = ["original", "reconstruction", *labels.columns]
    rows = [
        "\n".join(filter(None, [f"{_shortened(Path(image.image).stem)}\n{image.psnr:.1f} dB" if not i else "", row]))
        for image in result.images
        for i, row in enumerate(labels.rows)
    ]
    left_out = f"\nthe first {MOST_ROWS} of {len(rows)} rows" if len(rows) > MOST_ROWS else ""
    rows = rows[:MOST_ROWS]
    figure = Figure(figsize=(max(7.0, 0.9 * len(columns) + 1.8), 0.92 * len(rows) + 1.5), layout="constrained")
    axis = figure.subplots()
    across, down = _show_tiles(axis, images[:MOST_ROWS], breaks=[2])
    axis.set_xticks(across, [plain(column) for column in columns], fontsize=8)
    axis.set_yticks(down, [plain(row) for row in rows], fontsize=8)
    axis.xaxis.tick_top()
    source = result.detail("direction_source", "own")
    title = f"{result.title}, {source} directions, {result.detail('M')} steps{labels.heading}{left_out}"
    figure.suptitle(plain(title), fontsize=10)
    save_figure(figure, path)


@styled
def draw_strip(result: "Attributes", path: Path) -> None:
    """Draw some samples, and each by both signs of the best directions, those of different attributes first."""
    import torch
    from matplotlib.figure import Figure

    strips = at_hand(result, result.strips)
    zero, best = len(result.magnitudes), _of_different_attributes(result)[:STRIP]
    images, captions = [strips[0, :, zero]], ["original"]
    for k in best:
        s = result.good_magnitude(k)
        at = result.magnitudes.index(s) + 1
        images += [strips[k, :, zero - at], strips[k, :, zero + at]]
        captions += [f"s = {-s:g}", f"s = {s:g}"]
    figure = Figure(figsize=(1.05 * len(images) + 0.6, 0.95 * strips.shape[1] + 1.1), layout="constrained")
    axis = figure.subplots()
    across, _ = _show_tiles(axis, torch.stack(images, dim=1), breaks=range(1, len(images), 2))
    axis.set_xticks(across, captions, fontsize=9)
    above = axis.secondary_xaxis("top")
    labels = [textwrap.fill(plain(f"{k}: {name_of(result, k)}"), WRAPPED) for k in best]
    middles = [(left + right) / 2 for left, right in zip(across[1::2], across[2::2], strict=True)]
    above.set_xticks(middles, labels, fontsize=9)
    above.tick_params(length=0)
    above.spines[:].set_visible(False)
    if not best:
        axis.set_title("no visible direction with an effect")
    save_figure(figure, path)


def _of_different_attributes(result: "Attributes") -> list[int]:
    """Return the best directions, those that lead another attribute than all before them first."""
    leading = [result.directions[k].leading for k in result.best]
    return sorted(result.best, key=lambda k: result.best.index(k) != leading.index(result.directions[k].leading))


def name_of(result: "Attributes", k: int) -> str:
    """Return what a direction is called, by eye or by its effects, with an arrow from what -s is to what s is."""
    each = result.directions[k]
    less, _, more = each.name.partition(" to ")
    return f"{less} → {more}" if more else each.name or each.proposed


class _EditLabels(NamedTuple):
    """Words around the picture of edits."""

    columns: list[str]
    """Label of each column of edits."""
    rows: Sequence[str] = ("",)
    """Label of each row of an image."""
    heading: str = ""
    """Further line of the title."""


def _edit_labels(edits: "Sequence[Edit]", names: Mapping[int, str]) -> _EditLabels:
    """Return the labels of a sweep of one direction, of two crossed directions, or of other edits, in one row."""
    from hbench.evaluation.edit import caption

    shifted = {tuple(edit) for edit in edits}
    directions = shifted.pop() if len(edits) > 1 and len(shifted) == 1 else ()
    if len(directions) == 1:
        (k,) = directions
        heading = f"\ndirection {k}" + (f": {names[k]}" if k in names else "")
        return _EditLabels([f"s = {edit[k]:.3g}" for edit in edits], heading=heading)
    if len(directions) == 2:
        k, u = directions
        across, down = (list(dict.fromkeys(edit[each] for edit in edits)) for each in directions)
        if list(edits) == [{k: s, u: t} for t in down for s in across]:
            return _EditLabels([caption({k: s}) for s in across], [caption({u: t}) for t in down])
    return _EditLabels([caption(edit, names) for edit in edits])


def _shortened(text: str, longest: int = LONGEST) -> str:
    """Return text on one line, its end left out where it is too long for a picture."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _show_tiles(axis: "Axes", images: "Tensor", breaks: Sequence[int] = ()) -> tuple[list[float], list[float]]:
    """Show images [rows, columns, C, H, W] in a panel. Return the centres of the columns and of the rows.

    Thin grey frames keep white images visible. A wide white line comes before each column of ``breaks``, and images
    with nan stay white.
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
