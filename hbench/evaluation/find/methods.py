"""The methods that hbench knows, by name; those of other packages by an entry point."""

from collections.abc import Mapping

from hbench.errors import HBenchError
from hbench.evaluation.find import baselines, jacobian, labels, pca
from hbench.evaluation.find.method import Method
from hbench.runtime.entry_points import from_package, offered

GROUP = "hbench.methods"
"""Group of the entry points of other packages' methods; the name is that of the method."""
METHODS: Mapping[str, Method] = {
    "random": baselines.RANDOM,
    "axes": baselines.AXES,
    "pca": pca.JOINT,
    "pca-each": pca.EACH,
    "jacobian": jacobian.JACOBIAN,
    "labels": labels.LABELS,
}
"""The methods of hbench."""


def known_methods() -> list[str]:
    """Return the names of all methods, hbench's own first."""
    return [*METHODS, *(name for name in offered(GROUP) if name not in METHODS)]


def method_named(name: str) -> Method:
    """Return a method by its name, from :data:`METHODS` or from another package's entry point.

    Raises:
        HBenchError: no such method, or the package that has it is broken.
    """
    found = METHODS.get(name) or from_package(GROUP, name, "method", Method)
    if found is None:
        raise HBenchError(f'no method "{name}": choose one of {", ".join(known_methods())}, or install its package')
    return found
