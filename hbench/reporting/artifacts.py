"""The registry of artifacts: name, item of the paper, result class, charts and table rows of each.

Commands, reproduction, report and the README's table read :data:`ARTIFACTS`. A new metric is one file in evaluation/
and one entry here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from hbench.config import Paper
from hbench.core.intervals import median_interval
from hbench.errors import HBenchError
from hbench.evaluation.ablations import Ablations
from hbench.evaluation.curves import TrainingCurves
from hbench.evaluation.edit import EditedImages
from hbench.evaluation.fid import Fidelity
from hbench.evaluation.lenet import TrainedLeNet
from hbench.evaluation.mos.score import MosScore
from hbench.evaluation.plan import Plan
from hbench.evaluation.properties import Properties
from hbench.evaluation.rca import RCA
from hbench.evaluation.sample import Samples
from hbench.evaluation.traverse import Traversal
from hbench.evaluation.vram_sweep import VramSweep
from hbench.reporting.charts.measurements import draw_confusion, draw_digits, draw_fidelity, draw_properties
from hbench.reporting.charts.mos import draw_mos
from hbench.reporting.charts.sweep import draw_plan, draw_sweep
from hbench.reporting.charts.training import draw_ablations, draw_run_curves
from hbench.reporting.grids import draw_edits, draw_samples, draw_sources, draw_traversal, draw_variants
from hbench.store.results import Result

Values = dict[str, Any]


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


Chart = Callable[[Any, Path], None]
"""Function (result, path) that draws a result as a PNG file."""


@dataclass(frozen=True)
class Artifact:
    """One artifact: its folder, result class, item of the paper, command, table rows and charts."""

    folder: str
    """Folder of the result, inside the run's."""
    result: type[Result]
    """Class of the result."""
    title: str
    """Heading on the page."""
    item: str
    """Item of the paper: "Table 1", "Fig. 4"; empty if the paper has none."""
    command: str
    """Command that makes it, after ``hbench``."""
    rows: Callable[[Any, Paper], list[Row]]
    """Function (result, paper) -> lines of the table."""
    charts: Mapping[str, Chart] = field(default_factory=dict)
    """Function that draws each picture, by its file's name; the first is the main one."""
    published: Callable[[Paper], str] = lambda _: ""
    """Function (paper) -> number of the paper, for artifacts that were not run."""
    named: Callable[[Any], list[Named]] = lambda _: []
    """Function (result) -> its directions that have a name."""
    comparison: Callable[[Any], Comparison | None] = lambda _: None
    """Function (result) -> table of its trainings side by side, if it compares trainings."""
    of_run: bool = False
    """True if it measures the run's weights; its provenance then has their SHA-256 as ``weights_sha256``."""
    on_page: bool = True
    """True if the page of a run shows it."""


def _rca_rows(result: RCA, paper: Paper) -> list[Row]:
    n = f"{result.n:,} pairs"
    chance = f"RCA (chance {result.chance:.3f})"
    shown = (
        (chance, "Table 1", _published(paper.rca), result.accuracy, result.interval),
        *(
            (name, item, theirs, getattr(result, key), getattr(result, f"{key}_interval"))
            for name, item, theirs, key in (
                ("magnitude error |s_hat - s|", "", "", "magnitude_error"),
                ("D on raw samples", "Fig. 10", "0.5", "D_raw"),
                ("D on shifted samples", "Fig. 10", "0.5", "D_shifted"),
                ("share of shifted samples outside the domain", "", "", "outside"),
            )
        ),
    )
    return [
        Row(name, item, theirs, _number(value), _interval(bounds), n) for name, item, theirs, value, bounds in shown
    ]


def _fidelity_rows(result: Fidelity, paper: Paper) -> list[Row]:
    rows = []
    for kind, found, published in (
        ("raw", result.raw, paper.fid_raw),
        ("shifted", result.shifted, paper.fid_shifted),
    ):
        n = f"{found.n:,} against {result.n_real:,} real"
        theirs = _published(published) if result.metric == "FID" else ""
        name = f"{result.metric}, {kind} samples"
        rows.append(Row(name, "Table 2", theirs, _number(found.fd), _interval(found.interval), n))
        if found.kid is not None:
            spread = "" if found.kid_std is None else f" (std {found.kid_std:.5f} over subsets)"
            rows.append(Row(f"KID, {kind} samples", "", "", f"{found.kid:.5f}{spread}", n=n))
    for name, value, bounds, count in (
        ("shifted / raw", result.ratio, result.ratio_interval, result.shifted.n),
        ("between two halves of the real images", result.halves, result.halves_interval, result.n_real // 2),
    ):
        label = f"{result.metric}, {name}"
        rows.append(Row(label, "Table 2", "", _number(value), _interval(bounds), f"{count:,} each"))
    return rows


def _sweep_rows(result: VramSweep, paper: Paper) -> list[Row]:
    cells = {cell.key: cell for cell in result.cells if cell.status in ("ok", "oom")}
    rows = []
    n = f"{min((len(cell.step_seconds) for cell in cells.values() if cell.step_seconds), default=0)} steps a cell"
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


def _curve_rows(result: TrainingCurves, paper: Paper) -> list[Row]:
    (run, *_) = result.runs
    return [
        Row(
            f"D on {kind} in training, last third",
            "Fig. 10",
            "0.5",
            _number(value),
            _interval(bounds),
            f"{run.n:,} steps",
        )
        for kind, value, bounds in (
            ("raw", run.D_raw, (run.D_raw_low, run.D_raw_high)),
            ("shifted", run.D_shifted, (run.D_shifted_low, run.D_shifted_high)),
        )
    ]


def _property_rows(result: Properties, paper: Paper) -> list[Row]:
    n, n_mean = f"{result.n:,} samples", f"{result.n_mean:,} samples"
    shown = (
        ("cosine of own and mean direction (homogeneity)", result.homogeneity, "", n),
        ("cosine between timesteps (consistency)", result.consistency, "", n_mean),
        ("cosine between two directions, the floor", result.others, "", n_mean),
        ("mean edit, distance from the own / its size", result.distance_mean, "almost the same", n),
        ("time-invariant edit, distance from the own / its size", result.distance_global, "almost the same", n),
        ("k recognised in own edits", result.accuracy_own, "", n),
        ("k recognised in mean edits", result.accuracy_mean, "", n),
        ("k recognised in time-invariant edits", result.accuracy_global, "", n),
        ("correlation of s_hat and s (linearity)", result.correlation, "", n),
    )
    return [
        Row(name, "Fig. 9", theirs, _number(found.value[-1]), _interval([found.low[-1], found.high[-1]]), of)
        for name, found, theirs, of in shown
    ]


def _edit_rows(result: EditedImages, paper: Paper) -> list[Row]:
    name = "real images reconstructed, median PSNR in dB"
    bounds = _interval(median_interval(result.psnrs), 1)
    return [Row(name, "Fig. 8", "", f"{median(result.psnrs):.1f}", bounds, f"{len(result.psnrs)} images")]


def _ablation_rows(result: Ablations, paper: Paper) -> list[Row]:
    names = {"rca": "RCA", "fd_shifted": "FD (LeNet digits), shifted"}
    items = {"full": "Fig. 3", "l1": "Fig. 3", "per-step": "Sec. 4.4"}
    return [
        Row(
            f"{line.variant}: {names[line.metric]}",
            items.get(line.variant, ""),
            "destructive" if (line.variant, line.metric) == ("l1", "fd_shifted") else "",
            _number(line.mean),
            _interval([line.low, line.high]),
            f"{line.seeds} training{'s' * (line.seeds > 1)}",
        )
        for line in result.means
        if line.metric in names
    ]


def _variants(result: Ablations) -> Comparison:
    names = {
        "rca": "RCA",
        "fd_shifted": "FD (LeNet digits) shifted",
        "fd_raw": "FD raw",
        "outside": "outside the domain",
        "magnitude_error": "|s_hat - s|",
        "D_raw": "D on raw",
        "D_shifted": "D on shifted",
    }
    chances = {run.variant: _number(run.chance) for run in result.runs}
    cells = {}
    for line in result.means:
        # no training changes the raw samples
        bounds = "" if line.metric == "fd_raw" else _interval([line.low, line.high])
        cells[line.variant, line.metric] = f"{_number(line.mean)} {bounds}".rstrip()
    metrics = [metric for metric in names if any(of == metric for _, of in cells)]
    seeds = max(line.seeds for line in result.means)
    if seeds > 1:
        mean = f"Mean over {seeds} trainings and its 95 % t-interval, wide for so few and not cut at 0 or 1"
    else:
        mean = "One training each, so no interval"
    return Comparison(
        caption=f"{mean}; {result.runs[0].n:,} pairs each, from the same x_T. D is of the training's last third.",
        columns=["variant", "chance", *(names[metric] for metric in metrics)],
        lines=[
            [variant, chance, *(cells.get((variant, metric), "") for metric in metrics)]
            for variant, chance in chances.items()
        ],
    )


def _mos_rows(result: MosScore, paper: Paper) -> list[Row]:
    rows = []
    for run in result.runs:
        of = "" if len(result.runs) == 1 else f" of {run.run} ({run.title})"
        published = "" if of else _published(paper.mos)
        for name, found, theirs in (("MOS", run.mos, published), ("MOS of untrained directions", run.floor, "")):
            if found.mean is not None:
                bounds = _interval(found.interval)
                rows.append(Row(f"{name}{of}", "Table 1", theirs, f"{found.mean:.3f}", bounds, f"{found.n} directions"))
    return rows


def _named_directions(result: Traversal) -> list[Named]:
    return [Named(each.direction, each.name, _number(each.accuracy)) for each in result.directions if each.name]


def _no_rows(result: Values, paper: Paper) -> list[Row]:
    return []


def _number(value: float | None) -> str:
    return "not defined" if value is None or math.isnan(value) else f"{value:.3f}"


def _published(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """Return bounds in words; empty if there are none."""
    known = [bound for bound in bounds or () if bound is not None and math.isfinite(bound)]
    return f"[{known[0]:.{digits}f}, {known[1]:.{digits}f}]" if len(known) == 2 else ""


VARIANT_PICTURES: dict[str, Chart] = {"ablations.png": draw_ablations, "directions.png": draw_variants}
ARTIFACTS = (
    Artifact(
        "traverse",
        Traversal,
        "Directions",
        "Figs. 1, 5-7",
        "traverse",
        _no_rows,
        {"directions.png": draw_traversal},
        named=_named_directions,
        of_run=True,
    ),
    Artifact(
        "rca",
        RCA,
        "Reconstructor classification accuracy",
        "Table 1",
        "rca",
        _rca_rows,
        {"rca.png": draw_confusion},
        published=lambda paper: _published(paper.rca),
        of_run=True,
    ),
    Artifact(
        "mos/score",
        MosScore,
        "Mean opinion score",
        "Table 1",
        "mos score",
        _mos_rows,
        {"mos.png": draw_mos},
        published=lambda paper: _published(paper.mos),
    ),
    Artifact(
        "fid-inception-v3-compat",
        Fidelity,
        "Frechet inception distance",
        "Table 2",
        "fid",
        _fidelity_rows,
        {"fid.png": draw_fidelity},
        published=lambda paper: f"{paper.fid_raw} raw, {paper.fid_shifted} shifted" if paper.fid_raw else "",
        of_run=True,
    ),
    Artifact(
        "fid-lenet-digits",
        Fidelity,
        "Frechet distance in LeNet features",
        "Table 2",
        "fid --feature-extractor lenet-digits",
        _fidelity_rows,
        {"fid.png": draw_fidelity},
        of_run=True,
    ),
    Artifact(
        "train-curves",
        TrainingCurves,
        "Training",
        "Fig. 10",
        "train-curves",
        _curve_rows,
        {"train-curves.png": draw_run_curves},
        published=lambda _: "D near 0.5",
    ),
    Artifact(
        "vram-sweep",
        VramSweep,
        "Memory and throughput of training",
        "Fig. 4",
        "vram-sweep",
        _sweep_rows,
        {"vram-sweep.png": draw_sweep},
        published=lambda _: "node flat, vanilla past 24 GB",
    ),
    Artifact(
        "edit",
        EditedImages,
        "Edits of real images",
        "Fig. 8",
        "edit",
        _edit_rows,
        {"edits.png": draw_edits},
        of_run=True,
    ),
    Artifact(
        "properties",
        Properties,
        "Own, mean and time-invariant directions",
        "Fig. 9",
        "properties",
        _property_rows,
        {"properties.png": draw_properties, "edits.png": draw_sources},
        of_run=True,
    ),
    Artifact(
        "ablations",
        Ablations,
        "Ablations",
        "Fig. 3, Sec. 4.4",
        "ablations",
        _ablation_rows,
        VARIANT_PICTURES,
        comparison=_variants,
    ),
    Artifact(
        "settings",
        Ablations,
        "What the settings do",
        "",
        "ablations --over",
        _no_rows,
        VARIANT_PICTURES,
        comparison=_variants,
    ),
    Artifact(
        "samples",
        Samples,
        "Samples of the diffusion model",
        "",
        "sample",
        _no_rows,
        {"samples.png": draw_samples},
        on_page=False,
    ),
    Artifact("lenet", TrainedLeNet, "Digit LeNet", "", "lenet", _no_rows, {"lenet.png": draw_digits}, on_page=False),
    Artifact(
        "plan",
        Plan,
        "Prediction of memory and throughput",
        "",
        "plan",
        _no_rows,
        {"plan.png": draw_plan},
        on_page=False,
    ),
)
"""Artifacts in the order of the page."""


def artifact_of(result: Result) -> Artifact | None:
    """Return the registered artifact of a result's class, the first if there are several."""
    return next((artifact for artifact in ARTIFACTS if artifact.result is type(result)), None)


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw every picture of a result into a folder and return their paths."""
    artifact = artifact_of(result)
    if artifact is None:
        return []
    for name, chart in artifact.charts.items():
        chart(result, folder / name)
    return [folder / name for name in artifact.charts]


def plot(result: Result, path: str | Path) -> Path:
    """Draw the main picture of a result as a PNG file and return its path.

    Raises:
        HBenchError: no picture is registered for such a result, or the file cannot be written.
    """
    artifact = artifact_of(result)
    if artifact is None or not artifact.charts:
        raise HBenchError(f"no picture is registered for a {type(result).__name__}")
    next(iter(artifact.charts.values()))(result, Path(path))
    return Path(path)
