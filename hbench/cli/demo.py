"""A discovery that shows something in minutes: the fresh half of the demo."""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

from hbench.config import Experiment
from hbench.evaluation.rca import RCA, rca
from hbench.evaluation.traverse import direction_label
from hbench.experiments import parse_experiment
from hbench.reporting.charts.training import draw_curves
from hbench.reporting.grids import draw_directions
from hbench.store.run import Run, load_run
from hbench.training.discover import train

PAIRS, EXAMPLES, SAMPLES = 256, 4, 5
CHECKPOINTS = 4
FRESH = {"K": 6, "M": 8, "batch_size": 16, "pool": 1600, "lambda_adv": 3.0, "decay": 0.3}
"""What is smaller than in the shipped run."""


def fresh_experiment(shipped: Path, steps: int) -> Experiment:
    """The shipped run's experiment, shrunk to ``steps`` small steps."""
    values = load_run(shipped, device="cpu").experiment.model_dump()
    values["discovery"] |= FRESH | {"steps": steps, "checkpoint_every": max(1, steps // CHECKPOINTS)}
    return parse_experiment(values, "demo")


def discover(
    experiment: Experiment, shipped: Path, out: Path, *, seed: int, device: torch.device, overwrite: bool
) -> list[tuple[int, RCA]] | None:
    """Discovers new directions on the shipped model, in ``out``; measures and draws them as they grow.

    Returns:
        The accuracy after each quarter of the steps; None when it was stopped early.
    """
    grown: list[tuple[int, RCA]] = []

    def look(step: int, fresh: Run) -> None:
        result = rca(fresh, pairs=PAIRS, seed=seed)
        grown.append((step, result))
        directions = result.ranking()
        images = fresh.traverse(directions, examples=EXAMPLES, samples=SAMPLES, seed=seed).images
        labels = [direction_label(k, result.per_direction[k]) for k in directions]
        title = f"after {step} steps, accuracy {result.accuracy:.2f}"
        draw_directions(images, labels, experiment.discovery.S, title, out / "growth" / f"directions-{step:04d}.png")
        low, high = result.interval
        tqdm.write(f"   step {step:4d}: RCA {result.accuracy:.3f} [{low:.3f}, {high:.3f}] n {PAIRS}", file=sys.stderr)

    model = load_run(shipped, device=device).model
    finished = train(
        experiment,
        model,
        out,
        seed=seed,
        device=device,
        overwrite=overwrite,
        draw=draw_curves,
        on_checkpoint=look,
    )
    return grown if finished else None
