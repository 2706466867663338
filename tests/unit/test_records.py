import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
from command_line import changed
from committed import RESULTS, V01

from hbench.errors import HBenchError
from hbench.evaluation.ablations import Ablations
from hbench.evaluation.curves import TrainingCurves
from hbench.evaluation.edited_images import EditedImages
from hbench.evaluation.fid import Fidelity
from hbench.evaluation.properties import Properties
from hbench.evaluation.rca import RCA
from hbench.evaluation.vram_sweep import VramSweep
from hbench.reporting.report import NotRun
from hbench.store.provenance import Provenance, provenance
from hbench.store.records import Number, Record
from hbench.store.weights import WrittenExperiment


@dataclass(frozen=True, kw_only=True)
class Note(Record):
    files: dict[str, str]


def test_names_of_files_may_be_any_bytes(tmp_path):
    note = Note(files={"a\udcff.png": "\udcfe"})
    note.write(tmp_path / "note.json")
    assert Note.read(tmp_path / "note.json").files == {r"a\udcff.png": r"\udcfe"}


@dataclass(frozen=True, kw_only=True)
class Toy(Record):
    n: int
    values: list[Number]
    span: tuple[float, float] | None = None


def test_a_record_comes_back_as_it_was(tmp_path):
    toy = Toy(n=3, values=[0.1, math.inf], span=(1.0, 2.0))
    toy.write(tmp_path / "toy.json")
    assert json.loads((tmp_path / "toy.json").read_text())["schema"] == 1
    back = Toy.read(tmp_path / "toy.json")
    assert (back.n, back.span, back.values[0]) == (3, (1.0, 2.0), 0.1)
    assert math.isnan(back.values[1])  # JSON has no word for what is not finite


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra": 1}, "extra"),
        ({"n": "3"}, "n: input should be a valid integer"),
        ({"n": 3.5}, "n"),
        ({"values": [True]}, "values"),
        ({"schema": 2}, "newer hbench (schema 2"),
        ({"schema": "x"}, "is no whole number"),
        ({"schema": True}, "is no whole number"),
        ({"schema": -1}, "is no whole number"),
        ({"span": [1]}, "span"),
    ],
)
def test_a_strict_reader_says_what_is_wrong(tmp_path, change, said):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps({"schema": 1, "n": 3, "values": [0.5]} | change))
    with pytest.raises(HBenchError) as refused:
        Toy.read(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{", "", '{"n": 1}', "\x00"])
def test_anything_else_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "toy.json").write_text(text)
    with pytest.raises(HBenchError, match="make it again"):
        Toy.read(tmp_path / "toy.json")


def test_files_of_version_0_1_load_and_damaged_ones_name_their_writer(tmp_path):
    values = json.loads((V01 / "rca" / "rca.json").read_text())
    values.pop("schema", None)
    (tmp_path / "rca.json").write_text(json.dumps(values))
    assert RCA.load(tmp_path).accuracy == values["accuracy"]
    del values["chance"]
    (tmp_path / "rca.json").write_text(json.dumps(values))
    with pytest.raises(HBenchError, match=r"as hbench 0\.1 writes it \(chance"):
        RCA.load(tmp_path)


def test_the_details_of_a_provenance_stand_beside_its_other_values(tmp_path):
    import torch

    origin = provenance(None, torch.device("cpu"), None, weights_sha256={"model": "abc"}).finished(n=3)
    assert origin.command is None  # nothing is invented for a call from Python
    origin.write(tmp_path / "provenance.json")
    values = json.loads((tmp_path / "provenance.json").read_text())
    assert (values["n"], values["weights_sha256"], values["seed"]) == (3, {"model": "abc"}, None)
    assert Provenance.read(tmp_path / "provenance.json").details == {"n": 3, "weights_sha256": {"model": "abc"}}


def rca_with(tmp_path, **changes):
    """Read the RCA of a run with other values."""
    values = json.loads((V01 / "rca" / "rca.json").read_text()) | changes
    (tmp_path / "rca.json").write_text(json.dumps(values))
    return RCA.read(tmp_path / "rca.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": 0}, "n: input should be greater than or equal to 1"),
        ({"n": -5}, "n: input should be"),
        ({"n": 7}, "confusion counts 10000 pairs, n is 7"),
        ({"accuracy": 5}, "accuracy: input should be less than or equal to 1"),
        ({"accuracy": -0.1}, "accuracy: input should be"),
        ({"accuracy": 0.5}, "accuracy is not that of the confusion"),
        ({"accuracy": math.nan}, "not JSON compliant"),
        ({"accuracy": None}, "accuracy"),
        ({"D_raw": 1.5}, "need 0 to 1"),
        ({"magnitude_error": -1}, "need 0 to inf"),
        ({"interval": [0.9, 0.1]}, "the lower bound 0.9 is above the upper one 0.1"),
        ({"confusion": [[1, 2], [3]]}, "need 2 values in each of 2 rows"),
        ({"confusion": [[-1]]}, "confusion.0.0: input should be greater"),
        ({"confusion": []}, "different numbers of directions"),
        ({"per_direction": [0.5]}, "different numbers of directions"),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path, changes, said):
    with pytest.raises(HBenchError) as refused:
        rca_with(tmp_path, **changes)
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path / 'rca.json'}: is no rca result as hbench 0.2 writes it (")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experiment": {}}, 'missing key "name"'),
        ({"experiment": {"name": "x"}}, "missing key"),
        ({"threads": 0}, "threads"),
        ({"seed": -1}, "seed"),
        ({"wall_seconds": -1}, "wall_seconds"),
    ],
)
def test_a_provenance_that_cannot_be_is_refused(tmp_path, changes, said):
    file = tmp_path / "provenance.json"
    values = json.loads((V01 / "rca" / "provenance.json").read_text())
    file.write_text(json.dumps(values | changes))
    with pytest.raises(HBenchError, match=f"is no provenance as hbench .*{said}"):
        Provenance.read(file)


def test_other_results_that_cannot_be_are_refused(tmp_path):
    for name, cls, change in (
        ("properties", Properties, lambda values: values["slope"]["low"].pop()),
        ("properties", Properties, lambda values: values["timesteps"].pop()),
        ("vram-sweep", VramSweep, lambda values: values["cells"][0].update(memory_mib=None)),
        ("vram-sweep", VramSweep, lambda values: values["cells"][0].update(M=0)),
        ("train-curves", TrainingCurves, lambda values: values.update(runs=[])),
        ("edit", EditedImages, lambda values: values.update(images=[])),
        ("ablations", Ablations, lambda values: values["runs"][0].update(rca=7)),
        ("fid-lenet-digits", Fidelity, lambda values: values["raw"].update(n=0)),
    ):
        values = json.loads((V01 / name / f"{cls.NAME}.json").read_text())
        cls.from_json(values, "whole")
        change(values)
        with pytest.raises(HBenchError, match=f"changed: is no {cls.NAME} result as hbench"):
            cls.from_json(values, "changed")


def test_results_are_equal_where_their_files_are(tmp_path):
    result = replace(RCA.load(V01 / "rca"), magnitude_error=math.nan, D_raw_interval=(math.nan, math.nan))
    back = RCA.load(result.save(tmp_path / "rca"))
    assert back == result
    assert hash(back) == hash(result)
    assert len({back, result, RCA.load(V01 / "rca")}) == 2
    assert back != RCA.load(V01 / "rca")
    assert back != "rca"
    assert Note(files={}) != Toy(n=1, values=[])
    assert Toy(n=1, values=[math.nan]) == Toy(n=1, values=[math.nan])


def test_a_kind_of_file_is_named_in_words(tmp_path):
    (tmp_path / "not-run.json").write_text("[]")
    with pytest.raises(HBenchError, match="holds no list of what was not run: make it again"):
        NotRun.read(tmp_path / "not-run.json")
    (tmp_path / "experiment.json").write_text("[]")
    with pytest.raises(HBenchError, match="holds no written experiment"):
        WrittenExperiment.read(tmp_path / "experiment.json")


def test_nothing_is_overwritten_silently(tmp_path):
    result = RCA.load(V01 / "rca")
    result.save(tmp_path / "rca")
    assert RCA.load(tmp_path / "rca") == result
    assert (tmp_path / "rca" / "rca.csv").read_text() == (V01 / "rca" / "rca.csv").read_text()
    with pytest.raises(HBenchError, match="already holds results"):
        result.save(tmp_path / "rca")
    result.save(tmp_path / "rca", overwrite=True)


def upgrade(*folders):
    """Run the script that upgrades results."""
    command = [sys.executable, RESULTS / "upgrade.py", *folders]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_upgraded_result_stays_that_of_its_provenance(tmp_path):
    folder = RCA.load(V01 / "rca").save(tmp_path / "rca")
    old = json.loads((folder / "rca.json").read_text())
    del old["schema"]
    changed(folder / "rca.json", old)
    upgrade(tmp_path)
    assert RCA.load(folder) == RCA.load(V01 / "rca")


@pytest.mark.slow
def test_an_upgrade_changes_a_result_once_and_no_file_that_it_does_not_know(tmp_path):
    values = json.loads((V01 / "rca" / "rca.json").read_text())
    del values["schema"]
    (tmp_path / "rca.json").write_text(json.dumps(values))
    (tmp_path / "foreign.json").write_text("{}")
    assert upgrade(tmp_path).stdout.strip() == str(tmp_path / "rca.json")
    assert json.loads((tmp_path / "rca.json").read_text()) == values | {"schema": RCA.SCHEMA}
    assert upgrade(tmp_path).stdout == ""
    assert (tmp_path / "foreign.json").read_text() == "{}"
    (tmp_path / "plan.json").write_text('{"schema": 7}')
    refused = upgrade(tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: {tmp_path / 'plan.json'}: was written by a newer hbench")
    assert (tmp_path / "plan.json").read_text() == '{"schema": 7}'
    assert (
        upgrade(tmp_path / "absent").stderr == f"Error: {tmp_path / 'absent'}: no such folder: give one with results\n"
    )
    assert upgrade().stderr == "Error: give the folders of results\n"
