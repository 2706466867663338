"""``hbench pretrain``."""

from pathlib import Path
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
    from hbench.store.datasets import load_images
    from hbench.training.pretrain import pretrain as train_model

    folder = options.out or Path("runs") / experiment.name / "pretrain"
    device = options.torch_device(options.earlier_threads(folder))
    with main_process_first():  # since it may download them
        images = load_images(experiment.data, options.data_root, download=options.download)
    if train_model(experiment, images, folder, device=device, draw=draw_curves, **options.training):
        click.echo(folder / "model.safetensors")
