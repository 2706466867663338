"""The demo: what hbench ships, and what it finds from scratch in a few minutes."""

import sys
import time
from pathlib import Path

import click
import torch
from tqdm import tqdm

from hbench.config import parse_experiment
from hbench.evaluate import RCA, rca, traverse
from hbench.figures import direction_label, draw_confusion, draw_directions, draw_growth
from hbench.load import Run, load_names, load_run
from hbench.runs import provenance, write_provenance
from hbench.train import train

SHIPPED = Path("mnist16")
PAIRS, GROWTH_PAIRS, EXAMPLES, SAMPLES = 1000, 256, 4, 5
CHECKPOINTS = 4
FRESH = {"K": 6, "M": 8, "batch_size": 16, "pool": 1600, "lambda_adv": 1.0, "decay": 0.3}
"""A smaller discovery than the shipped one, that shows something in minutes."""


def show(out: Path, *, steps: int, seed: int, device: torch.device, quiet: bool = False) -> None:
    """Reports and draws the shipped run, then discovers ``steps`` steps of new directions on its diffusion model.

    Writes into ``out`` and prints what was found and which files to open.
    """
    run = load_run(SHIPPED, device)
    names = load_names(SHIPPED)
    click.echo(f"1. The shipped run {run.experiment.title}: {run.experiment.discovery.K} directions of MNIST digits")
    shipped = rca(run, PAIRS, seed, quiet)
    draw_confusion(shipped, run.experiment.title, out / "shipped-rca.png")
    order = shipped.ranking()
    labels = [direction_label(k, shipped, names) for k in order]
    images = traverse(run, order, EXAMPLES, SAMPLES, seed, quiet)
    draw_directions(images, labels, run.experiment.discovery.S, run.experiment.title, out / "shipped-directions.png")
    click.echo(f"   {summary(shipped)}")
    click.echo(f"   see {out / 'shipped-directions.png'}")

    values = run.experiment.model_dump()
    every = max(1, steps // CHECKPOINTS)
    values["discovery"] |= FRESH | {"steps": steps, "checkpoint_every": every}
    experiment = parse_experiment(values, "demo")
    origin = provenance(experiment, device, seed, shipped=run.hashes)
    click.echo(f"2. A fresh discovery, {experiment.title}, {steps} steps from scratch")
    started = time.monotonic()
    grown: list[tuple[int, RCA]] = []

    def look(step: int, fresh: Run) -> None:
        result = rca(fresh, PAIRS if step == steps else GROWTH_PAIRS, seed, quiet=True)
        grown.append((step, result))
        directions = result.ranking()
        images = traverse(fresh, directions, EXAMPLES, SAMPLES, seed, quiet=True)
        labels = [direction_label(k, result) for k in directions]
        title = f"after {step} steps, accuracy {result.accuracy:.2f}"
        draw_directions(images, labels, experiment.discovery.S, title, out / f"fresh-directions-{step:04d}.png")
        tqdm.write(f"   step {step:4d}: {summary(result)}", file=sys.stderr)

    finished = train(experiment, run.model, out / "fresh", seed=seed, device=device, quiet=quiet, on_checkpoint=look)
    if not finished:
        return
    draw_growth(grown, out / "fresh-rca.png")
    details = {"rca": [{"step": step, "accuracy": r.accuracy, "n": r.n, "interval": r.interval} for step, r in grown]}
    write_provenance(out, origin, **details)

    click.echo(f"   {(time.monotonic() - started) / 60:.1f} minutes; at the end: {summary(grown[-1][1])}")
    click.echo("Open:")
    for file in ("shipped-directions", "shipped-rca", "fresh-rca", f"fresh-directions-{grown[-1][0]:04d}"):
        click.echo(f"   {out / file}.png")
    click.echo(f"   {out / 'fresh' / 'curves.png'}")


def summary(result: RCA) -> str:
    """The accuracy with its interval, beside chance."""
    low, high = result.interval
    return f"RCA {result.accuracy:.3f} [{low:.3f}, {high:.3f}] on {result.n} pairs, chance {result.chance:.3f}"
