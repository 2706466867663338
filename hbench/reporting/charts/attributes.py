"""Pictures of what directions do: effects beside images, and curves of the best directions."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hbench.reporting.charts.figure import at_hand, legend_below, plain, save_figure, show_pixels, styled, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hbench.evaluation.attributes.result import Attributes, MeasuredDirection

ROW = 0.5
"""Height of a direction in inches."""
BEST = 6
"""Number of directions whose curves are drawn."""


@styled
def draw_attributes(result: "Attributes", path: Path) -> None:
    """Draw one sample along each direction beside the direction's effects, invisible directions set apart below."""
    import numpy as np
    from matplotlib.figure import Figure

    from hbench.core.images import tile, to_uint8

    strips = at_hand(result, result.strips)[:, 0]
    order = _in_order(result)
    K, J = len(order), len(result.attributes)
    columns = strips.shape[1]
    figure = Figure(figsize=(ROW * columns + 0.3 * J + 5, ROW * K + 2.6), layout="constrained")
    images, effects = figure.subplots(1, 2, width_ratios=[ROW * columns, 0.3 * J])
    tiles = tile(to_uint8(strips[order].flatten(0, 1)), columns, edge=1, background=(128, 128, 128))
    show_pixels(images, tiles.pixels, grey=strips.shape[2] == 1, extent=(0, columns, K, 0))
    images.set_aspect("auto")  # rows in line with those of the heat map
    images.set_yticks(np.arange(K) + 0.5, [_label(result, k) for k in order], fontsize=9)
    ends = f"{result.magnitudes[-1]:g}"
    images.set_xticks([0.5, columns / 2, columns - 0.5], [f"s = -{ends}", "0", ends])
    images.tick_params(length=0)
    for spine in images.spines.values():
        spine.set_visible(False)

    values = np.array([result.directions[k].effects.effect for k in order], dtype=float)
    bound = float(np.nanquantile(np.abs(values), 0.98)) if np.isfinite(values).any() else 1.0
    picture = effects.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
    rows, passing = np.nonzero([result.directions[k].effects.passes for k in order])
    effects.plot(passing, rows, ".", color="black", markersize=4, linestyle="", label="in nearly all samples")
    effects.set_xticks(range(J), [plain(each.name) for each in result.attributes], rotation=90, fontsize=9)
    names = [plain(result.directions[k].proposed) for k in order]
    effects.yaxis.tick_right()
    effects.set_yticks(range(K), names, fontsize=9)
    effects.tick_params(length=0)
    figure.colorbar(picture, ax=effects, label="effect at S, natural standard deviations", pad=0.01, aspect=40)
    if len(rows):
        effects.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)
    seen = len(result.visible)
    if 0 < seen < K:
        images.axhline(seen, color="C1", linewidth=2)
        effects.axhline(seen - 0.5, color="C1", linewidth=2)
        effects.annotate("invisible", (0, seen - 0.5), xytext=(2, -2), textcoords="offset points", va="top", color="C1")
    figure.suptitle(plain(f"{title_of(result)}: {result.brief}"))
    save_figure(figure, path)


@styled
def draw_curves(result: "Attributes", path: Path) -> None:
    """Draw the leading attribute of the best directions over s, the classes kept, and what an effect costs in them."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    curves, kept, costs = figure.subplots(1, 3)
    named = [each for each in result.directions if each.proposed]
    best = sorted(named, key=_leading_effect, reverse=True)[:BEST]
    zero = len(result.magnitudes)
    s = np.insert(np.array(result.signed_magnitudes), zero, 0)
    for i, each in enumerate(best):
        label = f"{each.direction}: {plain(each.proposed)}"
        curves.plot(s, np.insert(np.array(each.curve), zero, 0), marker="o", markersize=3, color=f"C{i}", label=label)
        shares = np.array([1, *each.kept])
        kept.plot([0, *result.magnitudes], shares, marker="o", markersize=3, color=f"C{i}")
    curves.set(xlabel="s", ylabel="move of the leading attribute, natural sd", title="best directions")
    curves.axhline(0, color="grey", linewidth=0.8)
    curves.axvline(0, color="grey", linewidth=0.8)
    if best:
        legend_below(curves, columns=2)
    kept.set(xlabel="|s|", ylabel="share that keeps its classes", ylim=(0, 1.02), title="the same directions")
    _draw_costs(costs, result)
    figure.suptitle(plain(f"{title_of(result)}: n = {result.n:,} samples"))
    save_figure(figure, path)


def _draw_costs(axis: "Axes", result: "Attributes") -> None:
    """Draw the share of samples that keep their classes at S against the effect on the leading attribute."""
    import numpy as np

    shown = [each for each in result.directions if each.leading is not None and np.isfinite(each.kept[-1])]
    for each in shown:
        low, high = each.kept_interval[-1]
        error = [[max(0, each.kept[-1] - low)], [max(0, high - each.kept[-1])]]
        color = "C0" if each.visible else "grey"
        axis.errorbar([_leading_effect(each)], [each.kept[-1]], yerr=error, fmt="o", markersize=4, color=color)
        axis.annotate(
            str(each.direction),
            (_leading_effect(each), each.kept[-1]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
        )
    if not shown:
        axis.text(
            0.5, 0.5, "no direction with a\nleading attribute", ha="center", va="center", transform=axis.transAxes
        )
    axis.set(
        xlabel="|effect| on the leading attribute at S, natural sd",
        ylabel=f"share that keeps its classes at |s| = {result.magnitudes[-1]:g}",
        ylim=(0, 1.02),
        title="what an effect costs",
    )
    axis.set_xlim(left=0)


def _in_order(result: "Attributes") -> list[int]:
    """Return the directions: visible ones by cluster, the largest change first in each, then the invisible ones."""
    seen = [each for each in result.directions if each.visible]
    largest: dict[int | None, float] = {}
    for each in seen:
        largest[each.cluster] = max(largest.get(each.cluster, 0), each.visible_change)
    seen.sort(key=lambda each: (-largest[each.cluster], each.cluster, -each.visible_change))
    hidden = [each for each in result.directions if not each.visible]
    hidden.sort(key=lambda each: -each.visible_change)
    return [each.direction for each in [*seen, *hidden]]


def _label(result: "Attributes", k: int) -> str:
    """Return index, name by eye and accuracy of a direction, if it was drawn."""
    each = result.directions[k]
    name = f" {plain(each.name)}" if each.name else ""
    return f"{k}{name}" if math.isnan(each.accuracy) else f"{k}{name} ({each.accuracy:.2f})"


def _leading_effect(each: "MeasuredDirection") -> float:
    return 0.0 if each.leading is None else abs(each.effects.effect[each.leading])
