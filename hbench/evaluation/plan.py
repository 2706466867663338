"""Plan of a training: memory and throughput of each strategy over generation steps, predicted from one short step.

The lines of "node", "vanilla" and "auto" follow from a probe by arithmetic. The others, "offload" and
"torch-checkpoint", keep tensors that autograd's hooks do not show: their lines go through two short cells of a sweep.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from hbench.config import Experiment
from hbench.errors import HBenchError, as_list, check_at_least, check_seed, check_type
from hbench.evaluation import sweep_cells, vram_sweep
from hbench.runtime.device import pick_device
from hbench.runtime.memory import free_mib
from hbench.runtime.progress import progress, ticking
from hbench.store.provenance import provenance
from hbench.store.records import Aside
from hbench.store.results import Result
from hbench.training.cost import (
    SHARE_OF_FREE,
    Prediction,
    Probe,
    Whole,
    best_keep,
    budget_of,
    predict,
    predictions,
    whole_discovery,
)
from hbench.training.discover import check_shift_interval
from hbench.training.probe import measure_apart, measure_pretraining_apart, shortened
from hbench.training.strategy import what_would_fit

if TYPE_CHECKING:
    from pandas import DataFrame

BY_ARITHMETIC = ("node", "vanilla")
"""Strategies whose lines follow from a probe; "auto" is made of both."""


@dataclass(frozen=True, kw_only=True)
class Plan(Result):
    """Memory and throughput that a training will need, for each way to back-propagate."""

    NAME: ClassVar[str] = "plan"

    budget_mib: float
    """Memory budget of the training."""
    probe: Probe
    """Measured parts of one training step."""
    predictions: list[Prediction]
    """Rows of the plan; "auto" is among them if anything fits into the budget."""
    trainings: list[Whole] = field(default_factory=list)
    """Time and memory of the experiment's own discovery, and of its pretraining where it names no model; empty in plans
    of older versions."""
    left_out: list[str]
    """What the predictions lack, and why, in words."""
    advice: Aside = field(default=None, compare=False)
    """Settings that would fit, in words, if not even one training step does; else None, as in a plan read back."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's; the first plans noted neither left_out nor free_mib."""
        return {"left_out": []} | values | {"probe": {"free_mib": None} | values["probe"]}

    def summary(self) -> str:
        """Return the predictions, a line each; those for the experiment's own M are marked."""
        head, *lines = self.table().to_string(index=False, float_format="{:.1f}".format).splitlines()
        marks = ["  <- this M" if row.M == self.M else "" for row in self.predictions]
        return "\n".join([head, *(line + mark for line, mark in zip(lines, marks, strict=True))])

    @property
    def M(self) -> int:
        """Number of generation steps of the experiment."""
        M: int = self.provenance.experiment["discovery"]["M"]
        return M

    def table(self) -> "DataFrame":
        """Return the predictions, a row each."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.predictions])


def plan(
    experiment: Experiment,
    *,
    steps: int | Sequence[int] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
) -> Plan:
    """Predict memory and throughput of training over generation steps, for each strategy of back-propagation.

    One short training step, probed in a fresh process, predicts "node", "vanilla" and "auto"; each other strategy
    takes two short cells of a sweep, and is left out if it does not fit. Cost: about twenty short training steps.

    Args:
        experiment: settings of the training.
        steps: numbers of generation steps M, 1..T; M/2, M, 2M and 4M of the experiment by default.
        device: device of the training: "auto" is a GPU where there is one, else the CPU.
        seed: seed of the training steps.

    Raises:
        TypeError: not an experiment.
        ValueError: no M, or a seed out of range.
        HBenchError: an M that the schedule does not have, or the probe failed.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_seed(seed)
    device = pick_device(device)
    check_shift_interval(experiment)
    origin = provenance(experiment, device, seed)
    Ms = sorted(set(vram_sweep.default_steps(experiment) if steps is None else as_list(steps)))
    check_at_least(1, steps=len(Ms))
    sweep_cells.cells(experiment, ["node"], Ms, device=str(device))  # refuses an M that no training takes
    others = [name for name in vram_sweep.STRATEGIES if name not in BY_ARITHMETIC]
    if device.type == "cuda":
        others.append("offload")
    trainings, left_out = [], []
    pretrains = experiment.model.path is None
    with progress(total=1 + pretrains + len(others), desc="probes") as bar:
        with ticking(bar, "node, vanilla and auto"):
            probe = measure_apart(experiment, str(device), seed)
        budget = budget_of(experiment, device, probe)
        rows = predictions(probe, experiment, Ms, budget)
        own = own_prediction(probe, experiment, budget)
        for strategy in others:
            try:
                with ticking(bar, strategy):
                    line = measured_line(experiment, strategy, [*Ms, experiment.discovery.M], probe, str(device), seed)
                rows += line[:-1]
                own = line[-1] if strategy == experiment.discovery.strategy else own
            except HBenchError as error:
                left_out.append(str(error))
        if (gradient := experiment.discovery.gradient) != "chain":
            left_out.append(f'discovery.gradient = "{gradient}", which takes less than the exact gradient of the table')
        elif own:
            trainings.append(whole_discovery(probe, experiment, own))
        try:
            if pretrains:
                with ticking(bar, "pretraining"):
                    trainings.append(measure_pretraining_apart(experiment, str(device), seed))
        except HBenchError as error:
            left_out.append(str(error))
    fits = best_keep(probe, experiment, experiment.discovery.M, budget) is not None
    return Plan(
        budget_mib=budget,
        probe=probe,
        predictions=rows,
        trainings=trainings,
        left_out=left_out,
        advice=None if fits else what_would_fit(probe, experiment, budget),
        provenance=origin.finished(),
    )


def own_prediction(probe: Probe, experiment: Experiment, budget_mib: float) -> Prediction | None:
    """Return the prediction for the experiment's own M and strategy, if it follows from the probe."""
    settings = experiment.discovery
    if settings.strategy == "auto":
        return next(iter(predictions(probe, experiment, [settings.M], budget_mib)[2:]), None)
    keep = settings.M if settings.strategy == "vanilla" else settings.keep
    return (
        predict(probe, experiment, settings.M, keep, settings.strategy) if settings.strategy in BY_ARITHMETIC else None
    )


def measured_line(
    experiment: Experiment, strategy: str, Ms: Sequence[int], probe: Probe, device: str, seed: int
) -> list[Prediction]:
    """Predict a strategy whose memory autograd's hooks do not show, by the lines through two short cells of a sweep.

    Raises:
        HBenchError: nothing measures the device, one of the cells failed, or "offload" would crowd the CPU's memory.
    """
    sweep_cells.check_measurable(torch.device(device))
    few = min(shortened(experiment).discovery.M, experiment.diffusion.T // 10)
    ends = (2 * few, 10 * few)  # so far apart that the noise of their memory does not tilt the line
    if strategy == "offload":
        check_offload(experiment, ends[1], probe)
    cells = sweep_cells.cells(experiment, [strategy], ends, device=device, seed=seed, repeats=2)
    rows = [sweep_cells.measure_apart(cell) for cell in cells]
    used = [row.memory_mib for row in rows if row.memory_mib is not None]
    if len(used) < len(rows):
        failed = next(row for row in rows if row.memory_mib is None)
        raise HBenchError(f"{strategy}, M = {failed.M}: {failed.error}: lower discovery.batch_size")
    batch = experiment.discovery.batch_size
    raw = probe.regular.forward if experiment.discovery.pool else 0.0  # a step of each cell, which has no pool
    memory = np.polyfit(ends, used, 1)
    seconds = np.polyfit(ends, [float(np.median(row.step_seconds)) - row.M * raw for row in rows], 1)
    return [Prediction(strategy, M, 0, float(np.polyval(memory, M)), batch / float(np.polyval(seconds, M))) for M in Ms]


def check_offload(experiment: Experiment, M: int, probe: Probe) -> None:
    """Raise HBenchError if M graphs might fill the CPU's memory: the system can kill a job that takes too much."""
    # PyTorch rounds each block of pinned memory up to a power of two
    needed = 2 * predict(probe, experiment, M, M, "vanilla").memory_mib
    allowed = SHARE_OF_FREE["cpu"] * free_mib(torch.device("cpu"))
    if needed > allowed:
        raise HBenchError(
            f"offload, M = {M}: up to {needed:,.0f} MiB of graphs, where {allowed:,.0f} MiB of the CPU's memory may be "
            "taken: lower discovery.batch_size"
        )
