"""Output folders: claimed by one process, locked while it writes, without links that lead out of them.

The system gives up the lock of a killed process. A folder may come from anyone.
"""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hbench.errors import HBenchError
from hbench.store.files import a_path, is_alive, write_text, writer_of
from hbench.store.shipped import refuse_to_hide

EXPERIMENT = "experiment.json"
"""Name of the first file of a training, by which a resume knows its folder."""

CHECKPOINT = "checkpoint.json"
"""Name of the file that points to the last checkpoint of a training."""

WORTH_KEEPING = ("provenance.json", CHECKPOINT, "samples.json", "search.json")
"""Names of files that vouch for finished work, or for the part that is done."""
OF_TRAINING = (CHECKPOINT, "shift_block.safetensors")
"""Names of files by which the folder of a training is known."""

LOCK = ".hbench.lock"
"""Name of the file that is locked while a process writes to its folder."""
CACHE_TAG = "CACHEDIR.TAG"
"""Name of the file that marks a folder as a cache for all programs (https://bford.info/cachedir)."""


@contextmanager
def claimed_folder(
    folder: Path, *, overwrite: bool = False, resume: bool = False, of_training: bool = False
) -> Iterator[None]:
    """Claim an output folder for this process of hbench while the block runs.

    The folder is made where it is missing, with its parents, and they are removed again where they stay empty. Where
    the block fails before any work was finished, the files that it has written are removed too, so that nothing looks
    like a result. So are half-written files of killed processes.

    Args:
        folder: folder to claim.
        overwrite: accept a folder that already holds something.
        resume: accept only a folder in which a training has begun.
        of_training: accept one that holds a training, whose provenance any other result would replace by its own.

    Raises:
        HBenchError: the folder holds something else, cannot be made, is in use, has a link that leads out of it, or
            would hide a shipped run.
    """
    folder = a_path(folder)
    _check_claim(folder, overwrite, resume, of_training)
    refuse_to_hide(folder)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HBenchError(f"{folder}: cannot be made ({error.strerror}): choose another `out`") from error
    refuse_links(folder)
    try:
        with _lock(folder), _leaving_nothing_half_done(folder):
            _check_claim(folder, overwrite, resume, of_training)  # another process may have come and gone since
            remove_leftovers(folder)
            yield
    finally:
        for each in made:
            with suppress(OSError):  # it holds something
                each.rmdir()


@contextmanager
def _leaving_nothing_half_done(folder: Path) -> Iterator[None]:
    """Empty a folder that was empty before, where the block fails and no file in it vouches for finished work."""
    was_empty, succeeded = not held_in(folder), False
    try:
        yield
        succeeded = True
    finally:
        if was_empty and not succeeded and not any(path.name in WORTH_KEEPING for path in folder.rglob("*.json")):
            for path in folder.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def held_in(folder: Path) -> set[str]:
    """Return the names in a folder, but not those of a lock and of files that are being written."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in held if name != LOCK and writer_of(name) is None}


def _check_claim(folder: Path, overwrite: bool, resume: bool, of_training: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise HBenchError(f"{folder}: is a file, not a folder: choose another `out`")
    held = held_in(folder)
    if held & {*OF_TRAINING} and not of_training:
        raise HBenchError(f"{folder}: holds a training, in the place of which no result may be: choose another `out`")
    if resume and (not folder.is_dir() or (held and EXPERIMENT not in held)):
        raise HBenchError(f"{folder}: nothing to resume there: leave `resume=True` out, or give its `out`")
    if held and not overwrite and not resume:
        resuming = ", go on with `resume=True`" if EXPERIMENT in held else ""
        raise HBenchError(f"{folder}: already holds results: choose another `out`{resuming}, or add `overwrite=True`")


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
        raise HBenchError(f"{folder}: cannot write ({error.strerror}): choose another `out`") from error
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
                "wait for it to end, or choose another `out`"
            )
        with suppress(OSError):  # the PID is for people only
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def mark_cache(folder: Path) -> None:
    """Mark a folder as a cache, whose pictures nobody takes for data, and which backups leave out."""
    if not (folder / CACHE_TAG).is_file():
        with suppress(HBenchError):  # the files that follow say where nothing can be written
            write_text(folder / CACHE_TAG, "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of hbench.\n")


def refuse_links(folder: Path) -> None:
    """Raise an HBenchError where a link below a folder leads out of it, to be read or written through unseen."""
    root = os.path.realpath(folder)
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(parent, name)  # noqa: PTH118
            target = os.path.realpath(path)
            if os.path.islink(path) and os.path.commonpath([root, target]) != root:  # noqa: PTH114
                shown = folder / os.path.relpath(path, root)
                raise HBenchError(f"{shown}: is a link out of its folder: put what it leads to in its place")


def remove_leftovers(folder: Path) -> None:
    """Remove the files that killed processes of this machine were writing below a folder; those of living ones stay."""
    for path in folder.rglob(".*.tmp"):
        pid = writer_of(path.name)
        if pid is not None and not is_alive(pid):
            path.unlink(missing_ok=True)
