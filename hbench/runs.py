"""What a run leaves on disk: weights that carry their configuration, resumable checkpoints, metrics, provenance.

Every file is written beside its place and then moved there, so that a killed process leaves the old one or the new one.
"""

import hashlib
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hbench import __version__
from hbench.config import Experiment, parse_experiment
from hbench.distributed import backend, launched, rank, world_size
from hbench.errors import HBenchError

CHECKPOINT = "checkpoint.pt"
PACKAGES = (
    "torch",
    "torchvision",
    "torch-fidelity",
    "numpy",
    "pandas",
    "safetensors",
    "scikit-learn",
    "scipy",
    "krippendorff",
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    Raises:
        HBenchError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save has no better one for a full disk
        temporary.unlink(missing_ok=True)
        raise HBenchError(f"{path}: cannot write ({error}): free some space or choose another --out") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one move."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON in one move; what is not finite becomes null, since JSON has no word for it."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """What a JSON file of hbench holds; HBenchError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise HBenchError(f"{path}: cannot be read ({error}): make it again") from error


def claim_folder(folder: Path, *, overwrite: bool = False) -> None:
    """Makes an output folder, refusing one that already holds something unless ``overwrite`` is set.

    Of several processes, the one that writes does it for all.
    """
    if rank():
        return
    if folder.exists() and not folder.is_dir():
        raise HBenchError(f"{folder}: is a file, not a folder: choose another --out")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise HBenchError(f"{folder}: already holds results: choose another --out, or add --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HBenchError(f"{folder}: cannot be made ({error.strerror}): choose another --out") from error


# Weights ------------------------------------------------------------------------------------------------------------


def save_weights(path: Path, module: nn.Module, experiment: Experiment, role: str, dtype: str = "float32") -> None:
    """Writes a module as safetensors that name its role ("model", "shift_block", …) and carry the experiment."""
    target = getattr(torch, dtype)
    tensors = {
        name: (value.to(target) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    metadata = {"role": role, "experiment": experiment.model_dump_json(), "hbench": __version__}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_experiment(path: Path) -> Experiment:
    """The experiment that a weights file carries.

    Raises:
        HBenchError: missing, damaged or foreign file.
    """
    metadata = read_metadata(path)
    try:
        values = json.loads(metadata["experiment"])
    except (KeyError, json.JSONDecodeError) as error:
        raise HBenchError(f"{path}: not made by hbench: it carries no experiment") from error
    return parse_experiment(values, source=str(path))


def load_weights(path: Path, module: nn.Module, role: str) -> None:
    """Reads weights of the given role into a module, as float32.

    Raises:
        HBenchError: missing, damaged or foreign file, or one of another role or shape.
    """
    found = read_metadata(path).get("role")
    if found != role:
        raise HBenchError(f"{path}: holds {found or 'foreign weights'}, need {role}: give another file")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    load_tensors(module, tensors, str(path))


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copies tensors into a module of exactly these names and shapes; HBenchError names the first differences."""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    other = {name: tuple(value.shape) for name, value in tensors.items()}
    if own != other:
        differing = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        shown = "; ".join(f"{n}: file {other.get(n)}, model {own.get(n)}" for n in differing[:5])
        raise HBenchError(
            f"{source}: {len(differing)} parameters do not fit the model ({shown}): make the [model] settings match"
        )
    module.load_state_dict(dict(tensors))


def load_pickled(path: Path) -> dict[str, Any]:
    """A dict of tensors and plain values from torch.save; code inside the file is never run.

    Raises:
        HBenchError: missing, damaged, or holding anything but tensors and plain values.
    """
    from pickle import UnpicklingError

    if not path.is_file():
        raise HBenchError(f"{path}: no such file")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise HBenchError(
            f"{path}: not a checkpoint of plain tensors, or damaged: it was refused; get the file again"
        ) from error
    if not isinstance(values, dict):
        raise HBenchError(f"{path}: holds {type(values).__name__}, need a dict of tensors")
    return values


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says about itself; HBenchError for a missing or damaged file."""
    if not path.is_file():
        raise HBenchError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise HBenchError(f"{path}: not a safetensors file, or damaged ({error}): make or fetch it again") from error


# Checkpoints --------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, experiment: Experiment, seed: int, step: int, state: dict[str, Any]) -> None:
    """Writes everything that training needs to go on after ``step`` steps as if it had never stopped.

    No generator state is among it: each step seeds the generators from (seed, step).
    """
    values = {"experiment": experiment.model_dump_json(), "seed": seed, "step": step, **state}
    with replacing(folder / CHECKPOINT) as temporary:
        torch.save(values, temporary)


def load_checkpoint(folder: Path, experiment: Experiment, seed: int) -> dict[str, Any]:
    """The checkpoint of a run folder, if it belongs to the same experiment and seed; else HBenchError."""
    if not (folder / CHECKPOINT).is_file():
        raise HBenchError(f"{folder}: no {CHECKPOINT} to resume from: leave --resume out")
    values = load_pickled(folder / CHECKPOINT)
    if not {"experiment", "seed", "step"} <= values.keys():
        raise HBenchError(f"{folder / CHECKPOINT}: not a checkpoint of hbench")
    if values["seed"] != seed:
        raise HBenchError(f"{folder}: was started with --seed {values['seed']}, not {seed}: resume with that seed")
    saved, wanted = (  # read back, so that a setting that an older hbench did not know has its default
        parse_experiment(json.loads(text), str(folder / CHECKPOINT)).model_dump()
        for text in (values["experiment"], experiment.model_dump_json())
    )
    for section, settings in wanted.items():
        if saved.get(section) != settings:
            what, old = section, saved.get(section)
            if isinstance(old, dict):
                key = next(key for key in settings.keys() | old.keys() if old.get(key) != settings.get(key))
                what, old = f"{section}.{key}", old.get(key)
            raise HBenchError(
                f"{folder}: was started with {what} = {old!r}: resume with the same settings, or use another --out"
            )
    return values


# Metrics ------------------------------------------------------------------------------------------------------------


class Metrics:
    """One row of numbers a step: ``metrics.jsonl``, brought up to date at each checkpoint, and ``metrics.csv`` from it.

    Opened again at a checkpoint's step, it drops the rows that came after that checkpoint.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "metrics.jsonl"
        kept = []
        if step and self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                if not line.endswith("}") or json.loads(line)["step"] >= step:
                    break  # cut short by a kill, or made after the checkpoint
                kept.append(line + "\n")
        write_text(self._path, "".join(kept))
        self._pending: list[str] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row, in memory until the next flush."""
        self._pending.append(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        """Brings both files up to date; call it before each checkpoint."""
        import pandas as pd

        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(self._pending)
        except OSError as error:
            raise HBenchError(f"{self._path}: cannot write ({error.strerror}): free some space") from error
        self._pending.clear()
        if self._path.stat().st_size:
            with replacing(self._path.with_suffix(".csv")) as temporary:
                pd.read_json(self._path, lines=True).to_csv(temporary, index=False)


# Stopping -----------------------------------------------------------------------------------------------------------


@contextmanager
def stop_requests(max_minutes: float | None) -> Iterator[Callable[[], str | None]]:
    """A function that says why to stop after the current step, or None: SIGTERM, SIGINT, or ``max_minutes`` are over.

    A second signal acts as it would without hbench; but torchrun passes on what the terminal or Slurm sent already, so
    under torchrun it changes nothing.
    """
    reasons: list[str] = []
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    def on_signal(number: int, frame: FrameType | None) -> None:
        reasons.append(signal.Signals(number).name)
        if not launched():
            signal.signal(number, previous[number])

    def reason() -> str | None:
        if deadline is not None and time.monotonic() >= deadline and not reasons:
            reasons.append(f"--max-minutes {max_minutes:g}")
        return reasons[0] if reasons else None

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield reason
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# Provenance ---------------------------------------------------------------------------------------------------------


def provenance(experiment: Experiment | None, device: torch.device, seed: int, **details: Any) -> dict[str, Any]:
    """Where a result comes from: command, configuration, commit, versions, device, seed and the given details.

    Ask for it at the start of a command, since it notes the time and the commit that the code was read at. A result of
    no single experiment has None, and says in the details where it comes from.
    """
    return {
        "command": shlex.join(["hbench", *sys.argv[1:]]),
        "title": experiment.title if experiment else None,
        "experiment": experiment.model_dump(mode="json") if experiment else None,
        "git": _git_state(),
        "versions": {"hbench": __version__, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "driver": _driver_version() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "backend": backend(),
        "seed": seed,
        "started_utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
        **details,
    }


def write_provenance(folder: Path, origin: Mapping[str, Any], **details: Any) -> None:
    """Writes ``provenance.json``: what :func:`provenance` said at the start, the wall time since, and more details."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(origin["started_utc"])).total_seconds()
    write_json(folder / "provenance.json", {**origin, "wall_seconds": round(seconds, 1), **details})


def _git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that hbench runs from, None outside of one."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _driver_version() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
