"""Rows of the table, ours beside the paper's: what a report says of each result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from hbench.config import Paper
from hbench.core.intervals import median_interval
from hbench.errors import counted
from hbench.evaluation.ablations import Ablations, VariantMean
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.benchmark.result import Benchmark
from hbench.evaluation.classifier import TrainedClassifier
from hbench.evaluation.curves import TrainingCurves
from hbench.evaluation.edited_images import EditedImages
from hbench.evaluation.fid import Fidelity
from hbench.evaluation.gradient import Gradients
from hbench.evaluation.mos.score import MosScore
from hbench.evaluation.properties import Properties
from hbench.evaluation.quality import Quality, QualityAt
from hbench.evaluation.rca import RCA
from hbench.evaluation.run_comparison import OF_DIRECTIONS, RunComparison
from hbench.evaluation.traverse import Traversal
from hbench.evaluation.vram_sweep import VramSweep

HOMOGENEITY = "cosine of own and mean direction (homogeneity)"
CONSISTENCY = "cosine between timesteps (consistency)"
"""Rows that untrained shift blocks have too."""


@dataclass(frozen=True)
class Row:
    """One line of the table, in words; fields that do not apply are empty."""

    artifact: str
    item: str
    """Item of the paper: "Table 1", "Fig. 4"."""
    paper: str
    """Number of the paper."""
    ours: str
    """Our number."""
    interval: str = ""
    n: str = ""
    ran: bool = True
    """True if there is a result."""
    provenance: Path | None = None
    """File with the provenance of the result."""
    experiment: str = ""
    """Title of the measured experiment, in the paper's notation; ablations may have another than the report."""


@dataclass(frozen=True)
class Named:
    """A direction that someone named by eye."""

    direction: int
    name: str
    accuracy: str
    """Accuracy in words."""


@dataclass(frozen=True)
class Comparison:
    """Variants of a training side by side, in words."""

    caption: str
    columns: list[str]
    lines: list[list[str]]


def rca_rows(result: RCA, paper: Paper) -> list[Row]:
    """Return the rows of an RCA, with the numbers to read beside it."""
    n, K = counted(result.n, "pair"), len(result.per_direction)
    chance = f"RCA (chance {result.chance:.3f})"
    shown = (
        (chance, "Table 1", published_number(paper.rca), result.accuracy, result.interval),
        *(
            (name, item, theirs, getattr(result, key), getattr(result, f"{key}_interval"))
            for name, item, theirs, key in (
                ("magnitude error |s_hat - s|", "", "", "magnitude_error"),
                ("D on raw samples", "Fig. 10", "0.5", "D_raw"),
                ("D on shifted samples", "Fig. 10", "0.5", "D_shifted"),
                ("share of shifted samples outside the domain", "", "", "outside"),
                ("share of raw samples outside the domain", "", "", "outside_raw"),
            )
        ),
    )
    rows = [
        Row(name, item, theirs, number(value), interval(bounds), n)
        for name, item, theirs, value, bounds in shown
        if value is not None
    ]
    if result.n_visible and result.visible:
        name, bounds = f"RCA over visible directions ({len(result.visible)} of {K})", result.accuracy_visible_interval
        n = counted(result.pairs_visible, "pair")
        rows.append(Row(name, "", "", number(result.accuracy_visible), interval(bounds), n))
    return rows


def fidelity_rows(result: Fidelity, paper: Paper) -> list[Row]:
    """Return the rows of Frechet and kernel distances."""
    rows = []
    kid = "KID (Inception)" if result.kid_metric == "KID" else result.kid_metric
    for kind, found, published in (
        ("raw", result.raw, paper.fid_raw),
        ("shifted", result.shifted, paper.fid_shifted),
    ):
        n = f"{found.n:,} against {result.n_real:,} real"
        theirs = published_number(published) if result.metric == "FID" else ""
        name = f"{result.metric}, {kind} samples"
        rows.append(Row(name, "Table 2", theirs, number(found.fd), interval(found.interval), n))
        infinity = number(found.infinity), interval(found.infinity_interval), f"extrapolated from {n}"
        rows.append(Row(f"{name}, at infinite n", "", "", *infinity))
        if found.kid is not None:
            spread = "" if found.kid_std is None else f" (std {found.kid_std:.5f} over subsets)"
            rows.append(Row(f"{kid}, {kind} samples", "", "", f"{found.kid:.5f}{spread}", n=n))
    n, half = f"{result.shifted.n:,} each", f"{result.n_real // 2:,} each"
    for name, item, value, bounds, of in (
        ("shifted / raw", "Table 2", result.ratio, result.ratio_interval, n),
        (
            "shifted / raw, at infinite n",
            "",
            result.ratio_infinity,
            result.ratio_infinity_interval,
            f"extrapolated from {n}",
        ),
        ("between two halves of the real images", "Table 2", result.halves, result.halves_interval, half),
    ):
        rows.append(Row(f"{result.metric}, {name}", item, "", number(value), interval(bounds), of))
    return rows


def quality_rows(result: Quality, paper: Paper) -> list[Row]:
    """Return the rows of the samples' quality: each M, and the floors."""
    rows = [row for each in result.steps for row in _quality_at(each, result)]
    half = f"{result.n_real // 2:,} each"
    name = f"{result.metric}, between two halves of the real images"
    rows.append(Row(name, "", "", number(result.halves), interval(result.halves_interval), half))
    if pr := result.perfect:
        n = f"{pr.n:,} against {pr.n_real:,}"
        rows += [
            Row("precision of real images", "", "", number(pr.precision), interval(pr.precision_interval), n),
            Row("recall of real images", "", "", number(pr.recall), interval(pr.recall_interval), n),
        ]
    return rows


def _quality_at(each: QualityAt, result: Quality) -> list[Row]:
    """Return the rows of one number of steps; those of the classes and of training images at the steps shown alone."""
    d, pr, close = each.distance, each.precision_recall, each.nearest
    n, at = f"{d.n:,} against {result.n_real:,} real", f"M = {each.M}"
    infinity = number(d.infinity), interval(d.infinity_interval), f"extrapolated from {n}"
    rows = [
        Row(f"{result.metric} of samples, {at}", "", "", number(d.fd), interval(d.interval), n),
        Row(f"{result.metric} of samples, {at}, at infinite n", "", "", *infinity),
    ]
    if pr:
        n = f"{pr.n:,} against {pr.n_real:,} real"
        rows += [
            Row(f"precision of samples, {at}", "", "", number(pr.precision), interval(pr.precision_interval), n),
            Row(f"recall of samples, {at}", "", "", number(pr.recall), interval(pr.recall_interval), n),
        ]
    if result.shown != each.M:
        return rows
    rows += [
        Row(
            f"{balance.factor}: distance of its classes' shares, {at} (by chance {balance.floor:.3f})",
            "",
            "",
            number(balance.distance),
            interval(balance.distance_interval),
            counted(result.n, "sample"),
        )
        for balance in each.balances
    ]
    if close and result.tested:
        name = f"share very near a training image, {at} (test images {result.tested.near:.3f})"
        rows.append(Row(name, "", "", number(close.near), interval(close.near_interval), counted(close.n, "sample")))
    return rows


def benchmark_rows(result: Benchmark, paper: Paper) -> list[Row]:
    """Return a row for each method: its RCA, and what a person sees of its directions."""
    n = f"{result.n_pairs:,} pairs"
    return [
        Row(
            f"{each.name}: RCA of a fresh reconstructor; {len(each.visible)} of {each.K} visible, {each.distinct} "
            f"distinct, {each.named} named",
            "",
            "",
            number(each.rca),
            interval(each.rca_interval),
            n,
        )
        for each in result.methods
    ]


def attribute_rows(result: Attributes, paper: Paper) -> list[Row]:
    """Return the rows of what directions do: how many are seen, told apart and named, and RCA over the visible ones."""
    K, n = counted(len(result.directions), "direction"), counted(result.n, "sample")
    chance = f"chance {1 / len(result.directions):.3f}"
    seen = result.accuracy_visible, result.accuracy_visible_interval
    return [
        Row(f"visible of {K}", "", "", str(len(result.visible)), n=n),
        Row("distinct among the visible", "", "", str(result.distinct), n=n),
        Row("named by an attribute", "", "", str(len(result.proposed_names)), n=n),
        Row("attributes that lead a visible direction", "", "", ", ".join(result.covered) or "none", n=n),
        Row("effective rank of the visible", "", "", number(result.effective_rank), n=n),
        Row(
            f"RCA over the visible ({chance})", "", "", number(seen[0]), interval(seen[1]), f"of {result.pairs:,} pairs"
        ),
        Row("specificity, mean of the visible", "", "", number(result.specificity), n=n),
        Row("oddness, mean of the visible", "", "", number(result.oddness), interval(result.oddness_interval), n),
        Row("classes kept at S/2, visible", "", "", number(result.kept_half), interval(result.kept_half_interval), n),
    ]


def comparison_rows(result: RunComparison, paper: Paper) -> list[Row]:
    """Return a row for each certain difference to the first run, or one that says that there is none."""
    first, *others = result.runs
    rows = []
    for each in result.found:
        if each in result.directions:
            n = f"of {result.n:,} pairs"
        else:
            counts = dict.fromkeys(f"{result.value(run, each.metric).n:,}" for run in (each.run, first))
            n = f"{' and '.join(counts)} {'directions' if each.metric in OF_DIRECTIONS else 'pairs'}"
        name = f"{each.metric}, {each.run} less {first}"
        rows.append(Row(name, "", "", number(each.difference), interval(each.interval), n))
    none = Row(f"certain differences to {' and '.join(others)}", "", "", "none", n=counted(result.n, "pair"))
    return rows or [none]


def sweep_rows(result: VramSweep, paper: Paper) -> list[Row]:
    """Return the rows of a sweep: memory over M, and throughput against node."""
    cells = {cell.key: cell for cell in result.cells if cell.status in ("ok", "oom")}
    rows = []
    steps = min((len(cell.step_seconds) for cell in cells.values() if cell.step_seconds), default=0)
    n = f"{counted(steps, 'step')} a cell"
    published = {"node": "flat", "vanilla": "grows, past 24 GB"}
    for strategy in dict.fromkeys(strategy for strategy, _ in cells):
        Ms = sorted(M for name, M in cells if name == strategy)
        found = [cells[strategy, M] for M in Ms]
        memory = [f"{cell.memory_mib:,.0f}" if cell.status == "ok" else "out of memory" for cell in found]
        name = f"training memory of {strategy} in MiB, M = {', '.join(map(str, Ms))}"
        rows.append(Row(name, "Fig. 4", published.get(strategy, ""), "; ".join(memory), n=n))
    for strategy in ("vanilla", "torch-checkpoint"):
        for M in sorted(M for name, M in cells if name == strategy and ("node", M) in cells):
            pair = [cells[name, M] for name in (strategy, "node")]
            if all(cell.status == "ok" for cell in pair):
                theirs = "comparable" if strategy == "vanilla" else ""
                seconds = [median(cell.step_seconds) for cell in pair]
                ratio = f"{seconds[0] / seconds[1]:.2f}"  # no interval: one process each, and steps in it are alike
                rows.append(Row(f"throughput, node / {strategy}, M = {M}", "Fig. 4", theirs, ratio, n=n))
    return rows


def classifier_rows(result: TrainedClassifier, paper: Paper) -> list[Row]:
    """Return the rows of a classifier: the accuracy of each head beside the most frequent class."""
    return [
        Row(
            f"{head.factor} recognised by the classifier (most frequent class {head.majority:.3f})",
            "",
            "",
            number(head.accuracy),
            interval(head.interval),
            counted(result.n_test, "image"),
        )
        for head in result.heads
    ]


def curve_rows(result: TrainingCurves, paper: Paper) -> list[Row]:
    """Return the rows of the discriminator in training, of several runs with their names."""
    return [
        Row(
            f"D on {kind} in training, last third" + f" ({run.run})" * (len(result.runs) > 1),
            "Fig. 10",
            "0.5",
            number(value),
            interval(bounds),
            counted(run.n, "step"),
        )
        for run in result.runs
        for kind, value, bounds in (
            ("raw", run.D_raw, (run.D_raw_low, run.D_raw_high)),
            ("shifted", run.D_shifted, (run.D_shifted_low, run.D_shifted_high)),
        )
    ]


def property_rows(result: Properties, paper: Paper) -> list[Row]:
    """Return the rows of the three sources of directions compared."""
    n, n_mean = counted(result.n, "sample"), counted(result.n_mean, "sample")
    shown = (
        (HOMOGENEITY, result.homogeneity, "", n),
        (CONSISTENCY, result.consistency, "", n_mean),
        ("cosine between two directions: do they differ?", result.others, "", n_mean),
        ("mean edit, distance from the own / its size", result.distance_mean, "almost the same", n),
        ("time-invariant edit, distance from the own / its size", result.distance_global, "almost the same", n),
        ("k recognised in own edits", result.accuracy_own, "", n),
        ("k recognised in mean edits", result.accuracy_mean, "", n),
        ("k recognised in time-invariant edits", result.accuracy_global, "", n),
        ("correlation of s_hat and s (linearity)", result.correlation, "", n),
    )
    rows = []
    for name, found, theirs, of in shown:
        bounds = interval([found.low[-1], found.high[-1]])
        rows.append(Row(name, "Fig. 9", theirs, number(found.value[-1]), bounds, of))
        rows += _floors(name, result)
    return rows


def _floors(name: str, result: Properties) -> list[Row]:
    """Return what shift blocks with random weights have in place of a number: how much of it needs no training."""
    if name not in (HOMOGENEITY, CONSISTENCY):
        return []
    kinds = (
        ("with random outputs on the same features", result.random_outputs),
        ("of wholly untrained blocks", result.untrained),
    )
    return [
        Row(
            f"{name}, {kind}",
            "Fig. 9",
            "",
            number(found.homogeneity if name == HOMOGENEITY else found.consistency),
            interval(found.homogeneity_interval if name == HOMOGENEITY else found.consistency_interval),
            counted(found.blocks, "block"),
        )
        for kind, found in kinds
        if found
    ]


def edit_rows(result: EditedImages, paper: Paper) -> list[Row]:
    """Return the rows of reconstructed images and of their x_T."""
    name = "real images reconstructed, median PSNR in dB"
    bounds = interval(median_interval(result.psnrs), 1)
    n = counted(len(result.psnrs), "image")
    rows = [Row(name, "Fig. 8", "", f"{median(result.psnrs):.1f}", bounds, n)]
    if found := result.recovery:
        stds = result.x_T_stds
        name = "std of the inverted x_T of real images, median (noise has 1)"
        rows.append(Row(name, "Fig. 8", "", number(median(stds)), interval(median_interval(stds)), n))
        for name, value, ends in (
            ("inverted and true x_T of generated images, correlation", found.correlation, found.interval),
            ("std of the inverted x_T of generated images (noise has 1)", found.x_T_std, found.x_T_std_interval),
        ):
            rows.append(Row(name, "Fig. 8", "", number(value), interval(ends), counted(found.n, "image")))
    if costs := [cost for row in result.costs or () for cost in row]:
        n = f"{counted(len(result.edits), 'edit')} of {n}"
        rows.append(Row("edits: change of the pixels, mean", "", "", number(mean(cost.change for cost in costs)), n=n))
        rows.append(Row("edits: SSIM with the reconstruction, mean", "", "", number(mean(e.ssim for e in costs)), n=n))
        if not math.isnan(kept := mean(cost.kept for cost in costs)):
            rows.append(Row("edits: classes kept, mean", "", "", number(kept), n=n))
    return rows


def ablation_rows(result: Ablations, paper: Paper) -> list[Row]:
    """Return the rows of the variants of a training."""
    metric, kid = result.metric, result.metric.replace("FD", "KID")
    names = {"rca": "RCA", "kid_shifted": f"{kid}, shifted", "fd_shifted": f"{metric}, shifted"}
    items = {"full": "Fig. 3", "l1": "Fig. 3", "per-step": "Sec. 4.4"}
    return [
        Row(
            f"{line.variant}: {names[line.metric]}",
            items.get(line.variant, ""),
            "destructive" if (line.variant, line.metric) in (("l1", "kid_shifted"), ("l1", "fd_shifted")) else "",
            _mean(line),
            interval([line.low, line.high], _digits(line)),
            f"{counted(line.seeds, 'training')}, {counted(result.runs[0].n, 'pair')} each",
        )
        for line in result.means
        if line.metric in names
    ]


def gradient_rows(result: Gradients, paper: Paper) -> list[Row]:
    """Return the cosine of each whole gradient with the exact one, at the end of the training."""
    rows = []
    for method in result.methods:
        end = result.whole(method)[-1]
        name = f"{method} gradient: cosine with the exact one, {end.stage} of the training"
        value = number(end.cosine) if end.n else "no gradient"
        rows.append(Row(name, "", "", value, interval(end.cosine_interval), counted(end.n, "batch", "batches")))
    return rows


def trainings(result: Gradients) -> Comparison:
    """Return a table of the trainings of equal time side by side."""
    return variants(result.trainings)


def variants(result: Ablations) -> Comparison:
    """Return a table of the variants side by side."""
    names = {
        "rca": "RCA",
        "kid_shifted": f"{result.metric.replace('FD', 'KID')} shifted",
        "kid_raw": "KID raw",
        "fd_shifted": f"{result.metric} shifted, n = {result.runs[0].n:,}",
        "fd_raw": "FD raw",
        "visible": "visible",
        "distinct": "distinct",
        "named": "named",
        "rca_visible": "RCA, visible ones",
        "specificity": "specificity",
        "kept_half": "kept at S/2",
        "outside": "outside the domain",
        "magnitude_error": "|s_hat - s|",
        "D_raw": "D on raw",
        "D_shifted": "D on shifted",
    }
    chances = {run.variant: number(run.chance) for run in result.runs}
    seeds = max(line.seeds for line in result.means)
    cells = {}
    for line in result.means:
        # no training changes the raw samples
        bounds = "" if line.metric in ("kid_raw", "fd_raw") else interval([line.low, line.high], _digits(line))
        fewer = f"(of {line.seeds})" if line.seeds < seeds else ""  # it is not defined in the other trainings
        cells[line.variant, line.metric] = " ".join(filter(None, [_mean(line), bounds, fewer]))
    metrics = [metric for metric in names if any(of == metric for _, of in cells)]
    if seeds > 1:
        scales = (
            "on logits of RCA and D, and logarithms of FD and |s_hat - s|; those of other shares are cut at 0 and 1"
        )
        mean = f"Mean over {seeds} trainings and 95 % t-interval, {scales}"
    else:
        mean = "One training each, so no interval"
    n = counted(result.runs[0].n, "pair")
    return Comparison(
        caption=f"{mean}; {n} each, from the same x_T. D is of the training's last third. "
        "Visible, distinct and named are shares of K.",
        columns=["variant", "chance", *(names[metric] for metric in metrics)],
        lines=[
            [variant, chance, *(cells.get((variant, metric), "") for metric in metrics)]
            for variant, chance in chances.items()
        ],
    )


def _mean(line: VariantMean) -> str:
    return f"{line.mean:.{_digits(line)}f}"


def _digits(line: VariantMean) -> int:
    """Return the digits to show of a metric; KIDs are a hundred times smaller than the others."""
    return 5 if line.metric.startswith("kid") else 3


def mos_rows(result: MosScore, paper: Paper) -> list[Row]:
    """Return the rows of the opinion scores."""
    rows = []
    for run in result.runs:
        of = "" if len(result.runs) == 1 else f" of {run.run} ({run.title})"
        published = "" if of else published_number(paper.mos)
        for name, found, theirs in (("MOS", run.mos, published), ("MOS of untrained directions", run.floor, "")):
            if found.mean is not None:
                bounds = interval(found.interval)
                rows.append(
                    Row(f"{name}{of}", "Table 1", theirs, f"{found.mean:.3f}", bounds, counted(found.n, "direction"))
                )
    return rows


def named_directions(result: Traversal) -> list[Named]:
    """Return the directions that have a name."""
    return [Named(each.direction, each.name, number(each.accuracy)) for each in result.directions if each.name]


def no_rows(result: Any, paper: Paper) -> list[Row]:
    """Return no row."""
    return []


def number(value: float | None) -> str:
    """Return a number in words."""
    return "not defined" if value is None or math.isnan(value) else f"{value:.3f}"


def published_number(value: float | None) -> str:
    """Return a number of the paper in words; nothing where it has none."""
    return "" if value is None else f"{value:.2f}"


def interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """Return bounds in words; empty if there are none."""
    known = [bound for bound in bounds or () if bound is not None and math.isfinite(bound)]
    return f"[{known[0]:.{digits}f}, {known[1]:.{digits}f}]" if len(known) == 2 else ""
