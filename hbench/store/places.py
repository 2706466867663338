"""Where things go: one rule for all commands, and the one place where ``report`` and ``reproduce`` look.

- All of an experiment NAME lies below ``runs/NAME``. What is made of the experiment alone is in ``runs/NAME/ARTIFACT``:
  ``pretrain``, ``train``, ``classifier``, ``vram-sweep``, ``ablations``, ``settings``, ``gradient``.
- All results of a run lie in the run's folder, RUN/ARTIFACT: ``rca``, ``traverse``, ``edit``. A shipped run cannot be
  written to, so ``runs/shipped-NAME`` is its folder, and ``runs/hub-OWNER-NAME`` that of a run of the Hugging Face Hub.
  A command of several runs takes the folder of the first.
- A result of other options than the one that is there already gets the next free name: ``edit``, ``edit-2``,
  ``edit-3``.
- The page of a run lies in its folder, too. It shows what lies there, and then what lies in its experiment's folder.

Apart from these, ``runs/cache`` holds generated images and features of all runs, and ``runs/demo`` is the folder of the
demo's experiment.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from hbench.store.folders import EXPERIMENT, held_in
from hbench.store.foreign import is_hub_id
from hbench.store.hub import hub_entry
from hbench.store.metrics import FILE as METRICS
from hbench.store.pipeline import model_name
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.run_files import locate
from hbench.store.shipped import SHIPPED

RUNS = Path("runs")
"""Folder of all experiments, in the current one."""
TRAINED = "shift_block.safetensors"
"""File that every finished run has."""


def experiment_folder(name: str) -> Path:
    """Return the folder of an experiment's own artifacts."""
    return RUNS / name


def experiment_folders(name: str, run: Path | None = None) -> list[Path]:
    """Return the folders where artifacts of an experiment may lie: around one of its runs, and below ``runs``.

    The smaller experiment for ablations, NAME-ablations, belongs to NAME.
    """
    name = name.removesuffix("-ablations")
    around = [run.parent] if run and run.resolve().parent.name == name else []
    bases = {each.resolve(): each for each in (RUNS / name, *around)}
    return [folder for each in bases.values() for folder in (each, each.with_name(f"{name}-ablations"))]


def run_folder(run: str | Path) -> Path:
    """Return the folder of a run's results: its own, or the one for a shipped run, or for one of the Hub."""
    run = Path(run)
    found = locate(run)
    if entry := hub_entry(found):
        return RUNS / entry.name.replace("models--", "hub-", 1).replace("--", "-")
    return run if found == run else RUNS / f"shipped-{run.name}"


def model_folder(model: str | Path) -> Path:
    """Return the folder of a model's results: its own or its file's, that of a shipped run, or one below ``runs``.

    The last is for a model of the Hugging Face Hub, which has no folder of its own.
    """
    model = Path(model)
    if model.is_file():
        return model.parent
    on_hub = hub_entry(model) or (not model.exists() and (is_hub_id(model) or not locate(model).exists()))
    return RUNS / model_name(model) if on_hub else run_folder(model)


def is_run(folder: Path) -> bool:
    """Return whether a discovery has begun in a folder, or is finished there."""
    if (folder / TRAINED).is_file():
        return True
    return (folder / EXPERIMENT).is_file() and (folder / METRICS).is_file() and not (folder / "samples").is_dir()


@dataclass(frozen=True)
class Place:
    """The folders where the results of a run are looked for."""

    run: str
    """RUN as commands take it; "RUN" for a folder of results alone."""
    folder: Path
    """Folder of its results and of its page."""
    weights: Path | None
    """Folder of its weights; None for a folder of results alone."""

    def of_experiment(self, name: str) -> list[Path]:
        """Return the folders of the experiment called ``name``: its own, and that of its smaller one for ablations.

        They lie around the run, or else below ``runs``. A folder of results alone has none.
        """
        if self.weights is None:
            return []
        return experiment_folders(name, self.weights)


def place(path: str | Path) -> Place:
    """Return the place of a run, of the run ``train`` in an experiment's folder, or of a folder of results alone.

    Args:
        path: folder, or the name of a shipped run.

    Raises:
        HBenchError: a link leads out of the folder.
    """
    path = Path(path)
    located = locate(path)
    if located != path:
        return Place(str(path), run_folder(path), located)
    shipped = SHIPPED / path.name.removeprefix("shipped-")
    if path.parent.name == RUNS.name and path.name.startswith("shipped-") and shipped.is_dir():
        return Place(shipped.name, path, shipped)
    if is_run(path):
        return Place(str(path), path, path)
    if (path / "train" / TRAINED).is_file() and not (path / "rca").is_dir():  # a reproduction has both side by side
        return place(path / "train")
    return Place("RUN", path, None)


def score_folder(key: Path, run: str) -> Path:
    """Return the folder for the score of a study: ``score`` beside its key, or ``mos/score`` of a run elsewhere.

    Args:
        key: file with the key of the study.
        run: first run of the study, as the key names it.
    """
    if not Path(run).exists() and is_hub_id(Path(run)):  # its studies lie in its folder
        return key.parent / "score"
    folder = run_folder(run)
    if not is_run(locate(run)) or key.resolve().is_relative_to(folder.resolve()):
        return key.parent / "score"
    return folder / "mos" / "score"


def results_in(folder: Path, artifact: str) -> list[Path]:
    """Return the folders of an artifact's results in a folder: ARTIFACT, then ARTIFACT-2 and all that begin so."""
    first, *rest = Path(artifact).parts
    others = [each for each in folder.glob(f"{first}-*") if each.is_dir()]
    found = [folder / first, *sorted(others, key=_natural)]
    return [path for each in found if (path := each.joinpath(*rest)).joinpath(PROVENANCE).is_file()]


def _natural(path: Path) -> tuple[str, int, str]:
    """Return a key by which edit-10 comes after edit-9."""
    stem, _, number = path.name.rpartition("-")
    return (stem, int(number), "") if number.isdecimal() else (path.name, 0, "")


def free(folder: Path, is_same: Callable[[Path], bool], *, replace: bool = False) -> Path:
    """Return the folder for a result: the given one, or the next number where results of other options are.

    A result of the same options comes first, then one that is unfinished, or somebody's: the claim refuses them unless
    they are to be replaced or to go on.

    Args:
        folder: folder without a number.
        is_same: function of a folder with a complete result; True if it is of the same options.
        replace: choose the one without a number where there is neither.
    """
    held = list(takewhile(held_in, _numbered(folder)))
    complete = [path for path in held if (path / PROVENANCE).is_file()]
    old = [path for path in complete if is_same(path)] + [path for path in held if path not in complete]
    new = folder if replace else next(path for path in _numbered(folder) if path not in held)
    return next(iter(old), new)


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in count(2))
