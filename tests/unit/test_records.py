import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hbench.errors import HBenchError
from hbench.evaluation.rca import RCA
from hbench.store.provenance import Provenance, provenance
from hbench.store.records import Number, Record

RESULTS = Path(__file__).parents[2] / "results" / "mnist16"


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
    values = json.loads((RESULTS / "rca" / "rca.json").read_text())
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


def test_nothing_is_overwritten_silently(tmp_path):
    result = RCA.load(RESULTS / "rca")
    result.save(tmp_path / "rca")
    assert RCA.load(tmp_path / "rca") == result
    assert (tmp_path / "rca" / "rca.csv").read_text() == (RESULTS / "rca" / "rca.csv").read_text()
    with pytest.raises(HBenchError, match="already holds results"):
        result.save(tmp_path / "rca")
    result.save(tmp_path / "rca", overwrite=True)


def upgrade(*folders):
    """Run the script that upgrades results."""
    command = [sys.executable, RESULTS.parent / "upgrade.py", *folders]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_upgrade_changes_a_result_once_and_no_file_that_it_does_not_know(tmp_path):
    values = json.loads((RESULTS / "rca" / "rca.json").read_text())
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
