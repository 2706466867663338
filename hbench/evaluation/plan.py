"""Plan of a training: memory and throughput of each strategy over generation steps, predicted from one short step."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hbench.config import Experiment
from hbench.errors import HBenchError
from hbench.evaluation.vram_sweep import cells, default_steps, measured_line
from hbench.runtime.device import pick_device
from hbench.runtime.progress import progress
from hbench.store.provenance import provenance
from hbench.store.records import Aside
from hbench.store.results import Result
from hbench.training.cost import Prediction, Probe, budget_of, largest_keep, predictions
from hbench.training.probe import measure_apart
from hbench.training.strategy import what_would_fit

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class Plan(Result):
    """Memory and throughput that a training will need, for each way to back-propagate."""

    NAME: ClassVar[str] = "plan"

    budget_mib: float
    """Memory that the training may take."""
    probe: Probe
    """Parts of one training step, measured."""
    predictions: list[Prediction]
    """Lines of the plan; those of "auto" where anything fits into the budget."""
    left_out: list[str]
    """Reasons why a strategy is not among the predictions, in words."""
    advice: Aside = None
    """What would fit, in words, where not even one training step fits into the budget; else None."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's; the first plans noted neither left_out nor free_mib."""
        return {"left_out": []} | values | {"probe": {"free_mib": None} | values["probe"]}

    def summary(self) -> str:
        """Return the predictions, a line each."""
        lines: str = self.table().to_string(index=False, float_format="{:.1f}".format)
        return lines

    def table(self) -> "DataFrame":
        """Return the predictions, a row each."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.predictions])


def plan(
    experiment: Experiment,
    *,
    steps: Sequence[int] | None = None,
    device: str | torch.device = "auto",
    seed: int = 0,
) -> Plan:
    """Predict memory and throughput of training over generation steps, for each way to back-propagate.

    One short training step, probed in a fresh process, tells of "node", "vanilla" and "auto"; each other strategy
    takes two short cells of a sweep, and is left out if it does not fit. Cost: some twenty short training steps.

    Args:
        experiment: settings.
        steps: numbers of generation steps M, 1..T; M/2, M, 2M and 4M of the experiment by default.
        device: where the training is to run: "auto" is CUDA where there is one, else the CPU.
        seed: seed of the training steps.

    Raises:
        HBenchError: an M that the schedule does not have, or the probe failed.
    """
    device = pick_device(device)
    origin = provenance(experiment, device, seed)
    Ms = sorted(set(steps or default_steps(experiment)))
    cells(experiment, ["node"], Ms, device=str(device))  # refuses an M that the schedule does not have
    others = ["torch-checkpoint", *(["offload"] if device.type == "cuda" else [])]
    with progress(total=1 + len(others), desc="probes") as bar:
        probe = measure_apart(experiment, str(device), seed)
        bar.update()
        budget = budget_of(experiment, device, probe)
        rows, left_out = predictions(probe, experiment, Ms, budget), []
        for strategy in others:
            try:
                rows += measured_line(experiment, strategy, Ms, probe, str(device), seed)
            except HBenchError as error:
                left_out.append(str(error))
            bar.update()
    fits = largest_keep(probe, experiment, experiment.discovery.M, budget) is not None
    return Plan(
        budget_mib=budget,
        probe=probe,
        predictions=rows,
        left_out=left_out,
        advice=None if fits else what_would_fit(probe, experiment, budget),
        provenance=origin.finished(),
    )
