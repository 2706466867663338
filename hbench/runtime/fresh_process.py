"""Measurements in a fresh process, whose memory and speed no other work has touched."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hbench

CHILD = [sys.executable, "-m"]


def run_apart(module: str, given: Mapping[str, Any]) -> "subprocess.CompletedProcess[str]":
    """Run a module of hbench as a program, with ``given`` as JSON on its standard input, and return its process."""
    end_with_parent = None
    if sys.platform == "linux":  # one that outlives it would disturb the next one
        end_with_parent = partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    return subprocess.run(
        [*CHILD, module],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=Path(hbench.__file__).parent.parent,  # the same copy of hbench
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # as this process computes
        start_new_session=True,  # Ctrl-C is for this process, which lets it finish
        preexec_fn=end_with_parent,
        check=False,
    )


def reason_of(failed: "subprocess.CompletedProcess[str]") -> str:
    """Return why a program of :func:`run_apart` failed: the first line of its last exception, without advice."""
    lines = failed.stderr.strip().splitlines()
    exceptions = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return (exceptions or lines or [f"ended with exit code {failed.returncode}"])[-1]


def was_killed(done: "subprocess.CompletedProcess[str]") -> bool:
    """Return whether the system killed a program of :func:`run_apart`, as Linux does when memory runs out."""
    return sys.platform != "win32" and done.returncode == -signal.SIGKILL


def die_first() -> None:
    """Ask the system to kill this process, not its parent, where the machine's memory ends."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
