"""The demo command."""

from pathlib import Path

import click

from hbench.cli.options import run_options


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Of the fresh discovery.")
@run_options
def demo(out: Path, overwrite: bool, steps: int, device: str, seed: int, quiet: bool) -> None:
    """Show the shipped directions, then discover new ones on the shipped model; about ten minutes on a laptop.

    \b
    Example:
        hbench demo
    """
    from hbench.demo import show
    from hbench.device import pick_device
    from hbench.runs import claim_folder

    place = pick_device(device)
    claim_folder(out, overwrite=overwrite)
    show(out, steps=steps, seed=seed, device=place, quiet=quiet)
