"""Mean opinion score of a run's directions, from the marks of assessors (Table 1, Sec. 5.5)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from hbench.core import seeds
from hbench.core.intervals import student, wilson
from hbench.errors import as_list, check_seed, counted
from hbench.evaluation.mos.marks import Mark, read_marks
from hbench.evaluation.mos.study import Direction, Key, Study, guarded
from hbench.store.files import sha256, write_text
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance, checked_sha256, provenance
from hbench.store.records import Count, Positive, Share
from hbench.store.results import Result

if TYPE_CHECKING:
    from pandas import DataFrame

FEW = 8
"""Number of values below which the bootstrap interval is too short."""
LITTLE_AGREEMENT = 0.2
"""Krippendorff's alpha below which assessors hardly agree more than by chance."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: Share | None
    """Mean; None without values."""
    interval: tuple[float, float] | None
    """95 % interval; None for fewer than two values, or if all are the same."""
    n: Count
    """Number of values."""

    def words(self, unit: str) -> str:
        """Return mean, interval and n in words, where n counts ``unit``."""
        if self.mean is None:
            return f"not measured ({counted(0, unit)})"
        interval = "no interval computable"
        if self.interval:
            low, high = self.interval
            interval = f"95% [{low:.3f}, {high:.3f}]"
        return f"{self.mean:.3f}  {interval}  n {counted(self.n, unit)}"


@dataclass(frozen=True, kw_only=True)
class DirectionScore:
    """The marks of one direction."""

    run: str
    direction: Count
    control: bool
    mean: Share | None
    """Share of marks that are 1; None without marks."""
    interval: tuple[float, float] | None
    """95 % Wilson interval of the share."""
    votes: Count
    names: dict[str, Positive]
    """Names that assessors gave, in lower case, with their counts; the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """The opinion score of one run."""

    run: str
    title: str
    mos: Estimate
    """Mean over the trained directions of their means, with a bootstrap interval over directions."""
    floor: Estimate
    """The same of the untrained directions."""
    marks: Count
    """Number of marks of trained directions, repeats not counted."""


@dataclass(frozen=True, kw_only=True)
class MosScore(Result):
    """Mean opinion score of each run and direction, and the assessors' agreement."""

    NAME: ClassVar[str] = "mos"

    runs: list[RunScore]
    directions: list[DirectionScore]
    alpha: Annotated[float, Field(ge=-1, le=1)] | None
    """Krippendorff's alpha, nominal, of the assessors on trained directions: 1 for agreement, 0 for chance. None if no
    direction has two marks, or if all marks are the same."""
    self_agreement: Estimate
    """Share of repeated items that got the same mark again, with its Wilson interval; n counts repeats."""
    self_agreement_by_assessor: dict[str, tuple[Count, Count]]
    """Numbers of repeats with the same mark, and of all repeats."""
    sheets: Positive
    """Number of sheets that are scored."""
    sheets_made: Positive
    """Number of sheets in the study."""
    seed: Count
    """Seed of the bootstrap."""

    def summary(self) -> str:
        """Return a line for each run, and two about the assessors' agreement."""
        lines = [
            f"{run.run}  MOS {run.mos.words('direction')}  marks {run.marks}  "
            f"floor {run.floor.words('untrained direction')}"
            for run in self.runs
        ]
        alpha = "no agreement computable" if self.alpha is None else f"{self.alpha:.3f}"
        lines.append(f"Krippendorff's alpha {alpha}  assessors {self.sheets} of {self.sheets_made}")
        lines.append(f"self-agreement {self.self_agreement.words('repeat')}")
        return "\n".join(lines)

    def cautions(self) -> list[str]:
        """Return what makes the score mean little: one assessor, a floor as high, or hardly any agreement."""
        cautions = []
        if self.sheets == 1:
            cautions.append("the marks are of one assessor: the score is one person's taste, and agreement is unknown")
        if self.sheets < self.sheets_made:
            cautions.append(f"only {self.sheets} of {self.sheets_made} sheets are scored")
        for run in self.runs:
            of = f" of {run.run}" if len(self.runs) > 1 else ""
            if run.floor.mean is None:
                cautions.append(f"no untrained direction{of} was marked: nothing tells the score from a guess")
            elif run.mos.mean is not None and run.floor.mean >= run.mos.mean:
                cautions.append(
                    f"the untrained directions{of} score {run.floor.mean:.3f}, no less than the trained ones' "
                    f"{run.mos.mean:.3f}: the score means nothing"
                )
            elif run.mos.interval and run.floor.mean > run.mos.interval[0]:
                cautions.append(
                    f"the untrained directions{of} score {run.floor.mean:.3f}, within the interval of the trained ones"
                )
        if self.alpha is not None and self.alpha < LITTLE_AGREEMENT:
            cautions.append(f"the assessors agree little (Krippendorff's alpha {self.alpha:.3f})")
        return cautions

    def table(self) -> "DataFrame":
        """Return the share of marks that are 1, its interval, votes and names, a row a direction."""
        import pandas as pd

        return pd.DataFrame(
            {
                "run": guarded(d.run),
                "direction": d.direction,
                "control": d.control,
                "mean": d.mean,
                "low": d.interval and d.interval[0],
                "high": d.interval and d.interval[1],
                "votes": d.votes,
                "names": guarded("; ".join(f"{name} ({count})" for name, count in d.names.items())),
            }
            for d in self.directions
        )

    def proposed_names(self, run: str) -> str:
        """Return the text of a names.txt for a run: the most frequent name of each direction.

        Of equally frequent names it has the first in the alphabet. The text is empty if there is no name.
        """
        named = [d for d in self.directions if d.run == run and not d.control and d.names]
        return "".join(f"{d.direction}: {next(iter(d.names))}\n" for d in named)

    def names_files(self) -> dict[str, str]:
        """Return the name of each file of proposed names, by run; runs without names have none."""
        files = {
            run.run: "names.txt" if len(self.runs) == 1 else f"names_{number}.txt"
            for number, run in enumerate(self.runs, start=1)
        }
        return {run: file for run, file in files.items() if self.proposed_names(run)}

    def write_into(self, folder: Path) -> None:
        """Write the score and the proposed names into a folder that the caller has claimed."""
        for run, file in self.names_files().items():
            write_text(folder / file, self.proposed_names(run))
        super().write_into(folder)


def mos_score(
    marks: str | Path | Sequence[str | Path], key: str | Path, *, partial: bool = False, seed: int = 0
) -> MosScore:
    """Score the marks of assessors.

    Args:
        marks: CSV files with the columns sheet, assessor, item, mark (0 or 1) and name, as the sheets export them.
        key: file ``key.json`` of the study.
        partial: accept that whole sheets are missing.
        seed: seed of the bootstrap.

    Raises:
        HBenchError: a file is damaged or of another study, the key is not the one of the design beside it, or a mark is
            missing, double or out of range.
    """
    check_seed(seed)
    paths, key = [Path(path) for path in as_list(marks)], Path(key)
    study = Key.read(key)
    key_sha256 = checked_sha256(key, "bring it back from a copy")
    read = read_marks(paths, study, partial)
    files = {str(path): sha256(path) for path in paths}
    origin = provenance(
        None, torch.device("cpu"), seed, key_sha256=key_sha256, marks_sha256=files, runs=_runs_of(key.parent)
    )
    return replace(score(read, study, seed), provenance=origin.finished(n=len(read)))


def _runs_of(folder: Path) -> dict[str, Any] | None:
    """Return settings and weights of each run of a study; None where its design is not beside the key."""
    file = folder / PROVENANCE
    if not (folder / f"{Study.NAME}.json").is_file() or not file.is_file():
        return None
    runs: dict[str, Any] | None = Provenance.read(file, "bring it back from a copy").details.get("runs")
    return runs


def score(marks: Sequence[Mark], key: Key, seed: int = 0) -> MosScore:
    """Return the scores of a study from its marks.

    The mark of an item's first showing counts; that of a repeat only enters the assessors' agreement with themselves.
    The score is the mean of the marks over assessors and directions (Sec. 5.5), each direction with the same weight.
    """
    first = [mark for mark in marks if mark.item.repeat_of is None]
    shown = {item.shown for sheet in key.sheets for item in sheet.items}
    directions = [
        _score_direction(each, first) for each in sorted(shown, key=lambda d: (d.run, d.control, d.direction))
    ]
    runs = []
    for run in key.runs:
        marked = [d for d in directions if d.run == run.run and d.mean is not None]
        trained, controls = (
            [d.mean for d in marked if d.control is control and d.mean is not None] for control in (False, True)
        )
        runs.append(
            RunScore(
                run=run.run,
                title=run.title,
                mos=_mean_share(trained, seed),
                floor=_mean_share(controls, seed),
                marks=sum(d.votes for d in marked if not d.control),
            )
        )
    by_item = {(mark.assessor, mark.item.item): mark.mark for mark in marks}
    by_assessor: dict[str, tuple[int, int]] = {}
    for mark in marks:
        if mark.item.repeat_of is not None:
            same, count = by_assessor.get(mark.assessor, (0, 0))
            again = by_item[mark.assessor, mark.item.repeat_of] == mark.mark
            by_assessor[mark.assessor] = (same + again, count + 1)
    return MosScore(
        runs=runs,
        directions=directions,
        alpha=_alpha([mark for mark in first if not mark.item.control]),
        self_agreement=_share(sum(same for same, _ in by_assessor.values()), sum(n for _, n in by_assessor.values())),
        self_agreement_by_assessor=by_assessor,
        sheets=len({mark.assessor for mark in marks}),
        sheets_made=len(key.sheets),
        seed=seed,
    )


def _score_direction(direction: Direction, marks: Sequence[Mark]) -> DirectionScore:
    given = [mark for mark in marks if mark.item.shown == direction]
    share = _share(sum(mark.mark for mark in given), len(given))
    counts = Counter(mark.name.lower() for mark in given if mark.name and mark.mark)  # "nothing" names no direction
    names = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    return DirectionScore(
        **direction._asdict(), mean=share.mean, interval=share.interval, votes=len(given), names=names
    )


def _share(count: int, n: int) -> Estimate:
    """Return a share with its Wilson interval."""
    if not n:
        return Estimate(mean=None, interval=None, n=0)
    return Estimate(mean=count / n, interval=wilson(count, n), n=n)


def _mean_share(values: Sequence[float], seed: int) -> Estimate:
    """Return a mean of shares with its interval.

    The interval is that of the bias-corrected and accelerated bootstrap (Efron 1987), or Student's for few values:
    resampled means never leave the range of the values, even if the true mean lies outside.
    """
    from scipy.stats import bootstrap

    mean = float(np.mean(values)) if values else None
    if len(set(values)) < 2:
        interval = None
    elif len(values) < FEW:
        low, high = student(values)
        interval = (max(0.0, float(low)), min(1.0, float(high)))
    else:
        rng = np.random.default_rng(seeds.study_bootstrap(seed))
        found = bootstrap((values,), np.mean, rng=rng).confidence_interval
        interval = (float(found.low), float(found.high))
    return Estimate(mean=mean, interval=interval, n=len(values))


def _alpha(marks: Sequence[Mark]) -> float | None:
    """Return Krippendorff's alpha, nominal; None if no direction has two marks, or if all those marks are the same."""
    import krippendorff

    assessors = sorted({mark.assessor for mark in marks})
    directions = sorted({mark.item.shown for mark in marks})
    table = np.full((len(assessors), len(directions)), np.nan)
    for mark in marks:
        table[assessors.index(mark.assessor), directions.index(mark.item.shown)] = mark.mark
    pairable = table[:, np.isfinite(table).sum(0) > 1]
    if len(np.unique(pairable[np.isfinite(pairable)])) < 2:
        return None
    return float(krippendorff.alpha(pairable, level_of_measurement="nominal"))
