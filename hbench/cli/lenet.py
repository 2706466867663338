"""``hbench lenet``."""

from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Count,
    Options,
    data_options,
    experiment_options,
    out_of,
    overwrite_option,
    publish,
    quiet_option,
    seed_option,
    shared,
    threads_option,
)

if TYPE_CHECKING:
    from hbench.config import Experiment


@click.command()
@experiment_options
@click.option("--epochs", type=Count(), default=5, show_default=True, help="Number of passes over the images.")
@shared(out_of("runs/EXPERIMENT/lenet"), data_options, overwrite_option, threads_option, seed_option, quiet_option)
def lenet(experiment: "Experiment", epochs: int, options: Options) -> None:
    """Train a digit LeNet, whose features "hbench fid" compares.

    The LeNet learns the labelled images of EXPERIMENT. It is so small that it is trained on the CPU.

    \b
    Example:
        hbench lenet digits16 --epochs 20
    """
    from hbench.evaluation.lenet import lenet as train
    from hbench.store.places import experiment_folder

    folder = options.claim(experiment_folder(experiment.name) / "lenet")
    options.choose_threads()
    result = train(experiment, epochs=epochs, data_root=options.data_root, download=options.download, seed=options.seed)
    publish(result, folder)
    click.echo(folder / "lenet.safetensors")
