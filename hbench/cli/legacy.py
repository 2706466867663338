"""Options that several commands share, and how every command writes its results."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hbench.runtime.distributed import check_processes, rank
from hbench.runtime.progress import show_progress

if TYPE_CHECKING:
    from pandas import DataFrame

    from hbench.config import Experiment
    from hbench.store.run import Run

Command = TypeVar("Command", bound=Callable[..., Any])


def combined(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click decorators as one."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


run_argument = click.argument("run", type=click.Path(path_type=Path))
result_options = combined(
    click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: inside the run's]."),
    click.option("--overwrite", is_flag=True, help="Replace results that are already there."),
)
experiment_options = combined(
    click.argument("experiment"),
    click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable."
    ),
    click.option("-n", "--dry-run", is_flag=True, help="Print the resolved configuration and stop."),
)
data_options = combined(
    click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data set [env: HBENCH_DATA]."),
    click.option("--download", is_flag=True, help="Let torchvision download MNIST if it is missing."),
)
training_options = combined(
    click.option("--resume", is_flag=True, help="Go on in --out, where a training was stopped or killed."),
    click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Stop cleanly after this time."),
)
run_options = combined(
    click.option("--device", default="auto", show_default=True, help='"auto", "cpu", "cuda" or "cuda:N".'),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random."),
    click.option(
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=lambda ctx, param, value: show_progress(not value),
        help="Show no progress.",
    ),
)


processes_option = click.option(
    "--processes",
    type=click.IntRange(min=1),
    expose_value=False,
    callback=lambda ctx, param, value: check_processes(value, ctx.obj),
    help="Refuse to run unless torchrun started so many.",
)
"""Of the commands that several processes can share: the others refuse to run under torchrun."""


def check_steps(experiment: "Experiment", steps: int | None, option: str) -> None:
    """Refuses more generation steps than there are timesteps."""
    if steps and steps > experiment.diffusion.T:
        raise click.BadParameter(f"at most {experiment.diffusion.T}, the number of timesteps", param_hint=option)


def of_steps(name: str, experiment: "Experiment", M: int) -> str:
    """The name of a result, with the number of generation steps where it is not the run's own."""
    return name if M == experiment.discovery.M else f"{name}-{M}-steps"


def result_folder(run: Path) -> Path:
    """Where a run's results lie: in its own folder, or under runs/ for a run shipped with hbench."""
    from hbench.store.run import locate

    return run if locate(run) == run else Path("runs") / f"shipped-{run.name}"


def claim_folder(folder: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Makes an output folder, and keeps it for this process until the command ends; see ``claimed_folder``.

    Of several processes, the one that writes does it for all.
    """
    from hbench.store.folders import claimed_folder

    if rank():
        return
    click.get_current_context().with_resource(claimed_folder(folder, overwrite=overwrite, resume=resume))


def claim_results(run: Path, name: str, out: Path | None, overwrite: bool) -> Path:
    """The claimed output folder of a result."""
    folder = out or result_folder(run) / name
    claim_folder(folder, overwrite=overwrite)
    return folder


def open_results(
    loaded: "Run", run: Path, name: str, out: Path | None, overwrite: bool, seed: int, **details: Any
) -> tuple[Path, Any]:
    """The claimed folder of a loaded run's result, and the provenance as of now, with details of the result."""
    from hbench.store.provenance import provenance

    folder = claim_results(run, name, out, overwrite)
    return folder, provenance(loaded.experiment, loaded.device, seed, weights_sha256=loaded.hashes, **details)


def write_results(
    folder: Path, name: str, result: dict[str, Any], table: "DataFrame", origin: Any, **details: Any
) -> None:
    """Writes a result as JSON and CSV, with its provenance and the given details of it beside them."""
    from hbench.store.files import write_json, write_text
    from hbench.store.provenance import FILE

    write_json(folder / f"{name}.json", {"schema": 1, **result})
    write_text(folder / f"{name}.csv", table.to_csv(index=False))
    origin.finished(**details).write(folder / FILE)


def print_experiment(settings: Any) -> None:
    """Prints a resolved experiment as JSON, after its paper-style name."""
    click.echo(settings.title, err=True)
    click.echo(settings.model_dump_json(indent=2))
