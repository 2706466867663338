"""``hbench ablations``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Options,
    a_path,
    data_options,
    experiment_options,
    model_option,
    publish,
    run_options,
    shared,
    training_options,
)

if TYPE_CHECKING:
    from hbench.config import Experiment


def parse_seeds(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Return distinct non-negative integers from "0,1,2"."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise click.BadParameter('write distinct non-negative integers, as in "0,1,2"')
    return tuple(int(part) for part in parts)


@click.command()
@experiment_options
@model_option
@click.option(
    "--over", multiple=True, metavar="KEY=VALUE,...", help="Values of a setting to compare instead; repeatable."
)
@click.option("--seeds", default="0,1,2", show_default=True, callback=parse_seeds, help="Seeds of the trainings.")
@click.option(
    "--pairs", type=click.IntRange(min=1), default=1000, show_default=True, help="Number of fresh pairs a training."
)
@click.option("--lenet", type=a_path, help='Weights of the digit LeNet, by "hbench lenet" [default: the shipped ones].')
@click.option("--out", type=a_path, help="Output folder [default: runs/EXPERIMENT/ablations, or settings].")
@shared(data_options, training_options, run_options)
def ablations(
    experiment: "Experiment",
    model: Path | None,
    over: tuple[str, ...],
    seeds: tuple[int, ...],
    pairs: int,
    lenet: Path | None,
    options: Options,
) -> None:
    """Train variants of an experiment and compare them.

    The variants are the full method, l1 or no loss in place of the discriminator (Fig. 3), and gradients per step
    (Sec. 4.4). With --over they are EXPERIMENT as it is, and with each given value in turn.

    With --resume finished trainings are skipped, the others go on, and all of them are measured again. The option
    --seed is the seed of the measured pairs. Images without a digit LeNet get neither KID nor FD,
    and the KID needs the real images.

    \b
    Example:
        hbench ablations mnist16-ablations --model mnist16 --seeds 0,1,2
        hbench ablations mnist16-ablations --model mnist16 --over discovery.lambda_adv=0.1,3 --over discovery.S=2
    """
    from hbench.evaluation.ablations import ablations as measure
    from hbench.experiments import one_at_a_time
    from hbench.reporting.charts.training import draw_curves
    from hbench.store.run import model_to_train_on

    folder = options.out or Path("runs") / experiment.name / ("settings" if over else "ablations")
    result = measure(
        experiment,
        model_to_train_on(model, folder, experiment, options.resume),
        folder,
        variants=one_at_a_time(over) if over else None,
        seeds=seeds,
        pairs=pairs,
        lenet=lenet,
        data_root=options.data_root,
        download=options.download,
        device=options.torch_device(),
        draw=draw_curves,
        **options.training,
    )
    if result:
        publish(result, replace(options, overwrite=True).claim(folder))
