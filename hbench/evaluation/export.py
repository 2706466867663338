"""A run's directions as a file in the open format."""

from pathlib import Path
from typing import Any, Literal, get_args

from hbench.errors import check_at_least, check_seed, check_type
from hbench.evaluation.mean_directions import mean_directions
from hbench.models.shift import FixedDirections
from hbench.store.directions_file import StoredDirections, model_sha256, read_directions, write_directions
from hbench.store.files import sha256
from hbench.store.folders import claimed_folder
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import provenance
from hbench.store.run import Run, check_has_files

Kind = Literal["mean", "global"]


def export(
    run: Run,
    out: str | Path,
    *,
    kind: Kind = "mean",
    samples: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
) -> StoredDirections:
    """Write a run's directions to ``out`` as KIND.safetensors, and return what was written.

    The own directions of a discovery depend on the sample, which no file can: it gets their mean over samples, or the
    mean of that over the timesteps. Edits by the file equal, bit by bit, those by that source of the run. Directions
    that are fixed are written as they are, and come back bit by bit. Cost: a chain a sample, for fixed ones nothing.

    Args:
        run: run with the directions.
        out: output folder.
        kind: "mean" at each timestep, or "global" for all.
        samples: number of samples in the mean.
        seed: seed of the samples.
        overwrite: accept a folder that already holds something.

    Raises:
        TypeError: not a run.
        ValueError: an unknown kind, or a number out of range.
        HBenchError: the run has no files, or ``out`` holds something else.
    """
    check_type(Run, "as load_run returns it", run=run)
    check_at_least(1, samples=samples)
    check_seed(seed)
    check_has_files(run)
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be {' or '.join(get_args(Kind))}, got {kind!r}")
    out = Path(out)
    file, block = out / f"{kind}.safetensors", run.shift_block
    with claimed_folder(out, overwrite=overwrite):
        origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes)
        details: dict[str, Any] = {"shift_block_sha256": run.hashes["shift_block"]}
        if isinstance(block, FixedDirections):
            delta_h, timesteps = block.delta_h, tuple(block.timesteps.tolist())
        else:
            means = mean_directions(run, samples, seed)
            delta_h, timesteps = means.mean, means.timesteps
            details |= {"n": samples, "seed": seed}
        is_for_all = kind == "global" or timesteps == (0,)
        write_directions(
            file,
            delta_h.mean(1) if is_for_all else delta_h,
            None if is_for_all else timesteps,
            model_sha256=model_sha256(run.model),
            S=run.S,
            method=kind,
            names=[run.names.get(k, "") for k in range(run.K)] if run.names else None,
            details=details,
            experiment=run.experiment,
        )
        origin.finished(n=samples, **{f"{kind}_sha256": sha256(file)}).write(out / PROVENANCE)
        return read_directions(file)
