"""``hbench quality``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    data_options,
    extractor_options,
    model_arguments,
    numbers_of_steps,
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
    type=Count(6),
    help="Number of samples for each number of steps [default: 2000, or evaluation.fid_samples where that is less].",
)
@numbers_of_steps("M, 2M, 5M of the discovery")
@extractor_options()
@shared(data_options, result_of("quality", "MODEL"), processes_option, run_options)
def quality(
    model: Path,
    experiment: str | None,
    samples: int | None,
    steps: list[int] | None,
    extractor: str | None,
    weights: Path | None,
    cache: Path,
    options: Options,
) -> None:
    """Measure how near a diffusion model's samples come to real images.

    Samples are held against real images by the distance in a feature extractor's features, precision and recall, the
    shares of the classes, their nearest training images, and the image domain; beside each number stands what real
    images have in the samples' place. MODEL is as for "hbench sample". Without the images at hand, what a classifier's
    file keeps of them stands in, and no training images are looked for.

    \b
    Example:
        hbench quality mnist16 --data-root DATA
        hbench quality runs/mnist16/pretrain --samples 10000 --steps 10,20,50
    """
    from hbench.evaluation.features import CLASSIFIER, LENET
    from hbench.evaluation.quality import quality as measure
    from hbench.store.classifier import classifier_for
    from hbench.store.files import sha256
    from hbench.store.model import load_model, model_file

    device = options.torch_device()
    settings = settings_of(model, experiment, steps or [])
    if weights is None and extractor in (None, CLASSIFIER, LENET):
        weights = classifier_for(settings, model)
    network = load_model(model, settings, device=device)
    folder = options.claim_of_model(model, "quality")
    result = measure(
        network,
        settings,
        samples=samples,
        steps=steps,
        extractor=extractor,
        weights=weights,
        cache=cache,
        data_root=options.data_root,
        download=options.download,
        seed=options.seed,
        device=device,
    )
    publish(result.with_details(weights_sha256={"model": sha256(model_file(model))}), folder)
