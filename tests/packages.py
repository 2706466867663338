"""Other packages, as pip leaves them in a folder of sys.path."""

from pathlib import Path

PLUGIN = Path(__file__).parent / "plugin"
"""A package with a data set, a backbone, a method and a set of attributes."""


def package(folder, name, group, entry):
    """Make a package that claims an entry point of a group."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
