"""``hbench pretrain``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hbench.cli.options import (
    Options,
    data_options,
    experiment_options,
    log_option,
    out_of,
    processes_option,
    run_options,
    shared,
    training_options,
)
from hbench.errors import counted

if TYPE_CHECKING:
    from hbench.config import Experiment

LATE_STEPS = 100
"""Last steps whose loss is averaged."""


@click.command()
@experiment_options
@shared(out_of("runs/EXPERIMENT/pretrain"), data_options, training_options, log_option, processes_option, run_options)
def pretrain(experiment: "Experiment", options: Options) -> None:
    """Train a diffusion model on an experiment's images.

    \b
    Example:
        hbench pretrain digits16 --max-minutes 10
    """
    from hbench.reporting.charts.training import draw_curves
    from hbench.runtime.distributed import main_process_first, rank
    from hbench.store.datasets import load_set
    from hbench.store.places import experiment_folder
    from hbench.training.pretrain import pretrain as train_model

    folder = options.out or experiment_folder(experiment.name) / "pretrain"
    device = options.torch_device(options.earlier_threads(folder))
    with main_process_first():  # since it may download them
        data = load_set(experiment.data, options.data_root, download=options.download)
    settings = {"device": device, "draw": draw_curves, "account": data.account, **options.training}
    complete = train_model(experiment, data.images, folder, log_to=options.log_to, **settings)
    if complete and not rank():
        _tell(folder, click.get_current_context().params)
        click.echo(folder / "model.safetensors")


def _tell(folder: Path, given: dict[str, Any]) -> None:
    """Print the loss of a finished training, its time, its samples, and what comes next."""
    import pandas as pd

    from hbench.runtime.progress import duration
    from hbench.store.provenance import FILE, Provenance

    losses = pd.read_csv(folder / "metrics.csv")["loss"]
    late = losses.tail(LATE_STEPS)
    click.echo(f"loss {late.mean():.4f}, mean of the last {len(late)} of {counted(len(losses), 'step')}", err=True)
    click.echo(f"see {max((folder / 'samples').glob('*.png'))}", err=True)
    sets = [word for each in given["overrides"] for word in ("--set", each)]
    following = shlex.join(["hbench", "train", given["experiment"], *sets, "--model", str(folder)])
    click.echo(f"took {duration(Provenance.read(folder / FILE).wall_seconds)}; next: {following}", err=True)
