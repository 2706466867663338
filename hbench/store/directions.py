"""Files of mean directions, as safetensors."""

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hbench.core.directions import Directions, Source, mean, own, time_invariant
from hbench.errors import HBenchError
from hbench.store.files import replacing
from hbench.store.run import Run
from hbench.store.weights import MADE_BY, check_finite, read_metadata


def source_of(run: Run, name: str, file: Path | None) -> Source:
    """The source called ``name``, "own", "mean" or "global"; the latter two need a file of directions.

    Raises:
        HBenchError: the file is not given, given to no purpose, or of another run.
    """
    if name == "own":
        if file is not None:
            raise HBenchError("--directions goes with --direction-source mean or global: add one of them")
        return partial(own, run.shift_block)
    if file is None:
        raise HBenchError(
            f'--direction-source {name} needs --directions FILE: "hbench properties" writes directions.safetensors'
        )
    return partial(mean if name == "mean" else time_invariant, load_directions(file, run))


def save_directions(path: Path, directions: Directions, run: Run) -> None:
    """Writes directions as safetensors that carry the experiment, n, seed, and the SHA-256 of the shift block."""
    metadata = {
        "role": "directions",
        "experiment": run.experiment.model_dump_json(),
        **MADE_BY,
        "n": str(directions.n),
        "seed": str(directions.seed),
        "shift_block_sha256": run.hashes["shift_block"],
    }
    tensors = {"mean": directions.mean.cpu().contiguous(), "timesteps": torch.tensor(directions.timesteps)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_directions(path: Path, run: Run) -> Directions:
    """The directions of this run in a file of :func:`save_directions`, on the run's device.

    Raises:
        HBenchError: missing, damaged or foreign file, or directions of another run.
    """
    metadata = read_metadata(path)
    if metadata.get("role") != "directions":
        found = metadata.get("role", "foreign weights")
        raise HBenchError(f'{path}: holds {found}, need directions: give a file that "hbench properties" wrote')
    if metadata.get("shift_block_sha256") != run.hashes["shift_block"]:
        raise HBenchError(f'{path}: directions of another run than this one: make its own with "hbench properties"')
    again = 'make it again with "hbench properties"'
    try:
        with safe_open(path, "pt") as file:
            values, visited = file.get_tensor("mean"), file.get_tensor("timesteps")
        n, seed = int(metadata["n"]), int(metadata["seed"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise HBenchError(f"{path}: damaged ({error}): {again}") from error
    check_finite({"mean": values}, str(path), again)
    place = next(run.model.parameters()).device
    return Directions(timesteps=tuple(visited.tolist()), mean=values.to(place), n=n, seed=seed)
