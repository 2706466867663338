"""Weights and experiments on disk: safetensors that carry their settings; code in a file is never run."""

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hbench import __version__
from hbench.config import Experiment
from hbench.errors import HBenchError
from hbench.experiments import PATHS, parse_experiment
from hbench.store.files import replacing
from hbench.store.folders import EXPERIMENT
from hbench.store.records import Record

FORMAT = 2
"""Format of the files written here; increase it when an older hbench cannot read them, as with a new setting."""
MADE_BY = {"hbench": __version__, "format": str(FORMAT)}
"""Metadata that names the writer of a file."""


@dataclass(frozen=True, kw_only=True)
class WrittenExperiment(Record):
    """The experiment of a training, section by section; :class:`Experiment` checks its values."""

    name: str
    data: dict[str, Any]
    model: dict[str, Any]
    diffusion: dict[str, Any]
    pretrain: dict[str, Any]
    discovery: dict[str, Any]
    evaluation: dict[str, Any]
    paper: dict[str, Any] = field(default_factory=dict)


def save_weights(
    path: Path,
    module: nn.Module,
    experiment: Experiment,
    role: str,
    dtype: str = "float32",
    *,
    beside: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write a module as safetensors that name its role ("model", "shift_block", …) and carry the experiment.

    Args:
        path: file to write.
        module: network whose state is written.
        experiment: settings that the file carries.
        role: role of the network.
        dtype: precision of the network's numbers.
        beside: further tensors, written as they are.
        facts: further metadata.
    """
    target = getattr(torch, dtype)
    tensors = {
        name: (value.to(target) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    tensors |= beside or {}
    check_finite(tensors, f"{role} as {dtype}", "it is not written; train again with a lower learning rate")
    metadata = {"role": role, "experiment": experiment.model_dump_json(exclude={"paper"}), **MADE_BY, **(facts or {})}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_experiment(path: Path) -> Experiment:
    """Return the experiment that a weights file carries.

    Raises:
        HBenchError: missing, damaged or foreign file.
    """
    metadata = read_metadata(path)
    try:
        values = json.loads(metadata["experiment"])
    except (KeyError, ValueError, RecursionError) as error:
        raise HBenchError(f"{path}: not made by hbench: it carries no experiment") from error
    experiment = parse_experiment(values, source=str(path))
    # none is written, and a stranger's file must not choose a folder to read
    sections = {section: getattr(experiment, section).model_copy(update={key: None}) for section, key in PATHS}
    return experiment.model_copy(update=sections)


def write_experiment(folder: Path, experiment: Experiment) -> None:
    """Write the experiment of a training as ``experiment.json``; call it before anything else is written."""
    WrittenExperiment(**experiment.model_dump(mode="json")).write(folder / EXPERIMENT)


def read_written_experiment(path: Path, remedy: str = "train again") -> Experiment:
    """Return the experiment in a file of :func:`write_experiment`.

    Raises:
        HBenchError: damaged, or written by a newer hbench; ``remedy`` is the advice about a damaged file.
    """
    values = WrittenExperiment.read(path, remedy).to_json()
    return parse_experiment({key: value for key, value in values.items() if key != "schema"}, str(path))


def check_format(values: Mapping[str, Any], path: Path) -> None:
    """Raise an HBenchError where the metadata of a file say that a newer hbench wrote it."""
    found = str(values.get("format", FORMAT))  # the first files had none
    if found.isdecimal() and int(found[:9]) > FORMAT:
        raise HBenchError(
            f"{path}: was written by hbench {values.get('hbench')}, newer than this {__version__}: update hbench"
        )


def load_weights(path: Path, module: nn.Module, role: str) -> None:
    """Read weights of the given role into a module, as float32.

    Raises:
        HBenchError: missing, damaged or foreign file, or one of another role or shape.
    """
    found = read_metadata(path).get("role")
    if found != role:
        raise HBenchError(f"{path}: holds {found or 'foreign weights'}, need {role}: give another file")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    load_tensors(module, tensors, str(path))


def tensors_sha256(path: Path) -> str:
    """Return the SHA-256 of a safetensors file without its header, which depends on the weights alone."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of a module's tensors, names and shapes; it does not depend on the device."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a module of exactly these names and shapes.

    Raises:
        HBenchError: other names or shapes, of which the message lists the first, or values that are not finite.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise HBenchError(
                f'{source}: "{name}" in it is a {type(value).__name__}, need tensors alone: load it with torch.load '
                "and save the state dict inside it by itself"
            )
    needed = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if needed != found:
        differing = sorted(name for name in needed.keys() | found.keys() if needed.get(name) != found.get(name))
        shown = "; ".join(f"{n}: file {found.get(n)}, model {needed.get(n)}" for n in differing[:5])
        hint = "make the [model] settings match"
        if differing == ["out.2.bias", "out.2.weight"]:
            hint = "set model.learn_sigma = true, or false"
        elif "input_blocks.0.0.weight" in differing and len(shape := found.get("input_blocks.0.0.weight", ())) == 4:
            hint = f"set data.channels = {shape[1]} and model.model_channels = {shape[0]}, and the rest likewise"
        raise HBenchError(f"{source}: {len(differing)} of its parameters do not fit the model ({shown}): {hint}")
    for name, value in module.state_dict().items():
        if not _is_plain(tensors[name], value.is_floating_point()):
            raise HBenchError(
                f"{source}: {name} is {tensors[name].dtype}, quantised or sparse: give weights in 16 or 32 bits"
            )
    check_finite(tensors, source, "it is damaged, or its training diverged; give another file")
    module.load_state_dict(dict(tensors))


def _is_plain(tensor: Tensor, is_float: bool) -> bool:
    """Return whether a tensor holds plain numbers of its kind, such as load_state_dict takes over as they are."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    fits = tensor.dtype in floats if is_float else not tensor.is_floating_point()
    return fits and tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def check_finite(tensors: Mapping[str, Tensor], source: str, advice: str) -> None:
    """Raise an HBenchError where a tensor holds NaN or an infinity."""
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise HBenchError(f"{source}: {name} holds NaN or infinity: {advice}")


def is_safetensors(path: Path) -> bool:
    """Return whether a file is safetensors, by its name or by the start of its header."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return has_header(file.read(9))


def has_header(first: bytes) -> bool:
    """Return whether the first bytes of a file are those of safetensors: the header's length, and the header, JSON."""
    return first[4:9] == b"\0\0\0\0{"


def carries_experiment(path: Path) -> bool:
    """Return whether a file is one of hbench's, which carry their settings; others are state dicts.

    Raises:
        HBenchError: damaged safetensors, or written by a newer hbench.
    """
    return is_safetensors(path) and not {"role", "experiment", "hbench"}.isdisjoint(read_metadata(path))


def load_pickled(path: Path) -> dict[str, Any]:
    """Read a dict of tensors and plain values from torch.save; code inside the file is never run.

    Raises:
        HBenchError: missing, damaged, or holding anything but tensors and plain values.
    """
    if not path.is_file():
        raise HBenchError(f"{path}: no such file")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (
        UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise HBenchError(
                f"{path}: not a checkpoint of plain tensors: it holds objects ({named[1]}), whose code could do "
                "anything, and was refused; where you trust it, load it and save its state dict by itself"
            ) from error
        raise HBenchError(
            f"{path}: not a checkpoint of plain tensors, or damaged: it was refused; get the file again"
        ) from error
    if not isinstance(values, dict):
        raise HBenchError(
            f"{path}: holds {type(values).__name__}, need a dict of tensors: save the state dict by itself"
        )
    return values


def names_in_pickle(path: Path) -> list[str]:
    """Return the words in a pickle that may be names of parameters, without loading it."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    except (zipfile.BadZipFile, OSError):
        return []
    return [word.decode() for word in re.findall(rb"[A-Za-z_][\w.]{3,}", content)]


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        HBenchError: the file is missing, damaged, or written by a newer hbench.
    """
    if not path.is_file():
        raise HBenchError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise HBenchError(f"{path}: not a safetensors file, or damaged ({error}): make or fetch it again") from error
    check_format(metadata, path)
    return metadata
