"""``hbench gradient``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Count,
    Options,
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
    whole_numbers,
)

if TYPE_CHECKING:
    from hbench.config import Experiment


@click.command()
@adjusted_experiment_options(trained_on_model)
@model_option
@click.option(
    "--last-steps",
    callback=whole_numbers,
    metavar="N,N,...",
    help="Numbers of steps of truncated gradients [default: 1, and those that reach one and half of the shifted ones].",
)
@click.option("--batches", type=Count(2), default=20, show_default=True, help="Number of batches at each stage.")
@click.option("--repeats", type=Count(), default=5, show_default=True, help="Number of timed steps a gradient.")
@click.option("--seeds", default="0,1,2", show_default=True, callback=parse_seeds, help="Seeds of the trainings.")
@click.option("--pairs", type=Count(), default=1000, show_default=True, help="Number of fresh pairs a training.")
@click.option(
    "--classifier",
    type=a_path,
    help="Weights of a classifier of the images [default: the shipped ones, or runs/EXPERIMENT/classifier].",
)
@shared(out_of("runs/EXPERIMENT/gradient"), data_options, training_options, run_options)
def gradient(
    experiment: "Experiment",
    model: Path | None,
    last_steps: list[int] | None,
    batches: int,
    repeats: int,
    seeds: tuple[int, ...],
    pairs: int,
    classifier: Path | None,
    options: Options,
) -> None:
    """Compare cheap gradients of the chain with the exact one.

    The gradients are linear (DRTune), truncated to the last steps (DRaFT), one-step (ReFL) and per-step (Sec. 4.4).
    They are compared timestep by timestep, at the start, middle and end of a training with the exact gradient; then
    each is trained for the same time, and measured as in hbench ablations.

    With --resume costs and finished trainings stay, the others go on, and the rest is measured again. The option
    --seed is the seed of the batches and of the measured pairs.

    \b
    Example:
        hbench gradient mnist16-ablations --model mnist16
        hbench gradient mnist16 --model mnist16 --set discovery.steps=400 --last-steps 1,7 --seeds 0
    """
    from hbench.evaluation.gradient import gradient as measure
    from hbench.reporting.charts.training import draw_curves
    from hbench.store.classifier import classifier_for
    from hbench.store.model import model_to_train_on
    from hbench.store.places import experiment_folder

    folder = options.out or experiment_folder(experiment.name) / "gradient"
    experiment, network = model_to_train_on(model, folder / "trainings", experiment, options.resume)
    result = measure(
        experiment,
        network,
        folder,
        last_steps=last_steps,
        batches=batches,
        repeats=repeats,
        seeds=seeds,
        pairs=pairs,
        classifier=classifier or classifier_for(experiment),
        data_root=options.data_root,
        download=options.download,
        device=options.torch_device(options.earlier_threads(folder / "half")),
        draw=draw_curves,
        **options.training,
    )
    if result:
        publish(result, replace(options, overwrite=True).claim(folder))
