"""Text files in the encodings and with the ends of lines that other programs write."""

import json

import pytest

from hbench.experiments import experiments_folder, load_experiment
from hbench.store.files import read_json
from hbench.store.names import load_names
from hbench.text import decoded

PRESET = (experiments_folder() / "digits16.toml").read_text(encoding="utf-8")
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark"]


def encoded(text, encoding):
    return b"\xfe\xff" + text.encode("utf-16-be") if encoding == "utf-16-be-mark" else text.encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_experiments_are_read(tmp_path, encoding, end):
    file = tmp_path / "digits16.TOML"
    file.write_bytes(encoded(PRESET.replace("\n", end), encoding))
    assert load_experiment(file) == load_experiment("digits16")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_and_names_are_read(tmp_path, encoding):
    (tmp_path / "key.json").write_bytes(encoded(json.dumps({"a": "größer"}, ensure_ascii=False), encoding))
    assert read_json(tmp_path / "key.json") == {"a": "größer"}
    (tmp_path / "names.txt").write_bytes(encoded("3: größer\r\n\r\n4: dünn\r\n", encoding))
    assert load_names(tmp_path) == {3: "größer", 4: "dünn"}


def test_what_is_no_text_is_refused():
    with pytest.raises(UnicodeDecodeError):
        decoded("ä".encode("cp1252"))
