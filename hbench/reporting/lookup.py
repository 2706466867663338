"""Results of a run as a page shows them: those in the run's folder, then those of its experiment.

:mod:`hbench.store.places` has the rule.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hbench.config import Experiment
from hbench.errors import HBenchError
from hbench.experiments import parse_experiment, settings_of_model
from hbench.reporting.artifact import Artifact, command_lines
from hbench.reporting.artifacts import ARTIFACTS
from hbench.store.folders import EXPERIMENT, refuse_links
from hbench.store.places import TRAINED, Place, place, results_in
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance
from hbench.store.weights import read_experiment, read_written_experiment, tensors_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """One result of a page."""

    artifact: Artifact
    folder: Path
    origin: Provenance

    @property
    def name(self) -> str:
        """Name of the folder, as an artifact has it: "edit-2", "mos-2/score"."""
        return "/".join(self.folder.parts[-len(Path(self.artifact.folder).parts) :])

    @property
    def suffix(self) -> str:
        """First part of the folder's name in brackets where it is not the artifact's own: " (edit-2)"; else empty."""
        return "" if self.name == self.artifact.folder else f" ({self.name.partition('/')[0]})"


@dataclass(frozen=True)
class Lookup:
    """The results of a run, or in a folder of results alone."""

    place: Place
    experiment: Experiment
    found: list[Found]
    """Results in the order of the page."""
    left_out: dict[str, str]
    """Reason why a result in the experiment's folder is not of this run, by artifact."""

    def advice(self, artifact: Artifact) -> str:
        """Return the commands that make a missing artifact where the page looks, in words."""
        is_elsewhere = self.place.weights is None or artifact.folder in self.left_out
        lines = command_lines(
            artifact,
            self.experiment,
            run=self.place.run,
            folder=self.place.folder,
            out=self.place.folder / artifact.folder if is_elsewhere else None,
        )
        folders = [self.place.folder, *self.place.of_experiment(self.experiment.name)]
        needed = artifact.needs(self.experiment.data)
        if needed and any(results_in(folder, needed[0]) for folder in folders):
            del lines[0]
        return ", then ".join(f'"{line}"' for line in lines) + " makes it"


def look(path: str | Path) -> Lookup:
    """Return the results of a run, of the run in an experiment's folder, or in a folder of results alone.

    Of the experiment's folder only results of the same images and the same diffusion model count; the others are named
    in a notice.

    Args:
        path: folder, or the name of a shipped run.

    Raises:
        HBenchError: no result of hbench, or a damaged one.
    """
    where = place(path)
    if where.folder.is_dir():
        refuse_links(where.folder)
    shown = [artifact for artifact in ARTIFACTS if artifact.on_page]
    found = {artifact.folder: _read(artifact, results_in(where.folder, artifact.folder)) for artifact in shown}
    experiment = _experiment(where, [each for several in found.values() for each in several])
    left_out = {}
    for artifact in shown:
        if found[artifact.folder] or not artifact.of_experiment:
            continue
        for folder in where.of_experiment(experiment.name):
            for each in _read(artifact, results_in(folder, artifact.folder)):
                refuse_links(each.folder)
                if difference := other_settings(each.origin, experiment, where.weights):
                    left_out[artifact.folder] = f"{each.folder} is of {difference}"
                    log.warning("left out: %s", left_out[artifact.folder])
                else:
                    found[artifact.folder].append(each)
    return Lookup(where, experiment, [each for several in found.values() for each in several], left_out)


def _read(artifact: Artifact, folders: Sequence[Path]) -> list[Found]:
    remedy = f'make it again with "hbench {artifact.command}"'
    found = [Found(artifact, folder, Provenance.read(folder / PROVENANCE, remedy)) for folder in folders]
    return [each for each in found if not each.suffix or (each.folder / f"{artifact.result.NAME}.json").is_file()]


def _experiment(where: Place, found: Sequence[Found]) -> Experiment:
    """Return the experiment of a run, or of the first result in a folder of results alone."""
    if where.weights and (where.weights / TRAINED).is_file():
        return read_experiment(where.weights / TRAINED)
    if where.weights:
        return read_written_experiment(where.weights / EXPERIMENT)
    known = [each.origin.experiment for each in found if each.origin.experiment]
    if not known:
        raise HBenchError(f"{where.folder}: {NOTHING}")
    return parse_experiment(known[0], str(where.folder))


NOTHING = (
    'no results there: "hbench rca RUN" and others leave some; "hbench reproduce EXPERIMENT" makes all of them, '
    "and this page"
)


def other_settings(
    origin: Provenance, experiment: Experiment, weights: Path | None = None, section: str | None = None
) -> str:
    """Return what parts a result of an experiment from a run of it, in words; empty if nothing does.

    Args:
        origin: provenance of the result.
        experiment: experiment of the run.
        weights: folder of the run's weights, which a result that was trained on a model must share.
        section: further section of settings that must be the same.
    """
    if origin.experiment is None:
        return ""
    measured = parse_experiment(origin.experiment, "provenance.json")
    wanted = settings_of_model(experiment, section)
    for key, theirs in settings_of_model(measured, section).items():
        if (ours := wanted[key]) != theirs:
            return f"other settings ({key} = {theirs!r}, not {ours!r})"
    model = origin.details.get("model_tensors_sha256")
    if model and weights and (file := weights / "model.safetensors").is_file() and tensors_sha256(file) != model:
        return "another diffusion model"
    return ""
