"""``hbench explore``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    a_path,
    check_steps,
    directions_named,
    result_of,
    run_argument,
    run_options,
    shared,
    source_options,
    with_source,
)


def _every_second(ctx: click.Context, param: click.Parameter, value: int) -> int:
    if value % 4 != 1:
        raise click.BadParameter("need 5, 9, 13, ...: every second one must have 0 and both ends")
    return value


@click.command()
@run_argument
@click.option("--samples", type=Count(0), help="Number of samples [default: 6, fewer where there are many directions].")
@click.option(
    "--images",
    "pictures",
    type=a_path,
    multiple=True,
    metavar="FILE_OR_FOLDER",
    help="Picture of yours, or folder of pictures, to edit too; repeatable.",
)
@click.option(
    "--magnitudes",
    type=Count(5, 101),
    callback=_every_second,
    default=9,
    show_default=True,
    help="Number of magnitudes of a slider, from -S to S: 5, 9, 13, ...; two sliders at once take every second one.",
)
@click.option(
    "--direction",
    "shown",
    multiple=True,
    metavar="K",
    help="Direction to offer, by number or name; repeatable [default: all that a person sees].",
)
@click.option(
    "--steps", type=Count(), default=50, show_default=True, help="Number of inversion and generation steps of --images."
)
@click.option(
    "--attributes",
    "measured",
    type=a_path,
    help='File attributes.json of "hbench attributes" with the measured effects [default: the run\'s own].',
)
@shared(source_options, result_of("explore"), run_options)
def explore(
    run: Path,
    samples: int | None,
    pictures: tuple[Path, ...],
    magnitudes: int,
    shown: tuple[str, ...],
    steps: int,
    measured: Path | None,
    options: Options,
) -> None:
    """Write one page in which a reader moves the directions of a run by sliders.

    Open explore.html in a browser: it needs no network and no other file, and stays below 10 MB. Every picture is made
    in advance, of each sample along each direction, and along each two at once. Directions that nobody sees are left
    out. Beside each slider stands what "hbench attributes" measured of it, and its name can be written there and saved
    as names.txt. Pictures of --images are inverted to x_T, as by "hbench edit".

    \b
    Example:
        hbench explore faces16
        hbench explore faces16 --images me.png --samples 2
    """
    from hbench.evaluation.explore import known_attributes, read_attributes
    from hbench.reporting.explore import explore as write
    from hbench.store.datasets import read_images
    from hbench.store.places import results_in

    if not samples and samples is not None and not pictures:
        raise click.BadParameter("at least 1 without --images", param_hint="--samples")
    loaded = options.load(run)
    source = options.source(loaded)
    check_steps(loaded.experiment, steps)
    directions = directions_named(loaded, shown, "--direction")
    images = read_images(pictures, loaded.experiment.data) if pictures else []
    for image in images:
        click.echo(f"{image.file}: {image.done}", err=True)
    beside = results_in(options.results_of(run), with_source("attributes", source))
    path = write(
        loaded,
        options.numbered(run, with_source("explore", source)),
        samples=samples,
        magnitudes=magnitudes,
        directions=directions or None,
        images=images,
        steps=steps,
        seed=options.seed,
        source=source,
        attributes=read_attributes(measured, loaded, source) if measured else known_attributes(loaded, source, beside),
        overwrite=options.overwrite,
    )
    click.echo(path)
