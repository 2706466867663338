"""``hbench vram-sweep``."""

import re
from typing import TYPE_CHECKING, Any

import click

from hbench.cli.options import (
    NUMBERED,
    Count,
    Options,
    adjusted_experiment_options,
    check_steps,
    many_steps_option,
    out_of,
    overwrite_option,
    publish,
    run_options,
    shared,
)
from hbench.errors import HBenchError, counted
from hbench.experiments import without_pool

if TYPE_CHECKING:
    from hbench.config import Experiment


def _adjust(experiment: "Experiment", values: dict[str, Any]) -> "Experiment":
    return without_pool(experiment, values["batch_size"], values["precision"])


def _mebibytes(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG])iB", value)
    if not found or not 0 < float(found[1]) < 1e9:
        raise click.BadParameter(f'"{value}": write a number with its unit, for example 24GiB or 800MiB')
    return float(found[1]) * (1024 if found[2] == "G" else 1)


@click.command("vram-sweep")
@adjusted_experiment_options(_adjust)
@many_steps_option
@click.option(
    "--strategies",
    callback=lambda ctx, param, value: None if value is None else value.split(","),
    help="Strategies of back-propagation, with commas between them [default: all but auto and offload].",
)
@click.option("--batch-size", type=Count(2), help="Number of pairs a step [default: EXPERIMENT's for sweeps].")
@click.option("--repeats", type=Count(), default=5, show_default=True, help="Number of timed steps a cell.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Precision of the networks [default: EXPERIMENT's].",
)
@click.option(
    "--memory-limit",
    "memory_limit_mib",
    callback=_mebibytes,
    help="Memory of a smaller card, beyond which a cell is out of memory: 24GiB, 800MiB.",
)
@click.option("--allow-busy", is_flag=True, help="Measure although another process is on the GPU.")
@shared(
    out_of(f"runs/EXPERIMENT/vram-sweep; {NUMBERED}"),
    overwrite_option,
    click.option("--resume", is_flag=True, help="Measure only the cells that are missing in --out."),
    run_options,
)
def vram_sweep(experiment: "Experiment", options: Options, **settings: Any) -> None:
    """Measure memory and speed of training over generation steps.

    Each cell of the table is a strategy of back-propagation at a number of generation steps M. It takes real training
    steps in a fresh process, new raw pairs included. The column memory_source names the source of the memory reading,
    and status the cells that ran out of memory. An image is a training pair.

    \b
    Example:
        hbench vram-sweep mnist16 --steps 5,10 --repeats 3
        hbench vram-sweep mnist32 --memory-limit 24GiB
    """
    from hbench.evaluation.vram_sweep import VramSweep
    from hbench.evaluation.vram_sweep import vram_sweep as measure
    from hbench.reporting.artifacts import draw
    from hbench.store.places import experiment_folder
    from hbench.store.provenance import FILE as PROVENANCE
    from hbench.store.weights import write_experiment

    if options.resume and options.overwrite:
        raise click.UsageError("--resume keeps what --overwrite would replace: leave one of them out")
    for M in settings["steps"] or [experiment.discovery.M]:
        check_steps(experiment, M)
    folder = options.claim_numbered(experiment_folder(experiment.name) / VramSweep.NAME)
    has_begun = options.resume and (folder / PROVENANCE).is_file()  # else it was killed before anything was measured

    def save(sweep: VramSweep) -> None:
        write_experiment(folder, experiment)  # first, so that a resume knows the folder
        if sweep.cells:
            sweep.write_into(folder)
            draw(sweep, folder)

    earlier = VramSweep.load(folder) if has_begun else None
    result = measure(
        experiment,
        device=options.torch_device(earlier.provenance.threads if earlier else None),
        seed=options.seed,
        resume_from=earlier,
        on_row=save,
        **settings,
    )
    publish(result, folder)
    if failed := result.failed():
        table = folder / f"{VramSweep.NAME}.csv"
        raise HBenchError(
            f'{counted(len(failed), "cell")} failed: see "error" in {table}, then go on with `resume=True`'
        )
