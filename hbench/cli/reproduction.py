"""The command that makes every artifact of the paper for one experiment, by calling the other commands."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.legacy import claim_folder, data_options, run_options
from hbench.errors import HBenchError
from hbench.runtime.progress import progress_is_shown

if TYPE_CHECKING:
    from hbench.config import Experiment

MADE_OF = "reproduced.json"
"""The settings and the weights that everything in the folder is made of."""
REAL_IMAGES = 6
"""That are edited."""


@dataclass(frozen=True)
class Task:
    """A command, and the folder that it writes."""

    command: list[str]
    """After ``hbench``, without --out."""
    folder: Path
    resumable: bool = False
    """Whether the command takes --resume."""
    missing: str | None = None
    """Why it cannot be run."""
    essential: bool = False
    """Whether all later ones are made of it."""
    weights: dict[str, str] | None = None
    """SHA-256 of the weights that it measures, as its provenance should have them."""

    @property
    def arguments(self) -> list[str]:
        """The whole command line."""
        return [*self.command, "--out", str(self.folder)]

    def done(self) -> bool:
        """Whether the folder holds the complete result of this very command."""
        from hbench.store.files import read_json

        file = self.folder / "provenance.json"
        if not file.is_file():
            return False
        origin = read_json(file)
        without_effect = {"--resume", "--overwrite", "--quiet"}
        made_by, wanted = (
            [word for word in words if word not in without_effect]
            for words in (shlex.split(origin["command"])[1:], self.arguments)
        )
        same_weights = self.weights is None or origin["weights_sha256"] == self.weights
        return made_by == wanted and same_weights and origin.get("complete", True)


@click.command()
@click.argument("experiment")
@click.option("--run", type=click.Path(path_type=Path), help="Run to measure [default: the one shipped by that name].")
@click.option("--from-scratch", is_flag=True, help="Train the model and its directions first.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: runs/reproduce/EXPERIMENT].")
@click.option("--overwrite", is_flag=True, help="Replace results of other commands.")
@data_options
@run_options
@click.pass_context
def reproduce(
    ctx: click.Context,
    experiment: str,
    run: Path | None,
    from_scratch: bool,
    out: Path | None,
    overwrite: bool,
    data_root: Path | None,
    download: bool,
    device: str,
    seed: int,
) -> None:
    """Make every artifact of the paper for EXPERIMENT.

    Each artifact is one command, printed before it runs, in a folder of its own; a page shows them all. Called again,
    it goes on where it stopped: what is done is not done again. What cannot be run, without data for example, is
    marked so on the page. Digits that the shipped LeNet does not fit get one of their own first.

    \b
    Example:
        hbench reproduce mnist16 --data-root DATA
        hbench reproduce digits16 --from-scratch
    """
    from hbench.experiments import load_experiment
    from hbench.reporting.report import REASONS, collect, write_pages
    from hbench.store.files import read_json, write_json
    from hbench.store.run import SHIPPED, run_hashes

    if run and from_scratch:
        raise click.UsageError("give --run or --from-scratch, not both")
    settings = load_experiment(experiment)
    if not from_scratch and run is None and not (SHIPPED / settings.name).is_dir():
        raise HBenchError(f"no run of {settings.name} is shipped: give one with --run, or add --from-scratch")
    folder = out or Path("runs") / "reproduce" / settings.name
    claim_folder(folder, overwrite=True)
    origin = {
        "experiment": settings.model_dump(mode="json"),
        "weights_sha256": {} if from_scratch else run_hashes(run or Path(settings.name)),
    }
    if (folder / MADE_OF).is_file() and read_json(folder / MADE_OF) != origin:
        raise HBenchError(f"{folder}: was made of another run or with other settings: choose another --out")
    write_json(folder / MADE_OF, origin)
    common = ["--device", device, "--seed", str(seed)] + ([] if progress_is_shown() else ["--quiet"])

    reasons = {"mos/score": 'it needs people: hand out the sheets of "hbench mos export", then "hbench mos score"'}
    if settings.data.dataset != "folder":
        reasons["fid-inception-v3-compat"] = "Inception knows no digits: the FD in LeNet features stands in"
    todo = tasks(settings, experiment, run, folder, data_root, download, common, from_scratch)
    for number, task in enumerate(todo, start=1):
        click.echo(f"[{number}] hbench {shlex.join(task.arguments)}", err=True)
        reason = task.missing
        if not reason and task.done():
            click.echo("    done before", err=True)
            continue
        if not reason:
            reason = perform(ctx, task, overwrite)
        if reason and task.essential:
            raise HBenchError(f"hbench {task.command[0]}: {reason}")
        if reason:
            reasons[task.folder.name] = reason
            click.echo(f"    not run: {reason}", err=True)
        write_json(folder / REASONS, reasons)
        if not reason and not task.done():
            raise HBenchError("stopped: go on with the same command")
    write_pages([collect(folder)], folder)
    click.echo(folder / "report.html")


def perform(ctx: click.Context, task: Task, overwrite: bool) -> str | None:
    """Calls the task's command as a user would, and returns the one line of its failure, if it failed.

    Raises:
        HBenchError: the folder holds the complete result of another command or of other weights, and may not be
            overwritten.
    """
    begun = task.folder.is_dir() and any(task.folder.iterdir())
    if (task.folder / "provenance.json").is_file() and not task.resumable and not overwrite:
        raise HBenchError(
            f"{task.folder}: was made by another command or of other weights: choose another --out, or add --overwrite"
        )
    again = [] if not begun else ["--resume"] if task.resumable else ["--overwrite"]
    arguments = [*task.arguments, *again]
    own = sys.argv
    sys.argv = ["hbench", *arguments]  # what the provenance records
    try:
        ctx.find_root().command.main(arguments, prog_name="hbench", standalone_mode=False)
    except click.ClickException as error:
        return error.format_message().splitlines()[0]
    finally:
        sys.argv = own
    return None


def tasks(
    settings: "Experiment",
    experiment: str,
    run: Path | None,
    folder: Path,
    data_root: Path | None,
    download: bool,
    common: list[str],
    from_scratch: bool,
) -> Iterator[Task]:
    """The commands in order. Later ones are made of the results of earlier ones, so run each before asking on."""
    from hbench.core.images import to_float
    from hbench.evaluation.lenet import FILE, fits
    from hbench.experiments import experiments_folder
    from hbench.store.datasets import load_reference
    from hbench.store.files import read_json
    from hbench.store.pictures import save_image
    from hbench.store.run import SHIPPED, run_hashes

    data = (["--data-root", str(data_root)] if data_root else []) + (["--download"] if download else [])
    name = str(run or experiment)
    labelled = settings.data.dataset in ("mnist", "digits")
    lenet: list[str] = []  # its weights, where they are not the shipped ones
    if from_scratch:
        model, name = folder / "pretrain", str(folder / "train")
        yield Task(["pretrain", experiment, *data, *common], model, resumable=True, essential=True)
        yield Task(["train", experiment, "--model", str(model), *common], Path(name), resumable=True, essential=True)
    no_lenet = None
    if labelled and (from_scratch or not fits(SHIPPED / "mnist16" / FILE, settings.data)):
        yield Task(["lenet", experiment, *data, *common], folder / "lenet", essential=from_scratch)
        if (folder / "lenet" / FILE).is_file():
            lenet = [str(folder / "lenet" / FILE)]
        else:
            no_lenet = f'no LeNet for these images: "hbench lenet {experiment}" says why'

    hashes = run_hashes(Path(name))
    yield Task(["rca", name, *common], folder / "rca", essential=True, weights=hashes)
    rca = folder / "rca" / "rca.json"
    yield Task(["traverse", name, "--rca", str(rca), *common], folder / "traverse", weights=hashes)
    extractor = "lenet-digits" if labelled else "inception-v3-compat"
    weights = ["--weights", *lenet] if lenet else []
    fid = ["fid", name, "--feature-extractor", extractor, *weights, *data, *common]
    yield Task(fid, folder / f"fid-{extractor}", missing=no_lenet, weights=hashes)
    yield Task(["train-curves", name], folder / "train-curves")
    yield Task(["properties", name, *common], folder / "properties", weights=hashes)

    missing = None
    try:
        real = load_reference(settings.data, data_root, download)
    except HBenchError as error:
        missing = f"no data: {error}"
        best = ["0", "1"]
    else:
        for i, image in enumerate(real[:REAL_IMAGES]):
            save_image(to_float(image), folder / "real-images" / f"{i}.png")
        accuracy = read_json(rca)["per_direction"]
        best = [str(k) for k in sorted(range(len(accuracy)), key=lambda k: -accuracy[k])[:2]]
    s = f"{settings.discovery.S / 2:g}"
    shifts = [word for k in best for word in ("--shift", f"{k}={s}")]
    edit = ["edit", name, str(folder / "real-images"), *shifts, *common]
    yield Task(edit, folder / "edit", missing=missing, weights=hashes)

    yield Task(["vram-sweep", experiment, *common], folder / "vram-sweep", resumable=True)
    small = f"{settings.name}-ablations"
    ablated = small if (experiments_folder() / f"{small}.toml").is_file() else experiment
    weights = ["--lenet", *lenet] if lenet else []
    yield Task(["ablations", ablated, "--model", name, *weights, *common], folder / "ablations", resumable=True)
    yield Task(["mos", "export", name, *common], folder / "mos")
