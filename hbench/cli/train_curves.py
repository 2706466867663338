"""``hbench train-curves``."""

from pathlib import Path

import click

from hbench.cli.options import Options, a_path, publish, result_of, shared


@click.command("train-curves")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=a_path)
@click.option("--quiet", hidden=True, expose_value=False, is_flag=True)  # accepted: it shows no progress anyway
@shared(result_of("train-curves"))
def train_curves(runs: tuple[Path, ...], options: Options) -> None:
    """Compare trainings: discriminator, losses and accuracy.

    RUN is the folder of a training by "hbench train", finished or not. The picture shows the curves of all of them, the
    table their means over the last third of the steps. They are written into the folder of the first RUN.

    \b
    Example:
        hbench train-curves runs/mnist16/train mnist16
    """
    from hbench.evaluation.curves import train_curves as compare

    result = compare(runs)
    publish(result, options.claim_result(runs[0], "train-curves"))
