"""``hbench reproduce``: every artifact of the paper for one experiment, by the commands that make them."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hbench.cli.options import Options, a_path, data_options, out_of, overwrite_option, run_options, shared
from hbench.cli.tasks import TRAININGS, Job, Task, tasks
from hbench.cli.words import in_options, options_of
from hbench.errors import HBenchError
from hbench.runtime.progress import duration

if TYPE_CHECKING:
    from hbench.config import Experiment
    from hbench.reporting.report import Reproduced
    from hbench.store.provenance import Provenance

MADE_OF = "reproduced.json"
"""Name of the file with the settings and the weights that a folder is made of."""


@click.command()
@click.argument("experiment")
@click.option(
    "--run",
    type=a_path,
    help="Run to measure [default: the shipped one of that name, or runs/EXPERIMENT/train, first for a file].",
)
@click.option("--from-scratch", is_flag=True, help="Train the model and its directions first.")
@shared(out_of("those of the commands"), overwrite_option, data_options, run_options)
@click.pass_context
def reproduce(ctx: click.Context, experiment: str, run: Path | None, from_scratch: bool, options: Options) -> None:
    """Make every artifact of the paper, and one page of them all.

    Each artifact is one command, printed before it runs, and lies in the default folder of that command; with --out all
    of them lie there. Finished results of this run are taken as they are, so that a reproduction goes on where it
    stopped. The page lies where "hbench report" puts it. An artifact that cannot be made, without data for example, is
    marked so on the page. Labelled images without a shipped classifier get their own first.

    \b
    Example:
        hbench reproduce mnist16 --data-root DATA
        hbench reproduce digits16 --from-scratch
    """
    from hbench.reporting.report import REASONS, NotRun, collect, write_pages
    from hbench.store.registry import factors_of

    given = ctx.get_parameter_source("seed") is not click.core.ParameterSource.DEFAULT
    job = _job(experiment, run, from_scratch, options, options.seed if given else None)
    reasons = {"mos/score": 'it needs people: hand out the sheets of "hbench mos export", then "hbench mos score"'}
    if factors_of(job.experiment.data):
        reasons["fid-inception-v3-compat"] = "Inception knows no such images: the FD of a classifier of them stands in"
    for number, task in enumerate([task for task in tasks() if task.wanted(job)], start=1):
        if reason := _do(ctx, job, task, number, reasons):
            reasons[task.folder] = reason
            click.echo(f"    not run: {reason}", err=True)
    NotRun(reasons=reasons).write(job.folder / REASONS)
    write_pages([collect(options.out or job.measured)], job.folder)
    click.echo(job.folder / "report.html")


def _job(source: str, run: Path | None, from_scratch: bool, options: Options, seed: int | None) -> Job:
    """Return the reproduction, the folder of --out claimed.

    Raises:
        HBenchError: there is no run, it is of another experiment, or the folder was made of something else.
    """
    from dataclasses import replace

    from hbench.experiments import load_experiment
    from hbench.store.places import TRAINED, experiment_folder
    from hbench.store.registry import check_data
    from hbench.store.run_files import locate
    from hbench.store.shipped import shipped_runs

    if run and from_scratch:
        raise click.UsageError("give --run or --from-scratch, not both")
    settings = load_experiment(source)
    check_data(settings.data)
    if not from_scratch and run is None:
        own = experiment_folder(settings.name) / "train"
        is_own = source != settings.name and (own / TRAINED).is_file()  # a file may be called like a shipped run
        run = Path(settings.name) if settings.name in shipped_runs() and not is_own else own
    if run and not (locate(run) / TRAINED).is_file():
        raise HBenchError(f"{run}: no finished run there: give one with `run`, or add `from_scratch=True`")
    changed: list[str] = []
    if run:
        settings, changed = _as_trained(settings, source, run, options)
    job = Job(settings, source, run, options, seed, changed)
    if options.out:
        _check_made_of(job, replace(options, overwrite=True).claim(options.out))
    if options.out or run:  # else the folder is that of the training, which must be empty
        _made_of(job).write(job.folder / MADE_OF)
    return job


def _as_trained(experiment: "Experiment", source: str, run: Path, options: Options) -> "tuple[Experiment, list[str]]":
    """Return an experiment with the images and the diffusion model of a run, and the options that make it so.

    Raises:
        HBenchError: not a run, or one of an experiment of another name, whose results lie elsewhere.
    """
    from hbench.experiments import changes, override
    from hbench.store.places import TRAINED
    from hbench.store.run_files import locate
    from hbench.store.weights import read_experiment

    trained = read_experiment(locate(run) / TRAINED)
    if trained.name != experiment.name and not options.out:
        raise HBenchError(
            f"{run}: is a run of {trained.name}, not of {experiment.name}: name that experiment, or choose an `out`"
        )
    changed = changes(trained, source)
    differing = {
        f"discovery.{key}={value!r}"
        for key, value in trained.discovery.model_dump().items()
        if getattr(experiment.discovery, key) != value
    }
    if changed or differing:
        click.echo(f"{run}: was trained with {', '.join([*changed, *sorted(differing)])}", err=True)
    return override(experiment, changed), [word for each in changed for word in ("--set", each)]


def _made_of(job: Job) -> "Reproduced":
    from hbench.reporting.report import Reproduced
    from hbench.store.run_files import run_hashes

    hashes = {} if job.run is None else run_hashes(job.run)
    return Reproduced(experiment=job.experiment.model_dump(mode="json"), weights_sha256=hashes)


def _check_made_of(job: Job, folder: Path) -> None:
    """Raise an HBenchError where a folder was made of another run or with other settings."""
    from dataclasses import replace

    from hbench.experiments import parse_experiment
    from hbench.reporting.report import Reproduced

    if not (folder / MADE_OF).is_file():
        return
    before = Reproduced.read(folder / MADE_OF)
    # read back, so that a setting that an older hbench did not know has its default
    known = parse_experiment(before.experiment, str(folder / MADE_OF)).model_dump(mode="json")
    if replace(before, experiment=known) != _made_of(job):
        raise HBenchError(f"{folder}: was made of another run or with other settings: choose another `out`")


def _do(ctx: click.Context, job: Job, task: Task, number: int, reasons: dict[str, str]) -> str | None:
    """Do a task unless it is done. Return the reason if it was not run, in one line.

    Raises:
        HBenchError: an essential task failed, one was stopped, or its folder holds something else.
    """
    missing = [name for name in task.needs if name in reasons]
    try:
        if missing:
            raise HBenchError(f"needs {missing[0]}, which was not run")
        arguments = task.words(job)
    except HBenchError as error:
        click.echo(f"[{number}] {task.folder}", err=True)
        return in_options(" ".join(str(error).split()), options_of(ctx.command))
    if job.options.out:
        arguments += ["--out", str(job.place(task.folder))]
    click.echo(f"[{number}] hbench {shlex.join(arguments)}", err=True)
    if made_by := done(job, task):
        click.echo(f"    done before, by {made_by}", err=True)
        return None
    began = time.monotonic()
    reason = _call(ctx, job, task, arguments)
    click.echo(f"    took {duration(time.monotonic() - began)}", err=True)
    if reason and task.essential(job):
        raise HBenchError(f"hbench {arguments[0]}: {reason}")
    if not reason and not done(job, task):
        raise HBenchError("stopped: go on with the same command")
    return reason


def done(job: Job, task: Task) -> str | None:
    """Return the command that made the complete result of a task for this run and experiment; None if there is none.

    Raises:
        HBenchError: the result does not say of which weights it is.
    """
    from hbench.reporting.artifacts import ARTIFACTS
    from hbench.reporting.lookup import other_settings
    from hbench.store.provenance import FILE, Provenance
    from hbench.store.run_files import run_hashes

    file = job.place(task.folder) / FILE
    if not file.is_file():
        return None
    origin = Provenance.read(file)
    if any(artifact.of_run for artifact in ARTIFACTS if artifact.folder == task.folder):
        if "weights_sha256" not in origin.details:
            raise HBenchError(f"{file}: does not say which weights were measured: record them as weights_sha256")
        same = origin.is_of(run_hashes(job.measured))
    else:
        same = not other_settings(origin, job.experiment, section=TRAININGS.get(task.folder))
    other_seed = None not in (job.seed, origin.seed) and job.seed != origin.seed
    is_done = same and not other_seed and bool(origin.details.get("complete", True)) and _of_same_images(job, origin)
    return (origin.command or "a call from Python") if is_done else None


def _of_same_images(job: Job, origin: "Provenance") -> bool:
    """Return False if a result is of other images than those in the given folder, which is read if it is another."""
    from hbench.store.datasets import load_set

    root, before = job.options.data_root, origin.details.get("data", {})
    if not root or not before or str(root) in shlex.split(origin.command or ""):
        return True
    now = load_set(job.experiment.data, root, before["split"], job.options.download).account
    return bool(now.sha256 == before["sha256"])


def _call(ctx: click.Context, job: Job, task: Task, arguments: list[str]) -> str | None:
    """Call a command as a user would. Return the line of its error if it failed."""
    from hbench.store.provenance import FILE

    folder = job.place(task.folder)
    begun = folder.is_dir() and any(folder.iterdir())
    if (folder / FILE).is_file() and not task.resumable and not job.options.overwrite:
        raise HBenchError(
            f"{folder}: is of other weights, settings or another seed: choose another `out`, or add `overwrite=True`"
        )
    again = [] if not begun else ["--resume"] if task.resumable else ["--overwrite", "--out", str(folder)]
    program: Any = ctx.find_root().command
    try:
        program.main([*arguments, *again], prog_name="hbench", standalone_mode=False)
    except click.ClickException as error:
        return error.format_message().splitlines()[0]
    return None
