"""``hbench pretrain``."""

from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Options,
    data_options,
    experiment_options,
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
@shared(out_of("runs/EXPERIMENT/pretrain"), data_options, training_options, processes_option, run_options)
def pretrain(experiment: "Experiment", options: Options) -> None:
    """Train a diffusion model on an experiment's images.

    \b
    Example:
        hbench pretrain digits16 --max-minutes 10
    """
    from hbench.reporting.charts.training import draw_curves
    from hbench.runtime.distributed import main_process_first
    from hbench.store.datasets import load_set
    from hbench.store.places import experiment_folder
    from hbench.training.pretrain import pretrain as train_model

    device = options.torch_device()
    with main_process_first():  # since it may download them
        data = load_set(experiment.data, options.data_root, download=options.download)
    folder = options.out or experiment_folder(experiment.name) / "pretrain"
    settings = {"device": device, "draw": draw_curves, "account": data.account, **options.training}
    if train_model(experiment, data.images, folder, **settings):
        click.echo(folder / "model.safetensors")
