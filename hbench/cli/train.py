"""``hbench train``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Options,
    a_path,
    adjusted_experiment_options,
    log_option,
    model_option,
    out_of,
    processes_option,
    run_options,
    shared,
    trained_on_model,
    training_options,
)
from hbench.runtime.distributed import rank

if TYPE_CHECKING:
    from typing import Any

    import torch

    from hbench.config import Experiment

PAIRS, FEWEST_PAIRS = 256, 8
"""Fresh pairs that a finished training is measured on, and those of a short one."""


def _with_directions(experiment: "Experiment", values: "dict[str, Any]") -> "Experiment":
    """Return the experiment as a training on --model has it, with the K and S of --directions where they are given."""
    from hbench.store.directions import experiment_with
    from hbench.store.directions_file import read_directions

    experiment = trained_on_model(experiment, values)
    file = values["directions"]
    return experiment if file is None else experiment_with(experiment, read_directions(file))


@click.command()
@adjusted_experiment_options(_with_directions)
@model_option
@click.option(
    "--directions", type=a_path, help="File of directions that stay: only what tells them apart is trained for them."
)
@shared(out_of("runs/EXPERIMENT/train"), training_options, log_option, processes_option, run_options)
def train(experiment: "Experiment", model: Path | None, options: Options) -> None:
    """Discover directions of a frozen diffusion model.

    The option --model takes a folder or file of hbench, the name of a shipped run, a model of diffusers as for "hbench
    import", or a state dict (.pt, .safetensors) of guided-diffusion.

    \b
    Example:
        hbench train mnist16 --model mnist16 --set discovery.K=8
        hbench train mnist16 --model mnist16 --directions pca.safetensors --set discovery.steps=500
    """
    from hbench.reporting.charts.training import draw_curves
    from hbench.store.directions_file import read_directions
    from hbench.store.model import model_to_train_on
    from hbench.store.names import add_names
    from hbench.store.places import experiment_folder
    from hbench.training.discover import train as discover

    folder = options.out or experiment_folder(experiment.name) / "train"
    device = options.torch_device(options.earlier_threads(folder))
    experiment, network = model_to_train_on(model, folder, experiment, options.resume)
    fixed = None
    if options.file is not None:
        stored = read_directions(options.file)
        stored.check_fits(network)
        fixed = stored.fixed()
    settings = {"device": device, "draw": draw_curves, "shift_block": fixed, **options.training}
    if discover(experiment, network, folder, log_to=options.log_to, **settings):
        if fixed is not None and not rank():
            add_names(folder, stored.names)
        _tell(folder, device, options.seed)
        click.echo(folder)


def _tell(folder: Path, device: "torch.device", seed: int) -> None:
    """Print the accuracy of a finished training on a few pairs, its time, and what comes next; all processes call it.

    Cost: a twentieth of the training at most.
    """
    from hbench.evaluation.rca import rca
    from hbench.runtime.distributed import barrier, rank
    from hbench.runtime.progress import duration
    from hbench.store.provenance import FILE, Provenance
    from hbench.store.run import load_run

    barrier()  # the main process has written the run
    run = load_run(folder, device=device)
    settings = run.experiment.discovery
    found = rca(run, pairs=min(PAIRS, max(FEWEST_PAIRS, settings.steps * settings.batch_size // 20)), seed=seed)
    if rank():
        return
    click.echo(found.summary(), err=True)
    for caution in found.cautions():
        click.echo(f"caution: {caution}", err=True)
    took = duration(Provenance.read(folder / FILE).wall_seconds)
    click.echo(f"took {took}; next: {shlex.join(['hbench', 'traverse', str(folder)])}", err=True)
