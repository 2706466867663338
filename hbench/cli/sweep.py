"""The commands about memory and speed of training: measured over M, or predicted."""

import re
from dataclasses import asdict, fields
from pathlib import Path

import click

from hbench.cli.legacy import claim_folder, experiment_options, print_experiment, run_options, write_results
from hbench.errors import HBenchError

SHOWN = ["strategy", "M", "keep", "memory_mib", "images_per_second", "images_per_second_iqr", "status"]


def _whole_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f'"{value}": write whole numbers with commas, for example 5,10,20') from error


def _mebibytes(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG])iB", value)
    if not found or float(found[1]) == 0:
        raise click.BadParameter(f'"{value}": write a number with its unit, for example 24GiB or 800MiB')
    return float(found[1]) * (1024 if found[2] == "G" else 1)


m_option = click.option(
    "--m", "Ms", callback=_whole_numbers, help="Generation steps [default: M/2, M, 2M, 4M of EXPERIMENT]."
)


@click.command("vram-sweep")
@experiment_options
@m_option
@click.option("--strategies", default="vanilla,node,torch-checkpoint", show_default=True, help="Also: auto, offload.")
@click.option("--batch-size", type=click.IntRange(min=2), help="Pairs a step [default: EXPERIMENT's for sweeps].")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Timed steps of each cell.")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), help="Of the networks [default: EXPERIMENT's]."
)
@click.option(
    "--memory-limit", callback=_mebibytes, help="Count more as out of memory, as on a smaller card: 24GiB, 800MiB."
)
@click.option("--allow-busy", is_flag=True, help="Measure although another process is on the GPU.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: runs/EXPERIMENT/vram-sweep].")
@click.option("--overwrite", is_flag=True, help="Replace results that are already there.")
@click.option("--resume", is_flag=True, help="Measure only what the table in --out lacks.")
@run_options
def vram_sweep(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    Ms: list[int] | None,
    strategies: str,
    batch_size: int | None,
    repeats: int,
    precision: str | None,
    memory_limit: float | None,
    allow_busy: bool,
    out: Path | None,
    overwrite: bool,
    resume: bool,
    device: str,
    seed: int,
) -> None:
    """Measure memory and speed of training against M.

    As in Fig. 4, for each way to back-propagate. Each cell of the table takes real training steps in a process of its
    own, new raw pairs included. The columns memory_source and status say how its memory was read, and whether it ran
    out of it. An image is a training pair.

    \b
    Example:
        hbench vram-sweep mnist16 --m 5,10 --repeats 3
        hbench vram-sweep mnist32 --memory-limit 24GiB
    """
    from hbench.experiments import load_experiment, override

    settings = load_experiment(experiment, [*overrides, "discovery.pool=0"])
    chosen = {"batch_size": batch_size or settings.evaluation.sweep_batch_size, "precision": precision}
    settings = override(settings, [f"discovery.{key}={value}" for key, value in chosen.items() if value is not None])
    if dry_run:
        print_experiment(settings)
        return
    if resume and overwrite:
        raise click.UsageError("--resume keeps what --overwrite would replace: leave one of them out")
    import pandas as pd

    from hbench.evaluation.vram_sweep import NAME, Row, cells, default_Ms, finished, sweep
    from hbench.reporting.charts import draw_sweep
    from hbench.runtime.device import pick_device
    from hbench.store.provenance import provenance
    from hbench.store.weights import write_experiment

    place = pick_device(device)
    wanted = cells(
        settings,
        strategies.split(","),
        Ms or default_Ms(settings),
        device=str(place),
        seed=seed,
        repeats=repeats,
        memory_limit_mib=memory_limit,
    )
    folder = out or Path("runs") / settings.name / NAME
    origin = provenance(settings, place, seed, repeats=repeats, memory_limit_mib=memory_limit, allow_busy=allow_busy)
    claim_folder(folder, overwrite=overwrite, resume=resume)
    rows = {row.key: row for row in finished(folder, origin.to_json())} if resume else {}
    write_experiment(folder, settings)
    title = f"{settings.title}, M varied: batch {settings.discovery.batch_size}, {settings.discovery.precision}"

    def save() -> None:
        ordered = [rows[key] for key in sorted(rows)]
        table = pd.DataFrame([asdict(row) for row in ordered], columns=[field.name for field in fields(Row)])
        result = {"cells": [asdict(row) for row in ordered]}
        complete = all(cell.key in rows and rows[cell.key].status != "failed" for cell in wanted)
        if rows:
            draw_sweep(ordered, memory_limit, f"{title}\n{origin.device}", folder / f"{NAME}.png")
        write_results(folder, NAME, result, table.drop(columns="step_seconds"), origin, complete=complete)

    def add(row: Row) -> None:
        rows[row.key] = row
        save()

    save()  # what an --overwrite replaces is gone, and what a kill left behind its table is brought up to date
    todo = [cell for cell in wanted if cell.key not in rows]
    if not sweep(todo, add, allow_busy=allow_busy):
        return
    table = pd.DataFrame([asdict(rows[key]) for key in sorted(rows)])
    click.echo(table[SHOWN].to_string(index=False, float_format="{:.1f}".format, na_rep="-"))
    click.echo(f"see {folder / NAME}.png", err=True)
    failed = sum(row.status == "failed" for row in rows.values())
    if failed:
        raise HBenchError(f'{failed} cells failed: see "error" in {folder / NAME}.csv, then go on with --resume')


@click.command()
@experiment_options
@m_option
@click.option("--out", type=click.Path(path_type=Path), help="Keep the plan in this folder, with its provenance.")
@click.option("--overwrite", is_flag=True, help="Replace a plan that is already there.")
@run_options
def plan(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    Ms: list[int] | None,
    out: Path | None,
    overwrite: bool,
    device: str,
    seed: int,
) -> None:
    """Predict memory and speed of training EXPERIMENT.

    For each strategy over M, and which one "auto" takes. Measures one short training step for node, vanilla and auto,
    which needs the memory of node only, and a few short steps for each other strategy; one that does not fit is left
    out, and said so. The memory is what "hbench vram-sweep" would measure. "auto" keeps the graphs of the last "keep"
    steps of M: 0 is node, M vanilla.

    \b
    Example:
        hbench plan mnist16 --set discovery.memory_budget=0.5
    """
    from hbench.experiments import load_experiment

    settings = load_experiment(experiment, overrides)
    if dry_run:
        print_experiment(settings)
        return
    import pandas as pd

    from hbench.evaluation.vram_sweep import cells, default_Ms, measured_line
    from hbench.runtime.device import pick_device
    from hbench.runtime.progress import progress
    from hbench.store.provenance import provenance
    from hbench.training.cost import budget_of, largest_keep, predictions
    from hbench.training.probe import measure_apart
    from hbench.training.strategy import what_would_fit

    place = pick_device(device)
    if out:
        claim_folder(out, overwrite=overwrite)
    origin = provenance(settings, place, seed)
    chosen = sorted(set(Ms or default_Ms(settings)))
    cells(settings, ["node"], chosen, device=str(place))  # refuses an M that the schedule does not have
    others = ["torch-checkpoint", *(["offload"] if place.type == "cuda" else [])]
    with progress(total=1 + len(others), desc="probes") as bar:
        probe = measure_apart(settings, str(place), seed)
        bar.update()
        budget = budget_of(settings, place, probe)
        rows, left_out = predictions(probe, settings, chosen, budget), []
        for strategy in others:
            try:
                rows += measured_line(settings, strategy, chosen, probe, str(place), seed)
            except HBenchError as error:
                left_out.append(str(error))
            bar.update()
    table = pd.DataFrame([asdict(row) for row in rows])
    click.echo(table.to_string(index=False, float_format="{:.1f}".format))
    for reason in left_out:
        click.echo(f"not in the table: {reason}", err=True)
    click.echo(f"memory budget {budget:,.0f} MiB", err=True)
    if out:
        result = {"budget_mib": budget, "probe": asdict(probe), "predictions": [asdict(row) for row in rows]} | {
            "left_out": left_out
        }
        write_results(out, "plan", result, table, origin)
    if largest_keep(probe, settings, settings.discovery.M, budget) is None:
        raise HBenchError(what_would_fit(probe, settings, budget))
