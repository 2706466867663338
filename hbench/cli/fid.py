"""``hbench fid``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    data_options,
    directions_option,
    extractor_options,
    processes_option,
    publish,
    result_of,
    run_argument,
    run_options,
    shared,
    steps_option,
    with_steps,
)


@click.command()
@run_argument
@click.option("--samples", type=Count(3), help="Number of samples of each kind [default: the run's].")
@steps_option
@extractor_options()
@shared(directions_option, data_options, result_of("fid-EXTRACTOR"), processes_option, run_options)
def fid(
    run: Path,
    samples: int | None,
    steps: int | None,
    extractor: str | None,
    weights: Path | None,
    cache: Path,
    options: Options,
) -> None:
    """Measure the distance of samples to real images: FID and KID.

    Raw and shifted samples are compared with real images. Inception knows neither digits nor drawn faces: labelled
    images are compared in the features of a classifier of their labels, and the distance is called FD. The classifier
    of a shipped run carries the statistics of real test images, so that FD needs no data set; KID does. For other
    images "hbench classifier" makes one. The result for digits is called fid-lenet-digits.

    \b
    Example:
        hbench fid mnist16 --samples 2000
        hbench fid mnist16 --samples 2000 --steps 50
    """
    from hbench.evaluation.features import CLASSIFIER, LENET, choose_extractor
    from hbench.evaluation.fid import fid as measure
    from hbench.store.classifier import classifier_for

    loaded = options.load(run)
    if weights is None and extractor in (None, CLASSIFIER, LENET):
        weights = classifier_for(loaded.experiment, run)
    chosen = choose_extractor(loaded.experiment.data, extractor, weights)
    folder = options.claim_result(run, with_steps(f"fid-{chosen.name}", loaded, steps))
    result = measure(
        loaded,
        samples=samples,
        steps=steps,
        extractor=chosen.name,
        weights=chosen.weights,
        cache=cache,
        data_root=options.data_root,
        download=options.download,
        seed=options.seed,
    )
    publish(result, folder)
