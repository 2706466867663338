import csv
import json
import shutil

import pandas as pd
import pytest
import torch
from command_line import invoke, refused
from marks import make_images, make_key, rows_of, write_rows

from hbench.evaluation.mos.marks import read_marks
from hbench.evaluation.mos.score import MosScore, mos_score
from hbench.evaluation.mos.study import Direction, Key, Study, delta_h_rms, guarded, mos_study, pictures, untrained
from hbench.reporting.sheets import refuse_marked, write_sheets
from hbench.store.names import load_names
from hbench.store.run import load_run


def test_untrained_directions_are_as_large_as_the_trained(tiny_run):
    run = load_run(tiny_run, device="cpu")
    run.shift_block.out_weight.normal_()  # trained for four steps, its directions could not be seen
    control = untrained(run, 4, examples=3, seed=5)
    x_T = torch.randn(3, 1, 16, 16)
    trained, fresh = delta_h_rms(run, x_T), delta_h_rms(control, x_T)
    assert trained.shape == (3,)
    assert fresh.shape == (4,)
    torch.testing.assert_close(fresh, trained.square().mean().sqrt().expand(4), rtol=0.1, atol=0)
    assert torch.equal(untrained(run, 4, 3, seed=5).shift_block.out_weight, control.shift_block.out_weight)
    images = pictures({"a": run}, examples=2, samples=3, controls=2, seed=5)
    originals = [grid[:, 1] for grid in images.values()]
    assert len(originals) == 5
    assert all(torch.equal(original, originals[0]) for original in originals)
    assert not torch.equal(images["a", 0, True][:, 0], originals[0])


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_run):
    """A study of a run whose folder has a hostile name, made by the command line."""
    folder = tmp_path_factory.mktemp("mos")
    run = folder / "<img src=x onerror=alert(1)>$x_{"
    shutil.copytree(tiny_run, run)
    out = folder / "study"
    result = invoke(
        *("mos", "export", run, "--assessors", 3, "--votes", 2, "--examples", 2, "--samples", 3),
        *("--controls", 2, "--repeats", 0.5, "--label-studio", "--out", out, "--quiet"),
    )
    assert result.exit_code == 0, result.output
    return out


def test_export_writes_blind_sheets(study):
    key = Key.read(study / "key.json")
    table = pd.read_csv(study / "design.csv")
    assert len(table) == sum(len(sheet.items) for sheet in key.sheets)
    first = table[table["repeat_of"].isna()]
    assert (first.groupby(["direction", "control"]).size() == 2).all()
    assert json.loads((study / "provenance.json").read_text())["seed"] == 0
    for sheet in key.sheets:
        page = (study / f"sheet_{sheet.assessor}.html").read_text()
        assert sheet.sheet in page
        for secret in ("onerror", "DIGITS", "Digits16", "control", "untrained", "repeat_of", "direction"):
            assert secret not in page, secret
        assert "http" not in page.replace("http-equiv", "")
        folder = study / f"sheet_{sheet.assessor}"
        assert len(list(folder.glob("*.png"))) == len(sheet.items)
        assert len((folder / f"marks_{sheet.assessor}.csv").read_text().splitlines()) == len(sheet.items) + 1
        tasks = json.loads((study / "label_studio" / f"tasks_{sheet.assessor}.json").read_text())
        assert [task["data"]["item"] for task in tasks] == [item.item for item in sheet.items]
        assert all(set(task["data"]) == {"sheet", "assessor", "item", "image"} for task in tasks)


def test_a_changed_key_is_refused(study, tmp_path):
    folder = shutil.copytree(study, tmp_path / "study")
    marks = [folder / f"sheet_{i}" / f"marks_{i}.csv" for i in (1, 2, 3)]
    key = folder / "key.json"
    values = json.loads(key.read_text())
    values["sheets"][0]["items"].reverse()
    key.write_text(json.dumps(values))
    said = refused("mos", "score", *marks, "--key", key, "--out", tmp_path / "score")
    assert f"{key}: is not the file that provenance.json beside it was written with: bring it back from a copy" in said


def test_label_studio_configuration_is_xml(study):
    import xml.etree.ElementTree as ET

    view = ET.parse(study / "label_studio" / "config.xml").getroot()
    assert [choice.get("alias") for choice in view.iter("Choice")] == ["0", "1"]
    assert {view.find("Choices").get("name"), view.find("TextArea").get("name")} == {"mark", "name"}


def test_no_option_costs_people_their_marks(tmp_path, tiny_run):
    key = make_key(assessors=1)
    write_sheets(key, make_images(), tmp_path)
    marks = tmp_path / "sheet_1" / "marks_1.csv"
    refuse_marked(tmp_path)  # empty so far
    empty = marks.read_text()
    for separator in ",;":
        filled = empty.replace(",", separator).replace(f"{separator}{separator}\n", f"{separator}1{separator}\n", 1)
        marks.write_text(filled)
        line = refused("mos", "export", tiny_run, "--out", tmp_path, "--overwrite")
        assert "holds marks" in line
        assert marks.read_text() == filled


def test_export_refuses_wrong_input(tmp_path, tiny_run):
    assert "odd number" in refused("mos", "export", tiny_run, "--samples", 4, "--out", tmp_path / "x")
    assert "number of assessors" in refused("mos", "export", tiny_run, "--votes", 6, "--out", tmp_path / "x")
    assert "same run twice" in refused("mos", "export", tiny_run, tiny_run, "--out", tmp_path / "x")
    assert "no such run" in refused("mos", "export", tmp_path / "absent", "--out", tmp_path / "x")
    assert "is not in the range" in refused("mos", "export", tiny_run, "--repeats", 0.6, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "mine").write_text("mine")
    assert "add --overwrite" in refused("mos", "export", tiny_run, "--out", tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_study_from_python(tmp_path, tiny_run):
    runs = {"a": load_run(tiny_run, device="cpu")}
    study = mos_study(runs, assessors=2, votes=1, examples=1, samples=3, controls=1)
    assert set(study.images) == {Direction("a", k, False) for k in range(3)} | {Direction("a", 0, True)}
    assert study.provenance.command is None
    again = Study.load(study.save(tmp_path / "study"))
    assert again == study
    assert again.table().equals(study.table())
    assert again.images is None
    for wrong in ({"assessors": 0}, {"votes": 6}, {"votes": 0}, {"examples": 0}, {"samples": 4}, {"repeats": 0.6}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            mos_study(runs, **wrong)
    with pytest.raises(ValueError, match="at least one run"):
        mos_study({})


@pytest.mark.parametrize("name", ["export", "score"])
def test_the_commands_have_examples(name):
    assert f"hbench mos {name}" in invoke("mos", name, "-h").output.split("Example:")[1]


def test_formulas_in_names_never_reach_a_spreadsheet(tmp_path):
    key = make_key()
    out = tmp_path / "out"
    key.write(tmp_path / "key.json")
    attacks = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "'=1"]
    rows = rows_of(key, name=lambda _, item: attacks[item.item % 5])
    path = write_rows(tmp_path / "m.csv", rows)
    assert {mark.name for mark in read_marks([path], key)} == {*attacks[:4], "=1"}
    result = invoke("mos", "score", path, "--key", tmp_path / "key.json", "--out", out)
    assert result.exit_code == 0, result.output
    for row in csv.reader((out / "mos.csv").read_text(encoding="utf-8").splitlines()):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
    assert guarded("=1") == "'=1"
    assert guarded("thin") == "thin"


def test_export_fill_score(study, tmp_path):
    key = Key.read(study / "key.json")
    paths = []
    for sheet in key.sheets:
        empty = study / f"sheet_{sheet.assessor}" / f"marks_{sheet.assessor}.csv"
        filled = empty.read_text().replace(",,", ",1,fatter")
        paths.append(tmp_path / empty.name)
        paths[-1].write_text(filled)
    result = invoke("mos", "score", *paths, "--key", study / "key.json", "--out", tmp_path / "score")
    assert result.exit_code == 0, result.output
    assert "MOS 1.000  no interval computable  n 3 directions  marks 6" in result.stdout
    assert "Krippendorff's alpha no agreement computable  assessors 3 of 3" in result.stdout
    written = {path.name for path in (tmp_path / "score").iterdir()}
    assert written == {"mos.json", "mos.csv", "mos.png", "names.txt", "provenance.json"}
    assert load_names(tmp_path / "score") == {0: "fatter", 1: "fatter", 2: "fatter"}
    read = MosScore.load(tmp_path / "score")
    assert read == mos_score(paths, study / "key.json")
    assert read.summary() == result.stdout.strip()
    origin = json.loads((tmp_path / "score" / "provenance.json").read_text())
    assert len(origin["marks_sha256"]) == 3
    assert "add --overwrite" in refused(
        "mos", "score", *paths, "--key", study / "key.json", "--out", tmp_path / "score"
    )
    assert "add --partial" in refused("mos", "score", paths[0], "--key", study / "key.json", "--out", tmp_path / "new")
    no_key = refused("mos", "score", *paths, "--key", paths[0], "--out", tmp_path / "new")
    assert "cannot be read" in no_key
    assert "give the key.json of the study" in no_key
    assert "does not exist" in refused("mos", "score", tmp_path / "absent.csv", "--key", study / "key.json")
    assert not (tmp_path / "new").exists()
