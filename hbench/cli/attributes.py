"""``hbench attributes``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    a_path,
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
from hbench.errors import counted
from hbench.runtime.distributed import rank


@click.command()
@run_argument
@click.option(
    "--samples",
    type=Count(6),
    default=100,
    show_default=True,
    help="Number of samples, each shifted along every direction.",
)
@click.option(
    "--rca",
    "measured",
    type=a_path,
    help='File rca.json of "hbench rca" with the accuracies [default: the run\'s own, else of 1000 fresh pairs].',
)
@click.option(
    "--propose-names",
    is_flag=True,
    help="Add the proposed names to names.txt in RUN, for directions that have none there.",
)
@shared(source_options, reconstructor_option, result_of("attributes"), processes_option, run_options)
def attributes(run: Path, samples: int, measured: Path | None, propose_names: bool, options: Options) -> None:
    """Measure what each direction of a run does to images.

    Samples are shifted along every direction, by magnitudes on a grid. Told are what a person sees of it, which
    attribute moves and by how much, whether the two signs do opposite things, and whether the class stays. Attributes
    are the shape of digits, colour and layout of any image, the classes of a classifier trained by "hbench classifier",
    and those of other packages.

    \b
    Example:
        hbench attributes mnist16
    """
    from hbench.evaluation.attributes.attributes import attributes as measure
    from hbench.evaluation.rca import read_rca
    from hbench.store.names import add_names, check_takes_names

    if propose_names:
        if options.file:
            raise click.UsageError("--propose-names names the directions of RUN: leave --directions out")
        check_takes_names(run)
    loaded = options.load(run)
    source = options.source(loaded)
    ranking = read_rca(measured, loaded, source) if measured else None
    folder = options.claim_result(run, with_source("attributes", source))
    result = measure(loaded, samples=samples, seed=options.seed, source=source, ranking=ranking)
    publish(result, folder)
    if propose_names and rank() == 0:
        added = add_names(run, result.proposed_names)
        click.echo(f"{run / 'names.txt'}: names of {counted(len(added), 'direction')} added", err=True)
