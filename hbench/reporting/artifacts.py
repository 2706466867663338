"""The registry of artifacts: name, item of the paper, result class, charts and table rows of each.

Commands, reproduction, report and the README's table read :data:`ARTIFACTS`. A new metric is one file in evaluation/
and one entry here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hbench.config import Paper
from hbench.errors import HBenchError, check_type
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
from hbench.reporting.rows import (
    Comparison,
    Named,
    Row,
    ablation_rows,
    curve_rows,
    edit_rows,
    fidelity_rows,
    mos_rows,
    named_directions,
    no_rows,
    property_rows,
    published_number,
    rca_rows,
    sweep_rows,
    variants,
)
from hbench.store.results import Result

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


VARIANT_PICTURES: dict[str, Chart] = {"ablations.png": draw_ablations, "directions.png": draw_variants}
ARTIFACTS = (
    Artifact(
        "traverse",
        Traversal,
        "Directions",
        "Figs. 1, 5-7",
        "traverse",
        no_rows,
        {"directions.png": draw_traversal},
        named=named_directions,
        of_run=True,
    ),
    Artifact(
        "rca",
        RCA,
        "Reconstructor classification accuracy",
        "Table 1",
        "rca",
        rca_rows,
        {"rca.png": draw_confusion},
        published=lambda paper: published_number(paper.rca),
        of_run=True,
    ),
    Artifact(
        "mos/score",
        MosScore,
        "Mean opinion score",
        "Table 1",
        "mos score",
        mos_rows,
        {"mos.png": draw_mos},
        published=lambda paper: published_number(paper.mos),
    ),
    Artifact(
        "fid-inception-v3-compat",
        Fidelity,
        "Frechet inception distance",
        "Table 2",
        "fid",
        fidelity_rows,
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
        fidelity_rows,
        {"fid.png": draw_fidelity},
        of_run=True,
    ),
    Artifact(
        "train-curves",
        TrainingCurves,
        "Training",
        "Fig. 10",
        "train-curves",
        curve_rows,
        {"train-curves.png": draw_run_curves},
        published=lambda _: "D near 0.5",
    ),
    Artifact(
        "vram-sweep",
        VramSweep,
        "Memory and throughput of training",
        "Fig. 4",
        "vram-sweep",
        sweep_rows,
        {"vram-sweep.png": draw_sweep},
        published=lambda _: "node flat, vanilla past 24 GB",
    ),
    Artifact(
        "edit",
        EditedImages,
        "Edits of real images",
        "Fig. 8",
        "edit",
        edit_rows,
        {"edits.png": draw_edits},
        of_run=True,
    ),
    Artifact(
        "properties",
        Properties,
        "Own, mean and time-invariant directions",
        "Fig. 9",
        "properties",
        property_rows,
        {"properties.png": draw_properties, "edits.png": draw_sources},
        of_run=True,
    ),
    Artifact(
        "ablations",
        Ablations,
        "Ablations",
        "Fig. 3, Sec. 4.4",
        "ablations",
        ablation_rows,
        VARIANT_PICTURES,
        comparison=variants,
    ),
    Artifact(
        "settings",
        Ablations,
        "What the settings do",
        "",
        "ablations --over",
        no_rows,
        VARIANT_PICTURES,
        comparison=variants,
    ),
    Artifact(
        "samples",
        Samples,
        "Samples of the diffusion model",
        "",
        "sample",
        no_rows,
        {"samples.png": draw_samples},
        on_page=False,
    ),
    Artifact("lenet", TrainedLeNet, "Digit LeNet", "", "lenet", no_rows, {"lenet.png": draw_digits}, on_page=False),
    Artifact(
        "plan",
        Plan,
        "Prediction of memory and throughput",
        "",
        "plan",
        no_rows,
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
        TypeError: not a result.
        HBenchError: no picture is registered for such a result, or the file cannot be written.
    """
    check_type(Result, "as a measurement returns it", result=result)
    artifact = artifact_of(result)
    if artifact is None or not artifact.charts:
        raise HBenchError(f"no picture is registered for a {type(result).__name__}")
    next(iter(artifact.charts.values()))(result, Path(path))
    return Path(path)
