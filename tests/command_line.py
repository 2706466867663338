"""The command line, called in the process of the tests."""

import json
import shutil
from pathlib import Path

from click.testing import CliRunner

from hbench.cli import main
from hbench.store.files import sha256
from hbench.store.run_files import ROLES

TINY = [
    "model.channel_mult=[1,2]",
    "pretrain.steps=4",
    "pretrain.batch_size=4",
    "pretrain.checkpoint_every=2",
    "pretrain.sample_every=4",
    "discovery.K=3",
    "discovery.M=3",
    "discovery.steps=4",
    "discovery.batch_size=4",
    "discovery.pool=8",
    "discovery.strategy=node",
    "discovery.checkpoint_every=2",
]
"""Overrides that make digits16 a matter of seconds."""


def tiny_options(*overrides):
    """Return the options that set TINY and further overrides."""
    return [part for override in (*TINY, *overrides) for part in ("--set", override)]


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(*arguments):
    """Return the one line in which a command says what is wrong."""
    result = invoke(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return result.output.strip().splitlines()[-1]


def written_again(run):
    """Make a run's provenance that of the files that it has now, as if its training had written them."""
    file = run / "provenance.json"
    hashes = {role: sha256(run / f"{role}.safetensors") for role in ROLES}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_sha256": hashes}))


def copy_of_weights(run, folder):
    """Copy a run without its results, and return the copy."""
    return shutil.copytree(run, folder, ignore=lambda at, names: [name for name in names if (Path(at) / name).is_dir()])


def changed(file, values):
    """Write other values into the JSON file of a result, as if its command had found them."""
    file.write_text(json.dumps(values))
    origin = file.parent / "provenance.json"
    origin.write_text(json.dumps(json.loads(origin.read_text()) | {"result_sha256": sha256(file)}))


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
