"""Training curves of several runs, read from what each has logged (Fig. 10)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hbench.config import Experiment
from hbench.core.intervals import batch_means
from hbench.errors import HBenchError
from hbench.store.folders import EXPERIMENT
from hbench.store.run import locate
from hbench.store.weights import read_written_experiment


@dataclass(frozen=True)
class Curves:
    """What one discovery has logged so far."""

    name: str
    """The run's folder, or its whole path where several have that name."""
    experiment: Experiment
    rows: pd.DataFrame
    """One row a step: accuracy, D_raw, D_shifted, and the losses that the run has."""


def read_curves(runs: Sequence[Path]) -> list[Curves]:
    """The curves of the run folders, finished or not.

    Raises:
        HBenchError: no such folder, or no readable metrics of a discovery in it.
    """
    names = [run.resolve().name for run in runs]
    return [_read(run, name if names.count(name) == 1 else str(run)) for run, name in zip(runs, names, strict=True)]


def _read(run: Path, name: str) -> Curves:
    folder = locate(run)
    metrics, settings = folder / "metrics.csv", folder / EXPERIMENT
    for file in (metrics, settings):
        if not file.is_file():
            raise HBenchError(f'{run}: no {file.name} there: give the folder of a "hbench train"')
    try:
        experiment = read_written_experiment(settings)
        rows = pd.read_csv(metrics)
    except ValueError as error:  # of json, pandas and the decoding of text
        problem = str(error).splitlines()[0]
        raise HBenchError(
            f"{run}: its metrics.csv or experiment.json is damaged ({problem}): train it again"
        ) from error
    missing = {"step", "accuracy", "D_raw", "D_shifted"} - set(rows.columns)
    if missing or rows.empty:
        raise HBenchError(f'{run}: its metrics.csv holds no discovery: give the folder of a "hbench train"')
    return Curves(name, experiment, rows)


def differences(experiments: Sequence[Experiment]) -> list[str]:
    """Of each experiment, the settings in which they do not all agree: "fidelity=l1, lambda_l1=5"."""
    tables = [_settings(experiment) for experiment in experiments]
    differing = [key for key in tables[0] if any(table[key] != tables[0][key] for table in tables)]
    return [", ".join(f"{key}={table[key]}" for key in differing) for table in tables]


def _settings(experiment: Experiment) -> dict[str, Any]:
    values = experiment.model_dump(include={"data", "model", "diffusion"})
    others = {f"{section}.{key}": value for section, table in values.items() for key, value in table.items()}
    return experiment.discovery.model_dump() | others


def last_third(rows: pd.DataFrame) -> dict[str, float]:
    """Means over the last third of the logged steps, rounded up, and their number ``n``; those of D with an interval.

    The interval, ``D_raw_low`` and so on, is of this one run, by batch means: other seeds may well lie outside.
    """
    chosen = rows.tail(-(-len(rows) // 3)).drop(columns="step")
    found = {"n": len(chosen), **chosen.mean().to_dict()}
    for name in ("D_raw", "D_shifted"):
        found[f"{name}_low"], found[f"{name}_high"] = batch_means(chosen[name])
    return found


def compare(curves: Sequence[Curves]) -> pd.DataFrame:
    """One row a run: its name, how its settings differ from the others', its steps, and means over their last third."""
    settings = differences([each.experiment for each in curves])
    return pd.DataFrame(
        {"run": each.name, "settings": text, "steps": len(each.rows), **last_third(each.rows)}
        for each, text in zip(curves, settings, strict=True)
    )
