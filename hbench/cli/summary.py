"""The commands that bring all results of a run together."""

from pathlib import Path

import click

from hbench.cli.options import result_folder


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: the first run's results].")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one page of all that was measured for each RUN: every picture, and ours beside the paper's numbers.

    RUN is a run folder, a shipped run, or any folder of results. report.html needs no other file; report.md, report.csv
    and report.json lie beside it. An earlier report is replaced: it holds nothing of its own.

    \b
    Example:
        hbench report mnist16
    """
    from hbench.report import collect, write_pages

    folders = [result_folder(run) for run in runs]
    place = out or folders[0]
    write_pages([collect(folder) for folder in folders], place)
    click.echo(place / "report.html")
