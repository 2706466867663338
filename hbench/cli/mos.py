"""``hbench mos``: the commands of the user study."""

import click

from hbench.cli.mos_export import export
from hbench.cli.mos_score import score


@click.group()
def mos() -> None:
    """Ask people which directions mean something.

    The Mean Opinion Score of Table 1: sheets to mark, and the score of the marks.

    \b
    Example:
        hbench mos export mnist16 --out runs/mos
        hbench mos score marks_*.csv --key runs/mos/key.json
    """


mos.add_command(export)
mos.add_command(score)
