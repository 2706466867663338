"""The command line: each command checks its options, calls one function, and prints the result.

Numbers go to stdout, everything else to stderr. torch is imported inside the commands, so that help is instant.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hbench import __version__
from hbench.errors import HBenchError

Command = TypeVar("Command", bound=Callable[..., Any])


class Group(click.Group):
    """The group that turns every HBenchError into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HBenchError as error:
            raise click.ClickException(str(error)) from error


def combined(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click decorators as one."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


experiment_options = combined(
    click.argument("experiment"),
    click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable."),
    click.option("-n", "--dry-run", is_flag=True, help="Print the resolved configuration and stop."),
)
data_options = combined(
    click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data set [env: HBENCH_DATA]."),
    click.option("--download", is_flag=True, help="Let torchvision download MNIST if it is missing."),
)
training_options = combined(
    click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out."),
    click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Stop cleanly after this time."),
)
run_options = combined(
    click.option("--device", default="auto", show_default=True, help='"auto", "cpu", "cuda" or "cuda:N".'),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random."),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hbench")
def main() -> None:
    """Find interpretable directions in the h-space of frozen diffusion models, and measure them."""


@main.command()
@experiment_options
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: runs/EXPERIMENT/pretrain].")
@data_options
@training_options
@run_options
def pretrain(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    out: Path | None,
    data_root: Path | None,
    download: bool,
    resume: bool,
    max_minutes: float | None,
    device: str,
    seed: int,
    quiet: bool,
) -> None:
    """Train the diffusion model of EXPERIMENT on its images.

    \b
    Example:
        hbench pretrain digits16 --max-minutes 10
    """
    from hbench.config import load_experiment

    settings = load_experiment(experiment, overrides)
    if dry_run:
        print_experiment(settings)
        return
    from hbench.data import load_images
    from hbench.device import pick_device
    from hbench.pretrain import pretrain as train_model
    from hbench.runs import claim_folder

    place = pick_device(device)
    images = load_images(settings.data, data_root, download=download)
    folder = out or Path("runs") / settings.name / "pretrain"
    claim_folder(folder, overwrite=resume)
    if train_model(
        settings, images, folder, seed=seed, device=place, resume=resume, max_minutes=max_minutes, quiet=quiet
    ):
        click.echo(folder / "model.safetensors")


@main.command()
@experiment_options
@click.option("--model", type=click.Path(path_type=Path), help="Weights [default: runs/EXPERIMENT/pretrain].")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: runs/EXPERIMENT/train].")
@training_options
@run_options
def train(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    model: Path | None,
    out: Path | None,
    resume: bool,
    max_minutes: float | None,
    device: str,
    seed: int,
    quiet: bool,
) -> None:
    """Discover directions in the h-space of EXPERIMENT's frozen diffusion model.

    --model takes a folder or file of hbench (or the name of a shipped run), or a .pt state dict of guided-diffusion.

    \b
    Example:
        hbench train mnist16 --model mnist16 --set discovery.K=8
    """
    from hbench.config import load_experiment

    settings = load_experiment(experiment, overrides)
    if dry_run:
        print_experiment(settings)
        return
    from hbench.device import pick_device
    from hbench.load import load_model
    from hbench.runs import claim_folder
    from hbench.train import train as discover

    place = pick_device(device)
    network = load_model(model or Path("runs") / settings.name / "pretrain", settings)
    folder = out or Path("runs") / settings.name / "train"
    claim_folder(folder, overwrite=resume)
    if discover(
        settings, network, folder, seed=seed, device=place, resume=resume, max_minutes=max_minutes, quiet=quiet
    ):
        click.echo(folder)


def print_experiment(settings: Any) -> None:
    """Prints a resolved experiment as JSON, after its paper-style name."""
    click.echo(settings.title, err=True)
    click.echo(settings.model_dump_json(indent=2))
