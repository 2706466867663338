"""``hbench train-curves``."""

from pathlib import Path

import click

from hbench.cli.options import Options, a_path, overwrite_option, publish, quiet_option, shared


@click.command("train-curves")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=a_path)
@click.option("--out", type=a_path, default=Path("runs/train-curves"), show_default=True, help="Output folder.")
@shared(overwrite_option, quiet_option)
def train_curves(runs: tuple[Path, ...], options: Options) -> None:
    """Draw the training of each RUN in one picture.

    D on raw and shifted samples (Fig. 10), losses, accuracy. RUN is the folder of a "hbench train", finished or not.
    The table holds means over the last third of each run.

    \b
    Example:
        hbench train-curves mnist16 runs/mnist16/train --out runs/curves
    """
    from hbench.evaluation.curves import train_curves as compare

    result = compare(runs)
    publish(result, options.claim(Path("runs/train-curves")))
