"""Errors of cheap gradients of the sampling chain: agreement with the exact one, cost, and trainings of equal time.

:mod:`hbench.core.approximations` has the gradients, :mod:`hbench.evaluation.agreement` the comparison,
:mod:`hbench.evaluation.gradient_costs` the costs, and :mod:`hbench.evaluation.ablations` trains and measures.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field

from hbench.config import Experiment
from hbench.core.backbone import Backbone, DiffusionModel
from hbench.core.sampler import Sampler, visited
from hbench.errors import as_list, check_at_least, check_seed, check_type, counted
from hbench.evaluation.ablations import Ablations, VariantMean, ablations
from hbench.evaluation.agreement import ANOTHER, Agreement, agreements, draw_batches
from hbench.evaluation.classifier_distance import choose_classifier
from hbench.evaluation.gradient_costs import EXACT, NODE, Cost, changed, costs_of
from hbench.evaluation.sweep_cells import check_measurable
from hbench.evaluation.variants import Measured, training_folder
from hbench.experiments import override
from hbench.runtime.device import pick_device
from hbench.store.files import write_text
from hbench.store.folders import claimed_folder
from hbench.store.provenance import provenance
from hbench.store.results import Result
from hbench.store.run import load_run
from hbench.store.weights import write_experiment
from hbench.training.discover import check_shift_interval, train
from hbench.training.freeze import freeze
from hbench.training.loop import check_minutes
from hbench.training.step import Trained, initial

if TYPE_CHECKING:
    from pandas import DataFrame

STAGES = ("start", "middle", "end")
"""Stages of the training with the exact gradient: before it, after half of its steps, and after all."""
COSTS, HALF, TRAININGS = "costs.json", "half", "trainings"
"""Names of the file of the costs, and of the folders of the exact training's first half and of all trainings."""


@dataclass(frozen=True, kw_only=True)
class Gradients(Result):
    """Cheap gradients beside the exact one: agreement, cost, and what trainings of equal time come to.

    Its folder also gets the costs as ``costs.csv`` and the trainings as ``trainings.csv``.
    """

    NAME: ClassVar[str] = "gradient"

    agreements: list[Agreement]
    """Agreement with the exact gradient, stage by stage, method by method, timestep by timestep."""
    costs: list[Cost]
    runs: list[Measured]
    """Numbers of all trainings, method by method."""
    means: Annotated[list[VariantMean], Field(alias="summary")]
    """Means over the training seeds, metric by metric."""

    @property
    def methods(self) -> list[str]:
        """Names of the gradients that are compared with the exact one, without the yardstick."""
        return list(dict.fromkeys(row.method for row in self.agreements if row.method != ANOTHER))

    @property
    def shifted_timesteps(self) -> list[int]:
        """Shifted timesteps, descending."""
        return list(dict.fromkeys(row.t for row in self.agreements if row.t is not None))

    @property
    def trainings(self) -> Ablations:
        """The trainings alone, as variants."""
        return Ablations(runs=self.runs, means=self.means, provenance=self.provenance)

    def whole(self, method: str) -> list[Agreement]:
        """Return the agreement of the whole gradient at each stage."""
        return [row for row in self.agreements if row.method == method and row.t is None]

    def without_gradient(self) -> list[str]:
        """Return the methods that have no gradient at any timestep."""
        return [method for method in self.methods if not any(row.n for row in self.whole(method))]

    def cautions(self) -> list[str]:
        """Return which gradients are none, and what is to be said of the trainings."""
        nothing = self.without_gradient()
        found = [f"{method}: {self.whole(method)[-1].reason}" for method in nothing]
        failed = [cost for cost in self.costs if cost.reason and cost.method not in nothing]
        found += [f"{cost.method} by {cost.strategy} was not trained: {cost.reason}" for cost in failed]
        return found + self.trainings.cautions()

    def summary(self) -> str:
        """Return the agreement of the whole gradients, the costs and the trainings, as tables."""
        import pandas as pd

        stages = []
        for method in (*self.methods, ANOTHER):
            cells = {row.stage: _in_words(row) for row in self.whole(method)}
            stages.append({"gradient": method, **cells})
        shown = ["method", "strategy", "seconds", "memory_mib", "saved_tensors_mib", "steps"]
        costs = self.costs_table()[shown].round(3).astype({"steps": "Int64"})
        n = max(row.n for row in self.agreements)
        return "\n".join(
            [
                f"whole gradient, cosine and norm / exact norm, n = {counted(n, 'batch', 'batches')} a stage",
                pd.DataFrame(stages).to_string(index=False),
                f"cost of a training step, median of {counted(self.detail('repeats', 0), 'step')}; steps of equal time",
                costs.to_string(index=False, na_rep="-"),
                self.trainings.summary(),
            ]
        )

    def table(self) -> "DataFrame":
        """Return the agreements, a row each."""
        import pandas as pd

        rows = []
        for row in self.agreements:
            values = asdict(row)
            for name in ("cosine", "ratio"):
                values |= dict(zip((f"{name}_low", f"{name}_high"), values.pop(f"{name}_interval"), strict=True))
            rows.append(values)
        return pd.DataFrame(rows).astype({"t": "Int64"})

    def costs_table(self) -> "DataFrame":
        """Return the costs, a row each, without the seconds of single steps."""
        import pandas as pd

        return pd.DataFrame([asdict(cost) for cost in self.costs]).drop(columns="step_seconds")

    def write_into(self, folder: Path) -> None:
        """Write the result into a folder that the caller has claimed."""
        write_text(folder / "costs.csv", self.costs_table().to_csv(index=False))
        write_text(folder / "trainings.csv", self.trainings.table().to_csv(index=False))
        super().write_into(folder)


def _in_words(row: Agreement) -> str:
    return f"{row.cosine:.3f}, {row.ratio:.3g}" if row.n else "no gradient"


def gradient(
    experiment: Experiment,
    model: DiffusionModel,
    out: str | Path,
    *,
    last_steps: int | Sequence[int] | None = None,
    batches: int = 20,
    repeats: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
    pairs: int = 1000,
    classifier: str | Path | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    resume: bool = False,
    max_minutes: float | None = None,
    draw: Callable[[Path], None] | None = None,
) -> Gradients | None:
    """Compare cheap gradients of the sampling chain with the exact one. Return None if stopped early.

    Cosine and ratio of norms are those of the shift block's gradient in float32, on fresh batches of the training's
    size, at three stages of the training with the exact gradient. Time and memory are those of whole training steps
    with the experiment's precision and the graphs kept, the memory in fresh processes, the time in turns. Every
    gradient is then trained as long as the exact one takes for the experiment's steps, by these times, and measured as
    :func:`hbench.evaluate.ablations` does. The costs and trainings lie in ``out``.

    Args:
        experiment: settings of the trainings; its gradient and strategy do not matter.
        model: diffusion model that all are trained on.
        out: output folder, made where it is missing.
        last_steps: numbers of steps of the truncated gradients, 1..M; by default 1, and those that reach one and half
            of the shifted timesteps. A number that reaches none has no gradient, which is then the result.
        batches: batches at each stage, at least 2. Cost: each gradient once a batch.
        repeats: timed steps of each gradient, at least 1.
        seeds: seeds of the trainings; the stages are those of the first.
        pairs: fresh pairs that each training is measured on, at least 1. Cost: two chains each.
        classifier: file of the classifier for KID and FD; by default the shipped one that fits the images, else none.
        data_root: folder of the real images for the KID, see :func:`hbench.store.datasets.load_images`.
        download: let torchvision download MNIST if it is missing.
        seed: seed of the batches and of the pairs.
        device: device of everything: "auto", "cpu", "cuda", "cuda:N" or a torch device.
        resume: keep costs and finished trainings in ``out``, go on with the others, and measure the rest again.
        max_minutes: stop the trainings cleanly after this time.
        draw: function that draws the curves of a training's folder.

    Raises:
        ValueError: a number out of range, or no seed.
        HBenchError: no timestep is shifted, a classifier of other images, too few pairs for the FD, the exact gradient
            does not fit into memory, or ``out`` holds something else or was begun with other settings.
    """
    check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    check_type(Backbone, "as load_model returns it", model=model)
    check_minutes(max_minutes)
    seeds = as_list(seeds)
    check_at_least(2, batches=batches, steps=experiment.discovery.steps)
    check_at_least(1, repeats=repeats, seeds=len(seeds), pairs=pairs)
    for each in (seed, *seeds):
        check_seed(each)
    exact = changed(experiment)
    check_shift_interval(exact)
    chosen = default_last_steps(exact) if last_steps is None else sorted(set(as_list(last_steps)))
    for each in chosen:
        check_at_least(1, most=experiment.discovery.M, last_steps=each)
    choose_classifier(classifier, experiment, pairs)  # a wrong one is refused before anything is trained
    out, device = Path(out), pick_device(device)
    check_measurable(device)
    methods = methods_of(exact, chosen)
    experiments = {EXACT: exact, **methods}
    started = time.monotonic()

    def left() -> float | None:
        return None if max_minutes is None else max(1e-6, max_minutes - (time.monotonic() - started) / 60)

    with claimed_folder(out, resume=resume):
        origin = provenance(
            experiment,
            device,
            seed,
            last_steps=chosen,
            batches=batches,
            repeats=repeats,
            training_seeds=seeds,
            n=pairs,
        )
        write_experiment(out, experiment)
        costs = costs_of(experiments, model, out / COSTS, repeats, seed, device)

        # Train: first half of the exact training for its middle, then all gradients.
        variants = variants_of(costs, experiments)
        folder = out / HALF
        half = override(exact, [*variants[EXACT], f"discovery.steps={experiment.discovery.steps // 2}"])
        half = override(half, ["discovery.decay=0"])  # in the whole training it comes later
        keywords: dict[str, Any] = {"device": device, "draw": draw}
        if not train(half, model, folder, seed=seeds[0], resume=folder.is_dir(), max_minutes=left(), **keywords):
            return None
        trained = ablations(
            exact,
            model,
            out / TRAININGS,
            variants=variants,
            seeds=seeds,
            pairs=pairs,
            classifier=classifier,
            data_root=data_root,
            download=download,
            seed=seed,
            resume=(out / TRAININGS).is_dir(),
            max_minutes=left(),
            **keywords,
        )
        if trained is None:
            return None

        # Compare gradients at the stages.
        runs = {"middle": folder, "end": training_folder(out / TRAININGS, EXACT, seeds[0])}
        found = compare_stages(exact, methods, model, runs, batches, seeds[0], seed, device)
    details = {key: trained.detail(key) for key in ("metric", "weights_sha256", "model_tensors_sha256")}
    return Gradients(
        agreements=found,
        costs=costs,
        runs=trained.runs,
        means=trained.means,
        provenance=origin.finished(**details),
    )


def default_last_steps(experiment: Experiment) -> list[int]:
    """Return 1, and the numbers of last steps that reach one and half of the shifted timesteps."""
    descending = visited(experiment)
    shifted = sum(t >= experiment.discovery.t_shift for t in descending)
    return sorted({1, len(descending) - shifted + 1, len(descending) - shifted // 2})


def methods_of(experiment: Experiment, last_steps: Sequence[int]) -> dict[str, Experiment]:
    """Return the experiments of the gradients that are compared with the exact one, by name."""
    return {
        NODE: changed(experiment, strategy="node"),
        "linear": changed(experiment, gradient="linear"),
        **{f"truncated-{n}": changed(experiment, gradient="truncated", last_steps=n) for n in last_steps},
        "one-step": changed(experiment, gradient="one-step"),
        "per-step": changed(experiment, gradient="per-step"),
    }


def variants_of(costs: Sequence[Cost], experiments: Mapping[str, Experiment]) -> dict[str, list[str]]:
    """Return the overrides of each training by name; the exact one takes the faster of its strategies."""
    found = {}
    for cost in costs:
        if cost.steps:
            settings = experiments[cost.method].discovery
            values = {name: getattr(settings, name) for name in ("gradient", "last_steps", "strategy")}
            values |= {"steps": cost.steps}
            name = EXACT if cost.method == NODE else cost.method
            found[name] = [f"discovery.{key}={value}" for key, value in values.items() if value is not None]
    return found


# Stages -------------------------------------------------------------------------------------------------------------


@torch.random.fork_rng(devices=[])
def compare_stages(
    exact: Experiment,
    methods: Mapping[str, Experiment],
    model: DiffusionModel,
    runs: Mapping[str, Path],
    batches: int,
    training_seed: int,
    seed: int,
    device: torch.device,
) -> list[Agreement]:
    """Compare the gradients in float32, at the start of a training and at the stages that ``runs`` has folders of."""
    single = override(exact, ["discovery.precision=float32"])
    sampler = Sampler.of(single, freeze(single, model, device), device)
    start = initial(single, sampler, training_seed)
    found = []
    for stage in STAGES:
        trained = _trained(start, runs[stage], device) if stage in runs else start
        drawn = draw_batches(single.discovery, sampler, batches, seed)
        found += agreements(stage, methods, single, sampler, trained, drawn)
    return found


def _trained(start: Trained, folder: Path, device: torch.device) -> Trained:
    run = load_run(folder, device=device)
    assert run.reconstructor is not None  # a discovery has one
    assert run.discriminator is not None
    return replace(start, shift_block=run.shift_block, reconstructor=run.reconstructor, discriminator=run.discriminator)
