"""Where a result comes from: command, configuration, commit, versions, device, seed and time."""

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hbench
from hbench import __version__
from hbench.config import Experiment
from hbench.runtime.distributed import backend, world_size
from hbench.store.files import write_json

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
PIECE = ("command", "git", "device", "threads", "processes", "started_utc")
"""Of a provenance, what may differ between the processes of one training."""


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
        "versions": {"hbench": __version__, "python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
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


def piece_of(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What a training that may be resumed notes of this process: how, where and when it trained, and for how long."""
    seconds = time.monotonic() - origin["started_monotonic"]  # which no change of the clock can make wrong
    return {name: origin[name] for name in PIECE} | {"wall_seconds": round(seconds, 1)}


def write_provenance(
    folder: Path, origin: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = (), **details: Any
) -> None:
    """Writes ``provenance.json``: what :func:`provenance` said at the start, the wall time since, and more details.

    With the pieces of ``earlier`` processes, whose work this one ended, it has all of them and their time together.
    """
    pieces = [*earlier, piece_of(origin)]
    known = {name: value for name, value in origin.items() if name != "started_monotonic"}
    seconds = round(sum(piece["wall_seconds"] for piece in pieces), 1)
    resumed = {"pieces": pieces} if earlier else {}
    write_json(folder / "provenance.json", {**known, "wall_seconds": seconds, **resumed, **details})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # one that this command did not need
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that hbench runs from, None outside of one."""
    root = Path(hbench.__file__).parent.parent

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
