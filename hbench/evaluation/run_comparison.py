"""The result of a comparison of runs: their numbers side by side, and what differs for certain."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hbench.core.intervals import in_words
from hbench.store.records import Interval, Number, Positive, ShareOrNone
from hbench.store.results import Result

if TYPE_CHECKING:
    from pandas import DataFrame

Verdict = Literal["better", "worse", "differs", "no difference", "not comparable"]
"""What is certain about a run beside the first one."""


OF_DIRECTIONS = ("share of visible directions", "visible change", "oddness")
"""Metrics whose units are the directions of a run; those of the others are its pairs."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of one run."""

    run: str
    metric: str
    better: Literal["higher", "lower", ""]
    """End at which a run is better; empty where neither is."""
    value: Number
    interval: Interval
    n: Positive
    """Number of pairs, or of directions."""

    def in_words(self) -> str:
        """Return the value with its interval."""
        return in_words(self.value, self.interval)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of another run less that of the first one."""

    run: str
    """The other run."""
    metric: str
    paired: bool
    """True if it was taken on the same x_T, k and s, pair by pair."""
    difference: Number
    """nan where both are not comparable."""
    interval: Interval
    p: ShareOrNone
    """p of the two-sided test that nothing differs."""
    p_corrected: ShareOrNone
    """p after Holm's correction over all tests of the comparison."""
    verdict: Verdict
    """What is certain about the other run; "differs" where neither end is better."""
    reason: str
    """Why it is not comparable; else empty."""


@dataclass(frozen=True, kw_only=True)
class RunComparison(Result):
    """Runs side by side, and their differences to the first one."""

    NAME: ClassVar[str] = "compare"

    runs: list[str]
    """Names of the runs, the one that the others are compared with first."""
    settings: list[str]
    """Settings in which each differs from the others, in words."""
    n: Positive
    """Number of pairs of each run."""
    measured: list[Measured]
    differences: list[Difference]
    directions: list[Difference]
    """Differences in the accuracy of single directions, "direction 3"; only of runs with the same shift block."""

    def __post_init__(self) -> None:
        """Check that all is about the runs."""
        others = {each.run for each in (*self.differences, *self.directions)}
        if {each.run for each in self.measured} != set(self.runs) or not others <= set(self.runs[1:]):
            raise ValueError("measured and differences are of other runs")

    @property
    def found(self) -> list[Difference]:
        """Differences that are certain."""
        return [
            each
            for each in (*self.differences, *self.directions)
            if each.verdict not in ("no difference", "not comparable")
        ]

    @property
    def worse(self) -> list[Difference]:
        """Differences that make a run worse than the first one."""
        return [each for each in self.found if each.verdict == "worse"]

    def value(self, run: str, metric: str) -> Measured:
        """Return a metric of a run."""
        return next(each for each in self.measured if (each.run, each.metric) == (run, metric))

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in their order."""
        return list(dict.fromkeys(each.metric for each in self.measured))

    def summary(self) -> str:
        """Return the runs' values side by side, then each certain difference in a line."""
        import pandas as pd

        first, *others = self.runs
        lines = []
        for metric in self.metrics:
            row = {"": metric, first: self.value(first, metric).in_words()}
            for other in others:
                found = next(each for each in self.differences if (each.run, each.metric) == (other, metric))
                row |= {other: self.value(other, metric).in_words(), f"{other} is": found.verdict}
            lines.append(row)
        certain = [
            f"{each.run}: {each.verdict} in {each.metric}, {each.difference:+.3f} [{each.interval[0]:+.3f}, "
            f"{each.interval[1]:+.3f}], p = {each.p_corrected:.2g} after Holm"
            for each in self.found
        ]
        table: str = pd.DataFrame(lines).to_string(index=False)
        return "\n".join([table, *(certain or ["no difference is certain"])])

    def table(self) -> "DataFrame":
        """Return the differences, a row for each metric and other run, then those of single directions."""
        import pandas as pd

        rows = []
        for each in (*self.differences, *self.directions):
            values = asdict(each)
            values["low"], values["high"] = values.pop("interval")
            rows.append({"first": self.runs[0], **values})
        return pd.DataFrame(rows)

    def cautions(self) -> list[str]:
        """Return what could not be compared, and why."""
        reasons = dict.fromkeys((each.run, each.reason) for each in self.differences if each.reason)
        return [
            f"{run}: {', '.join(e.metric for e in self.differences if (e.run, e.reason) == (run, reason))} not "
            f"compared: {reason}"
            for run, reason in reasons
        ]
