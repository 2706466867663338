"""``hbench sample``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    Renamed,
    a_path,
    check_steps,
    processes_option,
    publish,
    result_of,
    run_options,
    shared,
)


@click.command()
@click.argument("model", type=a_path)
@click.option("--experiment", help="Experiment with the settings of a guided-diffusion state dict.")
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

    MODEL is a folder with model.safetensors, such a file, the name of a shipped run, or a state dict (.pt,
    .safetensors) of guided-diffusion.

    \b
    Example:
        hbench sample mnist16 --samples 36 --steps 50
    """
    from hbench.evaluation.sample import sample as generate
    from hbench.experiments import load_experiment
    from hbench.store.model import load_model, model_experiment
    from hbench.store.registry import check_data

    device = options.torch_device()
    given = load_experiment(experiment) if experiment else None
    if given:
        check_data(given.data)
    settings = model_experiment(model, given)
    check_steps(settings, steps, shifts=False)
    network = load_model(model, settings, device=device)
    folder = options.claim_result(model.parent if model.is_file() else model, "sample")
    result = generate(network, settings, samples=samples, steps=steps, seed=options.seed, device=device)
    publish(result, folder)
