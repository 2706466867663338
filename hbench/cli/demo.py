"""``hbench demo``: a shipped run, and a discovery from scratch in a few minutes."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import Count, Options, out_of, overwrite_option, publish, run_options, shared
from hbench.errors import counted
from hbench.runtime.progress import duration, progress_is_shown
from hbench.store.shipped import shipped_runs

if TYPE_CHECKING:
    import torch

    from hbench.config import Experiment
    from hbench.evaluation.rca import RCA
    from hbench.store.run import Run

FIRST = "faces16"
"""Shipped run that the demo shows by default."""
PAIRS, EXAMPLES = 1000, 4
"""Fresh pairs and rows of a finished run."""
COLUMNS = 5
"""Magnitudes of a traversal."""
ATTRIBUTE_SAMPLES = 12
"""Samples that tell what the shipped directions do."""
PICTURES, EDITED = "pictures", 3
"""Folder of real images in a shipped run, and number of directions that they are edited along."""
INVERSION = 50
"""Steps of inversion and generation of the edits."""
LOOK_PAIRS, LOOK_SAMPLES = 256, 5
"""Fresh pairs and columns at a checkpoint."""
CHECKPOINTS = 4
FASTER = 3
"""Factor of the shipped run's h_scale: larger shifts are learnt in fewer steps."""
FRESH = {"K": 6, "M": 8, "batch_size": 16, "pool": 1600, "lambda_adv": 3.0, "decay": 0.3}
"""Settings of the fresh discovery that are smaller than the shipped run's, and those that suit them."""


@click.command()
@click.argument("run", metavar="[RUN]", type=click.Choice(shipped_runs()), default=FIRST)
@click.option("--training-steps", type=Count(), default=300, show_default=True, help="Length of the fresh training.")
@shared(out_of("runs/demo"), overwrite_option, run_options)
def demo(run: str, training_steps: int, options: Options) -> None:
    """Show the shipped directions, then discover new ones.

    RUN is a shipped run. It shows how well its directions are told apart, what they look like and do to images, and
    edits of real images, where the run has some. A discovery from scratch follows, drawn as it grows. Everything runs
    on the run's model, offline, in about ten minutes on a laptop.

    \b
    Example:
        hbench demo
    """
    from hbench.evaluation.curves import train_curves
    from hbench.reporting.charts.training import draw_growth
    from hbench.reporting.report import collect, write_pages
    from hbench.store.run import load_run

    device = options.torch_device()
    out = options.claim(Path("runs/demo"))
    shipped, fresh = out / f"shipped-{run}", out / "train"
    loaded = load_run(run, device=device)
    experiment = _fresh_experiment(loaded.experiment, training_steps)
    if progress_is_shown():
        click.echo(f"about {duration(_seconds(loaded, experiment))} in all", err=True)
    click.echo(f"1. The shipped run {run}, {counted(loaded.K, 'direction')} of {loaded.experiment.data.label}")
    ranking = _measure(loaded, shipped, options.seed)
    _show_meaning(loaded, shipped, options.seed, ranking)
    click.echo(f"2. A fresh discovery, {experiment.title}, {counted(training_steps, 'step')} from scratch")
    grown = _discover(experiment, loaded, fresh, device, options)
    if grown is None:
        return
    _measure(load_run(fresh, device=device), fresh, options.seed)
    draw_growth(grown, fresh / "rca" / "growth.png")
    publish(train_curves([fresh]), fresh / "train-curves")
    write_pages([collect(shipped), collect(fresh)], out)
    click.echo("Open:")
    click.echo(f"   {out / 'report.html'}    everything on one page")
    click.echo(f"   {shipped / 'traverse' / 'directions.png'}    what hbench ships")
    click.echo(f"   {shipped / 'attributes' / 'attributes.png'}    what each direction does")
    if (shipped / "edit").is_dir():
        click.echo(f"   {shipped / 'edit' / 'edits.png'}    real images, edited")
    click.echo(f"   {fresh / 'traverse' / 'directions.png'}    what was found just now")
    click.echo(f"   {fresh / 'growth'}    how it grew")


def _measure(run: "Run", folder: Path, seed: int) -> "RCA":
    """Measure the RCA of a run and draw its directions, most accurate first by the largest measurement there is.

    Return that measurement.
    """
    from hbench.evaluation.rca import known_rca, rca
    from hbench.evaluation.traverse import traverse

    ranking = rca(run, pairs=PAIRS, seed=seed)
    publish(ranking, folder / "rca")
    ranking = known_rca(run) or ranking
    publish(traverse(run, examples=EXAMPLES, samples=COLUMNS, seed=seed, ranking=ranking), folder / "traverse")
    return ranking


def _show_meaning(run: "Run", folder: Path, seed: int, ranking: "RCA") -> None:
    """Measure what the directions of a run do, and edit its pictures along the most recognisable ones."""
    from hbench.evaluation.attributes.attributes import attributes
    from hbench.evaluation.edit import edit, singly_and_together
    from hbench.store.datasets import read_images

    publish(attributes(run, samples=ATTRIBUTE_SAMPLES, seed=seed, ranking=ranking), folder / "attributes")
    if run.folder and (run.folder / PICTURES).is_dir():
        images = read_images(run.folder / PICTURES, run.experiment.data)
        edits = singly_and_together(dict.fromkeys(ranking.ranking()[:EDITED], run.S / 2))
        publish(edit(run, images, edits, steps=INVERSION), folder / "edit")


def _seconds(run: "Run", experiment: "Experiment") -> float:
    """Return the seconds of the demo, from a batch of pairs and a few training steps."""
    from hbench.evaluation.attributes.attributes import MAGNITUDES, NATURAL
    from hbench.evaluation.sampling import draw_pairs
    from hbench.reporting.charts.training import draw_curves
    from hbench.runtime.device import wall_seconds
    from hbench.store.directions import direction_source
    from hbench.training.discover import estimated_seconds

    batch, source = 32, direction_source(run)
    draw_pairs(run, 0, 0, batch, source)
    pair = wall_seconds(lambda: draw_pairs(run, 0, 0, batch, source), run.device) / batch
    M, settings = run.experiment.discovery.M, experiment.discovery
    meaning = NATURAL + len(MAGNITUDES) * 2 * ATTRIBUTE_SAMPLES * run.K
    images = (
        meaning + EXAMPLES * COLUMNS * run.K + (EXAMPLES * COLUMNS + CHECKPOINTS * EXAMPLES * LOOK_SAMPLES) * settings.K
    )
    pairs = PAIRS + (PAIRS + CHECKPOINTS * LOOK_PAIRS) * settings.M / M
    training = estimated_seconds(experiment, run.model, device=run.device, draw=draw_curves)
    return training + (pairs + images / 2) * pair


def _fresh_experiment(shipped: "Experiment", steps: int) -> "Experiment":
    """Return the shipped run's experiment, shrunk to ``steps`` small steps."""
    from hbench.experiments import parse_experiment

    values = shipped.model_dump()
    short = {"steps": steps, "checkpoint_every": max(1, steps // CHECKPOINTS)}
    values["discovery"] |= FRESH | short | {"h_scale": FASTER * shipped.discovery.h_scale}
    return parse_experiment(values, "demo")


def _discover(
    experiment: "Experiment", shipped: "Run", out: Path, device: "torch.device", options: Options
) -> "list[tuple[int, RCA]] | None":
    """Discover new directions on the shipped model, and draw them as they grow.

    Return the accuracy at each checkpoint; None if stopped early.
    """
    from hbench.evaluation.rca import rca
    from hbench.evaluation.traverse import traverse
    from hbench.reporting.charts.training import draw_curves
    from hbench.reporting.grids import draw_traversal
    from hbench.training.discover import train

    grown: list[tuple[int, RCA]] = []

    def look(step: int, fresh: "Run") -> None:
        result = rca(fresh, pairs=LOOK_PAIRS, seed=options.seed)
        grown.append((step, result))
        walk = traverse(fresh, examples=EXAMPLES, samples=LOOK_SAMPLES, seed=options.seed, ranking=result)
        draw_traversal(walk, out / "growth" / f"directions-{step:04d}.png")
        click.echo(f"   step {step:4d}: {result.summary().splitlines()[0]}", err=True)

    finished = train(
        experiment,
        shipped.model,
        out,
        seed=options.seed,
        device=device,
        overwrite=options.overwrite,
        draw=draw_curves,
        on_checkpoint=look,
    )
    return grown if finished else None
