"""Chart of a user study."""

from pathlib import Path
from typing import TYPE_CHECKING

from hbench.errors import counted
from hbench.reporting.charts.figure import save_figure, styled

if TYPE_CHECKING:
    from hbench.evaluation.mos.score import MosScore


@styled
def draw_mos(result: "MosScore", path: Path) -> None:
    """Draw each direction's share of marks that are 1, highest first, a panel per run; untrained directions last."""
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
        colors = ["#8c8c8c" if d.control else "C0" for d in directions]
        axis.bar(
            range(len(directions)), means, color=colors, yerr=errors, ecolor="black", error_kw={"lw": 0.8, "capsize": 2}
        )
        if run.mos.mean is not None:
            label = f"MOS {run.mos.mean:.2f}, n = {counted(run.mos.n, 'direction')}"
            axis.axhline(run.mos.mean, color="C1", linestyle="--", label=label)
            if run.mos.interval:
                axis.axhspan(*run.mos.interval, color="C1", alpha=0.12, linewidth=0, label="95 % interval")
        if run.floor.mean is not None:
            label = f"untrained {run.floor.mean:.2f}, n = {run.floor.n}"
            axis.axhline(run.floor.mean, color="black", linestyle=":", label=label)
        step = max(1, len(directions) // 64)
        labels = [
            "untrained" if d.control else f"{d.direction}: {next(iter(d.names))[:24]}" if d.names else str(d.direction)
            for d in directions[::step]
        ]
        ticks = range(0, len(directions), step)
        axis.set_xticks(ticks, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=9, parse_math=False)
        axis.set_title(f"{run.title}: marks of {counted(result.sheets, 'assessor')}", parse_math=False)
        axis.set(ylabel="share of marks that are 1", ylim=(0, 1.02))
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(figure, path)
