"""Where delta_h comes from: directions as functions that a generation step adds to h_t.

| source | delta_h of magnitude s along direction k | paper, Sec. 5.4 |
|---|---|---|
| own | s f_k(h_t, t) | Δh_t, the sample's own |
| mean | s times the mean over samples of f_k(h_t, t) | Δh_t^mean |
| global | s times the mean of that over the timesteps of the shift interval | Δh^global, time-invariant |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hbench.diffusion import DeltaH
from hbench.errors import HBenchError
from hbench.files import replacing
from hbench.load import Run
from hbench.models.shift import ShiftBlock
from hbench.weights import MADE_BY, check_finite, read_metadata

Source = Callable[[Tensor, Tensor], DeltaH]
"""(k [B], s [B]) -> delta_h of each sample."""


@dataclass(frozen=True)
class Directions:
    """The mean direction of random samples at each timestep (Sec. 5.4)."""

    timesteps: tuple[int, ...]
    """Those of the shift interval, t >= t_shift, descending."""
    mean: Tensor
    """Of f_k(h_t, t), at unit magnitude: float32 [K, timesteps, C, H, W]."""
    n: int
    """Samples in the mean."""
    seed: int
    """Of those samples."""

    def nearest(self, t: int) -> int:
        """Index of the timestep that is nearest to t."""
        return min(range(len(self.timesteps)), key=lambda i: abs(self.timesteps[i] - t))


def own(shift_block: ShiftBlock, k: Tensor, s: Tensor) -> DeltaH:
    """S f_k(h_t, t), the sample's own direction in Eq. (2), for k [B] and magnitudes s [B]."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        shift: Tensor = s[:, None, None, None] * shift_block(h, emb, k)
        return shift

    return delta_h


def mean(directions: Directions, k: Tensor, s: Tensor) -> DeltaH:
    """S Δh_t^mean: the same for every sample; at a timestep that was not recorded, that of the nearest one."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        return s[:, None, None, None] * directions.mean[k, directions.nearest(t)]

    return delta_h


def time_invariant(directions: Directions, k: Tensor, s: Tensor) -> DeltaH:
    """S Δh^global: the same for every sample and timestep, the mean of Δh_t^mean over the shift interval."""
    shift = s[:, None, None, None] * directions.mean[k].mean(1)
    return lambda h, emb, t: shift


def together(*delta_hs: DeltaH) -> DeltaH:
    """Several edits at once: the sum over i of s_i f_k_i(h_t, t) (Fig. 8)."""

    def delta_h(h: Tensor, emb: Tensor, t: int) -> Tensor:
        total = h.new_zeros(())
        for each in delta_hs:
            total = total + each(h, emb, t)
        return total

    return delta_h


def scaled(delta_h: DeltaH, factor: float) -> DeltaH:
    """``factor`` times an edit."""
    return lambda h, emb, t: factor * delta_h(h, emb, t)


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
