import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import invoke, refused, snapshot
from PIL import Image

from hbench.errors import HBenchError
from hbench.store.directions import direction_named


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures of other sizes and channels than the model's, in one folder."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / "b.png")
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_run):
    """The results of ``hbench properties`` on the tiny run."""
    folder = tmp_path_factory.mktemp("properties") / "out"
    result = invoke("properties", tiny_run, "--samples", 8, "--pairs", 20, "--examples", 1, "--out", folder, "--quiet")
    assert result.exit_code == 0, result.output
    assert "n 20 samples, means over 8 others" in result.stdout
    return folder


def test_properties_writes_tables_pictures_and_directions(measured):
    assert {path.name for path in measured.iterdir()} == {
        "directions.safetensors",
        "edits.png",
        "properties.csv",
        "properties.json",
        "properties.png",
        "provenance.json",
        "timesteps.csv",
    }
    rows = list(csv.DictReader((measured / "properties.csv").read_text().splitlines()))
    assert [row["direction"] for row in rows] == ["0", "1", "2", "all"]
    assert {"homogeneity", "homogeneity_low", "homogeneity_high", "slope", "n", "n_mean"} <= rows[0].keys()
    assert json.loads((measured / "properties.json").read_text())["n_mean"] == 8
    assert json.loads((measured / "provenance.json").read_text())["M"] == 3


@pytest.mark.parametrize("command", [["rca", "--pairs", 8], ["traverse", "--pairs", 8, "--examples", 1]])
def test_exported_directions_serve_other_commands(tmp_path, tiny_run, measured, command):
    name, *options = command
    source = ["--direction-source", "global", "--directions", measured / "directions.safetensors"]
    result = invoke(name, tiny_run, *options, *source, "--out", tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    origin = json.loads((tmp_path / "provenance.json").read_text())
    assert origin["direction_source"] == "global"
    assert len(origin["directions_sha256"]) == 64


def test_edit_says_what_it_did_and_writes_every_image_in_its_size(tmp_path, tiny_run, pictures):
    shifts = ["--shift", "0=2.5", "--shift", "2=-1"]
    result = invoke("edit", tiny_run, pictures, *shifts, "--steps", 6, "--out", tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    assert "a.png: 28x28 L -> 16x16 L" in result.stderr
    assert "b.png: 30x20 RGB -> 16x16 L, centre crop" in result.stderr
    assert result.stdout.count("reconstruction MSE") == 2
    assert "PSNR median" in result.stdout
    assert "generated images inverted: correlation of inverted and true x_T" in result.stdout
    assert "caution: the inverted x_T of 2 of 2 images has a standard deviation of" in result.stderr  # no trained model
    kinds = ["original", "reconstruction", "0=2.5", "2=-1", "0=2.5_2=-1"]
    names = {f"{stem}-{kind}.png" for stem in ("00-a", "01-b") for kind in kinds}
    assert {path.name for path in (tmp_path / "images").iterdir()} == names
    with Image.open(tmp_path / "images" / "00-a-0=2.5.png") as picture:
        assert (picture.size, picture.mode) == ((16, 16), "L")
    rows = list(csv.DictReader((tmp_path / "edit.csv").read_text().splitlines()))
    assert [row["files"] for row in rows] == ["00-a"] * 3 + ["01-b"] * 3
    assert [row["edit"] for row in rows] == ["0=2.5", "2=-1", "0=2.5 2=-1"] * 2
    assert all(0 < float(row["change"]) < 1 and -1 < float(row["ssim"]) < 1 for row in rows)
    assert {row["kept"] for row in rows} == {row["change_outside"] for row in rows} == {""}  # no classifier, no mask
    assert result.stdout.count("edit 2=-1: change 0.") == 1
    assert float(rows[0]["psnr"]) == pytest.approx(10 * np.log10(4 / float(rows[0]["mse"])))
    origin = json.loads((tmp_path / "provenance.json").read_text())
    assert len(origin["images_sha256"]) == 2
    assert (tmp_path / "edits.png").stat().st_size > 1000
    again = [tiny_run, pictures / "a.png", "--shift", "1=1", "--inversion-steps", 2, "--out", tmp_path, "--overwrite"]
    assert invoke("edit", *again, "--quiet").exit_code == 0
    names = {f"00-a-{kind}.png" for kind in ("original", "reconstruction", "1=1")}
    assert {path.name for path in (tmp_path / "images").iterdir()} == names


def test_a_mask_tells_what_changes_outside_of_it(tmp_path, tiny_run, pictures):
    common = ["edit", tiny_run, pictures / "a.png", "--shift", "1=2", "--steps", 2, "--quiet"]
    for name, box in (("left", (0, 0, 8, 16)), ("right", (8, 0, 16, 16))):
        mask = Image.new("L", (16, 16))
        mask.paste(255, box)
        mask.save(tmp_path / f"{name}.png")
        result = invoke(*common, "--mask", tmp_path / f"{name}.png", "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert "change outside the mask 0." in result.stdout
    written = (json.loads((tmp_path / name / "edit.json").read_text()) for name in ("left", "right"))
    (left,), (right,) = (each["costs"][0] for each in written)
    assert (left["change_outside"] + right["change_outside"]) / 2 == pytest.approx(left["change"])
    assert "mask_sha256" in json.loads((tmp_path / "left" / "provenance.json").read_text())
    Image.new("L", (16, 16), 255).save(tmp_path / "all.png")
    assert "light everywhere" in refused(*common, "--mask", tmp_path / "all.png", "--out", tmp_path / "refused")
    assert "need a single picture" in refused(*common, "--mask", pictures, "--out", tmp_path / "refused")


def test_an_older_spelling_works_and_stays_out_of_the_help():
    said = invoke("edit", "-h").output
    assert "--steps" in said
    assert "--inversion-steps" not in said


def test_edit_sweeps_and_crosses_with_any_source(tmp_path, tiny_run, pictures, measured):
    common = [tiny_run, pictures / "a.png", "--samples", 3, "--inversion-steps", 4, "--quiet"]
    source = ["--direction-source", "mean", "--directions", measured / "directions.safetensors"]
    result = invoke("edit", *common, "--sweep", 1, *source, "--out", tmp_path / "sweep")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "sweep" / "images").iterdir())) == 2 + 3
    result = invoke("edit", *common, "--grid", "0,2", "--out", tmp_path / "grid")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "grid" / "images").iterdir())) == 2 + 9
    result = invoke("edit", *common, "--sweep", 1, "--largest", 2, "--out", tmp_path / "half")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "half" / "edit.json").read_text())["edits"] == [[[1, s]] for s in (-2, 0, 2)]
    result = invoke("edit", *common, "--sweep", 1, "--largest", 9, "--out", tmp_path / "beyond")
    assert "--largest 9: beyond S = 5" in result.stderr
    result = invoke("edit", *common, "--shift", "1=99", "--out", tmp_path / "far")
    assert result.exit_code == 0, result.output
    assert "beyond S = 5" in result.stderr


def test_mistakes_are_one_line_that_names_the_fix_and_write_nothing(tmp_path, tiny_run, pictures, measured):
    out, one = tmp_path / "out", pictures / "a.png"
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()

    def wrong(*arguments):
        line = refused("edit", tiny_run, *arguments, "--out", out)
        assert not out.exists()
        return line

    assert "Missing argument 'IMAGE...'" in refused("edit", tiny_run)
    assert "give exactly one of --shift" in wrong(one)
    assert "give exactly one of --shift" in wrong(one, "--sweep", 1, "--grid", "0,1")
    assert "--largest goes with --sweep or --grid" in wrong(one, "--shift", "0=1", "--largest", 2)
    assert "must be finite" in wrong(one, "--sweep", 1, "--largest", "inf")
    assert "no such image or folder" in wrong(tmp_path / "absent.png", "--sweep", 1)
    assert "not a readable image" in wrong(tmp_path / "broken.png", "--sweep", 1)
    assert "no images there" in wrong(tmp_path / "empty", "--sweep", 1)
    assert "the run has 0 to 2" in wrong(one, "--shift", "3=1")
    assert "the run has 0 to 2" in wrong(one, "--sweep", -1)
    assert "write direction=magnitude" in wrong(one, "--shift", "1:2")
    assert "must be finite" in wrong(one, "--shift", "1=nan")
    assert "add the magnitudes up" in wrong(one, "--shift", "1=2", "--shift", "1=3")
    assert "write two directions" in wrong(one, "--grid", "1")
    assert "two different directions" in wrong(one, "--grid", "1,1")
    assert "at most 1000" in wrong(one, "--sweep", 1, "--steps", 1001)
    assert 'the source "mean" needs --directions' in wrong(one, "--sweep", 1, "--direction-source", "mean")
    foreign = ["--direction-source", "mean", "--directions", tiny_run / "shift_block.safetensors"]
    assert "holds shift_block, need directions" in wrong(one, "--sweep", 1, *foreign)
    other = refused("rca", "mnist16", "--direction-source", "mean", "--directions", measured / "directions.safetensors")
    assert "directions of another run" in other
    assert "the run has 0 to 2" in refused("properties", tiny_run, "--direction", 3, "--out", out)
    assert "is not in the range" in refused("properties", tiny_run, "--pairs", 3)
    assert not out.exists()


def test_results_are_never_written_over(tiny_run, measured, pictures):
    before = snapshot(measured)
    assert "add --overwrite" in refused("properties", tiny_run, "--out", measured)
    assert "add --overwrite" in refused("edit", tiny_run, pictures, "--sweep", 1, "--out", measured)
    assert snapshot(measured) == before


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("2", 2),
        (" 2 ", 2),
        ("thickness", 1),
        ("THICK", 1),
        ("slanted  to upright", 2),
        ("slanted to upright, 8 to 3", 3),
        ("slanted", 'several directions are called "slanted" (2 slanted to upright; 3 slanted to upright, 8 to 3)'),
        ("3 to 8", 'no direction is called "3 to 8": give a number, 0 to 4, or a name in its names.txt, such as'),
        ("", "no direction is called"),
        ("5", "no direction 5: the run has 0 to 4"),
        ("-1", "no direction -1: the run has 0 to 4"),
        ("caf\u00e9", 0),
        ("cafe\u0301", 0),
        ("beyond", "no direction is called"),
    ],
)
def test_a_direction_has_a_number_and_a_name(word, found):
    names = {0: "caf\u00e9", 1: "Thickness", 2: "slanted to upright", 3: "slanted to upright, 8 to 3", 9: "beyond"}
    run = SimpleNamespace(K=5, names=names)
    if isinstance(found, int):
        assert direction_named(run, word) == found
        return
    with pytest.raises(HBenchError) as error:
        direction_named(run, word)
    assert found in str(error.value)


def test_a_run_without_names_says_so():
    with pytest.raises(HBenchError, match=r"give a number, 0 to 2; its names.txt has no names"):
        direction_named(SimpleNamespace(K=3, names={}), "thickness")


@pytest.mark.slow
def test_names_work_where_numbers_do(tmp_path, tiny_run, pictures):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "names.txt").write_text("0: thin, then bold\n1: a = b\n2: upright\n")
    one = [run, pictures / "a.png", "--steps", 2, "--quiet"]
    for option, value, kinds in (
        ("--shift", "a = b=2", ["1=2"]),
        ("--shift", "Thin, then bold=-1", ["0=-1"]),
        ("--sweep", "upright", ["2=-5", "2=5"]),
        ("--grid", "thin, then bold,upright", ["0=-5_2=5", "0=5_2=5", "0=-5_2=-5", "0=5_2=-5"]),
        ("--grid", "2,a = b", ["2=-5_1=5", "2=5_1=5", "2=-5_1=-5", "2=5_1=-5"]),
    ):
        out = tmp_path / "out"
        result = invoke("edit", *one, option, value, "--samples", 2, "--out", out, "--overwrite")
        assert result.exit_code == 0, result.output
        found = {path.stem.removeprefix("00-a-") for path in (out / "images").iterdir()}
        assert found == {"original", "reconstruction", *kinds}
    assert "names.txt, such as 2 upright" in refused("edit", *one, "--sweep", "uprigth")
    assert "no direction is called" in refused("edit", *one, "--grid", "a,b,c")
    assert "the same direction twice" in refused("edit", *one, "--shift", "2=1", "--shift", "upright=1")
    assert "no direction is called" in refused("properties", run, "--direction", "upright", "--direction", "down")
