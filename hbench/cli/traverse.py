"""``hbench traverse``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    a_path,
    directions_named,
    publish,
    reconstructor_option,
    result_of,
    run_argument,
    run_options,
    shared,
    source_options,
    with_source,
)
from hbench.errors import MOST_COLUMNS

ANIMATION = "directions.webp"
"""Name of the animation."""
ANIMATED, FRAMES = 9, 21
"""Number of directions that move, at most, and of magnitudes from -S to S."""


@click.command()
@run_argument
@click.option("--examples", type=Count(), default=6, show_default=True, help="Number of rows: x_T, see above.")
@click.option(
    "--samples", type=Count(2, MOST_COLUMNS), default=5, show_default=True, help="Number of columns: s from -S to S."
)
@click.option(
    "--pairs",
    type=Count(),
    help="Number of fresh pairs to rank by [default: those of the run's own rca.json, else 1000 fresh ones].",
)
@click.option(
    "--direction",
    "shown",
    multiple=True,
    metavar="K",
    help="Direction to draw, by number or name; repeatable [default: all].",
)
@click.option(
    "--animate",
    is_flag=True,
    help="Write directions.webp too, in which the best directions move from -S to S and back.",
)
@click.option("--rca", "measured", type=a_path, help='File rca.json of "hbench rca" to rank by, instead.')
@shared(source_options, reconstructor_option, result_of("traverse"), run_options)
def traverse(
    run: Path,
    examples: int,
    samples: int,
    pairs: int | None,
    shown: tuple[str, ...],
    animate: bool,
    measured: Path | None,
    options: Options,
) -> None:
    """Draw a grid of images along every direction of a run.

    The most recognisable direction comes first: by the rca/rca.json in the run's folder or beside it, if there is one.
    Directions that nobody sees come last, and faint.
    The rows are the first x_T whose sample a shipped classifier of digits is sure of; of other images, the first x_T.
    Lines "index: name" of a names.txt in the run folder label the grids.

    \b
    Example:
        hbench traverse mnist16 --examples 4
        hbench traverse mnist16 --direction 3 --direction 7
        hbench traverse faces16 --animate
    """
    from hbench.evaluation.rca import read_rca
    from hbench.evaluation.traverse import traverse as walk

    loaded = options.load(run)
    source = options.source(loaded)
    directions = directions_named(loaded, shown, "--direction")
    ranking = read_rca(measured, loaded, source) if measured else None
    folder = options.claim_result(run, with_source("traverse", source))
    result = walk(
        loaded,
        examples=examples,
        samples=samples,
        pairs=pairs,
        seed=options.seed,
        source=source,
        ranking=ranking,
        directions=directions or None,
    )
    if animate:
        seen = [each for each in result.directions if each.visible is not False] or result.directions
        best, rows = [each.direction for each in seen[:ANIMATED]], result.detail("x_T")
        grid = loaded.traverse(best, examples=rows, samples=FRAMES, seed=options.seed, source=source)
        grid.animate(folder / ANIMATION)
    publish(result, folder)
    if animate:
        click.echo(f"see {folder / ANIMATION}", err=True)
