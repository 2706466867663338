"""The commands that set several runs side by side."""

from pathlib import Path

import click

from hbench.cli.legacy import (
    claim_folder,
    experiment_options,
    print_experiment,
    run_options,
    training_options,
    write_results,
)


@click.command("train-curves")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/train-curves"),
    show_default=True,
    help="Output folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace results that are already there.")
@run_options
def train_curves(runs: tuple[Path, ...], out: Path, overwrite: bool, device: str, seed: int) -> None:
    """Draw the training of each RUN in one picture.

    D on raw and shifted samples (Fig. 10), losses, accuracy. RUN is the folder of a "hbench train", finished or not.
    The table holds means over the last third of each run. Nothing here is random or computed on a device: --seed and
    --device only go into the record.

    \b
    Example:
        hbench train-curves mnist16 runs/mnist16/train --out runs/curves
    """
    from hbench.evaluation.curves import compare, read_curves
    from hbench.reporting.charts import draw_run_curves
    from hbench.runtime.device import pick_device
    from hbench.store.files import sha256
    from hbench.store.provenance import provenance
    from hbench.store.run import locate

    place = pick_device(device)
    curves = read_curves(runs)
    table = compare(curves)
    claim_folder(out, overwrite=overwrite)
    sources = [
        {
            "run": str(run),
            "metrics_sha256": sha256(locate(run) / "metrics.csv"),
            "experiment": each.experiment.model_dump(),
        }
        for run, each in zip(runs, curves, strict=True)
    ]
    origin = provenance(None, place, seed, runs=sources)
    draw_run_curves(curves, table["settings"], out / "train-curves.png")
    write_results(out, "train-curves", {"runs": table.to_dict("records")}, table, origin)
    click.echo(table[["run", "steps", "n", "accuracy", "D_raw", "D_shifted"]].round(4).to_string(index=False))
    click.echo(f"see {out / 'train-curves.png'}", err=True)


def parse_seeds(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Distinct non-negative integers from "0,1,2"."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise click.BadParameter('write distinct non-negative integers, as in "0,1,2"')
    return tuple(int(part) for part in parts)


@click.command()
@experiment_options
@click.option("--model", type=click.Path(path_type=Path), help="Weights [default: runs/EXPERIMENT/pretrain].")
@click.option(
    "--over", multiple=True, metavar="KEY=VALUE,...", help="Instead: EXPERIMENT with each of these values; repeatable."
)
@click.option("--seeds", default="0,1,2", show_default=True, callback=parse_seeds, help="Of the trainings.")
@click.option("--pairs", "count", type=click.IntRange(min=1), default=1000, show_default=True, help="To measure with.")
@click.option("--lenet", type=click.Path(path_type=Path), help='Made by "hbench lenet" [default: the shipped one].')
@click.option(
    "--out", type=click.Path(path_type=Path), help="Output folder [default: runs/EXPERIMENT/ablations, or settings]."
)
@training_options
@run_options
def ablations(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    model: Path | None,
    over: tuple[str, ...],
    seeds: tuple[int, ...],
    count: int,
    lenet: Path | None,
    out: Path | None,
    resume: bool,
    max_minutes: float | None,
    device: str,
    seed: int,
) -> None:
    """Train and measure variants of EXPERIMENT.

    In full, with l1 or nothing in place of D (Fig. 3), and with gradients per step (Sec. 4.4).

    With --over the variants are EXPERIMENT as it is and with each value in turn: what does a setting do?
    --resume skips finished runs, goes on with the others, and measures all of them again. --seed is that of the pairs
    to measure with. Images without a digit LeNet get no FD.

    \b
    Example:
        hbench ablations mnist16-ablations --model mnist16 --seeds 0,1,2
        hbench ablations mnist16-ablations --model mnist16 --over discovery.lambda_adv=0.1,3 --over discovery.S=2
    """
    from hbench.experiments import load_experiment, one_at_a_time, override

    settings = load_experiment(experiment, overrides)
    asked = one_at_a_time(over) if over else {}
    for changes in asked.values():
        override(settings, changes)  # refuses a wrong one before any is trained
    if dry_run:
        print_experiment(settings)
        return
    from hbench.evaluation.ablations import PAPER, choose_lenet, measure_variants, summarise, train_variants
    from hbench.reporting.charts import draw_ablations, draw_curves
    from hbench.reporting.grids import draw_directions
    from hbench.runtime.device import pick_device
    from hbench.store.files import sha256, write_text
    from hbench.store.provenance import provenance
    from hbench.store.run import model_to_train_on
    from hbench.store.weights import save_weights, tensors_sha256, write_experiment

    place = pick_device(device)
    variants = asked or PAPER
    folder = out or Path("runs") / settings.name / ("settings" if over else "ablations")
    network = model_to_train_on(model, folder, settings, resume)
    weights = choose_lenet(lenet, settings, count)
    if not weights:
        click.echo("no digit LeNet for these images, so no FD: --lenet takes one of hbench lenet", err=True)
    claim_folder(folder, resume=resume)
    origin = provenance(settings, place, seed, variants=variants, training_seeds=seeds)
    write_experiment(folder, settings)
    if not (folder / "model.safetensors").is_file():
        save_weights(folder / "model.safetensors", network, settings, "model", settings.pretrain.weights)
    if not train_variants(
        settings, network, variants, seeds, folder, device=place, max_minutes=max_minutes, draw=draw_curves
    ):
        return
    result = measure_variants(folder, list(variants), seeds, device=place, lenet=weights, count=count, seed=seed)
    summary = summarise(result.table)
    title = f"{settings.title}, {settings.discovery.steps} steps, batch {settings.discovery.batch_size}"
    n = f"{len(seeds)} training seed{'s' * (len(seeds) > 1)}, n = {count} pairs each"
    draw_ablations(result.table, f"{title}, {n}", folder / "ablations.png")
    title += f", training seed {seeds[0]}"
    spans = {override(settings, changes).discovery.S for changes in variants.values()}
    S = settings.discovery.S if len(spans) == 1 else None
    columns = len(result.images) // len(variants)
    draw_directions(result.images, result.labels, S, title, folder / "directions.png", columns)
    write_text(folder / "summary.csv", summary.to_csv(index=False))
    hashes = {path.stem: sha256(path) for path in (folder / "model.safetensors", weights) if path}
    values = {"runs": result.table.to_dict("records"), "summary": summary.to_dict("records")}
    trained_on = tensors_sha256(folder / "model.safetensors")
    details = {"n": count, "weights_sha256": hashes, "model_tensors_sha256": trained_on}
    write_results(folder, "ablations", values, result.table, origin, **details)
    click.echo(summary.round(4).to_string(index=False))
    click.echo(f"see {folder / 'ablations.png'} and {folder / 'directions.png'}", err=True)
