"""``hbench find``."""

from pathlib import Path

import click

from hbench.cli.options import (
    NUMBERED,
    Count,
    Finite,
    Options,
    model_arguments,
    out_of,
    overwrite_option,
    processes_option,
    run_options,
    settings_of,
    shared,
)
from hbench.runtime.distributed import rank


@click.command()
@model_arguments
@click.option(
    "--method",
    required=True,
    metavar="NAME",
    help="Method: random, axes, pca, pca-each, jacobian, labels, or one of another package.",
)
@click.option("--k", type=Count(2), help="Number of directions K [default: the experiment's, or as many as there are].")
@click.option("--samples", type=Count(), help="Number of samples that the method looks at [default: the method's].")
@click.option(
    "--visible-change",
    type=Finite(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Median visible change between -S and S that the directions are scaled to.",
)
@click.option("--resume", is_flag=True, help="Go on with a search that was stopped in --out.")
@shared(
    out_of(f"MODEL/find-METHOD, of a shipped run runs/shipped-MODEL/find-METHOD; {NUMBERED}"),
    overwrite_option,
    processes_option,
    run_options,
)
def find(
    model: Path,
    experiment: str | None,
    method: str,
    k: int | None,
    samples: int | None,
    visible_change: float,
    options: Options,
) -> None:
    """Find directions of a diffusion model without training a shift block, and write them as a file.

    "random" draws Gaussian directions, "axes" coordinate axes of h. "pca" takes the principal components of h over
    whole chains, "pca-each" those at each timestep. "jacobian" takes the directions that change h most for the smallest
    change of x_t, on average over the samples, or with --samples 1 of a single one. "labels" takes the differences of
    class means, by a classifier of the images. Commands that draw, edit or measure take the file in the place of RUN's
    directions.

    \b
    Example:
        hbench find mnist16 --method pca --k 16
        hbench find mnist16 --method jacobian --samples 1 --k 8
    """
    from hbench.evaluation.find.find import find as search
    from hbench.evaluation.find.methods import method_named
    from hbench.store.model import load_model

    method_named(method)
    device = options.torch_device()
    settings = settings_of(model, experiment, [])
    network = load_model(model, settings, device=device)
    folder = options.numbered(model.parent if model.is_file() else model, f"find-{method}")
    found = search(
        network,
        settings,
        method,
        folder,
        k=k,
        samples=samples,
        visible_change=visible_change,
        seed=options.seed,
        device=device,
        overwrite=options.overwrite,
        resume=options.resume,
    )
    if rank():
        return
    details = found.about.details
    told = details.get("converged")
    converged = "" if told is None else ", converged" if told is True else ", not converged"
    click.echo(found.path)
    click.echo(
        f"{found.K} directions in {details['seconds']} s and {details['memory_mib']} MiB, median visible change "
        f"{details['visible_change']:.2f}{converged}",
        err=True,
    )
