"""Memory where there is no /proc, as on macOS and Windows, and that it is the same as with it."""

import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

import hbench.runtime.memory as memory
from hbench.core.sampler import Sampler
from hbench.evaluation.sweep_cells import cells, measure_apart
from hbench.models import build_model
from hbench.runtime.memory import free_mib, watch_resident
from hbench.training.strategy import resolve

CPU = torch.device("cpu")
WITHOUT_PROC = """
import runpy, sys
from pathlib import Path
import hbench.runtime.memory as memory
memory.PROC = memory.CGROUP = Path("nowhere")
runpy.run_module(sys.argv[1], run_name="__main__")
"""
"""A program that runs a module as on a system without Linux's /proc and control groups."""


@pytest.fixture
def no_proc(monkeypatch, tmp_path):
    """A system without Linux's /proc and control groups, for this process and for those that it starts."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "nowhere")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "nowhere")
    monkeypatch.setattr("hbench.runtime.fresh_process.CHILD", [sys.executable, "-c", WITHOUT_PROC])


def test_memory_without_proc(no_proc):
    assert free_mib(CPU) == pytest.approx(psutil.virtual_memory().available / memory.MIB, rel=0.1)
    with watch_resident() as (baseline, peak, source):
        x = torch.ones(16 * 2**20)
        time.sleep(0.05)
        del x
        assert 60 < peak() - baseline < 90
    assert baseline > 100
    assert "polled" in source


@pytest.mark.slow
def test_auto_keeps_graphs_without_proc(no_proc, tiny, capsys):
    auto = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update={"strategy": "auto"})})
    sampler = Sampler.of(auto, build_model(auto), CPU)
    assert resolve(auto, sampler, 0).discovery.keep == tiny.discovery.M
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_cell_of_a_sweep_without_proc(no_proc, tiny):
    row = measure_apart(cells(tiny, ["node"], [4], device="cpu", repeats=2)[0])
    assert row.status == "ok", row.error
    assert "polled" in row.memory_source
    assert 0 < row.memory_mib < 500
    assert row.baseline_mib > 100


def test_free_memory_is_what_linux_says(monkeypatch):
    monkeypatch.setattr(memory, "_groups", list)  # no limits
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    assert free_mib(CPU) == pytest.approx(available / 1024, rel=0.1)
