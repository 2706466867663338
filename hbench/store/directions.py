"""Files of mean directions, as safetensors."""

import difflib
import re
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hbench.config import Experiment
from hbench.core.diffusion import DeltaH
from hbench.core.directions import Directions, Source, global_direction, mean_direction
from hbench.errors import HBenchError, check_type
from hbench.store.files import replacing, sha256
from hbench.store.provenance import checked_sha256
from hbench.store.run import Run, check_has_files
from hbench.store.weights import MADE_BY, check_finite, read_metadata


@dataclass(frozen=True)
class DirectionSource:
    """A source of delta_h with a name: "own", "mean" or "global"; a function of (k [B], s [B])."""

    name: str
    source: Source
    sha256: str | None = None
    """SHA-256 of the file of directions; None for "own"."""

    def __call__(self, k: Tensor, s: Tensor) -> DeltaH:
        """Return delta_h of each sample."""
        return self.source(k, s)

    @property
    def details(self) -> dict[str, str | None]:
        """Details of a provenance that name the source."""
        return {"direction_source": self.name, "directions_sha256": self.sha256}


def direction_source(run: Run, name: str = "own", directions: str | Path | None = None) -> DirectionSource:
    """Return the source of directions called ``name``.

    Args:
        run: run to take the directions of.
        name: "own" for the sample's own direction, "mean" for its mean over samples, or "global" for the time-invariant
            one.
        directions: the ``directions.safetensors`` of a properties measurement, for "mean" and "global".

    Raises:
        TypeError: not a run.
        HBenchError: the name is unknown, or the file is missing, superfluous, or of another run.
    """
    check_type(Run, "as load_run returns it", run=run)
    if name not in ("own", "mean", "global"):
        raise HBenchError(f'no direction source "{name}": choose "own", "mean" or "global"')
    if name == "own":
        if directions is not None:
            raise HBenchError('`directions` goes with the source "mean" or "global": choose one of them')
        return DirectionSource(name, run.own)
    if directions is None:
        raise HBenchError(
            f'the source "{name}" needs `directions`: the directions.safetensors of a properties measurement'
        )
    means = load_directions(Path(directions), run)
    source = partial(mean_direction if name == "mean" else global_direction, means)
    return DirectionSource(name, source, sha256(Path(directions)))


def direction_named(run: Run, word: str) -> int:
    """Return the direction that a word names: by its number, or by its name in the run's ``names.txt``.

    Letters may be of either case, and the beginning of a name is enough if no other name has it.

    Raises:
        HBenchError: no direction has that number or name, or several have the name.
    """
    if re.fullmatch("[+-]?[0-9]+", number := word.strip()):
        k = int(number) if len(number) < 10 else run.K  # Python converts no number of thousands of digits
        if k not in range(run.K):
            raise HBenchError(f"no direction {shorten(number, 20)}: the run has 0 to {run.K - 1}")
        return k
    names = {k: _plain(name) for k, name in sorted(run.names.items()) if k in range(run.K)}
    wanted = _plain(word)
    found = [k for k, name in names.items() if name == wanted] or [
        k for k, name in names.items() if wanted and name.startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        shown = "; ".join(f"{k} {run.names[k]}" for k in found)
        raise HBenchError(f'several directions are called "{word}" ({shown}): give the number of one')
    near = difflib.get_close_matches(wanted, names.values(), n=3, cutoff=0.4) or list(names.values())[:3]
    shown = "; ".join(f"{k} {run.names[k]}" for k, name in names.items() if name in near)
    known = f", or a name in its names.txt, such as {shown}" if names else "; its names.txt has no names"
    raise HBenchError(f'no direction is called "{word}": give a number, 0 to {run.K - 1}{known}')


def _plain(name: str) -> str:
    """Return a name as it is compared: in one kind of letters and spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def save_directions(path: Path, directions: Directions, experiment: Experiment, shift_block_sha256: str) -> None:
    """Write directions as safetensors that carry their n, seed, experiment and shift block.

    Args:
        path: file to write.
        directions: mean directions of a run.
        experiment: experiment of the run.
        shift_block_sha256: SHA-256 of the run's shift block, which identifies the run.
    """
    metadata = {
        "role": "directions",
        "experiment": experiment.model_dump_json(exclude={"paper"}),
        **MADE_BY,
        "n": str(directions.n),
        "seed": str(directions.seed),
        "shift_block_sha256": shift_block_sha256,
    }
    tensors = {"mean": directions.mean.cpu().contiguous(), "timesteps": torch.tensor(directions.timesteps)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_directions(path: Path, run: Run) -> Directions:
    """Return the directions of a run in a file of :func:`save_directions`, on the run's device.

    Raises:
        HBenchError: missing, damaged or foreign file, not the one of the provenance beside it, or directions of another
            run.
    """
    check_has_files(run)
    metadata = read_metadata(path)
    if metadata.get("role") != "directions":
        found = metadata.get("role", "foreign weights")
        raise HBenchError(f"{path}: holds {found}, need directions: give the file of a properties measurement")
    if metadata.get("shift_block_sha256") != run.hashes["shift_block"]:
        raise HBenchError(f"{path}: directions of another run than this one: measure the properties of this one")
    again = "measure the properties again"
    try:
        with safe_open(path, "pt") as file:
            values, visited = file.get_tensor("mean"), file.get_tensor("timesteps")
        n, seed = int(metadata["n"]), int(metadata["seed"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise HBenchError(f"{path}: damaged ({error}): {again}") from error
    check_finite({"mean": values}, str(path), again)
    timesteps = tuple(visited.flatten().tolist())
    interval = range(run.experiment.discovery.t_shift, run.experiment.diffusion.T)
    in_order = timesteps == tuple(sorted(set(timesteps) & set(interval), reverse=True))
    if not in_order or tuple(values.shape) != (run.K, len(timesteps), *run.model.h_shape):
        raise HBenchError(f"{path}: damaged (other shapes or timesteps than the run's): {again}")
    checked_sha256(path, again)
    return Directions(timesteps=timesteps, mean=values.to(run.device), n=n, seed=seed)
