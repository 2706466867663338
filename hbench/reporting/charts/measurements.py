"""Charts of the measurements of one run: accuracy, distances and properties."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from hbench.errors import counted
from hbench.reporting.charts.figure import at_hand, legend_below, save_figure, show_pixels, styled, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from hbench.evaluation.estimates import Estimate
    from hbench.evaluation.fid import Fidelity
    from hbench.evaluation.properties import Properties
    from hbench.evaluation.rca import RCA


@styled
def draw_confusion(result: "RCA", path: Path) -> None:
    """Draw the confusion of directions and the accuracy of each, most accurate first, invisible ones last and grey."""
    import numpy as np
    from matplotlib.figure import Figure

    order = result.ranking()
    counts = np.array(result.confusion, dtype=float)[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    picture = left.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    left.set(xlabel="predicted direction", ylabel="true direction")
    step = max(1, len(order) // 32)
    ticks = range(0, len(order), step)
    labels = {"labels": [order[i] for i in ticks], "fontsize": 8}
    turned = 90 * (len(order) > 16)
    left.set_xticks(ticks, rotation=turned, **labels)
    left.set_yticks(ticks, **labels)
    figure.colorbar(picture, ax=left, label="share of the true direction's pairs")
    accuracy = np.array([result.per_direction[k] for k in order])
    bounds = np.array([result.per_direction_interval[k] for k in order]).T
    errors = np.abs(bounds - accuracy)  # nan for directions that were never drawn
    colors = ["lightgrey" if k in result.invisible else "C0" for k in order]
    right.bar(
        range(len(order)), accuracy, yerr=errors, color=colors, ecolor="black", error_kw={"lw": 0.8, "capsize": 2}
    )
    right.axhline(result.chance, color="black", linestyle=":")
    right.annotate(
        f"chance\n{result.chance:.3f}",
        (1, result.chance),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
    )
    right.set_xticks(ticks, rotation=turned, **labels)
    if result.invisible:
        right.set_title("grey: directions that nobody sees", fontsize=10)
    right.set(xlabel="direction", ylabel="accuracy, 95 % interval", ylim=(0, 1), xlim=(-0.7, len(order) - 0.3))
    low, high = result.interval
    n = counted(result.n, "pair")
    figure.suptitle(f"{title_of(result)}: accuracy {result.accuracy:.3f} [{low:.3f}, {high:.3f}], n = {n}")
    save_figure(figure, path)


@styled
def draw_fidelity(result: "Fidelity", path: Path) -> None:
    """Draw the distances of raw and shifted samples with their intervals, and some samples of each kind."""
    from matplotlib.figure import Figure

    from hbench.core.images import tile

    shown = at_hand(result, result.images)
    side = 8
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    bars, *grids = figure.subplots(1, 3)
    values = [result.raw, result.shifted]
    errors = [[d.fd - d.interval[0] for d in values], [d.interval[1] - d.fd for d in values]]
    n, half = result.raw.n, result.n_real // 2
    bars.bar(
        ["raw", "shifted"], [d.fd for d in values], yerr=errors, capsize=6, width=0.6, alpha=0.6, label=f"n = {n:,}"
    )
    for x, d in enumerate(values):
        if d.infinity is not None and d.infinity_interval:
            low, high = d.infinity_interval
            error = [[max(0, d.infinity - low)], [max(0, high - d.infinity)]]
            label = None if x else "n to infinity"
            bars.errorbar([x + 0.18], [d.infinity], yerr=error, fmt="o", color="black", capsize=4, label=label)
    label = f"halves of the real images {result.halves:.3g}, n = {half:,} each"
    bars.axhline(result.halves, color="grey", linestyle=":", label=label)
    ratios = [(f"n = {n:,}", result.ratio, result.ratio_interval)]
    if result.ratio_infinity is not None and result.ratio_infinity_interval:
        ratios.append(("infinity", result.ratio_infinity, result.ratio_infinity_interval))
    lines = [f"{ratio:.2f} [{low:.2f}, {high:.2f}] at {where}" for where, ratio, (low, high) in ratios]
    bars.set(title="shifted / raw = " + ",\n".join(lines), ylabel=result.metric)
    bars.title.set_fontsize(10)
    bars.margins(y=0.35)  # room for the legend
    bars.legend(loc="upper left", fontsize=8)
    for axis, images, name, d in zip(grids, shown, ("raw", "shifted"), values, strict=True):
        tiles = tile(images, side, rows=side, edge=1, background=(128, 128, 128))
        show_pixels(axis, tiles.pixels[1:, 1:], grey=images.shape[1] == 1)  # no line at the top and on the left
        axis.set_axis_off()
        axis.set_title(f"{name}: {d.fd:.3f} [{d.interval[0]:.3f}, {d.interval[1]:.3f}], n = {d.n}", fontsize=10)
    figure.suptitle(title_of(result))
    save_figure(figure, path)


@styled
def draw_properties(result: "Properties", path: Path) -> None:
    """Draw homogeneity over time, consistency between timesteps, the edits' distance and the linearity.

    Numbers beside the last panel name the directions whose s_hat has a correlation with s below 0.5, the highest line
    first.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 10), layout="constrained")
    (homogeneity, consistency), (distance, linearity) = figure.subplots(2, 2)
    _draw_homogeneity(homogeneity, result)
    figure.colorbar(_draw_consistency(consistency, result), ax=consistency)
    _draw_distance(distance, result)
    _draw_linearity(linearity, result)
    samples = counted(result.n, "sample")
    figure.suptitle(f"{title_of(result)}: {samples}, means over {counted(result.n_mean, 'other')}, 95 % intervals")
    save_figure(figure, path)


def _draw_homogeneity(axis: "Axes", result: "Properties") -> None:
    """Draw the homogeneity over time, with that of blocks that nobody trained."""
    _draw_estimates(axis, result.timesteps, result.homogeneity_at)
    floors = (
        (result.random_outputs, "random outputs on the same features", "--"),
        (result.untrained, "untrained blocks", ":"),
    )
    for floor, name, style in floors:
        if floor:
            axis.plot(result.timesteps, floor.homogeneity_at, color="C1", linestyle=style, label=name)
    axis.invert_xaxis()
    axis.set(title="homogeneity: cosine of own and mean direction", xlabel="t, as generation goes", ylim=(None, 1.02))
    legend_below(axis, columns=2)


def _draw_consistency(axis: "Axes", result: "Properties") -> "AxesImage":
    """Draw the consistency between timesteps as a heat map, and return that for its colours."""
    import numpy as np

    between = np.array(result.consistency_between)
    picture = axis.imshow(between, cmap="viridis", vmin=min(0.0, float(between.min())), vmax=1, aspect="auto")
    step = max(1, len(between) // 16)
    ticks = range(0, len(between), step)
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(ticks, [str(result.timesteps[i]) for i in ticks], fontsize=8)
    if len(between) <= 10:
        for row, column in np.ndindex(between.shape):
            shade = "white" if between[row, column] < 0.6 else "black"
            axis.text(column, row, f"{between[row, column]:.2f}", ha="center", va="center", color=shade)
    beside = f" (untrained {result.untrained.consistency:.2f})" if result.untrained else ""
    axis.set(
        title=f"consistency: cosine of mean directions between timesteps, {result.consistency.value[-1]:.2f}{beside}",
        xlabel="t",
        ylabel="t",
    )
    return picture


def _draw_distance(axis: "Axes", result: "Properties") -> None:
    """Draw how far mean and time-invariant edits are from the own ones, for each direction."""
    import numpy as np

    for offset, name, estimate in (
        (-0.15, "mean", result.distance_mean),
        (0.15, "time-invariant", result.distance_global),
    ):
        value, low, high = (np.array(v[: result.K]) for v in (estimate.value, estimate.low, estimate.high))
        x, error = np.arange(result.K) + offset, [value - low, high - value]
        axis.errorbar(x, value, yerr=error, fmt="o", markersize=4, capsize=2, label=name)
    axis.set(
        title="distance of an edit from the own edit, in sizes of the own edit", xlabel="direction", ylim=(0, None)
    )
    ticks = range(0, result.K, max(1, result.K // 32))
    axis.set_xticks(ticks, [str(k) for k in ticks], fontsize=8, rotation=90 * (result.K > 16))
    legend_below(axis)


def _draw_linearity(axis: "Axes", result: "Properties") -> None:
    """Draw s_hat over s, with the numbers of the directions that bend away from it."""
    _draw_estimates(axis, result.magnitudes, result.s_hat)
    last = result.s_hat[-1].value
    ends = sorted((last[k], k) for k in range(result.K) if result.correlation.value[k] < 0.5)
    if ends:  # one label for all of them, since they end close together
        words = fill(", ".join(str(k) for _, k in reversed(ends)), 10)
        end = (result.magnitudes[-1], sum(value for value, _ in ends) / len(ends))
        axis.annotate(words, end, xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    axis.axline((0, 0), slope=1, color="grey", linestyle=":", label="s")
    slope = result.slope
    axis.set(
        title=f"linearity: slope {slope.value[-1]:.2f} [{slope.low[-1]:.2f}, {slope.high[-1]:.2f}]",
        xlabel="s",
        ylabel="the reconstructor's s_hat",
    )
    legend_below(axis)


def _draw_estimates(axis: "Axes", x: Sequence[float], estimates: "Sequence[Estimate]") -> None:
    """Draw lines of all directions over x, and their mean with its intervals."""
    for k in range(len(estimates[0].value) - 1):
        (line,) = axis.plot(x, [e.value[k] for e in estimates], linewidth=0.8, alpha=0.5)
    line.set_label("one direction each")
    value = [e.value[-1] for e in estimates]
    below = [e.value[-1] - e.low[-1] for e in estimates]
    above = [e.high[-1] - e.value[-1] for e in estimates]
    style: dict[str, Any] = {"color": "black", "linewidth": 2, "capsize": 3, "marker": "o", "markersize": 4}
    axis.errorbar(x, value, yerr=[below, above], label="mean of the directions", **style)
