"""``hbench mos``: the commands of the user study."""

import click

from hbench.cli.mos_export import export
from hbench.cli.mos_score import score


@click.group()
def mos() -> None:
    """Ask people which directions they can interpret.

    "hbench mos export" makes sheets to mark, "hbench mos score" the mean opinion score (MOS) of the marks.

    \b
    Example:
        hbench mos export mnist16
        hbench mos score marks_*.csv --key runs/shipped-mnist16/mos/key.json
    """


mos.add_command(export)
mos.add_command(score)
