"""The result of the bench: a line of numbers for each method, and the best direction of each for each known factor."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hbench.core.intervals import student, student_of_logarithms, student_of_shares
from hbench.store.records import Aside, Count, Interval, Nonnegative, Number, Positive, Share, ShareOrNone
from hbench.store.results import Result

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandas import DataFrame

LESS = ("fd_ratio", "seconds")
"""Numbers of which less is better."""


SHARES = {"rca": "n_pairs", "rca_visible": "n_pairs", "kept_half": "n_samples"}
"""Numbers between 0 and 1 that get an interval over seeds, and the field of a bench with the n of each."""
COUNTS = ("visible", "distinct", "named")
"""Numbers of directions, 0..K."""
OVER_SEEDS = (*SHARES, *COUNTS, "specificity", "oddness", "fd_ratio")
"""Numbers that get an interval over seeds."""


@dataclass(frozen=True, kw_only=True)
class MeasuredMethod:
    """What the directions of one method are worth."""

    name: str
    """Name of the method, of the run, or of the file."""
    found_by: str = ""
    """Method that found them, the same for all of its seeds; empty in files of older versions."""
    title: str
    """What its directions are, in a few words."""
    K: Positive
    directions_sha256: str
    """SHA-256 of the shift block, or of the file of directions."""
    seconds: Number
    """Seconds of the search on its machine; nan where they are not known."""
    memory_mib: Nonnegative
    """Memory of the search; nan where it is not known."""
    visible_change: Nonnegative
    """Median of the directions' visible changes between -S and S, to which the methods are scaled."""
    rca: Share
    """Accuracy of a fresh reconstructor, of the same budget for every method; by chance 1/K."""
    rca_interval: Interval
    rca_visible: ShareOrNone
    """The same over visible directions; nan if none is visible."""
    rca_visible_interval: Interval
    visible: list[Count]
    """Directions that a person sees."""
    distinct: Count
    """Clusters of the visible directions."""
    named: Count
    """Directions that an attribute names."""
    effective_rank: Nonnegative
    specificity: Number
    """Mean specificity of the visible directions that have one; nan if none has."""
    oddness: Number
    oddness_interval: Interval
    kept_half: ShareOrNone
    """Share of samples that keep their classes at S/2 along the visible directions; nan without a classifier."""
    kept_half_interval: Interval
    fd_raw: Nonnegative
    """Distance of raw samples to real images; nan where it was not measured, as the next ones."""
    fd_shifted: Nonnegative
    fd_ratio: Nonnegative
    """Distance of samples that are shifted along visible directions over that of raw ones."""
    fd_ratio_interval: Interval
    precision: ShareOrNone
    """Share of these shifted samples that lie among the model's raw ones (Kynkaanniemi et al. 2019)."""
    precision_interval: Interval
    recall: ShareOrNone
    """Share of raw samples that lie among the shifted ones."""
    recall_interval: Interval


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """A number of one method over seeds of its search."""

    method: str
    number: str
    """Field of :class:`MeasuredMethod`; of lists their length."""
    seeds: int
    mean: float
    interval: tuple[float, float]
    """Student's interval of the mean at 95 %, on logits of shares and logarithms of ratios."""


@dataclass(frozen=True, kw_only=True)
class FactorFound:
    """The direction of a method that moves a known factor of the data most."""

    factor: str
    method: str
    direction: Count | None
    """None where no direction of the method moves it for certain, in most samples, and visibly."""
    attribute: str
    """Class that it moves, as in "hair" or "glasses: dark"."""
    effect: Number
    """Its effect on that, in natural standard deviations; of no direction the largest effect that any has."""
    interval: Interval
    specificity: Number
    """Its effect over the mean effect on all other attributes."""
    also: list[str]
    """Other factors that it moves for certain too, by at least half as much."""


@dataclass(frozen=True, kw_only=True)
class Benchmark(Result):
    """Methods that find directions, measured alike on one frozen model."""

    NAME: ClassVar[str] = "benchmark"

    metric: str
    """Name of the distance to real images; empty where it was not measured."""
    n_pairs: Positive
    """Pairs behind each RCA."""
    n_samples: Positive
    """Samples behind the effects of each direction."""
    n_images: Count
    """Raw samples, and shifted ones, behind each distance; 0 for no distance."""
    reconstructor_steps: Positive
    """Steps of the reconstructor that is trained for each method."""
    methods: list[MeasuredMethod]
    factors: list[FactorFound]
    """Best direction of each method for each factor of the data; empty without a classifier."""
    grids: Aside = field(default=None, compare=False, repr=False)
    """Images along the most visible directions of each method on the same x_T: by name, float32 [directions, examples,
    columns, C, H, W], with their labels; None in a result read back."""

    def __post_init__(self) -> None:
        """Check that names are unique, and factors those of the methods."""
        names = [each.name for each in self.methods]
        if len({*names}) < len(names) or not {each.method for each in self.factors} <= {*names}:
            raise ValueError("methods: two of one name, or factors of none of them")

    def method(self, name: str) -> MeasuredMethod:
        """Return the numbers of a method."""
        return next(each for each in self.methods if each.name == name)

    def over_seeds(self) -> list[OverSeeds]:
        """Return the mean of each number over the seeds of each method that was measured with more than one."""
        found = []
        for method, K in dict.fromkeys((each.found_by, each.K) for each in self.methods if each.found_by):
            alike = [each for each in self.methods if (each.found_by, each.K) == (method, K)]
            for number in OVER_SEEDS if len(alike) > 1 else ():
                values = np.array([_value(each, number) for each in alike])
                if not np.isnan(values).any():
                    mean, interval = float(values.mean()), self._interval_over_seeds(number, values, K)
                    found.append(
                        OverSeeds(method=method, number=number, seeds=len(alike), mean=mean, interval=interval)
                    )
        return found

    def _interval_over_seeds(self, number: str, values: "NDArray[np.float64]", K: int) -> tuple[float, float]:
        if number in SHARES:
            return student_of_shares(values, getattr(self, SHARES[number]))
        if number == "fd_ratio":
            return student_of_logarithms(values)
        low, high = student(values)
        if number in COUNTS:
            low, high = np.clip([low, high], 0, K)
        return float(low), float(high)

    def cautions(self) -> list[str]:
        """Return which methods could not be brought to the same change."""
        wanted = self.methods[0].visible_change
        off = [each.name for each in self.methods if abs(each.visible_change - wanted) > 0.2 * wanted]
        return (
            [f"{', '.join(off)}: of another visible change than {self.methods[0].name}: see the table"] if off else []
        )

    def summary(self) -> str:
        """Return the numbers of all methods, a line each, and the factors that no method moves."""
        shown = {
            "visible_change": "change",
            "rca": "RCA",
            "rca_visible": "RCA visible",
            "n_visible": "visible",
            "distinct": "distinct",
            "named": "named",
            "specificity": "specificity",
            "oddness": "oddness",
            "kept_half": "kept",
            "fd_ratio": f"{self.metric or 'FD'} ratio",
            "precision": "precision",
            "recall": "recall",
            "seconds": "seconds",
        }
        table = self.table()[["method", *shown]].rename(columns=shown).round(3)
        lines = [table.to_string(index=False)]
        for each in self.over_seeds():
            low, high = each.interval
            lines.append(
                f"{each.method} over {each.seeds} seeds: {shown.get(each.number, each.number)} {each.mean:.3f} "
                f"[{low:.3f}, {high:.3f}]"
            )
        for factor in dict.fromkeys(each.factor for each in self.factors):
            found = [each for each in self.factors if each.factor == factor]
            best = max(found, key=lambda each: (each.direction is not None, abs(each.effect)))
            lines.append(
                f"{factor}: no method finds it"
                if best.direction is None
                else f"{factor}: best {best.method} {best.direction}, {best.attribute} {best.effect:+.2f} sd"
            )
        return "\n".join(lines)

    def table(self) -> "DataFrame":
        """Return the numbers of each method, a row a method."""
        import pandas as pd

        return pd.DataFrame([self._row(each) for each in self.methods])

    def _row(self, each: MeasuredMethod) -> dict[str, Any]:
        row: dict[str, Any] = {"method": each.name, "found_by": each.found_by, "title": each.title, "K": each.K}
        row |= {"visible_change": each.visible_change, "n_visible": len(each.visible)}
        for name in ("rca", "rca_visible", "oddness", "kept_half", "fd_ratio", "precision", "recall"):
            low, high = getattr(each, f"{name}_interval")
            row |= {name: getattr(each, name), f"{name}_low": low, f"{name}_high": high}
        for name in ("distinct", "named", "effective_rank", "specificity", "fd_raw", "fd_shifted", "seconds"):
            row[name] = getattr(each, name)
        return row | {"memory_mib": each.memory_mib, "n_pairs": self.n_pairs, "n_samples": self.n_samples}


def _value(each: MeasuredMethod, number: str) -> float:
    value = getattr(each, number)
    return float(len(value) if isinstance(value, list) else value)


NO_INTERVAL = (math.nan, math.nan)
"""Interval of a number that was not measured."""
