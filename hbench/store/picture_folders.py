"""Picture files below a folder: which of them are read, and which are left out for what reason.

Links are followed. A file or a folder that two names lead to is taken once, by its own name before that of a link.
"""

import json
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from hbench.errors import HBenchError
from hbench.store.folders import CACHE_TAG

EXTENSIONS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Suffixes of the files that are read."""
OTHER_FORMATS = {
    ".apng", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".j2k",
    ".jfif", ".jp2", ".jpe", ".jxl", ".mpo", ".nef", ".pbm", ".pfm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga",
}  # fmt: skip
"""Suffixes of pictures that are not read, but counted."""
ARCHIVES = {
    ".7z", ".bz2", ".gz", ".h5", ".lmdb", ".npy", ".npz", ".parquet", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst",
}  # fmt: skip
"""Suffixes of files that may hold many pictures; they are not read, but named."""
PACKED = "packed"
"""Reason why such a file is left out."""
HIDDEN = {"$recycle.bin", "__macosx", "@eadir", "system volume information", "thumbs", "thumbs.db"}
"""Names that systems give to files of their own, beside those with a dot in front."""
OWN_RECORDS = {
    "checkpoint.json": {"sha256", "step"},
    "experiment.json": {"data", "discovery", "model"},
    "key.json": {"sheets"},
    "provenance.json": {"command", "versions"},
    "reproduced.json": {"weights_sha256"},
    "samples.json": {"M"},
}
"""Files by which a folder of hbench's results is known, and keys that they hold."""
OWN_FILES = {
    CACHE_TAG, "classifier.safetensors", "directions.safetensors", "discriminator.safetensors", "lenet.safetensors",
    "model.safetensors", "reconstructor.safetensors", "shift_block.safetensors",
}  # fmt: skip
"""Files by whose name alone such a folder is known."""


@dataclass(frozen=True)
class Found:
    """Pictures below a folder, sorted, and everything that was left out."""

    files: list[Path]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names, relative to the folder, by reason; names of folders end with a slash."""
    problems: list[str] = field(default_factory=list)
    """Folders that cannot be opened, in words."""


def find_pictures(path: Path) -> Found:
    """Return the picture itself, or all pictures below a folder.

    Left out are hidden files and folders, folders that hold results of hbench, links to nothing, and what a link leads
    to that was met before, or that is above the folder.

    Raises:
        HBenchError: nothing is at the path, the folder itself holds results of hbench, or no picture is in it.
    """
    if path.is_file():
        return Found([path])
    if not path.is_dir():
        raise HBenchError(f"{path}: no such image or folder: give the path of an existing one")
    if own := own_file(path):
        raise HBenchError(
            f"{path}: is a folder of hbench's own, with {own} in it: give the folder of your pictures, or move them "
            "to one of their own"
        )
    found = _Search(path).run()
    if not found.files and not found.problems:
        left_out = "".join(f"; {reason}: {len(names)}" for reason, names in found.left_out.items())
        raise HBenchError(f"{path}: no images there (looked for {', '.join(sorted(EXTENSIONS))}{left_out})")
    return found


def own_file(folder: Path) -> str | None:
    """Return the name of a file by which a folder is known as one of hbench's results; None if there is none."""
    for name in sorted(OWN_FILES | OWN_RECORDS.keys()):
        if (folder / name).is_file() and (name in OWN_FILES or _is_own_record(folder / name)):
            return name
    return None


def _is_own_record(file: Path) -> bool:
    """Return False where another program wrote a file of this name; a damaged one counts as hbench's."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(values, dict) and values.keys() >= OWN_RECORDS[file.name]


class _Search:
    """Search below a folder: without its links first, then in what they lead to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = os.path.realpath(root)
        self.met = {self.top}
        """Files and folders so far, by their paths without links."""
        self.folders = [(root, self.top)]
        """Folders to search, each with its path without links."""
        self.links = deque[Path]()
        """Links to follow once no folder is left."""
        self.found = Found([])

    def run(self) -> Found:
        """Return everything below the folder."""
        while self.folders or self.links:
            path, real = self.folders.pop() if self.folders else (self.links.popleft(), None)
            try:
                if real is None:
                    self._follow(path)
                else:
                    self._scan(path, real)
            except OSError as error:
                self.found.problems.append(
                    f"{path}: cannot be opened ({error.strerror}): make it readable or remove it"
                )
        self.found.files.sort()
        for names in self.found.left_out.values():
            names.sort()
        return self.found

    def _scan(self, folder: Path, real: str) -> None:
        """Go on with what a folder holds unless it is hbench's own, and leave its links for later."""
        if real != self.top and own_file(folder):
            self._leave_out("of hbench", folder, "/")
            return
        with os.scandir(folder) as entries:
            held = sorted(
                (each.name, each.is_symlink(), each.is_dir(follow_symlinks=False), each.is_file(follow_symlinks=False))
                for each in entries
            )
        for name, is_link, is_folder, is_file in held:
            path = folder / name
            if is_hidden(name):
                if is_folder or is_picture(name):
                    self._leave_out("hidden", path, "/" if is_folder else "")
            elif is_link:
                self.links.append(path)
            elif is_folder:
                self._enter(path, os.path.join(real, name))  # noqa: PTH118
            else:
                self._take(path, os.path.join(real, name), is_file)  # noqa: PTH118

    def _follow(self, link: Path) -> None:
        """Go on with what a link leads to."""
        if not link.exists():
            self._leave_out("linked to nothing", link)
        elif link.is_dir():
            self._enter(link, os.path.realpath(link))
        else:
            self._take(link, os.path.realpath(link), link.is_file())

    def _enter(self, folder: Path, real: str) -> None:
        """Search a folder later, unless it was met or lies above the top."""
        above = f"{self.top}{os.sep}".startswith(f"{real.rstrip(os.sep)}{os.sep}")
        if real in self.met or above:
            self._leave_out("reached twice", folder, "/")
        else:
            self.met.add(real)
            self.folders.append((folder, real))

    def _take(self, file: Path, real: str, is_file: bool) -> None:
        """Take a file if it is a picture that was not met before."""
        if is_other_format(file.name):
            self._leave_out("in other formats", file)
        elif file.suffix.lower() in ARCHIVES:
            self._leave_out(PACKED, file)
        elif not is_picture(file.name):
            return
        elif real in self.met:
            self._leave_out("reached twice", file)
        elif not is_file:
            self._leave_out("neither file nor folder", file)
        else:
            self.met.add(real)
            self.found.files.append(file)

    def _leave_out(self, reason: str, path: Path, end: str = "") -> None:
        self.found.left_out.setdefault(reason, []).append(str(path.relative_to(self.root)) + end)


def is_hidden(name: str) -> bool:
    """Return whether a name is that of a hidden file or folder, or of one that a system keeps for itself."""
    return name.startswith(".") or name.lower() in HIDDEN


def is_picture(name: str) -> bool:
    """Return whether a file of this name is read as a picture."""
    return Path(name).suffix.lower() in EXTENSIONS


def is_other_format(name: str) -> bool:
    """Return whether a file of this name is a picture of a format that is not read."""
    return Path(name).suffix.lower() in OTHER_FORMATS
