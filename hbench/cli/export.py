"""``hbench export``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import Count, Options, result_of, run_argument, run_options, shared

if TYPE_CHECKING:
    from hbench.evaluation.export import Kind


@click.command()
@run_argument
@click.option(
    "--direction-source",
    "kind",
    type=click.Choice(["mean", "global"]),
    default="mean",
    show_default=True,
    help="Kind of direction: the mean over samples at each timestep, or the time-invariant one.",
)
@click.option("--samples", type=Count(), default=1000, show_default=True, help="Number of samples in the mean.")
@shared(result_of("export"), run_options)
def export(run: Path, kind: "Kind", samples: int, options: Options) -> None:
    """Write a run's directions as a file, which other programs and other runs of the same model can use.

    The format is described in docs/directions.md. The own directions of a run depend on the sample, so that the file
    has their mean; directions that came from a file are written as they are.

    \b
    Example:
        hbench export mnist16 --samples 100
    """
    from hbench.evaluation.export import export as write

    loaded = options.load(run)
    folder = options.numbered(run, "export")
    found = write(loaded, folder, kind=kind, samples=samples, seed=options.seed, overwrite=options.overwrite)
    click.echo(found.path)
