"""``hbench export``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import Count, Options, a_path, result_of, run_argument, run_options, shared

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
@click.option("--results", type=a_path, help="Folder with results of RUN, for the card [default: RUN's].")
@click.option("--licence", help='Licence of the weights, such as "mit" [default: mit for a shipped run, else unknown].')
@click.option("--push", metavar="OWNER/NAME", help="Upload the folder to the Hugging Face Hub, under this id.")
@click.option("--public", is_flag=True, help="Let everybody see what --push uploads; else it is private.")
@shared(result_of("export"), run_options)
def export(
    run: Path,
    kind: "Kind",
    samples: int,
    results: Path | None,
    licence: str | None,
    push: str | None,
    public: bool,
    options: Options,
) -> None:
    """Write a run's directions as a file, and a small folder with the run that others can use.

    The format of the file is described in docs/directions.md. The own directions of a run depend on the sample, so that
    the file has their mean; directions that came from a file are written as they are.

    The folder "share" is a RUN wherever it lies. It has the weights, that file, a picture, and a model card with
    the numbers of the run's results. On the Hugging Face Hub, its id is a RUN too.

    \b
    Example:
        hbench export mnist16 --samples 100
        hbench export mnist16 --push somebody/mnist16-directions
    """
    from hbench.evaluation.export import export as write
    from hbench.reporting.share import check_licence, share
    from hbench.store import hub
    from hbench.store.places import run_folder

    if public and push is None:
        raise click.UsageError("--public goes with --push: give both, or leave it out")
    check_licence(licence)
    if push is not None:
        hub.check_push(push, overwrite=options.overwrite)
    loaded = options.load(run)
    folder = options.numbered(run, "export")
    found = write(loaded, folder, kind=kind, samples=samples, seed=options.seed, overwrite=options.overwrite)
    click.echo(found.path)
    shared_folder = share(
        loaded,
        folder / "share",
        found.path,
        name=push or "FOLDER",
        licence=licence,
        results=[results or run_folder(run)],
        seed=options.seed,
        overwrite=options.overwrite,
    )
    click.echo(shared_folder)
    if push is not None:
        click.echo(hub.push(shared_folder, push, public=public, overwrite=options.overwrite))
