"""``hbench train-curves``."""

from pathlib import Path

import click

from hbench.cli.options import Options, a_path, out_of, overwrite_option, publish, shared


@click.command("train-curves")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=a_path)
@click.option("--quiet", hidden=True, expose_value=False, is_flag=True)  # accepted: it shows no progress anyway
@shared(out_of("runs/train-curves"), overwrite_option)
def train_curves(runs: tuple[Path, ...], options: Options) -> None:
    """Compare trainings: discriminator, losses and accuracy.

    RUN is the folder of a training by "hbench train", finished or not. The picture shows the curves of all of them, the
    table their means over the last third of the steps.

    \b
    Example:
        hbench train-curves mnist16 runs/mnist16/train --out runs/curves
    """
    from hbench.evaluation.curves import train_curves as compare

    result = compare(runs)
    publish(result, options.claim(Path("runs/train-curves")))
