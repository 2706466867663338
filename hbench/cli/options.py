"""Options that several commands share, handed to a command as one object, and the publishing of results."""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hbench.errors import MOST, MOST_SEED, HBenchError, shown
from hbench.runtime.distributed import check_processes, rank
from hbench.runtime.progress import progress_is_shown, show_progress

if TYPE_CHECKING:
    import torch

    from hbench.config import Experiment
    from hbench.store.directions import DirectionSource
    from hbench.store.results import Result
    from hbench.store.run import Run

log = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


@dataclass(frozen=True)
class Options:
    """The shared options of a command; those it does not offer have their defaults."""

    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    max_minutes: float | None = None
    log_to: str | None = None
    data_root: Path | None = None
    download: bool = False
    direction_source: str = "own"
    directions: Path | tuple[Path, ...] | None = None
    reconstructor_steps: int | None = None

    @property
    def training(self) -> dict[str, Any]:
        """Arguments that every training takes."""
        return {"seed": self.seed, "resume": self.resume, "max_minutes": self.max_minutes}

    def torch_device(self, earlier_threads: int | None = None) -> "torch.device":
        """Return the device, after joining the processes of a torchrun on it and choosing the threads of the CPU.

        Args:
            earlier_threads: number of threads of the work that goes on now.
        """
        from hbench.runtime.device import pick_device
        from hbench.runtime.distributed import start

        device = pick_device(self.device)
        start(device)
        if self.threads or device.type == "cpu":
            self.choose_threads(earlier_threads)
        return device

    def choose_threads(self, earlier: int | None = None) -> None:
        """Choose the number of threads, and say it; see :func:`hbench.runtime.threads.choose_threads`."""
        from hbench.runtime.threads import choose_threads

        chosen = choose_threads(self.threads, earlier=earlier)
        if progress_is_shown():
            log.info("%s", chosen)

    def earlier_threads(self, folder: Path) -> int | None:
        """Return the number of threads of the training in a folder that goes on now; None where none does."""
        from hbench.training.checkpoint import threads_of

        return threads_of(folder) if self.resume else None

    @property
    def file(self) -> Path | None:
        """File whose directions take the place of the run's own; None for the run's own, or their means."""
        return self.directions if isinstance(self.directions, Path) and self.direction_source == "own" else None

    def load(self, run: Path) -> "Run":
        """Return the run on the device, or the one that --directions makes on its diffusion model."""
        from hbench.store.run import load_run

        device = self.torch_device()
        return load_run(run, device=device) if self.file is None else self.load_file(run, self.file)

    def load_all(self, runs: Iterable[Path]) -> "dict[str, Run]":
        """Return the runs on the device by name, then those that each --directions makes on the model of the first."""
        from hbench.store.run import load_run

        runs, device = list(runs), self.torch_device()
        files = self.directions if isinstance(self.directions, tuple) else ()
        if len({*map(str, runs), *map(str, files)}) < len(runs) + len(files):
            raise click.BadParameter("the same run twice", param_hint="RUN")
        loaded = {str(run): load_run(run, device=device) for run in runs}
        return loaded | {str(file): self.load_file(runs[0], file) for file in files}

    def load_file(self, model: Path, file: Path) -> "Run":
        """Return the run that a file of directions makes on the diffusion model of a run or folder.

        A command that tells directions apart trains a reconstructor for them first, in the folder of the result, and
        finds it there the next time.
        """
        from hbench.reporting.charts.training import draw_curves
        from hbench.store.directions import directions_run
        from hbench.training.reconstruct import reconstruct

        run = directions_run(file, model, device=self.torch_device())
        if self.reconstructor_steps is None:
            return run
        folder = self.folder_of(model, file) / f"train-{self.reconstructor_steps}"
        trained = reconstruct(run, folder, steps=self.reconstructor_steps, seed=self.seed, draw=draw_curves)
        if trained is None:
            raise HBenchError(
                f"{folder}: the training of the reconstructor was stopped: give the same command to go on"
            )
        # the file tells whose the results are, as of the commands that need no reconstructor
        return replace(trained, hashes=trained.hashes | run.hashes)

    def folder_of(self, run: Path, file: Path) -> Path:
        """Return the folder for the results of a file's directions: in that of the run, named by the file's content."""
        from hbench.store.files import sha256
        from hbench.store.places import run_folder

        folder = run.parent if run.is_file() else run
        return run_folder(folder) / f"{file.stem}-{sha256(file)[:8]}"

    def source(self, run: "Run") -> "DirectionSource":
        """Return the source of directions."""
        from hbench.store.directions import direction_source

        means = self.directions if isinstance(self.directions, Path) and self.file is None else None
        return direction_source(run, self.direction_source, means)

    def claim(self, default: Path) -> Path:
        """Claim the output folder until the command ends, and return it; the main process claims it for all.

        Raises:
            HBenchError: the folder holds something else, is in use, or cannot be made.
        """
        from hbench.store.folders import claimed_folder

        folder = self.out or default
        if not rank():
            claim = claimed_folder(folder, overwrite=self.overwrite, resume=self.resume)
            click.get_current_context().with_resource(claim)
        return folder

    def claim_result(self, run: Path, name: str) -> Path:
        """Claim the folder of a run's result, by default in the run's, with a number beside those of other options."""
        return self.claim_numbered(self.results_of(run) / name)

    def results_of(self, run: Path) -> Path:
        """Return the folder that holds the results of a run, or of the directions of a file on its model."""
        from hbench.store.places import run_folder

        return run_folder(run) if self.file is None else self.folder_of(run, self.file)

    def claim_of_model(self, model: Path, name: str) -> Path:
        """Claim the folder of a model's result, as :meth:`claim_result` that of a run's."""
        from hbench.store.places import model_folder

        return self.claim_numbered(model_folder(model) / name)

    def claim_numbered(self, default: Path) -> Path:
        """Claim --out, or the default folder, with a number beside results of other options."""
        return self.claim(self._free(default))

    def numbered(self, run: Path, name: str) -> Path:
        """Return the folder that :meth:`claim_result` would claim, for a function that claims it by itself."""
        return self.out or self._free(self.results_of(run) / name)

    def _free(self, default: Path) -> Path:
        from hbench.cli.repeats import is_repeat
        from hbench.store.places import free

        is_old = self.overwrite or self.resume
        return free(default, is_repeat, replace=is_old) if self.out is None else default


def shared(*options: Decorator[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add shared options to a command, whose argument ``options`` holds their values as one :class:`Options`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def collected(**values: Any) -> None:
            given = {each.name: values.pop(each.name) for each in fields(Options) if each.name in values}
            command(**values, options=Options(**given))

        for option in reversed(options):
            collected = option(collected)
        return collected

    return decorate


class Renamed(click.Option):
    """A renamed option: its older spellings, listed after the first, still work but are not in the help."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the option's name for an error, its first spelling alone."""
        return f"'{self.opts[0]}'"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option's help, with its first spelling alone."""
        spellings, self.opts = self.opts, self.opts[:1]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = spellings


class Count(click.IntRange):
    """A whole number of at least ``min``. The help leaves out the upper bound, which only refuses the absurd."""

    def __init__(self, min: int = 1, most: int = MOST) -> None:
        super().__init__(min)
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or refuse it."""
        number: int = super().convert(value, param, ctx)
        if number > self.most:
            self.fail(f"{shown(number)} is beyond {self.most}.", param, ctx)
        return number


class Finite(click.FloatRange):
    """A finite number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or refuse it."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not finite.", param, ctx)
        return number


def combined(*options: Decorator[Any]) -> Decorator[Any]:
    """Return several click decorators as one."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def parse_seeds(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Return distinct non-negative integers from "0,1,2", and none from an empty default."""
    if value == parameter.default == "":
        return ()
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise click.BadParameter('write distinct non-negative integers, as in "0,1,2"')
    return tuple(Count(0, MOST_SEED).convert(part, parameter, context) for part in parts)


def whole_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """Return positive whole numbers from "5,10,20"."""
    if value is None:
        return None
    if not all(part.strip().isdecimal() for part in value.split(",")):
        raise click.BadParameter(f'"{value}": write whole numbers with commas, for example 5,10,20')
    return [Count().convert(part, param, ctx) for part in value.split(",")]


class FilledPath(click.Path):
    """A path that is not empty: an empty one, as of an unset variable, would be the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if isinstance(value, str) and not value.strip():
            self.fail("an empty path: is a variable of the shell unset?", param, ctx)
        return super().convert(value, param, ctx)


def numbers_of_steps(default: str) -> Decorator[Any]:
    """Return the option --steps of a command that takes several numbers of steps, with these by default."""
    return click.option(
        "--steps",
        "--m",
        "steps",
        cls=Renamed,
        callback=whole_numbers,
        metavar="M,M,...",
        help=f"Numbers of generation steps M [default: {default}].",
    )


def extractor_options(default: str = "classifier for labelled images, else inception-v3-compat") -> Decorator[Any]:
    """Return the options of a command that compares features, with this feature extractor by default."""
    return combined(
        click.option(
            "--feature-extractor",
            "--extractor",
            "extractor",
            cls=Renamed,
            help="Feature extractor: classifier, one of torch-fidelity's with plain weights, or random-resnet18, "
            f"without a download [default: {default}].",
        ),
        click.option(
            "--weights",
            type=a_path,
            help="Weights of the extractor [default: torch-fidelity's; the shipped classifier, or "
            "runs/EXPERIMENT/classifier].",
        ),
        cache_option,
    )


a_path = FilledPath(path_type=Path)
run_argument = click.argument("run", type=a_path)
model_arguments = combined(
    click.argument("model", type=a_path),
    click.option(
        "--experiment",
        help="Experiment to use MODEL with, which may be one of diffusers, too; a guided-diffusion state dict needs an "
        "experiment [default: that of MODEL].",
    ),
)
device_option = click.option(
    "--device", default="auto", show_default=True, help='Device: "auto", "cpu", "cuda", "cuda:N" or "mps".'
)
threads_option = click.option(
    "--threads",
    type=Count(),
    help="Number of threads on the CPU; it changes rounding [default: measured, or OMP_NUM_THREADS].",
)
seed_option = click.option("--seed", type=Count(0, MOST_SEED), default=0, show_default=True, help="Random seed.")
quiet_option = click.option(
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=lambda ctx, param, value: show_progress(not value),
    help="Show no progress.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace results that are already there.")
many_steps_option = numbers_of_steps("M/2, M, 2M, 4M of EXPERIMENT")
steps_option = click.option("--steps", type=Count(), help="Number of generation steps M [default: the run's].")

cache_option = click.option(
    "--cache", type=a_path, default=Path("runs/cache"), show_default=True, help="Folder of images and features."
)
run_options = combined(device_option, threads_option, seed_option, quiet_option)
training_options = combined(
    click.option(
        "--resume",
        is_flag=True,
        help="Go on in --out, where a training was stopped or killed, or is to get more steps.",
    ),
    click.option("--max-minutes", type=Finite(min=0, min_open=True), help="Minutes after which to stop cleanly."),
)
log_option = click.option(
    "--log-to",
    type=click.Choice(["tensorboard", "wandb", "trackio", "mlflow"]),
    help="Program that gets metrics, settings and sample grids, too [default: none].",
)
model_option = click.option(
    "--model", type=a_path, help="Diffusion model [default: model.path, or else runs/EXPERIMENT/pretrain]."
)
data_options = combined(
    click.option("--data-root", type=a_path, help="Folder of the data set [default: data.root; env: HBENCH_DATA]."),
    click.option("--download", is_flag=True, help="Let torchvision download MNIST or Fashion-MNIST if it is missing."),
)
source_options = combined(
    click.option(
        "--direction-source",
        type=click.Choice(["own", "mean", "global"]),
        default="own",
        show_default=True,
        help="Kind of direction: the sample's own, the mean over samples, or the time-invariant one.",
    ),
    click.option(
        "--directions",
        type=a_path,
        help="File of directions, in place of RUN's own; for mean and global, RUN's of "
        '"hbench properties" or "hbench export".',
    ),
)
directions_option = click.option("--directions", type=a_path, help="File of directions, in place of RUN's own.")
further_directions_option = click.option(
    "--directions", type=a_path, multiple=True, help="File of directions on the model of the first RUN; repeatable."
)
reconstructor_option = click.option(
    "--reconstructor-steps",
    type=Count(),
    default=500,
    show_default=True,
    help="Steps of the reconstructor that is trained for --directions.",
)
"""Option of the commands that tell directions apart; a training is kept beside the results."""
processes_option = click.option(
    "--processes",
    type=Count(),
    expose_value=False,
    callback=lambda ctx, param, value: check_processes(value, ctx.obj),
    help="Number of processes that torchrun must have started.",
)
"""Option of the commands that several processes can share: the others refuse to run under torchrun."""


NUMBERED = "beside results of other options with a number, -2"
"""What is said of a default folder that gets a number."""


def out_of(default: str) -> Decorator[Any]:
    """Return the option --out of a command with this default folder."""
    return click.option("--out", type=a_path, help=f"Output folder [default: {default}].")


def result_of(name: str, argument: str = "RUN") -> Decorator[Any]:
    """Return the options --out and --overwrite of a command whose result lies in the run's folder."""
    default = f"{argument}/{name}, of a shipped run runs/shipped-{argument}/{name}; {NUMBERED}"
    return combined(out_of(default), overwrite_option)


def experiment_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add EXPERIMENT, --set and --dry-run to a command, which takes the resolved ``experiment``."""
    return adjusted_experiment_options(lambda experiment, values: experiment)(command)


def trained_on_model(experiment: "Experiment", values: dict[str, Any]) -> "Experiment":
    """Return the experiment as a training on --model has it, where that option is given."""
    if values["model"] is None:
        return experiment
    from hbench.store.model import model_experiment

    return model_experiment(values["model"], experiment)


def adjusted_experiment_options(
    adjust: "Callable[[Experiment, dict[str, Any]], Experiment]",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the same to a command whose other options also change settings.

    Args:
        adjust: function of the experiment and the values of those options; it returns the changed experiment.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def resolved(experiment: str, overrides: tuple[str, ...], dry_run: bool, **values: Any) -> None:
            from hbench.experiments import PATHS, load_experiment
            from hbench.store.registry import check_data

            loaded = load_experiment(experiment, overrides)
            check_data(loaded.data)
            settings = adjust(loaded, values)
            if dry_run:
                click.echo(settings.title, err=True)
                for section, key in PATHS:  # which no dump has
                    if path := getattr(getattr(settings, section), key):
                        click.echo(f"{section}.{key} = {path}", err=True)
                click.echo(settings.model_dump_json(indent=2))
            else:
                command(experiment=settings, **values)

        add: Decorator[Any] = combined(
            click.argument("experiment"),
            click.option(
                "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Setting to change; repeatable."
            ),
            click.option("-n", "--dry-run", is_flag=True, help="Print the resolved settings and stop."),
        )
        offered: Callable[..., None] = add(resolved)
        return offered

    return decorate


def with_steps(name: str, run: "Run", steps: int | None) -> str:
    """Return the name of a result, with its generation steps where they differ from the run's."""
    check_steps(run.experiment, steps)
    M = run.experiment.discovery.M
    return name if steps in (None, M) else f"{name}-{steps}-steps"


def with_source(name: str, source: "DirectionSource") -> str:
    """Return the name of a result, with the kind of its directions where it is not the sample's own."""
    return name if source.name == "own" else f"{name}-{source.name}"


def settings_of(model: Path, experiment: str | None, steps: Iterable[int]) -> "Experiment":
    """Return the settings of MODEL, of --experiment where it has none, after a check of the numbers of steps."""
    from hbench.experiments import load_experiment
    from hbench.store.model import model_experiment
    from hbench.store.registry import check_data

    given = load_experiment(experiment) if experiment else None
    if given:
        check_data(given.data)
    settings = model_experiment(model, given)
    for M in steps:
        check_steps(settings, M, shifts=False)
    return settings


def check_steps(experiment: "Experiment", steps: int | None, *, shifts: bool = True) -> None:
    """Refuse more --steps than there are timesteps, and too few for a shifted one among them."""
    from hbench.training.discover import check_shift_interval

    if not steps:
        return
    if steps > experiment.diffusion.T:
        raise click.BadParameter(f"at most {experiment.diffusion.T}, the number of timesteps", param_hint="--steps")
    if shifts:
        try:
            check_shift_interval(experiment, steps)
        except HBenchError as error:
            raise click.BadParameter(str(error), param_hint="--steps") from error


def directions_named(run: "Run", words: Iterable[str], option: str) -> list[int]:
    """Return the directions that words name, by number or by name, after a check of each."""
    from hbench.store.directions import direction_named

    try:
        return [direction_named(run, word) for word in words]
    except HBenchError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def publish(result: "Result", folder: Path) -> None:
    """Write a result into its claimed folder, draw it, and print its summary; the main process does it for all.

    The numbers come first: a picture that cannot be drawn loses none of them.
    """
    from hbench.reporting.artifacts import draw

    if rank():
        return
    result.write_into(folder)
    pictures = draw(result, folder)
    click.echo(result.summary())
    for caution in result.cautions():
        click.echo(f"caution: {caution}", err=True)
    if pictures:
        click.echo(f"see {', '.join(map(str, pictures))}", err=True)
