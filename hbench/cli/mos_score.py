"""``hbench mos score``."""

from pathlib import Path

import click

from hbench.cli.options import Options, a_path, overwrite_option, publish, seed_option, shared

a_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("marks", metavar="MARKS.csv...", nargs=-1, required=True, type=a_file)
@click.option("--key", required=True, type=a_file, help='File key.json of "hbench mos export".')
@click.option("--partial", is_flag=True, help="Score although whole sheets are missing.")
@click.option("--device", hidden=True, expose_value=False)  # accepted since other commands take it; nothing to compute
@click.option("--quiet", hidden=True, expose_value=False, is_flag=True)
@shared(
    click.option("--out", type=a_path, help="Output folder [default: score beside a key in RUN, else RUN/mos/score]."),
    overwrite_option,
    seed_option,
)
def score(marks: tuple[Path, ...], key: Path, partial: bool, options: Options) -> None:
    """Score people's marks: mean opinion score and agreement.

    The score of untrained directions stands beside it as a floor, and the names that people gave are collected.

    MARKS.csv is a file that a sheet exported, or a spreadsheet saved as CSV in UTF-8, with commas or semicolons. A mark
    that is foreign, missing, double or out of range is refused by file and line.

    \b
    Example:
        hbench mos score marks_*.csv --key runs/shipped-mnist16/mos/key.json
    """
    from hbench.evaluation.mos.score import mos_score
    from hbench.evaluation.mos.study import Key
    from hbench.store.places import score_folder

    result = mos_score(marks, key, partial=partial, seed=options.seed)
    folder = options.claim(score_folder(key, Key.read(key).runs[0].run))
    publish(result, folder)
    for run, file in result.names_files().items():
        click.echo(f"names proposed for {run}: {folder / file}", err=True)
