"""The number of threads in commands: measured, said, recorded, and kept by what goes on."""

import os
import subprocess
import sys

import pytest
import torch
from command_line import invoke, tiny_options

from hbench.runtime import threads
from hbench.store.provenance import Provenance


@pytest.fixture(autouse=True)
def free(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(threads, "measure_threads", lambda: {4: 8.0, 2: 1.0, 1: 1.5})
    yield
    torch.set_num_threads(1)


def threads_in(folder):
    return Provenance.read(folder / "provenance.json").threads


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pretrain", "train"])
def test_a_resumed_training_keeps_its_threads(command, tiny_model, tmp_path, monkeypatch):
    given = [command, "digits16", *tiny_options(), *(["--model", tiny_model] if command == "train" else [])]
    first = invoke(*given, "--out", tmp_path, "--max-minutes", 1e-9)
    assert "2 threads of 4 cores: beside other work 4 would be 8.0 times as slow" in first.stderr
    monkeypatch.setattr(threads, "measure_threads", lambda: {4: 1.0, 2: 2.0, 1: 4.0})
    second = invoke(*given, "--out", tmp_path, "--resume", "--max-minutes", 1e-9)
    assert "2 threads of 4 cores, as it began" in second.stderr
    assert "rounds differently" not in second.stderr
    third = invoke(*given, "--out", tmp_path, "--resume", "--threads", 1)
    assert "began with 2 threads, goes on with 1: it rounds differently" in third.stderr
    assert threads_in(tmp_path) == 1


def test_quiet_says_nothing_of_threads_and_provenance_all(tiny_model, tmp_path):
    result = invoke("sample", tiny_model, "--samples", 1, "--steps", 1, "--out", tmp_path, "--quiet")
    assert "thread" not in result.stderr
    assert threads_in(tmp_path) == 2


def test_several_runs_are_measured_once(tiny_run, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    copy.symlink_to(tiny_run)
    given = ["--assessors", 1, "--examples", 1, "--samples", 3, "--controls", 0, "--out", tmp_path / "mos"]
    result = invoke("mos", "export", tiny_run, copy, *given)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("threads of 4 cores") == 1


@pytest.mark.slow
def test_a_sweep_goes_on_with_its_threads_and_its_cells_have_them(tmp_path, monkeypatch):
    given = ["vram-sweep", "digits16", *tiny_options(), "--strategies", "node", "--repeats", 1, "--out", tmp_path]
    assert invoke(*given, "--steps", 2).exit_code == 0
    monkeypatch.setattr(threads, "measure_threads", lambda: {4: 1.0, 2: 2.0, 1: 4.0})
    result = invoke(*given, "--steps", "2,3", "--resume")
    assert result.exit_code == 0, result.output
    assert threads_in(tmp_path) == 2


@pytest.mark.slow
def test_a_command_waits_asleep_from_its_start(tiny_model, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in threads.WAITING}
    command = [
        sys.executable,
        "-m",
        "hbench",
        "sample",
        tiny_model,
        "--samples",
        "1",
        "--steps",
        "1",
        "--out",
        tmp_path,
    ]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert Provenance.read(tmp_path / "provenance.json").wait_policy == "OMP_WAIT_POLICY=PASSIVE"
