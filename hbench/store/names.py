"""Names of directions, which somebody gave them: lines of ``index: name`` in a run's ``names.txt``."""

import re
from collections.abc import Mapping
from pathlib import Path

from hbench.errors import HBenchError
from hbench.store.files import write_text
from hbench.store.hub import hub_entry
from hbench.store.run_files import locate
from hbench.store.shipped import SHIPPED
from hbench.text import read_text

FILE = "names.txt"
"""Name of the file in a run's folder."""


def load_names(path: str | Path, K: int | None = None) -> dict[int, str]:
    """Return the names of directions in a run's ``names.txt``, lines of ``index: name``; none without that file.

    Args:
        path: folder of the run, or the name of a shipped one.
        K: number of directions that the run has; None to take any index.

    Raises:
        HBenchError: a line has another form, a direction twice or one that the run lacks, or the file is not UTF-8.
    """
    file = locate(path) / FILE
    names: dict[int, str] = {}
    if not file.is_file():
        return names
    try:
        lines = read_text(file).splitlines()
    except UnicodeDecodeError as error:
        raise HBenchError(f"{file}: not UTF-8: save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        index, colon, name = line.partition(":")
        if not (colon and re.fullmatch("[0-9]{1,9}", index.strip())):
            raise HBenchError(f'{file}, line {number}: write "index: name", for example "3: thickness"')
        k = int(index)
        if k in names:
            raise HBenchError(f"{file}, line {number}: direction {k} has a name already: leave one of them out")
        if K is not None and k >= K:
            raise HBenchError(f"{file}, line {number}: no direction {k}: the run has 0 to {K - 1}")
        names[k] = name.strip()
    return names


def add_names(path: str | Path, names: Mapping[int, str]) -> list[int]:
    """Add lines to a run's ``names.txt`` for directions that have no name there, and return these.

    What somebody wrote stays as it is, a name that was left empty, too.

    Args:
        path: folder of the run.
        names: name of each direction.

    Raises:
        HBenchError: the run is a shipped one, or the file is damaged or cannot be written.
    """
    folder = locate(path)
    check_takes_names(path)
    known = load_names(folder)
    added = {k: name for k, name in sorted(names.items()) if k not in known}
    if added:
        file = folder / FILE
        text = read_text(file).rstrip("\n") + "\n" if known else ""
        write_text(file, text + "".join(f"{k}: {name}\n" for k, name in added.items()))
    return list(added)


def check_takes_names(path: str | Path) -> None:
    """Raise an HBenchError where a run is a shipped one, or one of the Hub's cache, whose folders stay as they are."""
    folder = locate(path)
    if folder.resolve().is_relative_to(SHIPPED.resolve()):
        raise HBenchError(f"{path}: is shipped with hbench, and keeps its names: copy its folder, and name that")
    if hub_entry(folder):
        raise HBenchError(f"{path}: is of the Hugging Face Hub, and keeps its names: copy {folder}, and name that")
