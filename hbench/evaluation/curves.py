"""Training curves of several runs, read from their logs (Fig. 10)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from hbench.config import Experiment
from hbench.core.intervals import batch_means
from hbench.errors import HBenchError, as_list
from hbench.store.files import sha256
from hbench.store.folders import EXPERIMENT
from hbench.store.metrics import FILE as METRICS
from hbench.store.metrics import read_metrics
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import REMEDY, provenance
from hbench.store.records import Aside, Number, Positive, ShareOrNone
from hbench.store.results import Result
from hbench.store.run_files import locate, origin_of_training
from hbench.store.weights import read_written_experiment

if TYPE_CHECKING:
    from pandas import DataFrame

LOSSES = ("loss", "loss_k", "loss_s", "loss_adv", "loss_l1", "loss_odd", "loss_D")
"""Columns that a discovery logs if its settings have such a loss."""
NEEDED = ("accuracy", "D_raw", "D_shifted")
"""Columns that every discovery logs."""


@dataclass(frozen=True)
class Curves:
    """The log of one discovery, finished or not."""

    name: str
    """Name of the run's folder, or its whole path if several folders have that name."""
    experiment: Experiment
    rows: "DataFrame"
    """Rows of the log, one a step: accuracy, D_raw, D_shifted, and the losses that the run has."""
    sha256: str
    """SHA-256 of the file."""


@dataclass(frozen=True, kw_only=True)
class LateMeans:
    """Means of one run over the last third of its steps; a loss that it does not have is nan."""

    run: str
    settings: str
    """Settings in which the run differs from the others, in words."""
    steps: Positive
    n: Positive
    """Number of steps in the last third, rounded up."""
    loss: Number = math.nan
    loss_k: Number = math.nan
    loss_s: Number = math.nan
    loss_adv: Number = math.nan
    loss_l1: Number = math.nan
    loss_odd: Number = math.nan
    accuracy: ShareOrNone
    """Share of directions recognised in the training's batches."""
    loss_D: Number = math.nan
    D_raw: ShareOrNone
    """Mean output of the discriminator on raw samples; 0.5 is ideal."""
    D_shifted: ShareOrNone
    D_raw_low: Number
    """Ends of the 95 % intervals of the run's means, by batch means; another seed may well lie outside."""
    D_raw_high: Number
    D_shifted_low: Number
    D_shifted_high: Number


@dataclass(frozen=True, kw_only=True)
class TrainingCurves(Result):
    """The trainings of several runs side by side."""

    NAME: ClassVar[str] = "train-curves"

    runs: Annotated[list[LateMeans], Field(min_length=1)]
    curves: Aside = field(default=None, compare=False, repr=False)
    """The :class:`Curves` of each run; None in a result read back."""

    def summary(self) -> str:
        """Return accuracy and D of each run as a table."""
        shown = ["run", "steps", "n", "accuracy", "D_raw", "D_shifted"]
        text: str = self.table()[shown].round(4).to_string(index=False)
        return text

    def table(self) -> "DataFrame":
        """Return the means of each run, a row a run, with the losses that any of the runs has."""
        import pandas as pd

        return pd.DataFrame([asdict(run) for run in self.runs]).drop(columns=self._without())

    def to_json(self) -> dict[str, Any]:
        """Return the values as they stand in the file, with the losses that any of the runs has."""
        values = super().to_json()
        missing = self._without()
        runs = [{key: value for key, value in run.items() if key not in missing} for run in values["runs"]]
        return values | {"runs": runs}

    def _without(self) -> list[str]:
        """Return the losses that no run has."""
        return [name for name in LOSSES if all(math.isnan(getattr(run, name)) for run in self.runs)]


def train_curves(runs: str | Path | Sequence[str | Path]) -> TrainingCurves:
    """Compare the trainings of run folders, one or several, finished or not. Nothing is random.

    Raises:
        ValueError: no run.
        HBenchError: no such folder, or no whole metrics of a discovery in it.
    """
    runs = as_list(runs)
    if not runs:
        raise ValueError("runs must name at least one run")
    curves = read_curves(runs)
    sources = [
        {"run": str(run), "metrics_sha256": each.sha256, "experiment": each.experiment.model_dump()}
        for run, each in zip(runs, curves, strict=True)
    ]
    origin = provenance(None, torch.device("cpu"), None, runs=sources)
    settings = differences([each.experiment for each in curves])
    return TrainingCurves(
        runs=[late_means(each, text) for each, text in zip(curves, settings, strict=True)],
        curves=curves,
        provenance=origin.finished(),
    )


def read_curves(runs: Sequence[str | Path]) -> list[Curves]:
    """Return the curves of run folders, finished or not.

    Raises:
        HBenchError: no such folder, or no whole metrics of a discovery in it.
    """
    names = [Path(run).resolve().name for run in runs]
    return [_read(run, name if names.count(name) == 1 else str(run)) for run, name in zip(runs, names, strict=True)]


def _read(run: str | Path, name: str) -> Curves:
    folder = locate(Path(run))
    metrics, settings = folder / METRICS, folder / EXPERIMENT
    for file in (metrics, settings):
        if not file.is_file():
            raise HBenchError(f"{run}: no {file.name} there: give the folder of a discovery")
    experiment = read_written_experiment(settings)
    origin, steps = origin_of_training(folder), None
    if origin and "shift_block" in (origin.weights or ()):
        steps = experiment.discovery.steps
        if origin.details.get("metrics_sha256") not in (None, sha256(metrics)):
            raise HBenchError(f"{metrics}: is not the file that {PROVENANCE} beside it was written with: {REMEDY}")
    rows = read_metrics(metrics, steps)
    if not set(NEEDED) <= set(rows.columns):
        raise HBenchError(f"{run}: its {METRICS} holds no discovery: give the folder of one")
    return Curves(name, experiment, rows, sha256(metrics))


def differences(experiments: Sequence[Experiment]) -> list[str]:
    """Return the settings in which experiments differ, in words for each of them: "fidelity=l1, lambda_l1=5"."""
    tables = [_settings(experiment) for experiment in experiments]
    differing = [key for key in tables[0] if any(table[key] != tables[0][key] for table in tables)]
    return [", ".join(f"{key}={table[key]}" for key in differing) for table in tables]


def _settings(experiment: Experiment) -> dict[str, Any]:
    values = experiment.model_dump(include={"data", "model", "diffusion"})
    others = {f"{section}.{key}": value for section, table in values.items() for key, value in table.items()}
    return experiment.discovery.model_dump() | others


def late_means(curves: Curves, settings: str = "") -> LateMeans:
    """Return the means over the last third of the logged steps."""
    late = curves.rows.tail(-(-len(curves.rows) // 3))
    means = late[[name for name in late.columns if name in (*LOSSES, *NEEDED)]].mean().to_dict()
    for name in ("D_raw", "D_shifted"):
        low, high = batch_means(late[name])
        means[f"{name}_low"], means[f"{name}_high"] = float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))
    return LateMeans(run=curves.name, settings=settings, steps=len(curves.rows), n=len(late), **means)
