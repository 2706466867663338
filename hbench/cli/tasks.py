"""Commands of a reproduction: one for each artifact, in their order, with the folders and options that they take."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hbench.cli.options import Options
from hbench.errors import HBenchError
from hbench.runtime.progress import progress_is_shown

if TYPE_CHECKING:
    from hbench.config import Experiment

REAL_IMAGES = 6
"""Number of real images that are edited."""
TRAININGS = {"pretrain": "pretrain", "train": "discovery"}
"""Folders of the trainings, each with the section of its settings."""


@dataclass(frozen=True)
class Job:
    """A reproduction: experiment, run and folders."""

    experiment: "Experiment"
    source: str
    """EXPERIMENT as it was given."""
    run: Path | None
    """Run to measure; None for the one that is trained first."""
    options: Options = field(default_factory=Options)
    seed: int | None = None
    """Seed that was asked for; None accepts finished results of any seed."""
    changed: list[str] = field(default_factory=list)
    """Options that give the experiment the run's images and diffusion model, where they differ."""

    @property
    def folder(self) -> Path:
        """Folder of the page."""
        from hbench.store.places import run_folder

        return self.options.out or run_folder(self.measured)

    @property
    def measured(self) -> str:
        """Run that is measured, as commands take it."""
        return str(self.run or self.place("train"))

    @property
    def variants(self) -> str:
        """Experiment whose variants are compared, as commands take it."""
        from hbench.experiments import known_experiments

        small = f"{self.experiment.name}-ablations"
        return small if small in known_experiments() else self.source

    def place(self, folder: str) -> Path:
        """Return the folder of a task's result: the default one of its command, or one inside of --out."""
        from hbench.reporting.artifacts import ARTIFACTS
        from hbench.store.places import experiment_folder

        if self.options.out:
            return self.options.out / folder
        if folder == "ablations" and self.variants != self.source:
            return experiment_folder(self.variants) / folder
        if folder in TRAININGS or any(each.of_experiment for each in ARTIFACTS if each.folder == folder):
            return experiment_folder(self.experiment.name) / folder
        return self.folder / folder

    @property
    def data(self) -> list[str]:
        """Options with the location of the images."""
        folder = self.options.data_root or self.experiment.data.root  # a run does not know the latter
        root = ["--data-root", str(folder)] if folder else []
        return root + (["--download"] if self.options.download else [])

    @property
    def threads(self) -> list[str]:
        """Option with the number of threads, where it was given."""
        return [f"--threads={self.options.threads}"] if self.options.threads else []

    @property
    def common(self) -> list[str]:
        """Options of nearly every command."""
        words = ["--device", self.options.device, "--seed", str(self.options.seed), *self.threads]
        return words if progress_is_shown() else [*words, "--quiet"]

    def is_labelled(self) -> bool:
        """Return True if the images have labels."""
        from hbench.store.registry import factors_of

        return bool(factors_of(self.experiment.data))

    def own_classifier(self) -> Path | None:
        """Return the classifier that was trained for these images, where no shipped one serves."""
        from hbench.store.classifier import FILE

        file = self.place("classifier") / FILE
        return file if file.is_file() else None

    def needs_classifier(self) -> bool:
        """Return True if the images have labels and need a classifier of their own."""
        from hbench.store.classifier import shipped_classifier

        return self.is_labelled() and (self.run is None or shipped_classifier(self.experiment.data) is None)

    def measured_by_classifier(self, *, digits: bool) -> bool:
        """Return True if distances are measured by a classifier, of digits or of other images."""
        from hbench.store.classifier import are_digits

        return self.is_labelled() and are_digits(self.experiment.data) == digits


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
        if extractor in ("classifier", "lenet-digits") and job.needs_classifier():
            if not (own := job.own_classifier()):
                raise HBenchError(f'no classifier of these images: "hbench classifier {job.source}" says why')
            weights = ["--weights", str(own)]
        return ["fid", job.measured, "--feature-extractor", extractor, *weights, *job.data, *job.common]

    return words


def _edit(job: Job) -> list[str]:
    """Return the command that edits real images along the two best recognised directions, after writing the images.

    Raises:
        HBenchError: no data.
    """
    from hbench.core.images import to_float
    from hbench.evaluation.rca import RCA
    from hbench.store.datasets import load_set
    from hbench.store.pictures import save_image

    try:
        real = load_set(job.experiment.data, job.options.data_root, "reference", job.options.download).images
    except HBenchError as error:
        raise HBenchError(f"no data: {error}") from error
    for i, image in enumerate(real[:REAL_IMAGES]):
        save_image(to_float(image), job.place("real-images") / f"{i}.png")
    s = f"{job.experiment.discovery.S / 2:g}"
    best = RCA.load(job.place("rca")).ranking()[:2]
    shifts = [word for k in best for word in ("--shift", f"{k}={s}")]
    return [
        "edit",
        job.measured,
        str(job.place("real-images")),
        *shifts,
        "--device",
        job.options.device,
        *job.threads,
        *_quiet(),
    ]


def _ablations(job: Job) -> list[str]:
    own = ["--classifier", str(file)] if (file := job.own_classifier()) else []
    return ["ablations", job.variants, *job.changed, "--model", job.measured, *own, *job.data, *job.common]


def _quiet() -> list[str]:
    return [] if progress_is_shown() else ["--quiet"]


def _always(job: Job) -> bool:
    return True


def _from_scratch(job: Job) -> bool:
    return job.run is None


def _makes_a_model(job: Job) -> bool:
    return job.run is None and job.experiment.model.path is None


def _pretrained(job: Job) -> list[str]:
    """Return the option with the model that the reproduction makes, where the experiment names none."""
    return ["--model", str(job.place("pretrain"))] if _makes_a_model(job) else []


TASKS = (
    Task(
        "pretrain",
        lambda job: ["pretrain", job.source, *job.data, *job.common],
        wanted=_makes_a_model,
        resumable=True,
        essential=_always,
    ),
    Task(
        "train",
        lambda job: ["train", job.source, *_pretrained(job), *job.common],
        needs=("pretrain",),
        wanted=_from_scratch,
        resumable=True,
        essential=_always,
    ),
    Task(
        "classifier",
        lambda job: [
            "classifier",
            job.source,
            *job.changed,
            *job.data,
            "--seed",
            str(job.options.seed),
            *job.threads,
            *_quiet(),
        ],
        wanted=Job.needs_classifier,
        essential=_from_scratch,
    ),
    Task("rca", lambda job: ["rca", job.measured, *job.common], essential=_always),
    Task(
        "traverse",
        lambda job: ["traverse", job.measured, "--rca", str(job.place("rca") / "rca.json"), *job.common],
        needs=("rca",),
    ),
    Task(
        "attributes",
        lambda job: ["attributes", job.measured, "--rca", str(job.place("rca") / "rca.json"), *job.common],
        needs=("rca",),
    ),
    Task("fid-lenet-digits", _fid("lenet-digits"), wanted=lambda job: job.measured_by_classifier(digits=True)),
    Task("fid-classifier", _fid("classifier"), wanted=lambda job: job.measured_by_classifier(digits=False)),
    Task("fid-inception-v3-compat", _fid("inception-v3-compat"), wanted=lambda job: not job.is_labelled()),
    Task("fid-random-resnet18", _fid("random-resnet18"), wanted=lambda job: not job.is_labelled()),
    Task("quality", lambda job: ["quality", job.measured, *job.data, *job.common]),
    Task("train-curves", lambda job: ["train-curves", job.measured]),
    Task("properties", lambda job: ["properties", job.measured, *job.common]),
    Task("edit", _edit, needs=("rca",)),
    Task("vram-sweep", lambda job: ["vram-sweep", job.source, *job.changed, *job.common], resumable=True),
    Task("ablations", _ablations, resumable=True),
    Task("mos", lambda job: ["mos", "export", job.measured, *job.common]),
)
"""Tasks in their order: later ones are made of the results of earlier ones."""


def tasks() -> list[Task]:
    """Return all tasks: those above, and one for every other registered artifact, whose command takes the run."""
    from hbench.reporting.artifacts import ARTIFACTS

    on_demand = {"mos/score", "settings", "compare", "benchmark", "gradient"}  # for people and questions
    listed = {task.folder for task in TASKS} | on_demand
    others = [each for each in ARTIFACTS if each.on_page and each.folder not in listed]
    return [*TASKS, *(_registered(artifact.folder, artifact.command) for artifact in others)]


def _registered(folder: str, command: str) -> Task:
    return Task(folder, lambda job: [*command.split(), job.measured, *job.common])
