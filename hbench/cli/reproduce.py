"""``hbench reproduce``: every artifact of the paper for one experiment, by the commands that make them."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hbench.cli.options import Options, a_path, data_options, out_of, overwrite_option, run_options, shared
from hbench.errors import HBenchError
from hbench.runtime.progress import progress_is_shown

if TYPE_CHECKING:
    from hbench.config import Experiment

MADE_OF = "reproduced.json"
"""Name of the file with the settings and the weights that everything in the folder is made of."""
REAL_IMAGES = 6
"""Number of real images that are edited."""
WITHOUT_EFFECT = {"--resume", "--overwrite", "--quiet"}
"""Options that change no result."""


@dataclass(frozen=True)
class Job:
    """A reproduction: experiment, run and folder."""

    experiment: "Experiment"
    source: str
    """EXPERIMENT as it was given."""
    run: Path | None
    """Run to measure; None for the one that is trained first."""
    folder: Path
    options: Options = field(default_factory=Options)

    @property
    def measured(self) -> str:
        """Run that is measured, as commands take it."""
        return str(self.run or self.folder / "train")

    @property
    def data(self) -> list[str]:
        """Options with the location of the images."""
        root = ["--data-root", str(self.options.data_root)] if self.options.data_root else []
        return root + (["--download"] if self.options.download else [])

    @property
    def common(self) -> list[str]:
        """Options of nearly every command."""
        words = ["--device", self.options.device, "--seed", str(self.options.seed)]
        return words if progress_is_shown() else [*words, "--quiet"]

    def own_lenet(self) -> Path | None:
        """Return the LeNet that was trained here, where the shipped one does not serve."""
        from hbench.store.lenet import FILE

        file = self.folder / "lenet" / FILE
        return file if file.is_file() else None

    def needs_lenet(self) -> bool:
        """Return True if the digits need a LeNet of their own."""
        from hbench.store.lenet import SHIPPED_LENET, fits

        return self.experiment.data.is_digits and (self.run is None or not fits(SHIPPED_LENET, self.experiment.data))


@dataclass(frozen=True)
class Task:
    """One command of a reproduction."""

    folder: str
    """Folder of its result, inside the reproduction's."""
    words: Callable[[Job], list[str]]
    """Function (job) -> command line after ``hbench``, without --out; HBenchError with the reason if it cannot run."""
    needs: tuple[str, ...] = ()
    """Folders of the tasks whose results it is made of."""
    wanted: Callable[[Job], bool] = lambda job: True
    """Function (job) -> True if the task belongs to the reproduction."""
    resumable: bool = False
    """True if the command takes --resume."""
    essential: Callable[[Job], bool] = lambda job: False
    """Function (job) -> True if nothing goes on without the task."""


def _fid(extractor: str) -> Callable[[Job], list[str]]:
    def words(job: Job) -> list[str]:
        weights: list[str] = []
        if extractor == "lenet-digits" and job.needs_lenet():
            if not (lenet := job.own_lenet()):
                raise HBenchError(f'no LeNet for these images: "hbench lenet {job.source}" says why')
            weights = ["--weights", str(lenet)]
        return ["fid", job.measured, "--feature-extractor", extractor, *weights, *job.data, *job.common]

    return words


def _edit(job: Job) -> list[str]:
    """Return the command that edits real images along the two best recognised directions, after writing the images.

    Raises:
        HBenchError: no data.
    """
    from hbench.core.images import to_float
    from hbench.evaluation.rca import RCA
    from hbench.store.datasets import load_reference
    from hbench.store.pictures import save_image

    try:
        real = load_reference(job.experiment.data, job.options.data_root, job.options.download)
    except HBenchError as error:
        raise HBenchError(f"no data: {error}") from error
    for i, image in enumerate(real[:REAL_IMAGES]):
        save_image(to_float(image), job.folder / "real-images" / f"{i}.png")
    s = f"{job.experiment.discovery.S / 2:g}"
    best = RCA.load(job.folder / "rca").ranking()[:2]
    shifts = [word for k in best for word in ("--shift", f"{k}={s}")]
    return ["edit", job.measured, str(job.folder / "real-images"), *shifts, "--device", job.options.device, *_quiet()]


def _ablations(job: Job) -> list[str]:
    from hbench.experiments import known_experiments

    small = f"{job.experiment.name}-ablations"
    lenet = ["--lenet", str(file)] if (file := job.own_lenet()) else []
    experiment = small if small in known_experiments() else job.source
    return ["ablations", experiment, "--model", job.measured, *lenet, *job.data, *job.common]


def _quiet() -> list[str]:
    return [] if progress_is_shown() else ["--quiet"]


def _always(job: Job) -> bool:
    return True


def _from_scratch(job: Job) -> bool:
    return job.run is None


TASKS = (
    Task(
        "pretrain",
        lambda job: ["pretrain", job.source, *job.data, *job.common],
        wanted=_from_scratch,
        resumable=True,
        essential=_always,
    ),
    Task(
        "train",
        lambda job: ["train", job.source, "--model", str(job.folder / "pretrain"), *job.common],
        needs=("pretrain",),
        wanted=_from_scratch,
        resumable=True,
        essential=_always,
    ),
    Task(
        "lenet",
        lambda job: ["lenet", job.source, *job.data, "--seed", str(job.options.seed), *_quiet()],
        wanted=Job.needs_lenet,
        essential=_from_scratch,
    ),
    Task("rca", lambda job: ["rca", job.measured, *job.common], essential=_always),
    Task(
        "traverse",
        lambda job: ["traverse", job.measured, "--rca", str(job.folder / "rca" / "rca.json"), *job.common],
        needs=("rca",),
    ),
    Task("fid-lenet-digits", _fid("lenet-digits"), wanted=lambda job: job.experiment.data.is_digits),
    Task("fid-inception-v3-compat", _fid("inception-v3-compat"), wanted=lambda job: not job.experiment.data.is_digits),
    Task("train-curves", lambda job: ["train-curves", job.measured]),
    Task("properties", lambda job: ["properties", job.measured, *job.common]),
    Task("edit", _edit, needs=("rca",)),
    Task("vram-sweep", lambda job: ["vram-sweep", job.source, *job.common], resumable=True),
    Task("ablations", _ablations, resumable=True),
    Task("mos", lambda job: ["mos", "export", job.measured, *job.common]),
)
"""Tasks in their order: later ones are made of the results of earlier ones."""


def tasks() -> list[Task]:
    """Return all tasks: those above, and one for every other registered artifact, whose command takes the run."""
    from hbench.reporting.artifacts import ARTIFACTS

    listed = {task.folder for task in TASKS} | {"mos/score", "settings"}  # these wait for people, and for a question
    others = [each for each in ARTIFACTS if each.on_page and each.folder not in listed]
    return [*TASKS, *(_registered(artifact.folder, artifact.command) for artifact in others)]


def _registered(folder: str, command: str) -> Task:
    return Task(folder, lambda job: [*command.split(), job.measured, *job.common])


@click.command()
@click.argument("experiment")
@click.option("--run", type=a_path, help="Run to measure [default: the shipped one of that name].")
@click.option("--from-scratch", is_flag=True, help="Train the model and its directions first.")
@shared(out_of("runs/reproduce/EXPERIMENT"), overwrite_option, data_options, run_options)
@click.pass_context
def reproduce(ctx: click.Context, experiment: str, run: Path | None, from_scratch: bool, options: Options) -> None:
    """Make every artifact of the paper, and one page of them all.

    Each artifact is one command, printed before it runs, with a folder of its own. Called again, the reproduction goes
    on where it stopped. An artifact that cannot be made, without data for example, is marked so on the page. Digits
    that the shipped LeNet does not fit get a LeNet of their own first.

    \b
    Example:
        hbench reproduce mnist16 --data-root DATA
        hbench reproduce digits16 --from-scratch
    """
    from hbench.reporting.report import REASONS, NotRun, collect, write_pages

    job = _job(experiment, run, from_scratch, options)
    reasons = {"mos/score": 'it needs people: hand out the sheets of "hbench mos export", then "hbench mos score"'}
    if job.experiment.data.is_digits:
        reasons["fid-inception-v3-compat"] = "Inception knows no digits: the FD in LeNet features stands in"
    for number, task in enumerate([task for task in tasks() if task.wanted(job)], start=1):
        if reason := _do(ctx, job, task, number, reasons):
            reasons[task.folder] = reason
            click.echo(f"    not run: {reason}", err=True)
        NotRun(reasons=reasons).write(job.folder / REASONS)
    write_pages([collect(job.folder)], job.folder)
    click.echo(job.folder / "report.html")


def _job(source: str, run: Path | None, from_scratch: bool, options: Options) -> Job:
    """Return the reproduction, its folder claimed.

    Raises:
        HBenchError: no run is shipped and none was given, or the folder was made of something else.
    """
    from dataclasses import replace

    from hbench.experiments import load_experiment
    from hbench.reporting.report import Reproduced
    from hbench.store.run import SHIPPED, run_hashes

    if run and from_scratch:
        raise click.UsageError("give --run or --from-scratch, not both")
    settings = load_experiment(source)
    if not from_scratch and run is None:
        if not (SHIPPED / settings.name).is_dir():
            raise HBenchError(f"no run of {settings.name} is shipped: give one with `run`, or add `from_scratch=True`")
        run = Path(settings.name)
    folder = replace(options, overwrite=True).claim(Path("runs") / "reproduce" / settings.name)
    hashes = {} if run is None else run_hashes(run)
    made_of = Reproduced(experiment=settings.model_dump(mode="json"), weights_sha256=hashes)
    if (folder / MADE_OF).is_file() and Reproduced.read(folder / MADE_OF) != made_of:
        raise HBenchError(f"{folder}: was made of another run or with other settings: choose another `out`")
    made_of.write(folder / MADE_OF)
    return Job(settings, source, run, folder, options)


def _do(ctx: click.Context, job: Job, task: Task, number: int, reasons: dict[str, str]) -> str | None:
    """Do a task unless it is done. Return the reason if it was not run, in one line.

    Raises:
        HBenchError: an essential task failed, one was stopped, or its folder holds something else.
    """
    missing = [name for name in task.needs if name in reasons]
    try:
        if missing:
            raise HBenchError(f"needs {missing[0]}, which was not run")
        arguments = [*task.words(job), "--out", str(job.folder / task.folder)]
    except HBenchError as error:
        click.echo(f"[{number}] {task.folder}", err=True)
        return str(error)
    click.echo(f"[{number}] hbench {shlex.join(arguments)}", err=True)
    if done(job, task, arguments):
        click.echo("    done before", err=True)
        return None
    reason = _call(ctx, job, task, arguments)
    if reason and task.essential(job):
        raise HBenchError(f"hbench {arguments[0]}: {reason}")
    if not reason and not done(job, task, arguments):
        raise HBenchError("stopped: go on with the same command")
    return reason


def done(job: Job, task: Task, arguments: list[str]) -> bool:
    """Return True if the task's folder holds the complete result of this very command and of the run's weights."""
    from hbench.reporting.artifacts import ARTIFACTS
    from hbench.store.provenance import FILE, Provenance
    from hbench.store.run import run_hashes

    file = job.folder / task.folder / FILE
    if not file.is_file():
        return False
    origin = Provenance.read(file)
    made_by, wanted = (
        [word for word in words if word not in WITHOUT_EFFECT]
        for words in (shlex.split(origin.command or "")[1:], arguments)
    )
    measures_run = any(artifact.of_run for artifact in ARTIFACTS if artifact.folder == task.folder)
    if measures_run and "weights_sha256" not in origin.details:
        raise HBenchError(f"{file}: does not say which weights were measured: record them as weights_sha256")
    same = not measures_run or origin.details.get("weights_sha256") == run_hashes(Path(job.measured))
    return made_by == wanted and same and bool(origin.details.get("complete", True))


def _call(ctx: click.Context, job: Job, task: Task, arguments: list[str]) -> str | None:
    """Call a command as a user would. Return the line of its error if it failed."""
    from hbench.store.provenance import FILE

    folder = job.folder / task.folder
    begun = folder.is_dir() and any(folder.iterdir())
    if (folder / FILE).is_file() and not task.resumable and not job.options.overwrite:
        raise HBenchError(
            f"{folder}: was made by another command or of other weights: choose another `out`, or add `overwrite=True`"
        )
    again = [] if not begun else ["--resume"] if task.resumable else ["--overwrite"]
    program: Any = ctx.find_root().command
    try:
        program.main([*arguments, *again], prog_name="hbench", standalone_mode=False)
    except click.ClickException as error:
        return error.format_message().splitlines()[0]
    return None
