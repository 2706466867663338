"""Charts of the measurements of one run: accuracy, distances and properties; and of the digit LeNet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hbench.reporting.charts.figure import at_hand, save_figure, show_pixels, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hbench.evaluation.fid import Fidelity
    from hbench.evaluation.lenet import TrainedLeNet
    from hbench.evaluation.properties import Estimate, Properties
    from hbench.evaluation.rca import RCA


def draw_confusion(result: "RCA", path: Path) -> None:
    """Draw the confusion of directions and the accuracy of each, most accurate first."""
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
    left.set_xticks(ticks, [order[i] for i in ticks], fontsize=7, rotation=90)
    left.set_yticks(ticks, [order[i] for i in ticks], fontsize=7)
    figure.colorbar(picture, ax=left)
    accuracy = np.array([result.per_direction[k] for k in order])
    bounds = np.array([result.per_direction_interval[k] for k in order]).T
    errors = np.abs(bounds - accuracy)  # nan for directions that were never drawn
    right.bar(range(len(order)), accuracy, yerr=errors, ecolor="black", error_kw={"lw": 0.8, "capsize": 2})
    right.axhline(result.chance, color="grey", linestyle=":", label=f"chance {result.chance:.3f}")
    right.set_xticks(ticks, [order[i] for i in ticks], fontsize=7, rotation=90)
    low, high = result.interval
    right.set(
        title=f"accuracy {result.accuracy:.3f} [{low:.3f}, {high:.3f}], n = {result.n}", xlabel="direction", ylim=(0, 1)
    )
    right.legend()
    figure.suptitle(title_of(result))
    save_figure(figure, path)


def draw_digits(result: "TrainedLeNet", path: Path) -> None:
    """Draw the confusion of the test digits, with their counts."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.array(result.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    for row, column in zip(*counts.nonzero(), strict=True):
        shade = "white" if shares[row, column] < 0.6 else "black"
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=7)
    ticks = range(len(counts))
    axis.set_xticks(ticks)
    axis.set_yticks(ticks)
    low, high = result.interval
    axis.set(
        title=f"accuracy {result.accuracy:.4f} [{low:.4f}, {high:.4f}], n = {result.n_test}",
        xlabel="predicted digit",
        ylabel="true digit",
    )
    figure.colorbar(picture, ax=axis, label="share of the digit's images")
    save_figure(figure, path)


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


def draw_properties(result: "Properties", path: Path) -> None:
    """Draw homogeneity over time, consistency between timesteps, the edits' distance and the linearity.

    The lines of directions whose s_hat has a correlation with s below 0.5 end with the direction's number.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    (homogeneity, consistency), (distance, linearity) = figure.subplots(2, 2)
    overall = {"color": "black", "linewidth": 2, "capsize": 3, "marker": "o", "markersize": 4}

    _draw_estimates(homogeneity, result.timesteps, result.homogeneity_at, overall)
    homogeneity.axhline(result.others.value[-1], color="grey", linestyle=":", label="cosine of two directions")
    homogeneity.invert_xaxis()
    homogeneity.set(
        title="homogeneity: cosine of own and mean direction", xlabel="t, as generation goes", ylim=(None, 1.02)
    )
    homogeneity.legend(fontsize=8)

    between = np.array(result.consistency_between)
    picture = consistency.imshow(between, cmap="viridis", vmin=min(0.0, float(between.min())), vmax=1)
    step = max(1, len(between) // 16)
    ticks = range(0, len(between), step)
    for set_ticks in (consistency.set_xticks, consistency.set_yticks):
        set_ticks(ticks, [str(result.timesteps[i]) for i in ticks], fontsize=8)
    if len(between) <= 10:
        for row, column in np.ndindex(between.shape):
            shade = "white" if between[row, column] < 0.6 else "black"
            consistency.text(column, row, f"{between[row, column]:.2f}", ha="center", va="center", color=shade)
    consistency.set(title="consistency: cosine of mean directions\nbetween timesteps", xlabel="t", ylabel="t")
    figure.colorbar(picture, ax=consistency)

    K = len(result.slope.value) - 1
    for offset, name, estimate in (
        (-0.15, "mean", result.distance_mean),
        (0.15, "time-invariant", result.distance_global),
    ):
        value, low, high = (np.array(v[:K]) for v in (estimate.value, estimate.low, estimate.high))
        distance.errorbar(
            np.arange(K) + offset, value, yerr=[value - low, high - value], fmt="o", markersize=4, capsize=2, label=name
        )
    distance.set(
        title="distance of the edit from the own edit / size of the own edit", xlabel="direction", ylim=(0, None)
    )
    ticks = range(0, K, max(1, K // 32))
    distance.set_xticks(ticks, [str(k) for k in ticks], fontsize=8)
    distance.legend(fontsize=8)

    _draw_estimates(linearity, result.magnitudes, result.s_hat, overall)
    for k in range(K):
        if result.correlation.value[k] < 0.5:
            end = (result.magnitudes[-1], result.s_hat[-1].value[k])
            linearity.annotate(str(k), end, xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    linearity.axline((0, 0), slope=1, color="grey", linestyle=":", label="s")
    slope = result.slope
    linearity.set(
        title=f"linearity: slope {slope.value[-1]:.2f} [{slope.low[-1]:.2f}, {slope.high[-1]:.2f}]",
        xlabel="s",
        ylabel="the reconstructor's s_hat",
    )
    linearity.legend(fontsize=8)
    figure.suptitle(f"{title_of(result)}: {result.n} samples, means over {result.n_mean} others, 95 % intervals")
    save_figure(figure, path)


def _draw_estimates(
    axis: "Axes", x: Sequence[float], estimates: "Sequence[Estimate]", overall: Mapping[str, Any]
) -> None:
    """Draw lines of all directions over x, and their mean with its intervals."""
    for k in range(len(estimates[0].value) - 1):
        (line,) = axis.plot(x, [e.value[k] for e in estimates], linewidth=0.8, alpha=0.5)
    line.set_label("one direction each")
    value = [e.value[-1] for e in estimates]
    below = [e.value[-1] - e.low[-1] for e in estimates]
    above = [e.high[-1] - e.value[-1] for e in estimates]
    axis.errorbar(x, value, yerr=[below, above], label="mean of the directions", **overall)
