"""The folder of a run: where it lies, the files of its networks, and the provenance that vouches for them."""

from pathlib import Path

from safetensors import safe_open

from hbench.errors import HBenchError
from hbench.experiments import parse_experiment
from hbench.models.shift import FixedDirections
from hbench.store.files import a_path
from hbench.store.folders import EXPERIMENT, refuse_links
from hbench.store.foreign import is_hub_id, refuse_elsewhere
from hbench.store.hub import hub_entry, snapshot
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import REMEDY, Provenance, checked_sha256
from hbench.store.shipped import SHIPPED, shipped, unhiding
from hbench.store.weights import read_metadata, read_written_experiment

ROLES = ("model", "shift_block", "reconstructor", "discriminator")
"""Networks of a run; each has a file of its name."""
WEIGHTS = ".safetensors"
"""Suffix of a file that carries its settings."""


def locate(path: str | Path) -> Path:
    """Return the path itself, or where nothing lies there, the shipped run or the folder of the Hub of that name.

    Raises:
        HBenchError: no path at all, a link leads out of a folder there, which may have come from anyone, or the Hugging
            Face Hub has no such id.
    """
    path = a_path(path)
    shipped = SHIPPED / path
    if not path.exists() and is_hub_id(path):
        path = snapshot(path.as_posix())
    if path.is_dir():
        refuse_links(hub_entry(path) or path)  # those of a snapshot lead to other folders of its entry
    if not path.exists() and len(path.parts) == 1 and shipped.is_dir():
        return shipped
    return path


def run_hashes(path: str | Path) -> dict[str, str]:
    """Return the SHA-256 of each weights file of a run, by role, after comparing them with those of its provenance.

    Raises:
        HBenchError: not a run folder, unfinished, a damaged provenance, or a file of another training.
    """
    folder = locate(path)
    if not (folder / f"shift_block{WEIGHTS}").is_file():
        refuse_elsewhere(folder, f"give the folder of a run, which a discovery wrote, or {shipped()}")
    if folder.is_file():
        raise HBenchError(f"{path}: is a file, and a run is a folder that a discovery wrote: give one, or {shipped()}")
    if not folder.is_dir():
        raise HBenchError(f"{path}: no such run: give the folder of one, or {shipped()}")
    # the provenance is written last
    missing = [name for name in (*(f"{role}{WEIGHTS}" for role in ROLES), PROVENANCE) if not (folder / name).is_file()]
    if missing:
        remedy = "train it, or resume its training if it was stopped"
        if (folder / "train" / f"shift_block{WEIGHTS}").is_file():
            remedy = f"the run is {folder / 'train'}"
        elif (folder / "samples").is_dir():  # a pretraining has them
            remedy = "it is a diffusion model, of which directions are to be trained first"
        raise HBenchError(
            f"{folder}: no finished discovery there ({missing[0]} is missing): {remedy}{unhiding(folder)}"
        )
    files = {role: folder / f"{role}{WEIGHTS}" for role in ROLES}
    for file in files.values():
        read_metadata(file)  # what is damaged, or of a newer hbench, is called so
    origin = origin_of_training(folder)
    if origin is None or not isinstance(origin.weights, dict) or not origin.weights.keys() >= set(ROLES):
        raise HBenchError(f"{folder / PROVENANCE}: is not that of a discovery: {REMEDY}")
    return {role: checked_sha256(file) for role, file in files.items()}


def origin_of_training(folder: Path) -> Provenance | None:
    """Return the provenance of a finished training, after comparing its settings with ``experiment.json``.

    Return None for an unfinished training, which has no provenance yet.

    Raises:
        HBenchError: one of both is damaged, or they are of different trainings.
    """
    if not (folder / PROVENANCE).is_file():
        return None
    origin = Provenance.read(folder / PROVENANCE, REMEDY)
    file = folder / EXPERIMENT
    if file.is_file() and origin.experiment is not None:
        trained = parse_experiment(origin.experiment, str(folder / PROVENANCE))
        written = read_written_experiment(file)
        if written.model_copy(update={"paper": trained.paper}) != trained:
            raise HBenchError(f"{file}: is not the file that {PROVENANCE} beside it was written with: {REMEDY}")
    return origin


def read_fixed(file: Path) -> FixedDirections | None:
    """Return the fixed directions in the file of a shift block; None where it holds a block.

    Raises:
        HBenchError: the file is damaged.
    """
    with safe_open(file, "pt") as opened:
        if not {"delta_h", "timesteps"} <= set(opened.keys()):
            return None
        delta_h, timesteps = opened.get_tensor("delta_h"), opened.get_tensor("timesteps")
    if delta_h.ndim != 5 or timesteps.shape != delta_h.shape[1:2] or not timesteps.numel():
        raise HBenchError(
            f"{file}: damaged ({list(delta_h.shape)} directions, {list(timesteps.shape)} timesteps): {REMEDY}"
        )
    return FixedDirections(delta_h, timesteps.tolist())
