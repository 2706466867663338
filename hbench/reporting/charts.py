"""Charts of metrics and results, each drawn of what a command has measured."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hbench.errors import HBenchError
from hbench.store.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from hbench.evaluation.ablations import Ablations
    from hbench.evaluation.curves import TrainingCurves
    from hbench.evaluation.fid import Fidelity
    from hbench.evaluation.lenet import TrainedLeNet
    from hbench.evaluation.mos.score import MosScore
    from hbench.evaluation.plan import Plan
    from hbench.evaluation.properties import Estimate, Properties
    from hbench.evaluation.rca import RCA
    from hbench.evaluation.vram_sweep import VramSweep
    from hbench.store.results import Result

T = TypeVar("T")

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
    """Writes a figure as PNG in one move; a character that the font lacks becomes a box."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        figure.savefig(temporary, format="png", dpi=120)


def show_pixels(axis: "Axes", pixels: "Tensor", grey: bool) -> None:
    """Show RGB pixels, uint8 [height, width, 3], in a panel; grey ones are drawn as one channel."""
    picture = pixels[..., 0] if grey else pixels
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def plain(text: str) -> str:
    """Text from outside, whose dollar signs matplotlib is not to take for mathematics; bytes of no text become "?"."""
    return text.encode(errors="replace").decode().replace("$", r"\$")


def title_of(result: "Result") -> str:
    """Return the experiment's title, with generation steps and source of directions where they are not its own."""
    title, M, source = result.title, result.detail("M"), result.detail("direction_source", "own")
    if M is not None and result.provenance.experiment["discovery"]["M"] != M:
        title += f"-{M}-steps"
    return title if source == "own" else f"{title}, {source} directions"


def title_of_training(result: "Ablations") -> str:
    """Return the experiment's title with the length of its trainings."""
    settings = result.provenance.experiment["discovery"]
    return f"{result.title}, {settings['steps']} steps, batch {settings['batch_size']}"


def at_hand(result: "Result", images: T | None) -> T:
    """Return what a picture is drawn of; HBenchError where the result was read from its folder, which lacks it."""
    if images is None:
        raise HBenchError(f"a {result.NAME} result that was read from its folder has nothing to draw: measure it again")
    return images


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
        axis.set(title=title, xlabel=f"step (thick: mean over {window})")
        axis.legend(fontsize=8)
    save_figure(figure, folder / "curves.png")


def draw_run_curves(result: "TrainingCurves", path: Path) -> None:
    """Draw the trainings, one colour each, smoothed over a twentieth of the training."""
    from textwrap import shorten

    from matplotlib import color_sequences
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    curves = at_hand(result, result.curves)
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
        axis.set(title=title, xlabel="step (mean over a twentieth of the training)")
    axes[0].axhline(0.5, color="grey", linestyle=":")
    axes[0].set_ylim(0, 1)
    axes[1].set_ylim(0, 1)
    labels = [plain(shorten(f"{run.run}: {run.settings}" if run.settings else run.run, 110)) for run in result.runs]
    handles = [Line2D([], [], color=colour) for colour in colours]
    figure.legend(handles, labels, loc="outside lower center", fontsize=9)
    save_figure(figure, path)


def draw_ablations(result: "Ablations", path: Path) -> None:
    """Draw each variant's mean as a bar and its seeds as dots, a panel for each metric, the variants in lines."""
    from matplotlib.figure import Figure

    panels = {
        "RCA (dotted: chance)": (["rca"], "chance"),
        "share outside the domain": (["outside"], None),
        "D on raw (blue), shifted (orange), last third": (["D_raw", "D_shifted"], "D_ideal"),
        "FD (LeNet digits) of shifted (dotted: raw)": (["fd_shifted"], "fd_raw"),
    }
    table, variants = result.table(), result.variants
    means = table.assign(D_ideal=0.5).groupby("variant", sort=False).mean(numeric_only=True)
    shown = {name: panel for name, panel in panels.items() if table[panel[0]].notna().any(axis=None)}
    figure = Figure(figsize=(11, 2 * (1 + 0.3 * len(variants)) + 0.4), layout="constrained")
    axes = figure.subplots(2, 2, sharey=True).ravel()
    for axis, (name, (metrics, reference)) in zip(axes, shown.items(), strict=False):
        height = 0.8 / len(metrics)
        for i, variant in enumerate(variants):
            for j, metric in enumerate(metrics):
                values = table.loc[table["variant"] == variant, metric]
                y = i + (j - (len(metrics) - 1) / 2) * height
                axis.barh(y, values.mean(), height, color=f"C{j}", alpha=0.5)
                axis.plot(values, [y] * len(values), "o", color="black", markersize=3)
            if reference:
                axis.vlines(means.loc[variant, reference], i - 0.5, i + 0.5, color="grey", linestyle=":")
        axis.set_title(name, fontsize=10)
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].invert_yaxis()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    seeds = len(result.seeds)
    n = f"{seeds} training seed{'s' * (seeds > 1)}, n = {result.runs[0].n} pairs each"
    figure.suptitle(f"{title_of_training(result)}, {n}")
    save_figure(figure, path)


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
    errors = np.abs(bounds - accuracy)  # nan where a direction was never drawn
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
    bars.bar(["raw", "shifted"], [d.fd for d in values], yerr=errors, capsize=6, width=0.6)
    bars.axhline(result.halves, color="grey", linestyle=":", label=f"halves of the real images {result.halves:.3g}")
    low, high = result.ratio_interval
    bars.set(title=f"shifted / raw = {result.ratio:.2f} [{low:.2f}, {high:.2f}]", ylabel=result.metric)
    bars.margins(y=0.25)  # room for the legend
    bars.legend(loc="upper left")
    for axis, images, name, d in zip(grids, shown, ("raw", "shifted"), values, strict=True):
        tiles = tile(images, side, rows=side, edge=1, background=(128, 128, 128))
        show_pixels(axis, tiles.pixels[1:, 1:], grey=images.shape[1] == 1)  # no line at the top and on the left
        axis.set_axis_off()
        axis.set_title(f"{name}: {d.fd:.3f} [{d.interval[0]:.3f}, {d.interval[1]:.3f}], n = {d.n}", fontsize=10)
    figure.suptitle(title_of(result))
    save_figure(figure, path)


def draw_sweep(result: "VramSweep", path: Path) -> None:
    """Draw memory and throughput of training against M, one line per strategy, all axes logarithmic (Fig. 4).

    Throughput has its quartiles; a cross is a cell that ran out of memory, the dashed line the memory limit.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows, limit_mib = result.cells, result.detail("memory_limit_mib")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for strategy in dict.fromkeys(row.strategy for row in rows):
        measured = [row for row in rows if row.strategy == strategy and row.status == "ok"]
        Ms = [row.M for row in measured]
        (line,) = left.plot(Ms, [row.memory_mib for row in measured], marker="o", label=strategy)
        rates = [row.batch_size / np.array(row.step_seconds) for row in measured]
        low, median, high = np.array([np.percentile(rate, [25, 50, 75]) for rate in rates]).reshape(-1, 3).T
        right.errorbar(Ms, median, yerr=[median - low, high - median], marker="o", capsize=3, label=strategy)
        for row in rows:
            if row.strategy == strategy and row.status == "oom":
                cross = {"marker": "X", "markersize": 10, "color": line.get_color(), "clip_on": False}
                if limit_mib is None:
                    left.plot(row.M, 1, transform=left.get_xaxis_transform(), **cross)  # at the panel's upper edge
                else:
                    left.plot(row.M, limit_mib, **cross)
                right.plot(row.M, 0, transform=right.get_xaxis_transform(), **cross)
    sources = sorted({row.memory_source for row in rows if row.memory_source})
    steps = max(len(row.step_seconds) for row in rows)
    left.set(title="memory", ylabel="MiB", xlabel="\n".join(["M", *sources]))
    right.set(title="throughput", ylabel="images / s", xlabel=f"M\nmedian and quartiles of {steps} steps")
    if limit_mib is not None:
        left.axhline(limit_mib, color="grey", linestyle="--", label="memory limit")
    if any(row.status == "oom" for row in rows):
        left.plot([], [], "X", color="grey", linestyle="none", markersize=10, label="out of memory")
    found = {row.status for row in rows}
    for axis in (left, right):  # a logarithmic axis needs at least one value
        _scale(axis, [row.M for row in rows], x=bool(found & {"ok", "oom"}), y="ok" in found)
    left.legend()
    settings = f"batch {rows[0].batch_size}, {rows[0].precision}"
    device = result.provenance.device if result.provenance else rows[0].device
    figure.suptitle(f"{result.title}, M varied: {settings}\n{device}")
    save_figure(figure, path)


def draw_plan(result: "Plan", path: Path) -> None:
    """Draw predicted memory and throughput of training against M, one line per strategy, all axes logarithmic.

    The dashed line is the memory budget.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for strategy in dict.fromkeys(row.strategy for row in result.predictions):
        rows = [row for row in result.predictions if row.strategy == strategy]
        style = {"marker": "o", "linestyle": "--" if strategy == "auto" else "-", "label": strategy}
        Ms = [row.M for row in rows]
        left.plot(Ms, [row.memory_mib for row in rows], **style)
        right.plot(Ms, [row.images_per_second for row in rows], **style)
    left.axhline(result.budget_mib, color="grey", linestyle=":", label="memory budget")
    left.set(title="predicted memory", ylabel="MiB", xlabel="M")
    right.set(title="predicted throughput", ylabel="images / s", xlabel="M")
    for axis in (left, right):
        _scale(axis, [row.M for row in result.predictions])
    left.legend()
    device = result.provenance.device if result.provenance else ""
    figure.suptitle(f"{result.title}, M varied\n{device}")
    save_figure(figure, path)


def _scale(axis: "Axes", Ms: Sequence[int], *, x: bool = True, y: bool = True) -> None:
    """Make the axes over M logarithmic to base 2, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    if x:
        axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(set(Ms)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    if y:
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.margins(y=0.1)
    axis.grid(alpha=0.3)


def draw_mos(result: "MosScore", path: Path) -> None:
    """Draw the share of ones of every direction, highest first, a panel per run; untrained directions apart."""
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
    save_figure(figure, path)


def draw_properties(result: "Properties", path: Path) -> None:
    """Draw homogeneity over time, consistency between timesteps, the edits' distance and the linearity.

    A direction whose s the reconstructor does not find, with a correlation below 0.5, has its number at its line's end.
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
