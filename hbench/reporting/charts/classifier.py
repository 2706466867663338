"""Chart of a classifier: the accuracy of its heads, or the confusion of its only one."""

from pathlib import Path
from typing import TYPE_CHECKING

from hbench.reporting.charts.figure import legend_below, plain, save_figure, styled

if TYPE_CHECKING:
    from hbench.evaluation.classifier import Head, TrainedClassifier


@styled
def draw_classifier(result: "TrainedClassifier", path: Path) -> None:
    """Draw the accuracy of each head against the most frequent class, or the confusion of the only head."""
    if len(result.heads) == 1:
        _draw_confusion(result.heads[0], result.n_test, path)
    else:
        _draw_heads(result, path)


def _draw_confusion(head: "Head", n: int, path: Path) -> None:
    """Draw the confusion of the test images, with their counts."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.array(head.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    for row, column in zip(*counts.nonzero(), strict=True):
        shade = "white" if shares[row, column] < 0.6 else "black"
        axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade, fontsize=7)
    ticks, names = range(len(counts)), [plain(name) for name in head.classes]
    axis.set_xticks(ticks, names, rotation=90 * (max(map(len, names)) > 2))
    axis.set_yticks(ticks, names)
    low, high = head.interval
    axis.set(
        title=f"accuracy {head.accuracy:.4f} [{low:.4f}, {high:.4f}], n = {n:,}",
        xlabel=plain(f"predicted {head.factor}"),
        ylabel=plain(f"true {head.factor}"),
    )
    figure.colorbar(picture, ax=axis, label="share of the class's images")
    save_figure(figure, path)


def _draw_heads(result: "TrainedClassifier", path: Path) -> None:
    """Draw a bar for each head, with the interval of its accuracy and the share of the most frequent class."""
    import numpy as np
    from matplotlib.figure import Figure

    heads = result.heads
    figure = Figure(figsize=(8, 1.6 + 0.36 * len(heads)), layout="constrained")
    axis = figure.subplots()
    rows, accuracy = range(len(heads)), np.array([head.accuracy for head in heads])
    errors = np.abs(np.array([head.interval for head in heads]).T - accuracy)
    axis.barh(rows, accuracy, xerr=errors, alpha=0.6, capsize=3, label="accuracy, 95 % interval")
    axis.plot(
        [head.majority for head in heads], rows, "|", color="black", markersize=16, label="share of the commonest class"
    )
    for row, value in zip(rows, accuracy, strict=True):
        axis.annotate(
            f"{value:.3f}", (1, row), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    axis.set_yticks(rows, [plain(f"{head.factor} ({len(head.classes)})") for head in heads])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of the test images", title=f"heads of the classifier, n = {result.n_test:,}")
    axis.set_ylabel("factor (classes)")
    legend_below(axis, columns=2)
    save_figure(figure, path)
