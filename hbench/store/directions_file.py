"""Files of directions, in a format that anybody can write: safetensors with one tensor, and JSON in the metadata.

The tensor ``delta_h`` has the directions at unit magnitude, in units of h_t: [K, timesteps, C, H, W], or [K, C, H, W]
where one serves all timesteps. The metadata's key ``directions`` holds a :class:`DirectionsFile` as JSON.
docs/directions.md describes both, with the lines of numpy that write one. Files of hbench 0.1, whose tensors are
``mean`` and ``timesteps``, are read too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.errors import HBenchError, counted
from hbench.models.shift import FixedDirections
from hbench.store.files import replacing, sha256
from hbench.store.provenance import checked_sha256
from hbench.store.records import Count, Positive, Record
from hbench.store.weights import MADE_BY, check_finite, read_metadata, state_sha256

DELTA_H, ABOUT = "delta_h", "directions"
"""Name of the tensor, and key of the metadata."""
REMEDY = "write it as docs/directions.md says"
"""Advice about a file that cannot be used."""
AGAIN = "measure the properties again"
"""Advice about a damaged file of hbench's own means."""


@dataclass(frozen=True, kw_only=True)
class DirectionsFile(Record):
    """Facts about the directions in a file."""

    h_shape: tuple[Positive, Positive, Positive]
    """Shape (C, H, W) of one sample's h_t."""
    timesteps: list[Count] | None = None
    """Timesteps of the directions, one each, descending; at others, the nearest one's are taken. None for all."""
    model_sha256: str | None = None
    """SHA-256 of the diffusion model, as ``hbench.model_sha256`` has it; None is not compared."""
    S: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Largest magnitude that the directions are meant for; None for that of the model's experiment."""
    method: str = ""
    """Name of the method that found them."""
    names: list[str] | None = None
    """Name of each direction, empty where it has none."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further facts, such as settings and cost of the method."""


@dataclass(frozen=True, eq=False)
class StoredDirections:
    """Directions that were read from a file."""

    path: Path
    sha256: str
    """SHA-256 of the file."""
    delta_h: Tensor
    """Directions at unit magnitude, float32 [K, timesteps, C, H, W], on the CPU."""
    timesteps: tuple[int, ...]
    """Timesteps of the directions, descending; a single one, 0, where they are for all."""
    about: DirectionsFile

    @property
    def K(self) -> int:
        """Number of directions."""
        return len(self.delta_h)

    @property
    def method(self) -> str:
        """Name of the method; of the file where it says none."""
        return self.about.method or self.path.stem

    @property
    def names(self) -> dict[int, str]:
        """Names of the directions that have one."""
        return {k: name for k, name in enumerate(self.about.names or ()) if name}

    def fixed(self) -> FixedDirections:
        """Return the directions as a run has them, on the CPU."""
        return FixedDirections(self.delta_h, self.timesteps)

    def check_fits(self, model: DiffusionModel) -> None:
        """Raise an HBenchError where the directions are of another model than this one."""
        found, needed = tuple(self.about.h_shape), tuple(model.h_shape)
        if found != needed:
            raise HBenchError(
                f"{self.path}: has directions of shape {list(found)}, and h_t of the model is {list(needed)}: give the "
                "directions of this model"
            )
        if self.about.model_sha256 not in (None, known := model_sha256(model)):
            raise HBenchError(
                f"{self.path}: has directions of another model ({self.about.model_sha256}, this one is {known}): give "
                "those of this model"
            )


def model_sha256(model: DiffusionModel) -> str:
    """Return the SHA-256 that names a diffusion model in a file of directions: of its tensors, names and shapes.

    It is the same for a pretrained model, the copy of it in a run, and on any device; weights that are kept in 16 bits
    count as the float32 ones that they are read as.
    """
    return state_sha256(model)


def write_directions(
    path: Path,
    delta_h: Tensor,
    timesteps: Sequence[int] | None,
    *,
    model_sha256: str | None,
    S: float,
    method: str,
    names: Sequence[str] | None = None,
    details: Mapping[str, Any] | None = None,
    experiment: Experiment | None = None,
) -> None:
    """Write directions in the open format.

    Args:
        path: file to write.
        delta_h: directions at unit magnitude, [K, timesteps, C, H, W], or [K, C, H, W] for all timesteps.
        timesteps: timesteps, descending; None for all.
        model_sha256: SHA-256 of the diffusion model, by :func:`model_sha256`.
        S: largest magnitude.
        method: name of the method.
        names: name of each direction.
        details: further facts.
        experiment: experiment of the model, which the file then carries.
    """
    check_finite({DELTA_H: delta_h}, method, "it is not written; look at the samples of the diffusion model")
    height, width = delta_h.shape[-2:]
    about = DirectionsFile(
        h_shape=(delta_h.shape[-3], height, width),
        timesteps=None if timesteps is None else list(timesteps),
        model_sha256=model_sha256,
        S=S,
        method=method,
        names=None if names is None else list(names),
        details=dict(details or {}),
    )
    metadata = {"role": "directions", ABOUT: json.dumps(about.to_json()), **MADE_BY}
    if experiment is not None:
        metadata["experiment"] = experiment.model_dump_json(exclude={"paper"})
    with replacing(path) as temporary:
        save_file({DELTA_H: delta_h.detach().cpu().float().contiguous()}, temporary, metadata)


def read_directions(path: str | Path) -> StoredDirections:
    """Return the directions in a file.

    Raises:
        HBenchError: missing or damaged file, one without directions, with NaN, or with facts that contradict them.
    """
    path = Path(path)
    metadata = read_metadata(path)
    is_old = ABOUT not in metadata and metadata.get("role") == "directions"
    if ABOUT not in metadata and not is_old:
        found = metadata.get("role", "foreign weights")
        raise HBenchError(f"{path}: holds {found}, need directions: {REMEDY}")
    try:
        with safe_open(path, "pt") as file:
            delta_h = file.get_tensor("mean" if is_old else DELTA_H)
            about = _of_version_0_1(metadata, delta_h, file.get_tensor("timesteps")) if is_old else None
        values = None if is_old else json.loads(metadata[ABOUT])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise HBenchError(f"{path}: damaged ({error}): {AGAIN if is_old else REMEDY}") from error
    about = about or DirectionsFile.from_json(values, path, REMEDY)
    if not delta_h.is_floating_point() or delta_h.ndim != (4 if about.timesteps is None else 5):
        wanted = "[K, C, H, W]" if about.timesteps is None else "[K, timesteps, C, H, W]"
        raise HBenchError(f"{path}: {DELTA_H} is {delta_h.dtype} {list(delta_h.shape)}, need floats {wanted}: {REMEDY}")
    wanted_shape = (*([] if about.timesteps is None else [len(about.timesteps)]), *about.h_shape)
    if tuple(delta_h.shape[1:]) != wanted_shape:
        problem = "other shapes or timesteps than its metadata's"
        raise HBenchError(
            f"{path}: {DELTA_H} is {list(delta_h.shape)}, need [K, {', '.join(map(str, wanted_shape))}] ({problem}): "
            f"{AGAIN if is_old else REMEDY}"
        )
    if about.timesteps is not None and (
        not about.timesteps or about.timesteps != sorted(set(about.timesteps), reverse=True)
    ):
        raise HBenchError(f"{path}: damaged (timesteps must descend): {AGAIN if is_old else REMEDY}")
    if len(delta_h) < 2:
        raise HBenchError(f"{path}: has {counted(len(delta_h), 'direction')}, need at least 2: add some")
    if about.names is not None and len(about.names) != len(delta_h):
        raise HBenchError(
            f"{path}: has {counted(len(about.names), 'name')} of {counted(len(delta_h), 'direction')}: {REMEDY}"
        )
    check_finite({DELTA_H: delta_h}, str(path), REMEDY)
    checked_sha256(path, AGAIN if is_old or "shift_block_sha256" in about.details else "find them again")
    timesteps = (0,) if about.timesteps is None else tuple(about.timesteps)
    delta_h = delta_h.float().reshape(len(delta_h), len(timesteps), *about.h_shape)
    return StoredDirections(path, sha256(path), delta_h, timesteps, about)


def _of_version_0_1(metadata: Mapping[str, str], mean: Tensor, timesteps: Tensor) -> DirectionsFile:
    """Return the facts of a file of hbench 0.1, which holds the mean directions of a run."""
    details = {"n": int(metadata["n"]), "seed": int(metadata["seed"])}
    if mean.ndim != 5:
        raise ValueError("need five dimensions")
    return DirectionsFile(
        h_shape=(mean.shape[2], mean.shape[3], mean.shape[4]),
        timesteps=timesteps.flatten().tolist(),
        method="mean",
        details=details | {"shift_block_sha256": metadata.get("shift_block_sha256")},
    )
