"""Data sets that are drawn from a seed by DiceBear, so that the factors of every image are known.

All options of a style are drawn here, none by DiceBear. Drawing needs the extra ``hbench[faces]``; the images are then
kept in a file, which is read without it. One version of the styles gives the same bytes on every machine.
"""

import hashlib
import io
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hbench.errors import HBenchError
from hbench.runtime.progress import progress
from hbench.store.files import replacing
from hbench.store.labels import Factor, Labels

if TYPE_CHECKING:
    from dicebear import Style as Definition
    from torch import Tensor

    from hbench.store.registry import Pictures, Wanted

log = logging.getLogger(__name__)

Choice = TypeVar("Choice")

SEED = 0
COUNTS = {"train": 20_000, "test": 4_000}
"""Number of images of each split."""
PACKAGES = {"core": "dicebear-core", "styles": "dicebear-styles", "resvg": "resvg-py"}
"""Packages that draw, by a short name."""


class Draws:
    """Random choices for one image, by draws that Python promises never to change; the key alone decides them."""

    def __init__(self, key: str) -> None:
        self._draw = random.Random(key).random

    def pick(self, values: Sequence[Choice]) -> Choice:
        """Return one of the values, all alike probable."""
        return values[int(self._draw() * len(values))]

    def chance(self, share: float) -> bool:
        """Return True with probability ``share``."""
        return self._draw() < share


@dataclass(frozen=True, kw_only=True)
class Style:
    """A style of DiceBear, and how its options are drawn."""

    name: str
    """Name of the data set."""
    file: str
    """Name of its definition in dicebear-styles."""
    size: int
    """Height and width of a drawn image in pixels."""
    source: str
    licence: str
    factors: tuple[Factor, ...]
    draw_options: Callable[[Draws], tuple[dict[str, object], list[int]]]
    """Function that draws the options of an image for the style, and its class in each factor."""
    mirrors: bool
    """True if a mirrored image is one of the style too."""
    published: Mapping[str, str]
    """SHA-256 of the images of each split, by :func:`content_sha256`."""
    published_by: str
    """Version of dicebear-styles that drew those."""


def read_drawn(style: Style, wanted: "Wanted") -> "Pictures":
    """Return the images of a split: kept ones, or drawn now and kept. Cost: 2 ms a face, 8 ms a peep, to draw.

    Raises:
        HBenchError: none are kept, and the packages that draw are missing.
    """
    from hbench.store.account import content_sha256
    from hbench.store.registry import Pictures

    versions = _versions()
    start = f"{style.name}-{wanted.split}-"
    if versions:
        name = "-".join(f"{short}{number}" for short, number in versions.items())
        files = [wanted.cache / f"{start}{name}.safetensors"]
    else:  # whatever is kept, the latest first
        files = sorted(wanted.cache.glob(f"{start}*.safetensors"), key=lambda path: -path.stat().st_mtime)
    found = next((kept for file in files if (kept := _kept(file, style, wanted.split))), None)
    if found is None and versions is None:
        raise HBenchError(
            f'data set "{style.name}": the packages that draw it are missing: pip install "hbench[faces]"'
        )
    if found is None:
        images, labels = draw(style, SEED, wanted.split, COUNTS[wanted.split])
        found = images, labels, versions or {}
        _keep(files[0], style, *found)
    images, labels, drawn_by = found
    unlike = ""
    if content_sha256(images) != style.published[wanted.split]:
        unlike = (
            f"they were drawn by dicebear-styles {drawn_by.get('styles')} and differ from those of "
            f"{style.published_by}, which models of others have seen: install that version for the same images"
        )
    return Pictures(images=images, labels=labels, unlike=unlike)


def can_read(style: Style, cache: Path) -> bool:
    """Return whether the test images are kept, or can be drawn."""
    return _versions() is not None or any(cache.glob(f"{style.name}-test-*.safetensors"))


def draw(style: Style, seed: int, split: str, count: int) -> "tuple[Tensor, Labels]":
    """Draw images 0 .. count - 1 of a split.

    Returns:
        uint8 [count, 3, size, size], and the labels.

    Raises:
        ModuleNotFoundError: the extra ``hbench[faces]`` is not installed.
    """
    import numpy as np
    import resvg_py
    import torch
    from dicebear import Avatar
    from PIL import Image

    definition = _definition(style.file)
    images = np.empty((count, style.size, style.size, 3), dtype=np.uint8)
    classes = np.empty((count, len(style.factors)), dtype=np.int64)
    for index in progress(range(count), desc=f"drawing {style.name}", unit="image"):
        options, classes[index] = style.draw_options(Draws(f"{style.name} {seed} {split} {index}"))
        svg = str(Avatar(definition, {"seed": "", "size": style.size, "backgroundColor": ["ffffff"], **options}))
        images[index] = np.asarray(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg))).convert("RGB"))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return pixels, Labels(style.factors, torch.from_numpy(classes))


def flat(groups: Mapping[str, Sequence[str]]) -> list[tuple[int, str]]:
    """Return the colours of all classes in order, each with the number of its class."""
    return [(number, colour) for number, colours in enumerate(groups.values()) for colour in colours]


def options_of(values: Mapping[str, object], shown: Mapping[str, bool]) -> dict[str, object]:
    """Return options as DiceBear takes them: the only value of each, and whether each part is shown."""
    options: dict[str, object] = {name: [value] for name, value in values.items()}
    return options | {f"{part}Probability": 100 * is_shown for part, is_shown in shown.items()}


@cache
def _definition(file: str) -> "Definition":
    """Return a style's definition in dicebear-styles. Cost: half a second, for DiceBear checks it."""
    import dicebear_styles
    from dicebear import Style as Definition

    folder = Path(next(iter(dicebear_styles.__path__)))
    return Definition(json.loads((folder / file).read_text(encoding="utf-8")))


# Kept images --------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str] | None:
    """Return the versions of the packages that draw, by their short names; None if one is missing."""
    try:
        return {short: version(package) for short, package in PACKAGES.items()}
    except PackageNotFoundError:
        return None


def _keep(file: Path, style: Style, images: "Tensor", labels: Labels, drawn_by: Mapping[str, str]) -> None:
    """Write images and labels for the next time, with a hash of both; a notice tells where that is not possible."""
    import torch
    from safetensors.torch import save_file

    tensors = {"images": images, "labels": labels.values.to(torch.uint8)}
    about = {"source": style.source, "licence": style.licence, "drawn_by": json.dumps(dict(drawn_by))}
    about |= {"factors": _in_words(style.factors), "sha256": _sha256(tensors)}
    try:
        with replacing(file) as temporary:
            save_file(tensors, temporary, about)
    except HBenchError:  # a full disk, or a home that cannot be written
        log.info("%s: cannot be written, so the images are drawn again next time", file)


def _kept(file: Path, style: Style, split: str) -> tuple["Tensor", Labels, dict[str, str]] | None:
    """Return images, labels and the versions that drew them from a file; None where it is absent, damaged or old."""
    import torch
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            about: dict[str, Any] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in ("images", "labels")}
    except (OSError, SafetensorError):
        about, tensors = {}, {}
    if not tensors or about.get("sha256") != _sha256(tensors):
        log.info("%s: is damaged, and the images are drawn again", file)
        return None
    if about.get("factors") != _in_words(style.factors) or len(tensors["images"]) != COUNTS[split]:
        return None  # of another hbench
    return tensors["images"], Labels(style.factors, tensors["labels"].to(torch.int64)), json.loads(about["drawn_by"])


def _sha256(tensors: "Mapping[str, Tensor]") -> str:
    digest = hashlib.sha256()
    for name in ("images", "labels"):
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def _in_words(factors: tuple[Factor, ...]) -> str:
    return json.dumps({factor.name: factor.classes for factor in factors})
