"""``hbench mos export``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Finite,
    Options,
    a_path,
    further_directions_option,
    publish,
    result_of,
    run_options,
    shared,
)
from hbench.errors import MOST_ASSESSORS, MOST_COLUMNS


def _odd(ctx: click.Context, param: click.Parameter, value: int) -> int:
    if not value % 2:
        raise click.BadParameter("need an odd number, so that the middle is the original")
    return value


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=a_path)
@click.option("--assessors", type=Count(1, MOST_ASSESSORS), default=5, show_default=True, help="Number of sheets.")
@click.option("--votes", type=Count(), help="Number of assessors per direction [default: all of them].")
@click.option("--examples", type=Count(), default=10, show_default=True, help="Number of rows: random x_T.")
@click.option(
    "--samples",
    type=Count(3, MOST_COLUMNS),
    callback=_odd,
    default=5,
    show_default=True,
    help="Number of columns, odd: s from -S to S.",
)
@click.option("--repeats", type=Finite(0, 0.5), default=0.1, show_default=True, help="Share of directions shown twice.")
@click.option("--controls", type=Count(0), default=3, show_default=True, help="Number of untrained directions a run.")
@click.option("--asked-by", metavar="TEXT", default="", help="Who asks; the sheets say it.")
@click.option("--label-studio", is_flag=True, help="Write tasks and configuration for Label Studio too.")
@shared(further_directions_option, result_of("mos"), run_options)
def export(
    runs: tuple[Path, ...],
    assessors: int,
    votes: int | None,
    examples: int,
    samples: int,
    repeats: float,
    controls: int,
    asked_by: str,
    label_studio: bool,
    options: Options,
) -> None:
    """Make blind sheets on which people mark directions.

    Hand out sheet_1.html, sheet_2.html, ..., one to each assessor: the pages work without a network. The folders
    beside them hold the same as pictures and an empty CSV. Keep back key.json and design.csv until all marks are in.

    The sheets also show untrained directions, as a floor: those of a fresh shift block with Gaussian output
    convolutions, whose steps are as large as the trained ones.

    \b
    Example:
        hbench mos export mnist16 --assessors 3 --asked-by "Ada Lovelace, ada@example.org"
    """
    from hbench.evaluation.mos.study import mos_study
    from hbench.reporting.sheets import refuse_marked, write_sheets

    if votes and votes > assessors:
        raise click.BadParameter(f"at most {assessors}, the number of assessors", param_hint="--votes")
    loaded = options.load_all(runs)
    folder = options.claim_result(runs[0], "mos")
    refuse_marked(folder)
    study = mos_study(
        loaded,
        assessors=assessors,
        votes=votes,
        examples=examples,
        samples=samples,
        repeats=repeats,
        controls=controls,
        seed=options.seed,
    )
    pages = write_sheets(study.key, study.images, folder, label_studio, asked_by)
    publish(study, folder)
    for page, sheet in pages.items():
        click.echo(f"{page}  items {len(sheet.items)}  {page.stat().st_size / 2**20:.1f} MiB")
    click.echo(f"hand out the sheets; keep back {folder / 'key.json'} and {folder / 'design.csv'}", err=True)
