"""The sets of attributes that hbench knows; those of other packages come by an entry point."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hbench.config import Data
from hbench.errors import HBenchError
from hbench.evaluation.attributes.appearance import appearance
from hbench.evaluation.attributes.attribute import AttributeSet
from hbench.evaluation.attributes.heads import NAME, head_attributes
from hbench.evaluation.attributes.morphometry import MORPHOMETRY
from hbench.runtime.entry_points import from_package, offered
from hbench.store.classifier import Classifier

GROUP = "hbench.attributes"
"""Group of the entry points of other packages' sets, which are as those of :data:`ATTRIBUTE_SETS`."""
BATCH = 256
"""Images that are measured at once, which bounds the memory."""
ATTRIBUTE_SETS: dict[str, AttributeSet | Callable[[Data], AttributeSet | None]] = {
    "digit": MORPHOMETRY,
    "appearance": appearance,
}
"""The sets of hbench by name, in their order; where a set depends on the kind of images, a function that makes it."""


def attribute_sets(data: Data, classifier: Classifier | None = None) -> list[AttributeSet]:
    """Return all sets that suit a kind of images: those of hbench, of the classifier, and of other packages by name.

    Args:
        data: kind of the images.
        classifier: classifier whose heads become attributes too.

    Raises:
        HBenchError: the classifier was trained on other images, or another package's set is broken, or has a name
            that is taken.
    """
    sets = [_made(each, data) for each in ATTRIBUTE_SETS.values()]
    if classifier:
        sets.append(head_attributes(classifier))
        if not sets[-1].suits(data):
            raise HBenchError(f"the classifier was trained on other images than {data.label}: train one on these")
    sets += [_of_package(name, data) for name in offered(GROUP)]
    return [each for each in sets if each and each.suits(data)]


@torch.no_grad()
def measure_all(sets: Sequence[AttributeSet], images: Tensor) -> Tensor:
    """Return the attributes of all sets side by side, float64 [N, attributes], nan where one is undefined.

    Cost: the memory of 256 images beside the values.

    Args:
        sets: the sets, as :func:`attribute_sets` returns them.
        images: float32 [N, C, H, W] in about [-1, 1].

    Raises:
        HBenchError: a set returns something else than it should.
    """
    parts = [torch.cat([_measured(each, part) for each in sets], 1) for part in images.split(BATCH)]
    return torch.cat(parts)


def _made(source: Any, data: Data) -> Any:
    """Return the set for a kind of images, from its function if it has one."""
    return source(data) if callable(source) else source


def _of_package(name: str, data: Data) -> AttributeSet | None:
    """Return another package's set; None where it has none for these images.

    Raises:
        HBenchError: it is broken, or has a name that is taken, or two.
    """
    if name in (*ATTRIBUTE_SETS, NAME):
        raise HBenchError(f'attribute set "{name}": hbench has one of this name: uninstall the package with the other')
    found = from_package(GROUP, name, "attribute set", AttributeSet, lambda source: _made(source, data))
    if found and found.name != name:
        raise HBenchError(f'attribute set "{name}": calls itself "{found.name}": update its package')
    return found


def _measured(one: AttributeSet, images: Tensor) -> Tensor:
    """Return what a set measures, on the CPU.

    Raises:
        HBenchError: it is no float64 [N, attributes], or holds infinite values.
    """
    found, shape = one.measure(images), (len(images), len(one.attributes))
    if not isinstance(found, Tensor):
        problem = f"a {type(found).__name__}"
    elif found.dtype != torch.float64 or found.shape != shape:
        problem = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
    elif found.isinf().any():
        problem = "infinite values"
    else:
        return found.cpu()
    raise HBenchError(f'attribute set "{one.name}": returns {problem}, need float64 {list(shape)}: update its package')
