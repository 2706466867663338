"""``hbench ablations``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Count,
    Options,
    Renamed,
    a_path,
    adjusted_experiment_options,
    data_options,
    model_option,
    out_of,
    parse_seeds,
    publish,
    run_options,
    shared,
    trained_on_model,
    training_options,
)

if TYPE_CHECKING:
    from hbench.config import Experiment


@click.command()
@adjusted_experiment_options(trained_on_model)
@model_option
@click.option(
    "--over", multiple=True, metavar="KEY=VALUE,...", help="Values of a setting to compare instead; repeatable."
)
@click.option("--seeds", default="0,1,2", show_default=True, callback=parse_seeds, help="Seeds of the trainings.")
@click.option("--pairs", type=Count(), default=1000, show_default=True, help="Number of fresh pairs a training.")
@click.option(
    "--classifier",
    "--lenet",
    "classifier",
    cls=Renamed,
    type=a_path,
    help="Weights of a classifier of the images [default: the shipped ones, or runs/EXPERIMENT/classifier].",
)
@shared(
    out_of("runs/EXPERIMENT/ablations; with --over runs/EXPERIMENT/settings"),
    data_options,
    training_options,
    run_options,
)
def ablations(
    experiment: "Experiment",
    model: Path | None,
    over: tuple[str, ...],
    seeds: tuple[int, ...],
    pairs: int,
    classifier: Path | None,
    options: Options,
) -> None:
    """Train variants of an experiment and compare them.

    The variants are the full method, l1 or no loss in place of the discriminator (Fig. 3), and gradients per step
    (Sec. 4.4). With --over they are EXPERIMENT as it is, and with each given value in turn.

    With --resume finished trainings are skipped, the others go on, and all of them are measured again. The option
    --seed is the seed of the measured pairs. Images without a classifier get neither KID nor FD,
    and the KID needs the real images.

    \b
    Example:
        hbench ablations mnist16-ablations --model mnist16 --seeds 0,1,2
        hbench ablations mnist16-ablations --model mnist16 --over discovery.lambda_adv=0.1,3 --over discovery.S=2
    """
    from hbench.evaluation.ablations import ablations as measure
    from hbench.experiments import one_at_a_time
    from hbench.reporting.charts.training import draw_curves
    from hbench.store.classifier import classifier_for
    from hbench.store.model import model_to_train_on
    from hbench.store.places import experiment_folder

    folder = options.out or experiment_folder(experiment.name) / ("settings" if over else "ablations")
    experiment, network = model_to_train_on(model, folder, experiment, options.resume)
    result = measure(
        experiment,
        network,
        folder,
        variants=one_at_a_time(over) if over else None,
        seeds=seeds,
        pairs=pairs,
        classifier=classifier or classifier_for(experiment),
        data_root=options.data_root,
        download=options.download,
        device=options.torch_device(options.earlier_threads(folder)),
        draw=draw_curves,
        **options.training,
    )
    if result:
        publish(result, replace(options, overwrite=True).claim(folder))
