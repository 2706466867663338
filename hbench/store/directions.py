"""Sources of directions: a run's own, their means, and those of a file, which make a run of their own."""

import difflib
import re
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor

from hbench.config import Experiment
from hbench.core.diffusion import DeltaH
from hbench.core.directions import Directions, Source, global_direction, mean_direction
from hbench.errors import HBenchError, check_type
from hbench.experiments import parse_experiment
from hbench.runtime.device import pick_device
from hbench.store.directions_file import AGAIN, StoredDirections, read_directions, write_directions
from hbench.store.files import sha256
from hbench.store.model import load_model, model_experiment, model_file
from hbench.store.run import Run, check_has_files


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


def save_directions(
    path: Path, directions: Directions, experiment: Experiment, shift_block_sha256: str, model_sha256: str | None = None
) -> None:
    """Write the mean directions of a run in the open format, with their n, seed, experiment and shift block.

    Args:
        path: file to write.
        directions: mean directions of a run.
        experiment: experiment of the run.
        shift_block_sha256: SHA-256 of the run's shift block, which identifies the run.
        model_sha256: SHA-256 of the diffusion model, by :func:`hbench.model_sha256`.
    """
    write_directions(
        path,
        directions.mean,
        directions.timesteps,
        model_sha256=model_sha256,
        S=experiment.discovery.S,
        method="mean",
        details={"n": directions.n, "seed": directions.seed, "shift_block_sha256": shift_block_sha256},
        experiment=experiment,
    )


def load_directions(path: Path, run: Run) -> Directions:
    """Return the mean directions of a run in a file of :func:`save_directions`, on the run's device.

    Raises:
        HBenchError: missing, damaged or foreign file, not the one of the provenance beside it, or directions of another
            run.
    """
    check_has_files(run)
    stored = read_directions(path)
    details = stored.about.details
    is_mean = all(isinstance(details.get(key), int) for key in ("n", "seed"))  # a stranger may have written anything
    if not is_mean or details.get("shift_block_sha256") != run.hashes["shift_block"]:
        raise HBenchError(f"{path}: directions of another run than this one: measure the properties of this one")
    interval = range(run.experiment.discovery.t_shift, run.experiment.diffusion.T)
    if stored.K != run.K or not (stored.about.timesteps is None or set(stored.timesteps) <= set(interval)):
        raise HBenchError(f"{path}: damaged (other shapes or timesteps than the run's): {AGAIN}")
    stored.check_fits(run.model)
    mean = stored.delta_h.to(run.device)
    return Directions(timesteps=stored.timesteps, mean=mean, n=details["n"], seed=details["seed"])


@torch.random.fork_rng(devices=[])
def directions_run(
    directions: str | Path,
    model: str | Path,
    experiment: Experiment | None = None,
    *,
    device: str | torch.device = "auto",
) -> Run:
    """Return the run that the directions of a file make on a diffusion model.

    It generates and edits as any run. It has neither reconstructor nor discriminator, by which RCA is measured: give it
    to :func:`hbench.reconstruct` for that.

    Args:
        directions: file in the open format, see docs/directions.md.
        model: diffusion model, or run, as for :func:`hbench.load_model`.
        experiment: experiment of the model; by default the one that the model's file carries. K is that of the
            directions, and S too where their file says one.
        device: device of the run; "auto" is a GPU where there is one, else the CPU.

    Raises:
        HBenchError: a file is missing or damaged, or the directions do not fit the model.
    """
    stored = read_directions(directions)
    settings = experiment_with(model_experiment(model, experiment), stored)
    network = load_model(model, experiment, device=device).requires_grad_(False)
    stored.check_fits(network)
    device = pick_device(device)
    return Run(
        experiment=settings,
        device=device,
        model=network,
        shift_block=stored.fixed().to(device).eval(),
        hashes={"model": sha256(model_file(model)), "shift_block": stored.sha256},
        names=stored.names,
    )


def experiment_with(experiment: Experiment, directions: StoredDirections) -> Experiment:
    """Return the experiment with K and S of directions; the smallest magnitude is the same share of S as before."""
    settings = experiment.discovery
    S = directions.about.S or settings.S
    changed = {"K": directions.K, "S": S, "min_magnitude": settings.min_magnitude * S / settings.S}
    values = experiment.model_dump()
    values["discovery"] |= changed
    return parse_experiment(values, str(directions.path))
