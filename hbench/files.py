"""Files and folders that survive a kill: everything written in one move, into a folder that is locked meanwhile.

Every file is written beside its place and then moved there, so that a killed process leaves the old one or the new one.
A command locks the folder that it writes to; the system gives up the lock of a killed process. A folder may come from
anyone: no link leads out of it.
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

EXPERIMENT = "experiment.json"
"""The first file of a training, so that --resume knows its folder."""
LOCK = ".hbench.lock"


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


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
