"""Marks of assessors, read from the CSV files that sheets, spreadsheets and annotation tools export."""

import csv
import io
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hbench.errors import HBenchError, counted
from hbench.evaluation.mos.study import COLUMNS, FORMULA, Item, Key, Sheet
from hbench.text import decoded

FIELD_LIMIT = 2**27
"""Number of characters of a CSV field, at most; Label Studio's export repeats the picture of an item."""


@dataclass(frozen=True)
class Mark:
    """One mark of one assessor."""

    assessor: str
    item: Item
    mark: int
    name: str


def read_marks(paths: Sequence[Path], key: Key, partial: bool = False) -> list[Mark]:
    """Read the marks in some CSV files, in the order of the key.

    The columns are those of :data:`COLUMNS`, in any order; others are ignored, ``name`` may be missing. Fields are
    separated by commas, semicolons or tabs, or as a first line "sep=;" says; the text is UTF-8, or UTF-16 with a byte
    order mark. Whole numbers may look like "1.0" or "1,0".

    Args:
        paths: files; the marks of a sheet are in one file or in several.
        key: key of the study.
        partial: accept that whole sheets are missing.

    Raises:
        HBenchError: a foreign sheet or item, a mark other than 0 and 1, or a second or missing mark; the message names
            file and line.
    """
    sheets = {sheet.sheet: sheet for sheet in key.sheets}
    found: dict[tuple[str, int], Mark] = {}
    lines: dict[tuple[str, int], str] = {}
    for path in paths:
        for number, row in read_rows(path):
            line = f"{path}, line {number}"
            mark = _read_mark(row, sheets, line)
            cell = (row["sheet"], mark.item.item)
            if cell in found:
                raise HBenchError(f"{line}: item {row['item']} is already marked in {lines[cell]}: leave one out")
            found[cell], lines[cell] = mark, line
    for sheet in key.sheets:
        missing = [str(item.item) for item in sheet.items if (sheet.sheet, item.item) not in found]
        if len(missing) == len(sheet.items):
            if not partial:
                raise HBenchError(
                    f"no marks of assessor {sheet.assessor} ({sheet.sheet}): give that file too, or add `partial=True`"
                )
        elif missing:
            line = next(line for (name, _), line in lines.items() if name == sheet.sheet)
            shown = ", ".join(missing[:8]) + (", …" if len(missing) > 8 else "")
            raise HBenchError(
                f"{line.rpartition(', line ')[0]}: {len(missing)} of {counted(len(sheet.items), 'item')} of assessor "
                f"{sheet.assessor} are missing ({shown}): let the assessor finish"
            )
    if not found:
        raise HBenchError("no marks in the given files: nothing to score")
    cells = [(sheet.sheet, item.item) for sheet in key.sheets for item in sheet.items]
    return [found[cell] for cell in cells if cell in found]


def _read_mark(row: Mapping[str, str], sheets: Mapping[str, Sheet], line: str) -> Mark:
    sheet = sheets.get(row["sheet"])
    if sheet is None:
        raise HBenchError(
            f"{line}: sheet {_short(row['sheet'])} is not of this study: leave it out, or give its own `key`"
        )
    if sheet.assessor not in (row["assessor"], _whole(row["assessor"])):
        raise HBenchError(
            f"{line}: {sheet.sheet} is of assessor {sheet.assessor}, not {_short(row['assessor'])}: restore it"
        )
    item = next((item for item in sheet.items if str(item.item) == _whole(row["item"])), None)
    if item is None:
        raise HBenchError(
            f"{line}: item {_short(row['item'])} is not in {sheet.sheet}, which has 1 to {len(sheet.items)}"
        )
    if not row["mark"]:
        raise HBenchError(f"{line}: item {row['item']} has no mark: let assessor {sheet.assessor} finish")
    if (mark := _whole(row["mark"])) not in ("0", "1"):
        raise HBenchError(f"{line}: mark {_short(row['mark'])} is out of range: need 0 or 1")
    return Mark(sheet.assessor, item, int(mark), tidy(_unguarded(row.get("name", ""))))


def _whole(text: str) -> str:
    """Return a whole number without the decimals that a spreadsheet or pandas gave it: "1" for "1.0" and "1,0"."""
    return re.sub(r"^([0-9]+)[.,]0+$", r"\1", text)


def read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the lines of a CSV file as (line number, field by column), blank lines left out."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HBenchError(f"{path}: cannot be read ({error.strerror}): give a CSV file of marks") from error
    try:
        text = decoded(content)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise HBenchError(f'{path}, line {line}: not UTF-8: in the spreadsheet, save it as "CSV UTF-8"') from error
    said = re.match(r'\n*("?)sep=([,;|:\t])\1 *\n', text, re.IGNORECASE)  # Excel's word for the separator
    if said:
        text = text[: said.start(1)] + text[said.end() - 1 :]  # its line stays, and is blank
    header = text.lstrip("\n").partition("\n")[0]
    separator = said[2] if said else max(",;\t", key=header.count)
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True, skipinitialspace=separator != "\t")
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    start = 1
    try:
        for fields in reader:
            line, start = start, reader.line_num + 1
            values = [field.strip() for field in fields]
            if not any(values):
                continue
            while len(values) > len(columns) and not values[-1]:  # empty columns to the right
                values.pop()
            if not columns:
                columns = [value.lower() for value in values]
                lost = [name for name in COLUMNS[:-1] if columns.count(name) != 1]
                if lost or columns.count("name") > 1:
                    raise HBenchError(
                        f"{path}, line {line}: need one column {lost[0] if lost else 'name'}: "
                        f"the first line is {','.join(COLUMNS)}"
                    )
            elif len(values) != len(columns):
                raise HBenchError(
                    f"{path}, line {line}: {counted(len(values), 'field')}, need {len(columns)}: restore the line"
                )
            else:
                rows.append((line, dict(zip(columns, values, strict=True))))
    except csv.Error as error:
        raise HBenchError(f"{path}, line {start}: not valid CSV ({error}): restore the line") from error
    if not columns:
        raise HBenchError(f"{path}: is empty: give a CSV file of marks")
    return rows


def tidy(name: str) -> str:
    """Return text on one line, without invisible characters or those that reverse text."""
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(FORMULA) else text


def _short(text: str) -> str:
    return reprlib.repr(text)
