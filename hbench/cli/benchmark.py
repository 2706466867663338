"""``hbench benchmark``."""

from dataclasses import replace
from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    a_path,
    data_options,
    extractor_options,
    model_arguments,
    out_of,
    parse_seeds,
    processes_option,
    run_options,
    settings_of,
    shared,
)
from hbench.errors import HBenchError
from hbench.runtime.distributed import rank


@click.command()
@model_arguments
@click.option(
    "--methods",
    default="trained,pca,jacobian,random,axes",
    show_default=True,
    help='Methods, by commas: "trained" for the run\'s own directions, or what "hbench find" knows; "" for none.',
)
@click.option(
    "--add",
    type=a_path,
    multiple=True,
    help="File of directions, or run on the same diffusion model, to measure too; repeatable.",
)
@click.option(
    "--search-seeds",
    callback=parse_seeds,
    default="",
    help="Further seeds of the searches, by commas, which are measured too: numbers get intervals over seeds.",
)
@click.option("--k", type=Count(2), help="Number of directions K of the methods that find some [default: the model's].")
@click.option("--pairs", type=Count(), default=2000, show_default=True, help="Fresh pairs for each RCA.")
@click.option("--samples", type=Count(6), default=50, show_default=True, help="Samples for the effects of a direction.")
@click.option(
    "--images", type=Count(0), default=1000, show_default=True, help="Images for each distance; 0 for no distances."
)
@click.option(
    "--reconstructor-steps",
    type=Count(),
    default=500,
    show_default=True,
    help="Steps of the reconstructor that is trained for each method.",
)
@extractor_options("a classifier of the images, else random-resnet18")
@shared(
    data_options,
    out_of("MODEL/benchmark, of a shipped run runs/shipped-MODEL/benchmark; what it holds already is kept"),
    processes_option,
    run_options,
)
def benchmark(
    model: Path,
    experiment: str | None,
    methods: str,
    add: tuple[Path, ...],
    search_seeds: tuple[int, ...],
    k: int | None,
    pairs: int,
    samples: int,
    images: int,
    extractor: str | None,
    weights: Path | None,
    cache: Path,
    options: Options,
) -> None:
    """Measure methods that find directions, side by side on one frozen diffusion model.

    Each method's directions are found, or taken, and brought to the visible change of the run's own. A fresh
    reconstructor of the same budget is trained for each, and RCA, attributes, distances, precision, recall and cost are
    measured. The same command again goes on where it stopped, and with another method, or --add FILE, does only what is
    new. The page is benchmark.html.

    \b
    Example:
        hbench benchmark mnist16 --methods trained,pca,random,labels
        hbench benchmark mnist16 --add mine.safetensors
    """
    from hbench.evaluation.benchmark.benchmark import benchmark as measure
    from hbench.evaluation.benchmark.measure import Counts
    from hbench.evaluation.benchmark.result import Benchmark
    from hbench.reporting.artifacts import draw
    from hbench.reporting.benchmark_page import write_page
    from hbench.reporting.charts.training import draw_curves
    from hbench.store.folders import EXPERIMENT, held_in
    from hbench.store.places import run_folder
    from hbench.store.provenance import FILE as PROVENANCE
    from hbench.training.reconstruct import STEPS

    options.torch_device()
    settings = settings_of(model, experiment, [])
    out = options.out or run_folder(model.parent if model.is_file() else model) / "benchmark"
    if held_in(out) & {PROVENANCE, EXPERIMENT} and not (out / f"{Benchmark.NAME}.json").is_file():
        raise HBenchError(f"{out}: holds something else than a bench: choose another `out`")
    replace(options, overwrite=True).claim(out)
    result = measure(
        model,
        out,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        add=add,
        experiment=settings,
        counts=Counts(pairs, samples, images, options.reconstructor_steps or STEPS),
        k=k,
        extractor=extractor,
        weights=weights,
        cache=cache,
        data_root=options.data_root,
        download=options.download,
        seed=options.seed,
        search_seeds=search_seeds,
        device=options.device,
        draw=draw_curves,
    )
    if result is None or rank():
        return
    result.write_into(out)  # before the pictures: one that cannot be drawn loses no number
    draw(result, out)
    click.echo(result.summary())
    for caution in result.cautions():
        click.echo(f"caution: {caution}", err=True)
    click.echo(f"see {write_page(result, out)}", err=True)
