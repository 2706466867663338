import copy
import io
import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from marks import HEADER, as_dict, make_images, make_key, rows_of, write_rows

from hbench.core.images import ORANGE
from hbench.errors import HBenchError
from hbench.evaluation.mos.marks import read_marks
from hbench.evaluation.mos.score import score
from hbench.evaluation.mos.study import Key, assign, shuffle
from hbench.reporting.charts.mos import draw_mos
from hbench.reporting.sheets import draw_grid, refuse_marked, write_sheets
from hbench.store.files import write_json
from hbench.store.names import load_names
from hbench.text import decoded

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
example, given, settings = hypothesis.example, hypothesis.given, hypothesis.settings


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.data())
def test_every_direction_gets_its_votes_and_loads_are_even(count, assessors, data):
    votes = data.draw(st.integers(1, assessors))
    seen = assign(count, assessors, votes, np.random.default_rng(0))
    assert Counter(d for each in seen for d in each) == {d: votes for d in range(count)}
    assert all(len(set(each)) == len(each) for each in seen)
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.5))
def test_repeats_come_later_and_show_the_same(count, share):
    order = shuffle(range(count), share, np.random.default_rng(1))
    first = [direction for direction, place in order if place is None]
    assert sorted(first) == list(range(count))
    again = [(i, direction, place) for i, (direction, place) in enumerate(order) if place is not None]
    assert len(again) == -(-share * count // 1)
    assert all(place < i and order[place] == (direction, None) for i, direction, place in again)


def test_the_design_is_shuffled_per_assessor_and_repeatable():
    key, again = make_key(), make_key()
    assert key == again
    orders = [[(i.direction, i.control) for i in sheet.items] for sheet in key.sheets]
    assert len(set(map(tuple, orders))) == 3
    assert len({sheet.sheet for sheet in key.sheets}) == 3


def test_the_grid_frames_the_original_and_keeps_every_pixel():
    images = next(iter(make_images().values()))
    grid = draw_grid(images)
    assert grid.shape == (2 * 10, 3 * 10, 3)
    for row in range(2):
        for column in range(3):
            cell = grid[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
            assert (cell[1:9, 1:9] == images[row, column, 0].numpy()[..., None]).all()
            assert (tuple(cell[0, 0]) == ORANGE) == (column == 1)


def test_overwriting_leaves_no_sheet_of_the_earlier_study(tmp_path):
    images = make_images()
    write_sheets(make_key(assessors=3), images, tmp_path)
    write_sheets(make_key(assessors=2), images, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("sheet_*")) == [
        "sheet_1",
        "sheet_1.html",
        "sheet_2",
        "sheet_2.html",
    ]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("sheet_1/marks_1.csv", "sheet\tassessor\titem\tmark\tname\ns\t1\t1\t0\t\n", "holds marks"),
        ("sheet_1/marks_1.csv", "mark,name,sheet,assessor,item\n1,,s,1,1\n", "holds marks"),
        ("sheet_1/marks 1.xlsx", "x", "is not of hbench"),
        ("score/mos.json", "{}", "scores an earlier study"),
    ],
)
def test_work_of_people_in_any_form_is_kept(tmp_path, name, text, said):
    file = tmp_path / name
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(HBenchError, match=said):
        refuse_marked(tmp_path)
    file.unlink()
    file.parent.rmdir()
    refuse_marked(tmp_path)


def test_scores_in_closed_form(tmp_path):
    key = make_key(assessors=4, directions=5, controls=2)
    # direction k gets a 1 from assessors 1..k; the controls get none; repeats are always turned around
    marks = {}

    def mark(sheet, item):
        value = int(not item.control and int(sheet.assessor) <= item.direction)
        return value if item.repeat_of is None else 1 - value

    marks = read_marks([write_rows(tmp_path / "m.csv", rows_of(key, mark))], key)
    result = score(marks, key, seed=1)
    means = {(d.direction, d.control): d.mean for d in result.directions}
    assert means == {(k, False): k / 4 for k in range(5)} | {(k, True): 0 for k in range(2)}
    (run,) = result.runs
    assert run.mos.mean == pytest.approx(0.5)
    assert run.mos.interval[0] < 0.5 < run.mos.interval[1]
    assert (run.mos.n, run.marks) == (5, 20)
    assert (run.floor.mean, run.floor.interval, run.floor.n) == (0, None, 2)
    assert result.self_agreement.mean == 0
    assert result.self_agreement.n == 8
    # Krippendorff 2011, nominal: 1 - (n - 1) * sum of disagreeing pairs / sum of products of the value counts
    disagreeing = sum(2 * k * (4 - k) / 3 for k in range(5))
    assert result.alpha == pytest.approx(1 - 19 * disagreeing / (2 * 10 * 10))


def test_scores_do_not_depend_on_the_order_of_files_and_lines(tmp_path):
    key = make_key()
    rows = rows_of(key, name=lambda sheet, item: f"n{item.direction}")
    whole = score(read_marks([write_rows(tmp_path / "whole.csv", rows)], key), key)
    paths = [
        write_rows(tmp_path / f"{sheet.assessor}.csv", [row for row in rows if row[0] == sheet.sheet][::-1])
        for sheet in key.sheets
    ]
    assert score(read_marks(paths[::-1], key), key) == whole


def test_no_agreement_is_no_traceback(tmp_path):
    key = make_key()
    result = score(read_marks([write_rows(tmp_path / "m.csv", rows_of(key, lambda *_: 1))], key), key)
    assert result.alpha is None
    assert (result.runs[0].mos.mean, result.runs[0].mos.interval) == (1, None)
    key = make_key(votes=1, repeats=0)
    result = score(read_marks([write_rows(tmp_path / "m.csv", rows_of(key))], key), key)
    assert result.alpha is None
    assert (result.self_agreement.mean, result.self_agreement.n) == (None, 0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_spreadsheets_of_all_locales_are_read(tmp_path, encoding, delimiter, end):
    key = make_key()
    rows = rows_of(key, name=lambda *_: 'größer; dünn, "rund"')
    path = write_rows(tmp_path / "m.csv", rows, encoding, delimiter=delimiter, lineterminator=end)
    marks = read_marks([path], key)
    assert len(marks) == len(rows)
    assert {mark.name for mark in marks} == {'größer; dünn, "rund"'}


TIDY = "".join(",".join(row) + "\n" for row in [HEADER.split(","), *rows_of(make_key())])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "sep=;\n" + text.replace(",", ";"),
        lambda text: '\n"SEP=|"\r\n' + text.replace(",", "|"),
        lambda text: "sep=,\n" + text,
        lambda text: re.sub(r",([01]),\n", r",\1.0,\n", text),
        lambda text: re.sub(r"(\d+),(\d+),([01]),\n", r"\1.0,\2.0,\3.00,\n", text),
        lambda text: re.sub(r",([01]),\n", r",\1;0,\n", text).replace(",", "\t").replace(";", ","),
        lambda text: re.sub(r",([01]),\n", r',"\1,0",\n', text),
        lambda text: text.replace("\n", ",,,\n") + ",,,\n\n,,,,,,,,\n",
        lambda text: re.sub(r"([^,\n]+)", r'"\1"', text),
        lambda text: text.replace(",", ", ").replace("\n", " \n"),
        lambda text: re.sub(r",([01]),\n", ",\u00a0\\1\u00a0,\n", text),
        lambda text: text.replace("sheet,assessor,item,mark,name", "Sheet,Assessor,Item,Mark,Name"),
    ],
)
def test_harmless_dialects_are_read(tmp_path, change):
    (tmp_path / "m.csv").write_text(change(TIDY), newline="")
    assert change(TIDY) != TIDY
    assert as_dict(read_marks([tmp_path / "m.csv"], make_key())) == as_dict(
        read_marks([write_rows(tmp_path / "n.csv", rows_of(make_key()))], make_key())
    )


def test_lines_are_counted_as_in_the_file(tmp_path):
    (tmp_path / "m.csv").write_text("sep=;\n" + TIDY.replace(",", ";").replace(";0;", ";7;", 1))
    with pytest.raises(HBenchError, match=r"m\.csv, line [34]: mark '7' is out of range"):
        read_marks([tmp_path / "m.csv"], make_key())


def test_marks_in_utf_16_are_work_of_people_too(tmp_path):
    file = tmp_path / "sheet_1" / "marks_1.csv"
    file.parent.mkdir()
    file.write_text("sheet,assessor,item,mark,name\ns,1,1,1,\n", encoding="utf-16")
    with pytest.raises(HBenchError, match="holds marks"):
        refuse_marked(tmp_path)


def test_other_columns_in_any_order_are_ignored(tmp_path):
    key = make_key()
    lines = [",".join(["image", "mark", "item", "assessor", "sheet"])]
    lines += [
        ",".join(["data:" + "x" * 200_000, mark, item, assessor, sheet])
        for sheet, assessor, item, mark, _ in rows_of(key)
    ]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    assert as_dict(read_marks([tmp_path / "m.csv"], key)) == as_dict(
        read_marks([write_rows(tmp_path / "n.csv", rows_of(key))], key)
    )


def test_bad_marks_are_refused_by_file_and_line(tmp_path):
    key = make_key()
    path = tmp_path / "m.csv"

    def problem(row, **changes):
        rows = rows_of(key)
        for column, value in changes.items():
            rows[row][HEADER.split(",").index(column)] = value
        with pytest.raises(HBenchError) as error:
            read_marks([write_rows(path, rows)], key)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert f"{path}, line 4: sheet 'sheet-0' is not of this study" in problem(2, sheet="sheet-0")
    assert f"{path}, line 5: {key.sheets[0].sheet} is of assessor 1, not '2'" in problem(3, assessor="2")
    assert "line 2: item '99' is not in" in problem(0, item="99")
    assert "line 2: item '١' is not in" in problem(0, item="١")
    assert "line 3: item 2 has no mark: let assessor 1 finish" in problem(1, mark="")
    for wrong in ("2", "-1", "0.5", "1.", "1.0.0", "yes", "١", "0 1"):
        assert f"line 3: mark {wrong!r} is out of range: need 0 or 1" in problem(1, mark=wrong)
    assert f"line 3: item 1 is already marked in {path}, line 2" in problem(1, item="1")
    rows = rows_of(key)
    with pytest.raises(HBenchError, match="1 of 10 items of assessor 1 are missing"):
        read_marks([write_rows(path, rows[1:])], key)
    with pytest.raises(HBenchError, match="already marked in"):
        read_marks([write_rows(path, rows), path], key)
    only = [row for row in rows if row[1] == "1"]
    with pytest.raises(HBenchError, match=r"no marks of assessor 2 .* or add `partial=True`"):
        read_marks([write_rows(path, only)], key)
    assert len(read_marks([path], key, partial=True)) == len(only)
    with pytest.raises(HBenchError, match="no marks in the given files"):
        read_marks([write_rows(path, [])], key, partial=True)


def test_what_is_no_csv_of_marks_is_refused(tmp_path):
    key = make_key()
    text = write_rows(tmp_path / "m.csv", rows_of(key)).read_text()

    def problem(content):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(HBenchError) as error:
            read_marks([tmp_path / "x.csv"], key)
        return str(error.value)

    assert "is empty" in problem(b"")
    assert "line 1: need one column mark" in problem(text.replace("mark", "score", 1).encode())
    assert "line 1: need one column sheet" in problem(b"\x89PNG".decode("latin-1").encode())
    assert 'line 2: not UTF-8: in the spreadsheet, save it as "CSV UTF-8"' in problem((HEADER + "\nä").encode("cp1252"))
    assert "not UTF-8: in the spreadsheet" in problem(text.encode("utf-16")[:-1])
    assert "line 1: need one column sheet" in problem(text.encode("utf-16")[2:])
    assert "line 3: 6 fields, need 5" in problem(
        "\n".join([*text.splitlines()[:2], text.splitlines()[2] + ",more"]).encode()
    )
    assert "not valid CSV" in problem((text + '"').encode())


def test_a_damaged_key_is_refused(tmp_path):
    key = make_key()
    path = tmp_path / "key.json"
    path.write_text("{")
    with pytest.raises(HBenchError, match=r"cannot be read .*: give the key\.json of the study"):
        Key.read(path)
    values = key.to_json()
    write_json(path, values)
    assert Key.read(path) == key

    def refusal(change):
        broken = copy.deepcopy(values)
        change(broken, broken["sheets"][0]["items"])
        write_json(path, broken)
        with pytest.raises(HBenchError, match=r"is no key .*give the key") as error:
            Key.read(path)
        return str(error.value)

    assert "is of no run" in refusal(lambda key, items: items[0].update(run="other"))
    assert "the same sheet twice" in refusal(lambda key, items: key["sheets"].append(key["sheets"][0]))
    assert "does not repeat item 2" in refusal(lambda key, items: items[0].update(repeat_of=2))
    assert "items.0.item: input should be greater" in refusal(lambda key, items: items[0].update(item=0))
    assert "unexpected keyword argument" in refusal(lambda key, items: items[0].update(more=1))


def test_a_key_of_an_older_version_is_read(tmp_path):
    """hbench 0.1 wrote its version into the key, and no schema number."""
    key = make_key()
    values = {name: value for name, value in key.to_json().items() if name != "schema"}
    write_json(tmp_path / "key.json", {"hbench": "0.1.0"} | values)
    assert Key.read(tmp_path / "key.json") == key


KEY = make_key(assessors=2, directions=3, controls=1)


TEXT = "\n".join([HEADER, *(",".join(row) for row in rows_of(KEY, name=lambda *_: "=1+1 thin"))]) + "\n"


LINES = TEXT.splitlines()


PIECES = st.sampled_from(
    ["0", "1", "2", ",", ";", '"', "\n", "\r", "\r\n", " ", "\t", "\0", "\ufeff", "-", "é", "\u2028", "'", *LINES]
)


@st.composite
def mutated(draw):
    """The text of a good CSV, changed in one to three places."""
    text = TEXT
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(
            st.sampled_from(["insert", "delete", "replace", "drop", "double", "swap", "shuffle", "cut", "recode"])
        )
        lines = text.splitlines(keepends=True) or [""]
        at, to = draw(st.integers(0, len(text))), draw(st.integers(1, 6))
        i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        if kind == "insert":
            text = text[:at] + draw(PIECES) + text[at:]
        elif kind == "delete":
            text = text[:at] + text[at + to :]
        elif kind == "replace":
            text = text[:at] + draw(PIECES) + text[at + 1 :]
        elif kind == "cut":
            text = text[:at]
        elif kind == "recode":
            text = text.replace(",", draw(st.sampled_from([";", "\t", "|", ",,"])))
        elif kind == "drop":
            text = "".join(lines[:i] + lines[i + 1 :])
        elif kind == "double":
            text = "".join(lines[: i + 1] + lines[i:])
        elif kind == "swap":
            lines[i], lines[j] = lines[j], lines[i]
            text = "".join(lines)
        else:
            text = "".join([lines[0], *draw(st.permutations(lines[1:]))])
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252"])), "replace")


def independently_read(content):
    """The marks in a CSV as pandas reads them."""
    text = decoded(content)

    def read(separator, **kwargs):
        table = pd.read_csv(
            io.StringIO(text, newline=None),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            engine="python",
            index_col=False,
            skipinitialspace=True,
            **kwargs,
        )
        return table.rename(columns=lambda name: name.strip().lower())

    separator = next(s for s in (",", ";", "\t") if {"sheet", "mark"} <= set(read(s, nrows=0).columns))
    table = read(separator)
    table = table.fillna("").apply(lambda column: column.str.strip())

    def whole(text):
        return str(int(float(text.replace(",", "."))))

    return {
        (whole(row["assessor"]), int(whole(row["item"]))): int(whole(row["mark"]))
        for _, row in table.iterrows()
        if row["mark"]
    }


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(mutated())
@example(
    "\n".join(
        ["sheet;assessor;item;mark;name"]
        + [
            f"{sheet.sheet};{sheet.assessor};{item.item};1;sheet,assessor,item,mark,name"
            for sheet in KEY.sheets
            for item in sheet.items
        ]
    ).encode()
)
def test_mutated_files_are_refused_or_score_to_what_they_hold(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.csv"
        path.write_bytes(content)
        try:
            marks = read_marks([path], KEY)
        except HBenchError as error:
            problem = str(error)
        else:
            problem = None
    if problem is not None:
        assert len(problem.splitlines()) == 1
        return
    assert len(marks) == sum(len(sheet.items) for sheet in KEY.sheets)
    assert as_dict(marks) == independently_read(content)
    result = score(marks, KEY)
    first = [mark.mark for mark in marks if mark.item.repeat_of is None and not mark.item.control]
    assert result.runs[0].mos.mean == pytest.approx(sum(first) / len(first))


def cautions_of(tmp_path, assessors, mark, **study):
    key = make_key(assessors=assessors, directions=5, **study)
    return score(read_marks([write_rows(tmp_path / "m.csv", rows_of(key, mark))], key), key).cautions()


def test_a_score_that_means_little_says_so(tmp_path):
    def trained(sheet, item):
        return int(not item.control)

    assert cautions_of(tmp_path, 3, trained, controls=3) == []
    (one,) = cautions_of(tmp_path, 1, trained, controls=3)
    assert one.startswith("the marks are of one assessor")
    (floor,) = cautions_of(tmp_path, 3, lambda sheet, item: 1, controls=3)
    assert "untrained directions score 1.000, no less than the trained ones' 1.000" in floor
    (no_floor,) = cautions_of(tmp_path, 3, trained, controls=0)
    assert "no untrained direction was marked" in no_floor


def test_assessors_who_disagree_are_named(tmp_path):
    def mark(sheet, item):
        return int(not item.control and item.direction % 2 == int(sheet.assessor) % 2)

    assert any("agree little" in caution for caution in cautions_of(tmp_path, 2, mark, controls=3))


def test_names_are_counted_and_proposed(tmp_path):
    key = make_key(assessors=3, directions=2, controls=1, repeats=0)
    given = {("1", 0): "Thin", ("2", 0): " thin\u2028 ", ("3", 0): "bold", ("1", 1): "wide", ("2", 1): "narrow"}
    rows = rows_of(key, lambda *_: 1, name=lambda s, i: "" if i.control else given.get((s.assessor, i.direction), ""))
    result = score(read_marks([write_rows(tmp_path / "m.csv", rows)], key), key)
    assert [d.names for d in result.directions] == [{"thin": 2, "bold": 1}, {"narrow": 1, "wide": 1}, {}]
    (tmp_path / "names.txt").write_text(result.proposed_names("runs/a"), encoding="utf-8")
    assert load_names(tmp_path) == {0: "thin", 1: "narrow"}


def test_a_direction_that_means_nothing_gets_no_name(tmp_path):
    key = make_key(assessors=2, directions=1, controls=0, repeats=0)
    rows = rows_of(key, lambda *_: 0, name=lambda *_: "nothing changes")
    result = score(read_marks([write_rows(tmp_path / "m.csv", rows)], key), key)
    assert [d.names for d in result.directions] == [{}]
    assert not result.proposed_names("runs/a")


def test_the_interval_of_few_directions_reaches_beyond_them(tmp_path):
    key = make_key(assessors=4, directions=3, controls=3, repeats=0)
    rows = rows_of(key, lambda sheet, item: int(item.control and int(sheet.assessor) <= item.direction + 1))
    (run,) = score(read_marks([write_rows(tmp_path / "m.csv", rows)], key), key).runs
    assert run.floor.mean == 0.5  # of 0.25, 0.5 and 0.75: t table, 2 degrees of freedom
    assert run.floor.interval == pytest.approx((0, 1))
    assert (run.mos.mean, run.mos.interval) == (0, None)


def test_any_name_and_run_can_be_drawn(tmp_path):
    key = make_key(run="$x_{ <b>", directions=3)
    names = ["$\\frac{", "細い", "😀\u202e<script>"]
    rows = rows_of(key, name=lambda _, item: "" if item.control else names[item.direction])
    result = score(read_marks([write_rows(tmp_path / "m.csv", rows)], key), key)
    draw_mos(result, tmp_path / "mos.png")
    assert (tmp_path / "mos.png").stat().st_size > 1000
    assert "\u202e" not in json.dumps([d.names for d in result.directions], ensure_ascii=False)
