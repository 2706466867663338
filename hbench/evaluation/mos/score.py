"""Mean Opinion Score: what the marks of assessors say about each direction (Table 1, Sec. 5.5)."""

import csv
import io
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from hbench.core import seeds
from hbench.core.intervals import student, wilson
from hbench.errors import HBenchError
from hbench.evaluation.mos.study import COLUMNS, Direction, Item, Key

FORMULA = ("=", "+", "-", "@")
"""What makes a spreadsheet run a cell."""
FEW = 8  # values, below which their bootstrap interval is too short
FIELD_LIMIT = 2**27  # characters; Label Studio's export repeats the picture of an item


@dataclass(frozen=True)
class Mark:
    """One mark of one assessor."""

    assessor: str
    item: Item
    mark: int
    name: str

    @property
    def direction(self) -> Direction:
        """What was marked."""
        return Direction(self.item.run, self.item.direction, self.item.control)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float | None
    """None where there is nothing to average."""
    interval: tuple[float, float] | None
    """None where none can be computed: fewer than two values, or all the same."""
    n: int


@dataclass(frozen=True)
class DirectionScore:
    """The marks of one direction."""

    run: str
    direction: int
    control: bool
    mean: float | None
    """Share of marks that are 1; None without marks."""
    interval: tuple[float, float] | None
    """95 % Wilson interval of the share."""
    votes: int
    names: dict[str, int]
    """Names given, lower case, most given first, with how often."""


@dataclass(frozen=True)
class RunScore:
    """The opinion score of one run."""

    run: str
    title: str
    mos: Estimate
    """Mean over directions of their means, with a bootstrap interval over directions; n directions."""
    floor: Estimate
    """The same of the untrained directions."""
    marks: int
    """Of trained directions, repeats not counted."""


@dataclass(frozen=True)
class Score:
    """What a study found."""

    runs: list[RunScore]
    directions: list[DirectionScore]
    alpha: float | None
    """Krippendorff's alpha, nominal, of the assessors on trained directions: 1 agreement, 0 as by chance. None where
    no agreement can be computed: no direction with two marks, or all marks the same."""
    self_agreement: Estimate
    """Share of repeated items that got the same mark again, with its Wilson interval; n repeats."""
    self_agreement_by_assessor: dict[str, tuple[int, int]]
    """Same marks, and repeats."""
    sheets: int
    """Sheets scored."""
    sheets_made: int
    seed: int


# Reading ------------------------------------------------------------------------------------------------------------


def read_key(path: Path) -> Key:
    """The key of a study; HBenchError if the file is none."""
    try:
        return Key.model_validate_json(path.read_bytes())
    except OSError as error:
        raise HBenchError(f"{path}: cannot be read ({error.strerror}): give the key.json of the study") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        message = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise HBenchError(f"{path}: not a key, or damaged ({message}): give the key.json of the study") from error


def read_marks(paths: Sequence[Path], key: Key, partial: bool = False) -> list[Mark]:
    """The marks in some CSV files, in the order of the key.

    Columns as in :data:`COLUMNS`, in any order; others are ignored, ``name`` may be missing. Fields are separated by
    commas, semicolons or tabs; the text is UTF-8, with or without a byte order mark.

    Args:
        paths: of the files; a sheet lies in one or in several.
        key: of the study.
        partial: accept that whole sheets are missing.

    Raises:
        HBenchError: with file and line: a foreign sheet or item, a mark other than 0 and 1, a second or missing mark.
    """
    sheets = {sheet.sheet: sheet for sheet in key.sheets}
    items = {(sheet.sheet, str(item.item)): item for sheet in key.sheets for item in sheet.items}
    found: dict[tuple[str, str], Mark] = {}
    places: dict[tuple[str, str], str] = {}
    for path in paths:
        for line, row in _read_rows(path):
            place = f"{path}, line {line}"
            sheet = sheets.get(row["sheet"])
            if sheet is None:
                raise HBenchError(
                    f"{place}: sheet {_short(row['sheet'])} is not of this study: leave it out, or give its own --key"
                )
            if row["assessor"] != sheet.assessor:
                raise HBenchError(
                    f"{place}: {sheet.sheet} is of assessor {sheet.assessor}, not {_short(row['assessor'])}: restore it"
                )
            cell = (sheet.sheet, row["item"])
            if cell not in items:
                raise HBenchError(
                    f"{place}: item {_short(row['item'])} is not in {sheet.sheet}, which has 1 to {len(sheet.items)}"
                )
            if not row["mark"]:
                raise HBenchError(f"{place}: item {row['item']} has no mark: let assessor {sheet.assessor} finish")
            if row["mark"] not in ("0", "1"):
                raise HBenchError(f"{place}: mark {_short(row['mark'])} is out of range: need 0 or 1")
            if cell in found:
                raise HBenchError(f"{place}: item {row['item']} is already marked in {places[cell]}: leave one out")
            found[cell] = Mark(sheet.assessor, items[cell], int(row["mark"]), tidy(_unguarded(row.get("name", ""))))
            places[cell] = place
    for sheet in key.sheets:
        missing = [str(item.item) for item in sheet.items if (sheet.sheet, str(item.item)) not in found]
        if len(missing) == len(sheet.items):
            if not partial:
                raise HBenchError(
                    f"no marks of assessor {sheet.assessor} ({sheet.sheet}): give that file too, or add --partial"
                )
        elif missing:
            near = next(place for (name, _), place in places.items() if name == sheet.sheet)
            shown = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
            raise HBenchError(
                f"{near.rpartition(', line ')[0]}: {len(missing)} of {len(sheet.items)} items of assessor "
                f"{sheet.assessor} are missing ({shown}): let the assessor finish"
            )
    if not found:
        raise HBenchError("no marks in the given files: nothing to score")
    return [found[cell] for cell in items if cell in found]


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines of a CSV file as (line number, field by column), blank lines left out."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HBenchError(f"{path}: cannot be read ({error.strerror}): give a CSV file of marks") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise HBenchError(f'{path}, line {line}: not UTF-8: in the spreadsheet, save it as "CSV UTF-8"') from error
    header = text.lstrip("\r\n").partition("\n")[0]
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    start = 1
    try:
        for fields in reader:
            line, start = start, reader.line_num + 1
            values = [field.strip() for field in fields]
            if not any(values):
                continue
            if not columns:
                columns = values
                lost = [name for name in COLUMNS[:-1] if columns.count(name) != 1]
                if lost or columns.count("name") > 1:
                    raise HBenchError(
                        f"{path}, line {line}: need one column {lost[0] if lost else 'name'}: "
                        f"the first line is {','.join(COLUMNS)}"
                    )
            elif len(values) != len(columns):
                raise HBenchError(f"{path}, line {line}: {len(values)} fields, need {len(columns)}: restore the line")
            else:
                rows.append((line, dict(zip(columns, values, strict=True))))
    except csv.Error as error:
        raise HBenchError(f"{path}, line {start}: not valid CSV ({error}): restore the line") from error
    if not columns:
        raise HBenchError(f"{path}: is empty: give a CSV file of marks")
    return rows


def tidy(name: str) -> str:
    """Text on one line, without characters that cannot be seen or that turn text around."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def guarded(text: str) -> str:
    """Text that no spreadsheet runs as a formula: an apostrophe in front of those that it would."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


def _short(text: str) -> str:
    return reprlib.repr(text)


# Scoring ------------------------------------------------------------------------------------------------------------


def score(marks: Sequence[Mark], key: Key, seed: int = 0) -> Score:
    """The scores of a study from its marks.

    The mark of an item's first showing counts; that of a repeat only tells whether assessors agree with themselves. So
    the score is the mean of marks over assessors and directions (Sec. 5.5), all directions counting the same.
    """
    first = [mark for mark in marks if mark.item.repeat_of is None]
    shown = {Direction(i.run, i.direction, i.control) for sheet in key.sheets for i in sheet.items}
    directions = [
        _score_direction(each, first) for each in sorted(shown, key=lambda d: (d.run, d.control, d.direction))
    ]
    runs = []
    for run in key.runs:
        own = [d for d in directions if d.run == run.run and d.mean is not None]
        trained, controls = (
            [d.mean for d in own if d.control is control and d.mean is not None] for control in (False, True)
        )
        votes = sum(d.votes for d in own if not d.control)
        runs.append(RunScore(run.run, run.title, _mean_share(trained, seed), _mean_share(controls, seed), votes))
    marked = {(mark.assessor, mark.item.item): mark.mark for mark in marks}
    by_assessor: dict[str, tuple[int, int]] = {}
    for mark in marks:
        if mark.item.repeat_of is not None:
            same, count = by_assessor.get(mark.assessor, (0, 0))
            again = marked[mark.assessor, mark.item.repeat_of] == mark.mark
            by_assessor[mark.assessor] = (same + again, count + 1)
    return Score(
        runs=runs,
        directions=directions,
        alpha=_alpha([mark for mark in first if not mark.item.control]),
        self_agreement=_share(sum(same for same, _ in by_assessor.values()), sum(n for _, n in by_assessor.values())),
        self_agreement_by_assessor=by_assessor,
        sheets=len({mark.assessor for mark in marks}),
        sheets_made=len(key.sheets),
        seed=seed,
    )


def proposed_names(result: Score, run: str) -> str:
    """A names.txt for a run: for each direction the name given most, the first in the alphabet among equals."""
    named = [d for d in result.directions if d.run == run and not d.control and d.names]
    return "".join(f"{d.direction}: {next(iter(d.names))}\n" for d in named)


def _score_direction(direction: Direction, marks: Sequence[Mark]) -> DirectionScore:
    own = [mark for mark in marks if mark.direction == direction]
    share = _share(sum(mark.mark for mark in own), len(own))
    counts = Counter(mark.name.lower() for mark in own if mark.name and mark.mark)  # "nothing" names no direction
    names = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    return DirectionScore(*direction, share.mean, share.interval, len(own), names)


def _share(count: int, n: int) -> Estimate:
    """A share with its Wilson interval."""
    return Estimate(count / n, wilson(count, n), n) if n else Estimate(None, None, 0)


def _mean_share(values: Sequence[float], seed: int) -> Estimate:
    """A mean of shares with its interval: bias-corrected and accelerated bootstrap (Efron 1987), or Student's for few.

    Resampled means of few values do not reach beyond them, however far the true mean is.
    """
    from scipy.stats import bootstrap

    if len(set(values)) < 2:
        return Estimate(float(np.mean(values)) if values else None, None, len(values))
    if len(values) < FEW:
        low, high = student(values)
        return Estimate(float(np.mean(values)), (max(0.0, float(low)), min(1.0, float(high))), len(values))
    found = bootstrap((values,), np.mean, rng=np.random.default_rng(seeds.study_bootstrap(seed))).confidence_interval
    return Estimate(float(np.mean(values)), (float(found.low), float(found.high)), len(values))


def _alpha(marks: Sequence[Mark]) -> float | None:
    """Krippendorff's alpha, nominal; None if no direction has two marks, or all those marks are the same."""
    import krippendorff

    assessors = sorted({mark.assessor for mark in marks})
    directions = sorted({mark.direction for mark in marks})
    table = np.full((len(assessors), len(directions)), np.nan)
    for mark in marks:
        table[assessors.index(mark.assessor), directions.index(mark.direction)] = mark.mark
    pairable = table[:, np.isfinite(table).sum(0) > 1]
    if len(np.unique(pairable[np.isfinite(pairable)])) < 2:
        return None
    return float(krippendorff.alpha(pairable, level_of_measurement="nominal"))
