"""``hbench compare``."""

from pathlib import Path

import click

from hbench.cli.options import (
    Count,
    Options,
    a_path,
    further_directions_option,
    publish,
    reconstructor_option,
    result_of,
    run_options,
    shared,
)


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=a_path)
@click.option("--pairs", type=Count(2), default=1000, show_default=True, help="Number of fresh pairs of each run.")
@click.option("--fail-if-worse", is_flag=True, help="End with exit code 1 if a run is worse than the first one.")
@shared(further_directions_option, reconstructor_option, result_of("compare"), run_options)
def compare(runs: tuple[Path, ...], pairs: int, fail_if_worse: bool, options: Options) -> None:
    """Measure runs alike, and tell what differs for certain.

    Every other run is compared with the first one. Where two runs have the same diffusion model, K and magnitudes, both
    are measured on the same pairs. Numbers that do not compare, such as RCAs of different K, are not. The result goes
    into the folder of the first RUN.

    \b
    Example:
        hbench compare mnist16 runs/mnist16/train
        hbench compare mnist16 --directions pca.safetensors --directions random.safetensors
    """
    from hbench.errors import HBenchError
    from hbench.evaluation.compare import compare as measure

    files = options.directions if isinstance(options.directions, tuple) else ()
    if len(runs) + len(files) < 2:
        raise click.BadParameter("need two or more, --directions included", param_hint="RUN")
    loaded = options.load_all(runs)
    folder = options.claim_result(runs[0], "compare")
    result = measure(loaded, pairs=pairs, seed=options.seed)
    publish(result, folder)
    if fail_if_worse and result.worse:
        names = ", ".join(dict.fromkeys(each.run for each in result.worse))
        raise HBenchError(f"{names}: worse than {result.runs[0]} in {', '.join(e.metric for e in result.worse)}")
