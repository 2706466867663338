"""Files that survive a kill: each is written under a temporary name and then moved to its place.

A killed process leaves the old file or the new one, and its temporary files, which name their writer.
"""

import errno
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hbench.errors import HBenchError
from hbench.text import read_text


def a_path(path: str | Path) -> Path:
    """Return a path that a file system can have; nothing needs to be there.

    Raises:
        TypeError: neither text nor a path.
        HBenchError: a null character in it, or a longer name than the system takes.
    """
    found = Path(path)
    try:
        os.stat(found)  # noqa: PTH116
    except ValueError as error:
        raise HBenchError(f"{str(path)!r}: holds a null character, which no path can have: take another") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise HBenchError(f"{str(found)[:60]}…: is longer than a path can be: take a shorter one") from error
    return found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` when the block ends without an error.

    Raises:
        HBenchError: the disk is full or the folder cannot be written.
    """
    temporary = temporary_name(a_path(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise HBenchError(f"{path}: cannot write ({error}): free some space or choose another `out`") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file's name may be any bytes


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON in one move, in the form of :func:`jsonable`."""
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """Return a value in the form of JSON: null for nan and infinity, lists for tuples, bytes of no text escaped.

    Scalars of NumPy and PyTorch become those of Python.
    """
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, Mapping):
        return {jsonable(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # a file's name may be any bytes
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, remedy: str = "make it again") -> Any:
    """Read a JSON file of hbench.

    Raises:
        HBenchError: it cannot be read or is damaged; the message ends with ``remedy``, the advice.
    """
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise HBenchError(f"{path}: cannot be read ({error}): {remedy}") from error


def sha256(path: Path) -> str:
    """Return the file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Temporary names ----------------------------------------------------------------------------------------------------


def temporary_name(path: Path) -> Path:
    """Return the path where this process writes a file before it moves it to ``path``."""
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.tmp")


def writer_of(name: str) -> int | None:
    """Return the PID that a name of :func:`temporary_name` holds; None for other names and other machines."""
    found = re.fullmatch(rf"\..+\.{_machine()}\.([0-9]{{1,9}})\.tmp", name)
    return int(found[1]) if found else None


def _machine() -> str:
    """Return the name of this machine, since several may write to one folder and number their processes alike."""
    return re.sub("[^0-9A-Za-z-]", "-", platform.node())[:40]


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine is running; True where the system cannot tell."""
    if sys.platform == "win32":  # os.kill ends a process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        return True
    return True
