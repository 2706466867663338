"""The runs that hbench ships, by name. To list them needs no PyTorch, so that helps are instant."""

from pathlib import Path

import hbench

SHIPPED = Path(hbench.__file__).parent / "shipped"
"""Folder of the runs that hbench ships: any folder in it is one."""


def shipped_runs() -> list[str]:
    """Return the names of the shipped runs, in the order of the alphabet."""
    return sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())


def shipped() -> str:
    """Return the names of the shipped runs, for advice."""
    return f"the shipped {' or '.join(shipped_runs())}"
