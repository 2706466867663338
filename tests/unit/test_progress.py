import sys

import pytest

from hbench.runtime import progress


@pytest.fixture
def no_wait(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)


@pytest.fixture(autouse=True)
def asked_for():
    progress.show_progress()
    yield
    progress.show_progress(False)


def test_a_log_gets_a_line_for_each_update(no_wait, capsys):
    with progress.progress(total=3, desc="train", unit="step") as bar:
        for loss in (3, 2, 1):
            bar.set_postfix({"loss": loss}, refresh=False)
            bar.update()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said[1:4]] == ["train: 1 of 3", "train: 2 of 3", "train: 3 of 3"]
    assert said[3].endswith("loss=1")
    assert not any("\r" in line for line in said)


def test_short_work_leaves_no_lines(capsys):
    assert list(progress.progress(range(3), desc="grids")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_quiet_work_leaves_none_at_all(no_wait, capsys):
    progress.show_progress(False)
    assert list(progress.progress(range(3), desc="grids")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress.progress(range(3), desc="grids")) == [0, 1, 2]
    said = capsys.readouterr().err
    assert said.startswith("\rgrids:   0%|")
    assert said.endswith("\n")
