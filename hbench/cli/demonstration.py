"""The demo: what hbench ships, and what it finds from scratch in a few minutes."""

from pathlib import Path

import click

from hbench.cli.legacy import claim_folder, run_options
from hbench.cli.rca import rca
from hbench.cli.train_curves import train_curves
from hbench.cli.traverse import traverse

SHIPPED = Path("mnist16")
PAIRS, EXAMPLES = 1000, 4


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Of the fresh discovery.")
@run_options
@click.pass_context
def demo(ctx: click.Context, out: Path, overwrite: bool, steps: int, device: str, seed: int) -> None:
    """Show the shipped directions, then discover new ones.

    All on the shipped model, offline, in about ten minutes on a laptop.

    \b
    Example:
        hbench demo
    """
    from hbench.cli.demo import discover, fresh_experiment
    from hbench.reporting.charts.training import draw_growth
    from hbench.reporting.report import collect, write_pages
    from hbench.runtime.device import pick_device

    place = pick_device(device)
    claim_folder(out, overwrite=overwrite)
    common = {"overwrite": overwrite, "device": device, "seed": seed}

    def measure(run: Path, folder: Path) -> None:
        ctx.invoke(rca, run=run, pairs=PAIRS, out=folder / "rca", **common)
        measured = folder / "rca" / "rca.json"
        ctx.invoke(traverse, run=run, measured=measured, examples=EXAMPLES, out=folder / "traverse", **common)

    click.echo("1. The shipped run, directions of MNIST digits")
    measure(SHIPPED, out / "shipped")

    experiment = fresh_experiment(SHIPPED, steps)
    fresh = out / "fresh"
    click.echo(f"2. A fresh discovery, {experiment.title}, {steps} steps from scratch")
    grown = discover(experiment, SHIPPED, fresh, seed=seed, device=place, overwrite=overwrite)
    if grown is None:
        return
    measure(fresh, fresh)
    draw_growth(grown, fresh / "rca" / "growth.png")
    ctx.invoke(train_curves, runs=(fresh,), out=fresh / "train-curves", overwrite=overwrite)
    write_pages([collect(out / "shipped"), collect(fresh)], out)

    click.echo("Open:")
    click.echo(f"   {out / 'report.html'}    everything on one page")
    click.echo(f"   {out / 'shipped' / 'traverse' / 'directions.png'}    what hbench ships")
    click.echo(f"   {fresh / 'traverse' / 'directions.png'}    what was found just now")
    click.echo(f"   {fresh / 'growth'}    how it grew")
