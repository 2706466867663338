"""Picture of a comparison: a panel for each metric, a row for each run."""

from pathlib import Path
from typing import TYPE_CHECKING

from hbench.reporting.charts.figure import COLORS, plain, save_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hbench.evaluation.run_comparison import RunComparison

COLUMNS = 4
"""Number of panels side by side."""
MARKS = {"better": ("better", COLORS[2]), "worse": ("worse", COLORS[1]), "differs": ("differs", COLORS[0])}
"""Words and colours of what is certain; all else is grey."""
NARROWEST = 1e-3
"""Width of a panel at least: numbers that are all the same have none."""
NAME = 26
"""Letters of a run's name that fit beside its row; of longer ones the end is shown."""


@styled
def draw_comparison(result: "RunComparison", path: Path) -> None:
    """Draw each metric of all runs with its interval; certain differences to the first run in colour, with a word."""
    from matplotlib.figure import Figure

    rows = -(-len(result.metrics) // COLUMNS)
    height = 0.9 + 0.32 * len(result.runs)
    figure = Figure(figsize=(15, rows * (height + 0.7) + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flat)
    for axis, metric in zip(panels, result.metrics, strict=False):
        _draw_metric(axis, result, metric)
    for axis in panels[len(result.metrics) :]:
        axis.set_axis_off()
    figure.suptitle(plain(f"compared with {result.runs[0]}: {result.n:,} pairs of each run, 95 % intervals"))
    save_figure(figure, path)


def _draw_metric(axis: "Axes", result: "RunComparison", metric: str) -> None:
    verdicts = {each.run: each.verdict for each in result.differences if each.metric == metric}
    better = ""
    for row, run in enumerate(result.runs):
        found = result.value(run, metric)
        better = found.better
        word, color = MARKS.get(verdicts.get(run, ""), ("", COLORS[-1] if row == 0 else "grey"))
        if verdicts.get(run) == "not comparable":
            word = "not comparable"
        low, high = found.interval
        axis.plot([low, high], [row, row], color=color, lw=2)
        axis.plot(found.value, row, "o", color=color)
        axis.annotate(
            word, (found.value, row), xytext=(0, 7), textcoords="offset points", ha="center", color=color, fontsize=9
        )
    first = result.value(result.runs[0], metric).value
    axis.axvline(first, color="lightgrey", lw=1, zorder=0)
    names = [run if len(run) <= NAME else f"…{run[1 - NAME :]}" for run in result.runs]
    axis.set_yticks(range(len(names)), [plain(name) for name in names])
    left, right = axis.get_xlim()
    if right - left < NARROWEST:
        axis.set_xlim(first - NARROWEST / 2, first + NARROWEST / 2)
    axis.locator_params(axis="x", nbins=5)
    axis.set_ylim(len(names) - 0.4, -0.7)
    axis.set_title({"higher": f"{metric} →", "lower": f"← {metric}"}.get(better, metric), fontsize=11)
