"""What a reader explores: samples and real images, edited along each direction and each pair of directions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path

import torch
from torch import Tensor

from hbench.config import Precision
from hbench.core.directions import Edit, Source, magnitudes
from hbench.core.images import to_float, to_uint8
from hbench.errors import HBenchError, counted
from hbench.evaluation.attributes.result import Attributes, MeasuredDirection
from hbench.evaluation.edit import edit_each, mean_square_error, psnr
from hbench.evaluation.rca import known_rca
from hbench.evaluation.sampling import ChosenNoise
from hbench.store.datasets import RealImage
from hbench.store.directions import DirectionSource
from hbench.store.folders import refuse_links
from hbench.store.run import Run

FEWEST = 5
"""Number of magnitudes of a direction, at least."""
MOST_ALSO = 4
"""Number of attributes that are named beside the leading one, at most."""


@dataclass(frozen=True)
class EditTable:
    """The edits of every image: none, each direction alone, and each two directions at once."""

    directions: tuple[int, ...]
    magnitudes: tuple[float, ...]
    """Magnitudes of a direction alone, evenly from -S to S: 5, 9, 13, ... of them, so that every second one, of pairs,
    has 0 and both ends."""

    @property
    def pair_magnitudes(self) -> tuple[float, ...]:
        """Magnitudes of each of two directions at once."""
        return self.magnitudes[::2]

    @cached_property
    def single(self) -> list[Edit]:
        """The empty edit, and each direction alone, by direction and then by magnitude."""
        return [{}, *({k: s} for k, s in product(self.directions, filter(None, self.magnitudes)))]

    @cached_property
    def edits(self) -> list[Edit]:
        """All edits: the single ones, and then pairs, by both directions and then by both magnitudes."""
        moved = [s for s in self.pair_magnitudes if s]
        pairs = [{j: s, k: u} for j, k in combinations(self.directions, 2) for s, u in product(moved, moved)]
        return [*self.single, *pairs]


@dataclass(frozen=True, eq=False)
class Explored:
    """A sample or a real image, and all edits of it."""

    name: str
    """Name that the reader sees, as in "sample 3" or "me.png"."""
    original: Tensor
    """Picture before any edit: uint8 [C, H, W]."""
    edited: Tensor
    """Picture of each edit of the table: uint8 [edits, C, H, W]."""
    psnr: float | None = None
    """PSNR in dB of a real image's reconstruction, which is its empty edit; None for a sample."""


@dataclass(frozen=True, eq=False)
class Starts:
    """Where edits start from: noise, and the number of steps that leads from it to images."""

    x_T: Tensor
    """Noise, or inverted images: float32 [N, C, H, W], on the run's device."""
    names: tuple[str, ...]
    steps: int
    precision: Precision
    originals: Tensor | None = None
    """Real images that were inverted, uint8 [N, C, H, W]; None for samples."""

    def edited(self, run: Run, source: Source, edits: Sequence[Edit], count: int | None = None) -> Tensor:
        """Return edits of the first ``count`` starts, or of all: uint8 [count, len(edits), C, H, W], on the CPU.

        Cost: a shifted chain of ``steps`` for each.
        """
        return to_uint8(edit_each(run, self.x_T[:count], edits, source, self.steps, self.precision))

    def explored(self, run: Run, source: Source, table: EditTable, count: int | None = None) -> list[Explored]:
        """Return the first ``count`` starts, or all, with every edit of the table."""
        images = self.edited(run, source, table.edits, count)
        if self.originals is None:
            return [Explored(name, row[0], row) for name, row in zip(self.names, images, strict=False)]
        errors = mean_square_error(to_float(images[:, 0]), to_float(self.originals[:count])).tolist()
        rows = zip(self.names, self.originals, images, map(psnr, errors), strict=False)
        return [Explored(*row) for row in rows]


def sample_starts(run: Run, chosen: ChosenNoise) -> Starts:
    """Return the starts of samples."""
    names = tuple(f"sample {i + 1}" for i in range(len(chosen.indices)))
    return Starts(chosen.noise(run), names, run.experiment.discovery.M, run.sampler.precision)


def image_starts(run: Run, images: Sequence[RealImage], steps: int) -> Starts:
    """Return the starts of real images, by DDIM inversion in ``steps`` steps."""
    pixels = torch.stack([image.pixels for image in images])
    x_T = run.invert(to_float(pixels), steps=steps)
    return Starts(x_T, tuple(image.file.name for image in images), steps, "float32", pixels)


# Words about the directions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DirectionFacts:
    """What is known of a direction, in words."""

    direction: int
    name: str
    """Name that someone gave it by eye; empty if nobody did."""
    proposed: str
    """Name by its leading attribute; empty if none leads, or it was not measured."""
    effect: str
    """Effect on the leading attribute with its interval, as in "hair -1.6 sd [-1.7, -1.5]"."""
    also: str
    """Other attributes that pass, the largest effect first."""
    kept: str
    """Share of samples that keep their classes at S, with its interval."""


def facts_of(run: Run, k: int, found: Attributes | None) -> DirectionFacts:
    """Return what is known of direction k: its name, and what was measured of it, if anything was."""
    name = run.names.get(k, "")
    if found is None:
        return DirectionFacts(direction=k, name=name, proposed="", effect="", also="", kept="")
    each = found.directions[k]
    kept, (low, high) = each.kept[-1], each.kept_interval[-1]
    return DirectionFacts(
        direction=k,
        name=name,
        proposed=each.proposed,
        effect="no attribute passes" if each.leading is None else _effect(found, each, each.leading, interval=True),
        also=_also(found, each),
        kept="" if math.isnan(kept) else f"{kept:.0%} [{low:.0%}, {high:.0%}]",
    )


def _effect(found: Attributes, each: MeasuredDirection, j: int, *, interval: bool = False) -> str:
    """Return the effect on attribute j in words."""
    effects = each.effects
    ends = f" [{effects.low[j]:+.2f}, {effects.high[j]:+.2f}]" if interval else ""
    return f"{found.attributes[j].name} {effects.effect[j]:+.2f} sd{ends}".replace("-", "−")


def _also(found: Attributes, each: MeasuredDirection) -> str:
    """Return the attributes that pass beside the leading one, in words; empty if there are none."""
    others = [j for j, passes in enumerate(each.effects.passes) if passes and j != each.leading]
    others.sort(key=lambda j: -abs(each.effects.effect[j]))
    words = [_effect(found, each, j) for j in others[:MOST_ALSO]]
    if left := len(others) - len(words):
        words.append(f"and {left} more")
    return ", ".join(words)


def known_attributes(run: Run, source: DirectionSource, folders: Sequence[Path]) -> Attributes | None:
    """Return the measurement of this run and source in one of the folders, that of most samples; None if there is none.

    Raises:
        HBenchError: a file is damaged, or a link.
    """
    for folder in folders:
        refuse_links(folder)
    found = [result for result in map(Attributes.load, folders) if is_of_images(result, run, source)]
    return max(found, key=lambda result: result.n, default=None)


def read_attributes(path: Path, run: Run, source: DirectionSource) -> Attributes:
    """Read a measurement of this run and source from its ``attributes.json``, or from the folder of that.

    Raises:
        HBenchError: the file is missing, damaged, or of other weights or directions.
    """
    result = Attributes.load(path if path.is_dir() else path.parent)
    if not is_of_images(result, run, source):
        raise HBenchError(f"{path}: was measured on other weights or directions: give that of this run")
    return result


def is_of_images(result: Attributes, run: Run, source: DirectionSource) -> bool:
    """Return whether a measurement is of the images that this run makes, whatever network told its directions apart."""
    measured = result.detail("weights_sha256") or {}
    is_same = all(measured.get(role) == run.hashes.get(role) for role in ("model", "shift_block"))
    return is_same and all(result.detail(key) == value for key, value in source.details.items())


def visible_directions(run: Run, source: DirectionSource, found: Attributes | None) -> list[int] | None:
    """Return the directions that a person sees, the most visible first; None where that was not measured.

    Raises:
        HBenchError: a person sees none of them.
    """
    if found is not None:
        change = [each.visible_change for each in found.directions]
        seen = found.visible
    else:
        ranking = known_rca(run, source)
        if ranking is None or ranking.visible_change is None:
            return None
        change, seen = list(ranking.visible_change), ranking.visible
    if not seen:
        raise HBenchError(
            f"none of the {counted(run.K, 'direction')} can be seen, as was measured: name those to show all the same"
        )
    return sorted(seen, key=lambda k: -change[k])


def check_magnitudes(S: float, count: int) -> tuple[float, ...]:
    """Return ``count`` magnitudes from -S to S.

    Raises:
        ValueError: not 5, 9, 13, ..., of which every second one has 0 and both ends.
    """
    if count < FEWEST or count % 4 != 1:
        raise ValueError(f"magnitudes must be 5, 9, 13 or another multiple of 4 and 1 more, got {count!r}")
    return tuple(magnitudes(S, count))
