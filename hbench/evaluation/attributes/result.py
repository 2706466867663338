"""What the directions of a run do to images, as a result: numbers of each attribute, each direction, and the run."""

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from hbench.core.intervals import in_words
from hbench.errors import counted
from hbench.evaluation.visible import OLD_VISIBLE, older_rule
from hbench.store.records import Aside, Count, Interval, Nonnegative, Number, Positive, Share, ShareOrNone
from hbench.store.results import Result

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class MeasuredAttribute:
    """An attribute of images."""

    name: str
    """Name in plain words, as in "slant"."""
    more: str
    """Name of a direction that raises it."""
    less: str
    """Name of a direction that lowers it."""
    of: str
    """Name of the set that it belongs to."""
    factor: str
    """Factor of the data whose class it tells; empty if none."""
    natural: Nonnegative
    """Standard deviation over raw samples, the unit of the effects; nan if it is 0 or not defined."""


@dataclass(frozen=True, kw_only=True)
class DirectionEffects:
    """What one direction does to each attribute, a value an attribute; see :class:`Effects`."""

    effect: list[Number]
    low: list[Number]
    high: list[Number]
    even: list[Number]
    sign_share: list[ShareOrNone]
    monotone_share: list[ShareOrNone]
    common: list[Number]
    linear: list[Number]
    passes: list[bool]
    """True for an effect that is large, certain, and the same in nearly all samples."""


@dataclass(frozen=True, kw_only=True)
class MeasuredDirection:
    """What one direction does to images."""

    direction: Count
    name: str
    """Name that someone gave it by eye; empty if nobody did."""
    proposed: str
    """Name by its leading attribute; empty where none leads, or nobody sees the direction."""
    visible: bool
    """True if a person sees it."""
    visible_change: Nonnegative
    """Visible change between -S and S, mean over samples, as a share of the range of pixels."""
    visible_change_interval: Interval
    visible_in_most: Nonnegative
    """Visible change that three of four samples exceed; nan in files of older versions."""
    change: Nonnegative
    """Mean change of all pixels from 0 to -S and to S, as a share of the range."""
    oddness: Number
    """Minus the cosine of the changes at S and at -S: 1 where the signs do opposite things, -1 where the same."""
    oddness_interval: Interval
    leading: Count | None
    """Number of the attribute with the largest effect that passes; None where none does."""
    curve: list[Number]
    """Mean move of the leading attribute at each magnitude, from -S to S, in natural standard deviations; empty where
    none leads."""
    specificity: Number
    """Effect on the leading attribute over the mean effect on the others; nan where none leads."""
    kept: list[ShareOrNone]
    """Share of samples that keep their classes at each magnitude, of both signs; of several factors, the mean over all
    but that of the leading attribute. nan without a classifier."""
    kept_interval: list[Interval]
    accuracy: ShareOrNone
    """Share of its pairs in which the reconstructor recognises it."""
    cluster: Count | None
    """Number of its cluster among the visible directions, by their mean image change; None if it is invisible."""
    effects: DirectionEffects


@dataclass(frozen=True, kw_only=True)
class Attributes(Result):
    """What each direction of a run does to images, and how many of them a person sees, tells apart and names."""

    NAME: ClassVar[str] = "attributes"
    SCHEMA: ClassVar[int] = 3

    n: Positive
    """Number of samples, each shifted along every direction."""
    magnitudes: list[Nonnegative]
    """Magnitudes on either side of 0, ascending."""
    attributes: list[MeasuredAttribute]
    factors: list[str]
    """Factors whose classes are kept or not; empty without a classifier."""
    directions: list[MeasuredDirection]
    random_change: Nonnegative
    """Mean visible change between two random images; nan, as the next two, in files of older versions."""
    eight_bits_change: Nonnegative
    """Visible change of random images by rounding to 8 bits."""
    jpeg_change: Nonnegative
    """Visible change of random images by JPEG of quality 90."""
    visible_from: Nonnegative
    """Visible change in most samples, in older files in the mean, beyond which a person sees a direction."""
    invisible: list[Count]
    """Directions that nobody sees."""
    distinct: Count
    """Clusters of the visible directions."""
    effective_rank: Nonnegative
    """Effective number of independent image changes among the visible directions."""
    pairs: Positive
    """Number of pairs behind the accuracies."""
    accuracy: Share
    """RCA over all directions."""
    accuracy_interval: Interval
    accuracy_visible: ShareOrNone
    """RCA over the pairs of visible directions, chance 1/K as for all; nan if none is visible."""
    accuracy_visible_interval: Interval
    specificity: Number
    """Mean specificity of the visible directions that have one; nan if none has."""
    oddness: Number
    """Mean oddness of the visible directions."""
    oddness_interval: Interval
    kept_half: ShareOrNone
    """Mean share of samples that keep their classes at S/2 along the visible directions."""
    kept_half_interval: Interval
    strips: Aside = field(default=None, compare=False, repr=False)
    """Images of some samples along each direction, float32 [K, samples, 2 * magnitudes + 1, C, H, W], of signed
    magnitudes with 0 in the middle; None in a result read back."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's, which went by the mean over samples."""
        floors = dict.fromkeys(["random_change", "eight_bits_change", "jpeg_change"])
        directions = [{"visible_in_most": None} | each for each in values["directions"]]
        return floors | {"visible_from": OLD_VISIBLE} | values | {"directions": directions}

    def __post_init__(self) -> None:
        """Check that all numbers are of the same directions, attributes and magnitudes."""
        J, L = len(self.attributes), len(self.magnitudes)
        for i, each in enumerate(self.directions):
            if each.direction != i:
                raise ValueError("the directions are not 0, 1, 2, ...")
            if any(len(getattr(each.effects, one.name)) != J for one in fields(each.effects)):
                raise ValueError(f"direction {i}: the effects are of another number of attributes")
            if {len(each.kept), len(each.kept_interval)} != {L} or len(each.curve) not in (0, 2 * L):
                raise ValueError(f"direction {i}: the numbers are of another number of magnitudes")
            if each.leading is not None and each.leading >= J:
                raise ValueError(f"direction {i}: no attribute {each.leading}")
        if self.invisible != [each.direction for each in self.directions if not each.visible]:
            raise ValueError("invisible: not the directions that are not visible")

    @property
    def visible(self) -> list[int]:
        """Directions that a person sees."""
        return [each.direction for each in self.directions if each.visible]

    @property
    def signed_magnitudes(self) -> list[float]:
        """Magnitudes from -S to S, without 0."""
        return [-s for s in reversed(self.magnitudes)] + self.magnitudes

    @property
    def best(self) -> list[int]:
        """Visible directions with an effect that passes, one of each cluster of alike ones, the most specific first."""
        named = [each for each in self.directions if each.visible and each.leading is not None]
        found: dict[int | None, MeasuredDirection] = {}
        for each in sorted(named, key=lambda each: -each.specificity):
            found.setdefault(each.cluster, each)
        return [each.direction for each in found.values()]

    def good_magnitude(self, k: int) -> float:
        """Return the largest magnitude at which most samples keep their classes along direction k.

        It is the smallest one where they do at none, and about S/2 without a classifier.
        """
        kept = self.directions[k].kept
        if all(math.isnan(share) for share in kept):
            return self.magnitudes[(len(kept) - 1) // 2]
        good = [s for s, share in zip(self.magnitudes, kept, strict=True) if share > 0.5]
        return max(good, default=self.magnitudes[0])

    @property
    def proposed_names(self) -> dict[int, str]:
        """Proposed name of each direction that has one."""
        return {each.direction: each.proposed for each in self.directions if each.proposed}

    @property
    def brief(self) -> str:
        """How many directions are visible, distinct and named, in words."""
        seen, all_of_them = len(self.visible), counted(len(self.directions), "direction")
        named, n = len(self.proposed_names), counted(self.n, "sample")
        return f"{seen} of {all_of_them} visible, {self.distinct} distinct, {named} named, n = {n}"

    @property
    def covered(self) -> list[str]:
        """Attributes that lead some visible direction, in the order of the attributes."""
        leading = {each.leading for each in self.directions if each.visible}
        return [each.name for j, each in enumerate(self.attributes) if j in leading]

    def cautions(self) -> list[str]:
        """Return what a reader must know: directions that nobody sees, what of RCA rests on them, and an older rule."""
        found = []
        if self.invisible:
            K, hidden = len(self.directions), len(self.invisible)
            visible = f" and {in_words(self.accuracy_visible)} over the visible ones" if self.visible else ""
            found.append(
                f"{hidden} of {counted(K, 'direction')} cannot be seen: {', '.join(map(str, self.invisible))}; RCA is "
                f"{self.accuracy:.3f} over all{visible}"
            )
        return [*found, older_rule(self.visible_from)] if self.is_by_mean else found

    @property
    def is_by_mean(self) -> bool:
        """True if the mean change tells what is visible, as in older versions, and not that of most samples."""
        return any(math.isnan(each.visible_in_most) for each in self.directions)

    def summary(self) -> str:
        """Return the numbers of the run, and a line for each visible direction, the most visible first."""
        K = len(self.directions)
        where = "the mean" if self.is_by_mean else "most samples"
        lines = [
            f"{self.brief}; effective rank {self.effective_rank:.1f}",
            f"visible beyond {self.visible_from:g} in {where}, random images differ by {in_words(self.random_change)}, "
            f"JPEG changes {in_words(self.jpeg_change)}",
            f"attributes: {', '.join(self.covered) or 'none'}",
            f"RCA {in_words(self.accuracy, self.accuracy_interval)} over all, n = {self.pairs:,}, "
            f"{in_words(self.accuracy_visible, self.accuracy_visible_interval)} over the visible ones among these, "
            f"chance {1 / K:.3f}",
            f"specificity {in_words(self.specificity)}, oddness {in_words(self.oddness, self.oddness_interval)}, "
            f"kept at S/2 {in_words(self.kept_half, self.kept_half_interval)}",
        ]
        seen = sorted((each for each in self.directions if each.visible), key=lambda each: -each.visible_change)
        return "\n".join([*lines, *map(self._line, seen)])

    def _line(self, each: MeasuredDirection) -> str:
        name = each.proposed or "no name"
        by_eye = f' ("{each.name}")' if each.name else ""
        effect = "" if each.leading is None else f", {each.effects.effect[each.leading]:+.1f} sd"
        return f"{each.direction:>3}: {name}{by_eye}{effect}, visible change {each.visible_change:.2f}"

    def table(self) -> "DataFrame":
        """Return the numbers of each direction, with its effect on each attribute, a row a direction."""
        import pandas as pd

        return pd.DataFrame([self._row(each) for each in self.directions])

    def _row(self, each: MeasuredDirection) -> dict[str, Any]:
        leading = None if each.leading is None else self.attributes[each.leading].name
        low, high = each.visible_change_interval
        return {
            "direction": each.direction,
            "name": each.name,
            "proposed": each.proposed,
            "visible": each.visible,
            "visible_change": each.visible_change,
            "low": low,
            "high": high,
            "visible_in_most": each.visible_in_most,
            "change": each.change,
            "accuracy": each.accuracy,
            "oddness": each.oddness,
            "leading": leading,
            "specificity": each.specificity,
            **{f"kept_{s:g}": share for s, share in zip(self.magnitudes, each.kept, strict=True)},
            "cluster": each.cluster,
            **{f"{one.of}: {one.name}": value for one, value in zip(self.attributes, each.effects.effect, strict=True)},
            "n": self.n,
        }
