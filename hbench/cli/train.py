"""``hbench train``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Options,
    experiment_options,
    model_option,
    out_of,
    processes_option,
    run_options,
    shared,
    training_options,
)

if TYPE_CHECKING:
    from hbench.config import Experiment


@click.command()
@experiment_options
@model_option
@shared(out_of("runs/EXPERIMENT/train"), training_options, processes_option, run_options)
def train(experiment: "Experiment", model: Path | None, options: Options) -> None:
    """Discover directions of a frozen diffusion model.

    The option --model takes a folder or file of hbench, the name of a shipped run, or a state dict (.pt) of
    guided-diffusion.

    \b
    Example:
        hbench train mnist16 --model mnist16 --set discovery.K=8
    """
    from hbench.reporting.charts.training import draw_curves
    from hbench.store.places import experiment_folder
    from hbench.store.run import model_to_train_on
    from hbench.training.discover import train as discover

    device = options.torch_device()
    folder = options.out or experiment_folder(experiment.name) / "train"
    network = model_to_train_on(model, folder, experiment, options.resume)
    if discover(experiment, network, folder, device=device, draw=draw_curves, **options.training):
        click.echo(folder)
