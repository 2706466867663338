"""``hbench rca``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    processes_option,
    publish,
    reconstructor_option,
    result_of,
    run_argument,
    run_options,
    shared,
    source_options,
    with_source,
)


@click.command()
@run_argument
@click.option("--pairs", type=Count(), default=10_000, show_default=True, help="Number of fresh pairs.")
@shared(source_options, reconstructor_option, result_of("rca"), processes_option, run_options)
def rca(run: Path, pairs: int, options: Options) -> None:
    """Measure the reconstructor's classification accuracy (RCA).

    RCA is the share of fresh pairs whose direction the run's reconstructor recognises. It is given over all directions,
    and over those of which a person sees something.

    \b
    Example:
        hbench rca mnist16 --pairs 2000
    """
    from hbench.evaluation.rca import rca as measure

    loaded = options.load(run)
    source = options.source(loaded)
    folder = options.claim_result(run, with_source("rca", source))
    publish(measure(loaded, pairs=pairs, seed=options.seed, source=source), folder)
