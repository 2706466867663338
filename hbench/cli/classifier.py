"""``hbench classifier``."""

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
@click.option(
    "--epochs", type=Count(), help="Number of passes over the images [default: 5 for one factor, 20 for several]."
)
@shared(out_of("runs/EXPERIMENT/classifier"), data_options, overwrite_option, threads_option, seed_option, quiet_option)
def classifier(experiment: "Experiment", epochs: int | None, options: Options) -> None:
    """Train a small classifier of labelled images, whose features "hbench fid" compares.

    The classifier learns the labels of EXPERIMENT's images, such as the digit, or skin, hair and glasses of a face,
    with a head for each factor. The accuracy of each head stands beside the share of the most frequent class, which it
    must exceed. It is so small that it is trained on the CPU.

    \b
    Example:
        hbench classifier digits16 --epochs 20
    """
    from hbench.evaluation.classifier import classifier as train
    from hbench.store.classifier import FILE
    from hbench.store.places import experiment_folder

    folder = options.claim(experiment_folder(experiment.name) / "classifier")
    options.choose_threads()
    result = train(experiment, epochs=epochs, data_root=options.data_root, download=options.download, seed=options.seed)
    publish(result, folder)
    click.echo(folder / FILE)
