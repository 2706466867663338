"""``hbench sample``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    Renamed,
    model_arguments,
    processes_option,
    publish,
    result_of,
    run_options,
    settings_of,
    shared,
)


@click.command()
@model_arguments
@click.option(
    "--samples",
    "--count",
    cls=Renamed,
    type=Count(),
    default=64,
    show_default=True,
    help="Number of samples.",
)
@click.option("--steps", type=Count(), default=20, show_default=True, help="Number of generation steps M.")
@shared(result_of("sample", "MODEL"), processes_option, run_options)
def sample(model: Path, experiment: str | None, samples: int, steps: int, options: Options) -> None:
    """Draw a grid of samples of a diffusion model.

    MODEL is a folder with model.safetensors, such a file, the name of a shipped run, a model of diffusers as for
    "hbench import", or a state dict (.pt, .safetensors) of guided-diffusion.

    \b
    Example:
        hbench sample mnist16 --samples 36 --steps 50
    """
    from hbench.evaluation.sample import sample as generate
    from hbench.store.model import load_model

    device = options.torch_device()
    settings = settings_of(model, experiment, [steps])
    network = load_model(model, settings, device=device)
    folder = options.claim_of_model(model, "sample")
    result = generate(network, settings, samples=samples, steps=steps, seed=options.seed, device=device)
    publish(result, folder)
