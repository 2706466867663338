"""What a run leaves on disk: weights that carry their configuration, resumable checkpoints, metrics, provenance.

Every file is written beside its place and then moved there, so that a killed process leaves the old one or the new one.
A command locks the folder that it writes to; the system gives up the lock of a killed process. A run folder may come
from anyone: nothing in it is executed, and no link leads out of it.
"""

import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
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
from hbench.distributed import backend, launched, world_size
from hbench.errors import HBenchError

FORMAT = 1
"""Of the files written here; to be raised whenever an older hbench could not read them, a new setting included."""
MADE_BY = {"hbench": __version__, "format": str(FORMAT)}
"""What the metadata of every weights file says."""
CHECKPOINT = "checkpoint.json"
"""Which file holds the last checkpoint, its SHA-256, and whose it is."""
EXPERIMENT = "experiment.json"
"""The first file of a training, so that --resume knows its folder."""
LOCK = ".hbench.lock"
WITHOUT_EFFECT = {"strategy", "keep", "memory_budget", "checkpoint_blocks"}
"""Settings that change memory and time, not the result: a training that ran out of memory may go on with others."""
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
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise HBenchError(f"{path}: cannot write ({error}): free some space or choose another --out") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one move."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name may be any bytes


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
    except (OSError, ValueError, RecursionError) as error:
        raise HBenchError(f"{path}: cannot be read ({error}): make it again") from error


# Folders ------------------------------------------------------------------------------------------------------------


@contextmanager
def claimed_folder(folder: Path, *, overwrite: bool = False, resume: bool = False) -> Iterator[None]:
    """An output folder that only this process of hbench writes to while the block runs.

    It is made where it is missing, and what killed processes have left half written in it is removed.

    Args:
        folder: the folder.
        overwrite: accept one that already holds something.
        resume: accept one in which a training has begun, and only such a one.

    Raises:
        HBenchError: it holds something else, cannot be made, is in use, or has a link that leads out of it.
    """
    _check_claim(folder, overwrite, resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HBenchError(f"{folder}: cannot be made ({error.strerror}): choose another --out") from error
    refuse_links(folder)
    with _lock(folder):
        _check_claim(folder, overwrite, resume)  # another process may have come and gone since
        remove_leftovers(folder)
        yield


def _check_claim(folder: Path, overwrite: bool, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise HBenchError(f"{folder}: is a file, not a folder: choose another --out")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    held = {name for name in held if name != LOCK and _writer(name) is None}
    if resume and (not folder.is_dir() or (held and EXPERIMENT not in held)):
        raise HBenchError(f"{folder}: nothing to resume there: leave --resume out, or give its --out")
    if held and not overwrite and not resume:
        raise HBenchError(f"{folder}: already holds results: choose another --out, or add --overwrite")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":  # has no fcntl
        yield
        return
    import fcntl

    path = folder / LOCK
    try:
        file = path.open("a+", encoding="ascii")
    except OSError as error:
        raise HBenchError(f"{folder}: cannot write ({error.strerror}): choose another --out") from error
    with file:
        try:
            # not flock, which processes forked from a killed one would go on holding
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())  # not just given up
        except OSError as error:
            # on a file system without locks, two processes at once are the user's to avoid
            locked = error.errno not in (errno.EACCES, errno.EAGAIN)
        if not locked:
            file.seek(0)
            raise HBenchError(
                f"{folder}: another hbench process writes here (PID {file.read().strip() or 'unknown'}): "
                "wait for it to end, or choose another --out"
            )
        with suppress(OSError):  # the PID is for people only
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def refuse_links(folder: Path) -> None:
    """HBenchError where a symbolic link below a folder leads out of it, to be read or written through unseen."""
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(place, name)  # noqa: PTH118
            target = os.path.realpath(path)
            if os.path.islink(path) and os.path.commonpath([root, target]) != root:  # noqa: PTH114
                shown = folder / os.path.relpath(path, root)
                raise HBenchError(f"{shown}: is a link out of its folder: put what it leads to in its place")


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes of this machine were writing below a folder; files of living ones stay."""
    for path in folder.rglob(".*.tmp"):
        pid = _writer(path.name)
        if pid is not None and not _is_alive(pid):
            path.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where this process writes a file before it moves it to ``path``."""
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")


def _writer(name: str) -> int | None:
    """The process of this machine that a name of :func:`temporary_name` belongs to."""
    found = re.fullmatch(rf"\..+\.{_machine()}\.([0-9]{{1,9}})\.tmp", name)
    return int(found[1]) if found else None


def _machine() -> str:
    """The name of this machine, since several may write to one folder and number their processes alike."""
    return re.sub("[^0-9A-Za-z-]", "-", platform.node())[:40]


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":  # where it cannot be asked without a signal
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        return True
    return True


# Weights ------------------------------------------------------------------------------------------------------------


def save_weights(path: Path, module: nn.Module, experiment: Experiment, role: str, dtype: str = "float32") -> None:
    """Writes a module as safetensors that name its role ("model", "shift_block", …) and carry the experiment."""
    target = getattr(torch, dtype)
    tensors = {
        name: (value.to(target) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in module.state_dict().items()
    }
    check_finite(tensors, f"{role} as {dtype}", "it is not written; train again with a lower learning rate")
    metadata = {"role": role, "experiment": experiment.model_dump_json(), **MADE_BY}
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
    except (KeyError, ValueError, RecursionError) as error:
        raise HBenchError(f"{path}: not made by hbench: it carries no experiment") from error
    return parse_experiment(values, source=str(path))


def write_experiment(folder: Path, experiment: Experiment) -> None:
    """Writes the experiment of a training as ``experiment.json``: call it before anything else is written."""
    write_json(folder / EXPERIMENT, {**MADE_BY, **experiment.model_dump(mode="json")})


def read_written_experiment(path: Path) -> Experiment:
    """The experiment in a file of :func:`write_experiment`; HBenchError where it is damaged or of a newer hbench."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise HBenchError(f"{path}: holds no experiment: train again")
    check_format(values, path)
    return parse_experiment({key: value for key, value in values.items() if key not in MADE_BY}, str(path))


def check_format(values: Mapping[str, Any], path: Path) -> None:
    """HBenchError where what a file says of itself is that a newer hbench wrote it."""
    found = str(values.get("format", FORMAT))  # the first files had none
    if found.isdecimal() and int(found[:9]) > FORMAT:
        raise HBenchError(
            f"{path}: was written by hbench {values.get('hbench')}, newer than this {__version__}: update hbench"
        )


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
    """Copies tensors into a module of exactly these names and shapes.

    Raises:
        HBenchError: others, with the first differences, or values that are not finite.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    other = {name: tuple(value.shape) for name, value in tensors.items()}
    if own != other:
        differing = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
        shown = "; ".join(f"{n}: file {other.get(n)}, model {own.get(n)}" for n in differing[:5])
        raise HBenchError(
            f"{source}: {len(differing)} parameters do not fit the model ({shown}): make the [model] settings match"
        )
    check_finite(tensors, source, "it is damaged, or its training diverged; give another file")
    module.load_state_dict(dict(tensors))


def check_finite(tensors: Mapping[str, Tensor], source: str, advice: str) -> None:
    """HBenchError where a tensor holds NaN or an infinity."""
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise HBenchError(f"{source}: {name} holds NaN or infinity: {advice}")


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
    """What a safetensors file says about itself; HBenchError where it is missing, damaged or of a newer one."""
    if not path.is_file():
        raise HBenchError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise HBenchError(f"{path}: not a safetensors file, or damaged ({error}): make or fetch it again") from error
    check_format(metadata, path)
    return metadata


# Checkpoints --------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, experiment: Experiment, seed: int, step: int, state: Mapping[str, Any]) -> None:
    """Writes everything that training needs to go on after ``step`` steps as if it had never stopped.

    No generator state is among it: each step seeds the generators from (seed, step). The file is named by its content
    and ``checkpoint.json`` by one move points to it, so that no kill can part a checkpoint from its SHA-256.

    Raises:
        HBenchError: a tensor is not finite, or the disk is full; the checkpoint before stays.
    """
    advice = "the last good checkpoint stays; train again in another --out with a lower learning rate, or in float32"
    check_finite(dict(_named_tensors(state)), f"step {step}", advice)
    content = io.BytesIO()
    torch.save(dict(state), content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    file = f"checkpoint-{step:06d}-{digest[:8]}.pt"
    with replacing(folder / file) as temporary:
        temporary.write_bytes(content.getbuffer())
    about = {
        "step": step,
        "seed": seed,
        "file": file,
        "sha256": digest,
        "experiment": experiment.model_dump(mode="json"),
    }
    write_json(folder / CHECKPOINT, {**MADE_BY, **about})
    for other in folder.glob("checkpoint-*.pt"):
        if other.name != file:
            other.unlink(missing_ok=True)


def read_checkpoint(folder: Path, experiment: Experiment, seed: int) -> dict[str, Any] | None:
    """What ``checkpoint.json`` says of a training: ``step``, ``file``, ``sha256``; None where it has not come so far.

    Raises:
        HBenchError: it is of another experiment or seed, of a newer hbench, damaged, or gone from a finished training.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        if any((folder / name).is_file() for name in ("provenance.json", "checkpoint.pt")):
            raise HBenchError(f"{folder}: holds a training, but no {CHECKPOINT} to go on from: choose another --out")
        return None
    about = read_json(path)
    fields = {"step": int, "seed": int, "file": str, "sha256": str, "experiment": dict}
    if isinstance(about, dict):
        check_format(about, path)
    if not isinstance(about, dict) or not all(isinstance(about.get(name), kind) for name, kind in fields.items()):
        raise HBenchError(f"{path}: {_LOST}")
    if about["seed"] != seed:
        raise HBenchError(f"{folder}: was started with --seed {about['seed']}, not {seed}: resume with that seed")
    # read back, so that a setting that an older hbench did not know has its default
    saved, wanted = parse_experiment(about["experiment"], str(path)).model_dump(), experiment.model_dump()
    for name, old, new in _flat(saved, wanted):
        if old != new and name.rpartition(".")[2] not in WITHOUT_EFFECT:
            raise HBenchError(
                f"{folder}: was started with {name} = {old!r}: resume with the same settings, or use another --out"
            )
    return about


def _flat(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each setting of two experiments: its name, and its value in both."""
    for section, settings in wanted.items():
        if isinstance(settings, dict):
            yield from ((f"{section}.{key}", saved[section][key], value) for key, value in settings.items())
        else:
            yield section, saved[section], settings


_LOST = "damaged: bring it back from a copy, or train again in another --out"


def load_checkpoint(folder: Path, experiment: Experiment, seed: int, parts: Collection[str]) -> dict[str, Any] | None:
    """The state of each part and the ``step`` that a run folder's checkpoint holds; None where there is none yet.

    Raises:
        HBenchError: as in :func:`read_checkpoint`, or it is damaged, or of another command.
    """
    about = read_checkpoint(folder, experiment, seed)
    if about is None:
        return None
    if not re.fullmatch(r"checkpoint-[0-9]+-[0-9a-f]{8}\.pt", about["file"]):
        raise HBenchError(f"{folder / CHECKPOINT}: {_LOST}")
    file = folder / about["file"]
    if not file.is_file() or sha256(file) != about["sha256"]:
        raise HBenchError(f"{file}: {_LOST}")
    state = load_pickled(file)
    if state.keys() != set(parts):
        raise HBenchError(f"{folder}: was started by another command of hbench: choose another --out")
    return {**state, "step": about["step"]}


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts and lists, each with its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _named_tensors(each, f"{name}.{key}" if name else str(key))


# Metrics ------------------------------------------------------------------------------------------------------------


class Metrics:
    """One row of numbers a step: ``metrics.jsonl``, brought up to date at each checkpoint, and ``metrics.csv`` from it.

    Opened again at a checkpoint's step, it drops the rows that came after that checkpoint; HBenchError where one of
    those before it is missing.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "metrics.jsonl"
        kept: list[str] = []
        if step:
            try:
                lines = self._path.read_text(encoding="utf-8").splitlines()[:step]  # the rest came after the checkpoint
                whole = [json.loads(line)["step"] for line in lines] == list(range(step))
            except (OSError, ValueError, TypeError, KeyError):
                whole = False
            if not whole:
                raise HBenchError(f"{self._path}: rows are missing: bring it back, or train again in another --out")
            kept = [line + "\n" for line in lines]
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
                file.flush()
                os.fsync(file.fileno())  # the checkpoint that follows must not outlive its rows
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
        "started_monotonic": time.monotonic(),
        **details,
    }


def write_provenance(folder: Path, origin: Mapping[str, Any], **details: Any) -> None:
    """Writes ``provenance.json``: what :func:`provenance` said at the start, the wall time since, and more details."""
    seconds = time.monotonic() - origin["started_monotonic"]  # which no change of the clock can make wrong
    known = {name: value for name, value in origin.items() if name != "started_monotonic"}
    write_json(folder / "provenance.json", {**known, "wall_seconds": round(seconds, 1), **details})


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
