"""``hbench properties``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    directions_named,
    directions_option,
    publish,
    reconstructor_option,
    result_of,
    run_argument,
    run_options,
    shared,
    steps_option,
    with_steps,
)


@click.command()
@run_argument
@click.option(
    "--samples",
    type=Count(2),
    default=1000,
    show_default=True,
    help="Number of samples in the mean direction.",
)
@click.option(
    "--pairs",
    type=Count(20),
    default=200,
    show_default=True,
    help="Number of other samples, each edited along every direction.",
)
@click.option("--examples", type=Count(), default=3, show_default=True, help="Number of rows: random x_T.")
@click.option(
    "--direction",
    "shown",
    multiple=True,
    metavar="K",
    help="Direction in the picture, by number or name; repeatable [default: the four best recognised].",
)
@steps_option
@shared(directions_option, reconstructor_option, result_of("properties"), run_options)
def properties(
    run: Path,
    samples: int,
    pairs: int,
    examples: int,
    shown: tuple[str, ...],
    steps: int | None,
    options: Options,
) -> None:
    """Compare own, mean and time-invariant directions.

    Edits along the sample's own direction are compared with those along the mean over samples and along the
    time-invariant direction. The numbers are homogeneity, consistency and linearity (Sec. 5.4 of the paper). The mean
    directions are written as directions.safetensors, which other commands take as their source of directions.

    \b
    Example:
        hbench properties mnist16 --samples 200 --pairs 40
    """
    from hbench.evaluation.properties import properties as measure

    loaded = options.load(run)
    directions = directions_named(loaded, shown, "--direction")
    folder = options.claim_result(run, with_steps("properties", loaded, steps))
    result = measure(
        loaded, samples=samples, pairs=pairs, steps=steps, examples=examples, directions=directions, seed=options.seed
    )
    publish(result, folder)
