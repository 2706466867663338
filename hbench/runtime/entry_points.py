"""What other packages offer by entry points: data sets, backbones, sets of attributes, methods.

Nothing here imports PyTorch, as :mod:`hbench.store.registry` needs it.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from hbench.errors import HBenchError

T = TypeVar("T")
BROKEN = (ImportError, AttributeError, NameError, SyntaxError, TypeError, ValueError, OSError)
"""Errors of an entry point that cannot be loaded."""


def offered(group: str) -> list[str]:
    """Return the names of all entry points of a group, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def from_package(group: str, name: str, noun: str, kind: type[T], made: Callable[[Any], Any] | None = None) -> T | None:
    """Return what an entry point gives; None if no package has it.

    Args:
        group: group of the entry point.
        name: its name.
        noun: what it is in words, as in "data set".
        kind: class that it must have.
        made: function (object that was loaded) -> what is wanted of it, or None if it has nothing.

    Raises:
        HBenchError: several packages have it, or the package is broken, or gives something else.
    """
    points = list(entry_points(group=group, name=name))
    if not points:
        return None
    packages = [_package(point) for point in points]
    if len(points) > 1:
        raise HBenchError(f'{noun} "{name}": is in the packages {" and ".join(packages)}: uninstall all but one')
    try:
        loaded = points[0].load()
        found = made(loaded) if made else loaded
    except BROKEN as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise HBenchError(f'{noun} "{name}": package {packages[0]} is broken ({problem}): update it') from error
    if found is None and loaded is not None:
        return None
    if not isinstance(found, kind):
        wrong = type(found).__name__
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise HBenchError(
            f'{noun} "{name}": package {packages[0]} has a {wrong} in place of {article} {kind.__name__}: update it'
        )
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
