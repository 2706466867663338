"""Charts of trainings: curves of one, of several, and the results of variants."""

from pathlib import Path
from typing import TYPE_CHECKING

from hbench.errors import counted
from hbench.reporting.charts.figure import COLORS, at_hand, legend_below, plain, save_figure, styled

if TYPE_CHECKING:
    from hbench.evaluation.ablations import Ablations
    from hbench.evaluation.curves import TrainingCurves
    from hbench.evaluation.rca import RCA

CURVES = {
    "loss": ["loss", "loss_k", "loss_s", "loss_adv", "loss_l1", "loss_odd", "loss_D"],
    "train accuracy": ["accuracy"],
    "D": ["D_raw", "D_shifted"],
}
"""Panels of the curve picture, and the metrics of each, as far as they exist."""
RUN_CURVES = {
    "D on raw (solid), shifted (dashed)": ["D_raw", "D_shifted"],
    "train accuracy": ["accuracy"],
    "CE(k_hat, k)": ["loss_k"],
    "|s_hat - s|": ["loss_s"],
    "adversarial (solid), l1 (dashed), oddness loss (dotted)": ["loss_adv", "loss_l1", "loss_odd"],
    "loss of D": ["loss_D"],
}
"""Panels of the picture of several runs, and the metrics of each."""


@styled
def draw_curves(folder: Path) -> None:
    """Draw ``metrics.csv`` of a run as ``curves.png``: losses, train accuracy, D on raw and shifted samples."""
    from matplotlib.figure import Figure

    from hbench.store.metrics import FILE, read_metrics

    rows = read_metrics(folder / FILE)
    panels = [(title, [n for n in names if n in rows]) for title, names in CURVES.items()]
    panels = [(title, names) for title, names in panels if names]
    window = max(1, len(rows) // 50)
    figure = Figure(figsize=(4.8 * len(panels), 4.2), layout="constrained")
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
        legend_below(axis, columns=3)
    save_figure(figure, folder / "curves.png")


@styled
def draw_growth(grown: "list[tuple[int, RCA]]", path: Path) -> None:
    """Draw the accuracy on fresh pairs over training steps, with its intervals and chance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    steps = [step for step, _ in grown]
    values = [result.accuracy for _, result in grown]
    below = [result.accuracy - result.interval[0] for _, result in grown]
    above = [result.interval[1] - result.accuracy for _, result in grown]
    label = f"RCA, 95 % interval, n = {counted(grown[0][1].n, 'pair')}"
    axis.errorbar(steps, values, yerr=[below, above], marker="o", capsize=3, label=label)
    axis.axhline(grown[0][1].chance, color="grey", linestyle=":", label="chance")
    axis.set(xlabel="step", ylabel="accuracy on fresh pairs", ylim=(0, 1))
    legend_below(axis)
    save_figure(figure, path)


@styled
def draw_run_curves(result: "TrainingCurves", path: Path) -> None:
    """Draw the trainings, one colour each, smoothed over a twentieth of the training."""
    from textwrap import shorten

    from matplotlib import color_sequences
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    curves = at_hand(result, result.curves)
    sequence = COLORS if len(curves) <= len(COLORS) else color_sequences["tab20"]
    colours = [sequence[i % len(sequence)] for i in range(len(curves))]
    figure = Figure(figsize=(14, 7 + 0.25 * len(curves) * (len(curves) > 1)), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis, (title, names) in zip(axes, RUN_CURVES.items(), strict=True):
        for run, colour in zip(curves, colours, strict=True):
            window = max(1, len(run.rows) // 20)
            for name, style in zip(names, ("-", "--", ":"), strict=False):
                if name in run.rows:
                    smooth = run.rows[name].rolling(window, min_periods=1).mean()
                    axis.plot(run.rows["step"], smooth, style, color=colour, linewidth=1.2)
        axis.set(title=title, xlabel="step (mean over a twentieth of the training)")
    axes[0].axhline(0.5, color="grey", linestyle=":")
    axes[0].set_ylim(0, 1)
    axes[1].set_ylim(0, 1)
    labels = [plain(shorten(f"{run.run}: {run.settings}" if run.settings else run.run, 110)) for run in result.runs]
    if len(labels) == 1:
        figure.suptitle(labels[0])
    else:
        figure.legend([Line2D([], [], color=colour) for colour in colours], labels, loc="outside lower center")
    save_figure(figure, path)


@styled
def draw_ablations(result: "Ablations", path: Path) -> None:
    """Draw each variant's mean as a bar and its seeds as dots, a panel for each metric, the variants in rows."""
    from matplotlib.figure import Figure

    panels = {
        "RCA (dotted: chance)": (["rca"], "chance"),
        f"{result.metric.replace('FD', 'KID')} of shifted (dotted: raw)": (["kid_shifted"], "kid_raw"),
        f"{result.metric} of shifted (dotted: raw), n = {result.runs[0].n}": (["fd_shifted"], "fd_raw"),
        "visible (blue), distinct (orange), named (green) directions": (["visible", "distinct", "named"], None),
        "RCA over visible directions (dotted: chance)": (["rca_visible"], "chance"),
        "classes kept at S/2": (["kept_half"], None),
        "share outside the domain": (["outside"], None),
        "D on raw (blue) and shifted (orange) samples": (["D_raw", "D_shifted"], "D_ideal"),
    }
    table, variants = result.table(), result.variants
    means = table.assign(D_ideal=0.5).groupby("variant", sort=False).mean(numeric_only=True)
    shown = {name: panel for name, panel in panels.items() if table[panel[0]].notna().any(axis=None)}
    columns = -(-len(shown) // 2)
    figure = Figure(figsize=(5.5 * columns, 2 * (0.9 + 0.28 * len(variants)) + 0.4), layout="constrained")
    axes = figure.subplots(2, columns, sharey=True).ravel()
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
        axis.set_title(name)
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].set_ylim(len(variants) - 0.4, -0.6)  # the first variant on top
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    seeds = len(result.seeds)
    n = f"{counted(seeds, 'training seed')}, n = {counted(result.runs[0].n, 'pair')} each"
    figure.suptitle(f"{title_of_training(result)}, {n}")
    save_figure(figure, path)


def title_of_training(result: "Ablations") -> str:
    """Return the experiment's title with the length of its trainings."""
    if not (result.provenance and result.provenance.experiment):
        return result.title
    settings = result.provenance.experiment["discovery"]
    return f"{result.title}, {counted(settings['steps'], 'step')}, batch {settings['batch_size']}"
