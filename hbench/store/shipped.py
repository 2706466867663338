"""The runs that hbench ships, by name. To list them needs no PyTorch, so that helps are instant."""

import os
from pathlib import Path

import hbench
from hbench.errors import HBenchError

SHIPPED = Path(hbench.__file__).parent / "shipped"
"""Folder of the runs that hbench ships: any folder in it is one."""


def shipped_runs() -> list[str]:
    """Return the names of the shipped runs, in the order of the alphabet."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())


def shipped() -> str:
    """Return the names of the shipped runs, for advice."""
    return f"the shipped {' or '.join(shipped_runs())}"


def refuse_to_hide(folder: Path) -> None:
    """Raise an HBenchError where making a folder would hide a shipped run: all commands would take it for that name.

    A folder that is there already hides it anyway, and may be written to.
    """
    top = Path(os.path.relpath(folder)).parts[:1]
    if top and top[0] in shipped_runs() and not Path(top[0]).exists():
        raise HBenchError(f"{folder}: a folder {top[0]} here would hide the shipped run {top[0]}: choose another `out`")


def unhiding(path: Path) -> str:
    """Return the further advice to rename a folder that hides the shipped run of its name; empty if it hides none."""
    hides = path.is_dir() and str(path) in shipped_runs()
    return f", or rename the folder {path}, which hides the shipped run" if hides else ""
