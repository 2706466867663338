"""Provenance of results: command, settings, commit, versions, device, seed and time."""

import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import AfterValidator, Field

import hbench
from hbench import __version__
from hbench.config import Experiment
from hbench.errors import HBenchError
from hbench.experiments import parse_experiment
from hbench.runtime.command import COMMAND
from hbench.runtime.distributed import backend, world_size
from hbench.runtime.threads import wait_policy
from hbench.store.files import sha256
from hbench.store.records import Aside, Count, Positive, Record

FILE = "provenance.json"
"""Name of the file in a folder of results."""
REMEDY = "bring it back from a copy, or train again"
"""Advice about the files of a training."""
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


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an experiment, and raise a ValueError where some are missing or out of range."""
    try:
        parse_experiment(settings, "experiment")
    except HBenchError as error:
        raise ValueError(str(error)) from error
    return settings


@dataclass(frozen=True, kw_only=True)
class Commit:
    """State of the checkout that hbench ran from."""

    commit: str
    dirty: bool
    """True if tracked files differed from the commit."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One process of a training that was resumed."""

    command: str | None
    git: Commit | None
    device: str
    threads: Positive
    processes: Positive = 1
    started_utc: str
    wall_seconds: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """Provenance of a result. Its file holds the details beside the other values."""

    command: str | None
    """Command line; None for a call from Python."""
    title: str | None
    """Title of the experiment."""
    experiment: Annotated[dict[str, Any], AfterValidator(_complete)] | None
    """Resolved settings; None for a result of no single experiment."""
    git: Commit | None
    """State of the checkout; None outside of one."""
    versions: dict[str, str | None]
    device: str
    driver: str | None = None
    threads: Positive
    wait_policy: str | None = None
    """Waiting of the threads on the CPU, as the environment says it; None where it says nothing."""
    processes: Positive = 1
    backend: str | None = None
    """Collectives of several processes: "gloo" or "nccl"."""
    seed: Count | None
    """Seed of everything random in it; None where nothing is."""
    started_utc: str
    wall_seconds: Annotated[float, Field(ge=0)] = 0.0
    pieces: tuple[Piece, ...] = ()
    """All processes of a resumed training, with this one; empty where one process did it all."""
    details: dict[str, Any] = field(default_factory=dict)
    """Further facts that determine the result, such as n and the SHA-256 of the weights."""
    started: Aside = field(default=0.0, compare=False, repr=False)
    """Monotonic clock at the start."""

    def to_json(self) -> dict[str, Any]:
        """Return the values as they stand in the file, with the details beside the others."""
        values = super().to_json()
        if not self.pieces:
            del values["pieces"]
        details: dict[str, Any] = values.pop("details")
        return values | details

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of the file, which allows any details."""
        schema = super().json_schema()
        del schema["properties"]["details"]
        return schema | {"additionalProperties": True}

    @classmethod
    def from_json(cls, values: Any, source: str | Path, remedy: str = "make it again") -> Self:
        """Return the provenance in a file's values; values without a field become details."""
        if isinstance(values, dict):
            known = {each.name for each in fields(cls)} - {"details", "started"} | {"hbench", "format"}
            details = {key: value for key, value in values.items() if key not in known}
            values = {key: value for key, value in values.items() if key in known} | {"details": details}
        return super().from_json(values, source, remedy)

    @property
    def weights(self) -> dict[str, str] | str | None:
        """SHA-256 of the weights that the result is of, by role, or of the only file; None where it is of none."""
        found: dict[str, str] | str | None = self.details.get("weights_sha256")
        return found

    def finished(self, **details: Any) -> "Provenance":
        """Return the provenance of a result that is complete now, with its wall time and more details."""
        seconds = round(time.monotonic() - self.started, 1)  # no change of the clock can make it wrong
        return replace(self, wall_seconds=seconds, details=self.details | details)

    def piece(self) -> Piece:
        """Return the part of this process in a training that may be resumed: how, where and how long it trained."""
        values = {each.name: getattr(self, each.name) for each in fields(Piece)}
        return Piece(**values | {"wall_seconds": round(time.monotonic() - self.started, 1)})

    def after(self, earlier: Sequence[Piece]) -> "Provenance":
        """Return this provenance with the processes whose work it ended, and the wall time of all of them."""
        if not earlier:
            return self
        last = replace(self.piece(), wall_seconds=self.wall_seconds)
        pieces = (*earlier, last)
        return replace(self, pieces=pieces, wall_seconds=round(sum(piece.wall_seconds for piece in pieces), 1))


def provenance(
    experiment: Experiment | None,
    device: torch.device,
    seed: int | None,
    **details: Any,
) -> Provenance:
    """Return the provenance of a result as known at its start, with the time and the commit of the code.

    Args:
        experiment: experiment of the result; None for a result of no single one, whose details then name its sources.
        device: device of the computations.
        seed: seed of everything random; None where nothing is.
        details: further facts that determine the result.
    """
    return Provenance(
        command=COMMAND.get(),
        title=experiment.title if experiment else None,
        experiment=experiment.model_dump(mode="json") if experiment else None,
        git=_git_state(),
        versions={
            "hbench": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
        device=_device_name(device),
        driver=_driver_version() if device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        wait_policy=wait_policy(),
        processes=world_size(),
        backend=backend(),
        seed=seed,
        started_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
        details=details,
        started=time.monotonic(),
    )


def checked_sha256(file: Path, remedy: str = REMEDY) -> str:
    """Return the SHA-256 of a file, after comparing it with the one in the provenance beside it.

    The provenance names weights by role in ``weights_sha256``, and another file NAME in ``NAME_sha256``. A file without
    a provenance, or one that its provenance does not name, is taken as it is. ``remedy`` is the advice about another.

    Raises:
        HBenchError: the file is not the one that was written with the provenance, or the provenance is damaged.
    """
    found = sha256(file)
    if (file.parent / FILE).is_file():
        origin = Provenance.read(file.parent / FILE, remedy)
        recorded = origin.weights
        if isinstance(recorded, str):  # a pretraining and a classifier have one file, named by its hash alone
            kinds = (kind for kind in ("classifier", "lenet") if (file.parent / f"{kind}.json").is_file())
            recorded = {next(kinds, "model"): recorded}
        expected = (recorded or {}).get(file.stem) or origin.details.get(f"{file.stem}_sha256")
        if expected not in (None, found):
            raise HBenchError(f"{file}: is not the file that {FILE} beside it was written with: {remedy}")
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # hbench can be installed without it
        return None


def _git_state() -> Commit | None:
    """Return the state of the checkout hbench runs from, None outside of one."""
    root = Path(hbench.__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return Commit(commit=git("rev-parse", "HEAD"), dirty=bool(git("status", "--porcelain", "-uno")))
    except (OSError, subprocess.CalledProcessError):
        return None


def _driver_version() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, its GPU (mps)" if device.type == "mps" else _cpu_name()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
