"""The number of threads on the CPU, and how they wait."""

import sys

import pytest
import torch

from hbench.runtime import threads
from hbench.runtime.threads import choose_threads, wait_asleep


@pytest.fixture(autouse=True)
def free(monkeypatch):
    """An environment that asks for nothing, on four cores; the tests' single thread comes back."""
    for name in (*threads.WAITING, *threads.NUMBER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def measured(monkeypatch):
    """A function that says what the measurement finds."""

    def say(seconds):
        monkeypatch.setattr(threads, "measure_threads", lambda: seconds)

    return say


def test_idle_cores_are_all_taken(measured):
    measured({4: 1.0, 2: 1.6, 1: 3.0})
    assert str(choose_threads()) == "4 threads of 4 cores"
    assert torch.get_num_threads() == 4


def test_beside_other_work_the_fastest_number_is_taken_and_said(measured):
    measured({4: 8.0, 2: 4.0, 1: 2.0})
    assert str(choose_threads()) == "1 thread of 4 cores: beside other work 4 would be 4.0 times as slow"
    assert torch.get_num_threads() == 1
    measured({4: 2.0, 2: 1.0, 1: 1.6})
    assert choose_threads().number == 2


def test_threads_that_gain_nothing_are_not_taken(measured):
    measured({4: 1.0, 2: 1.01, 1: 1.04})
    assert choose_threads().number == 1


def test_the_user_has_the_last_word(measured, monkeypatch):
    monkeypatch.setattr(threads, "measure_threads", lambda: pytest.fail("measured all the same"))
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert str(choose_threads(earlier=3)) == "2 threads of 4 cores, by OMP_NUM_THREADS"
    assert str(choose_threads(3)) == "3 threads of 4 cores, by `threads`"
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("value", ["", "0", "all"])
def test_a_variable_without_a_number_asks_for_nothing(value, measured, monkeypatch):
    measured({4: 1.0, 1: 2.0})
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert str(choose_threads()) == "4 threads of 4 cores"


def test_work_that_goes_on_keeps_its_threads(measured):
    measured({4: 8.0, 2: 4.0, 1: 2.0})
    said = str(choose_threads(earlier=4))
    assert said.startswith("4 threads of 4 cores, as it began; 1 would be 4.0 times as fast now")
    measured({4: 1.0, 2: 1.4, 1: 3.0})
    assert str(choose_threads(earlier=2)) == "2 threads of 4 cores, as it began"
    assert str(choose_threads(earlier=9)) == "4 threads of 4 cores: it began with 9, so the rounding changes"


def test_the_measurement_is_short_and_leaves_the_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 2)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    seconds = threads.measure_threads()
    assert list(seconds) == [2, 1]
    assert all(0 < each < 10 for each in seconds.values())
    assert torch.equal(torch.rand(2), expected)


def test_threads_wait_asleep_unless_the_environment_says_how(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("GOMP_SPINCOUNT", "100")
    wait_asleep()
    assert threads.wait_policy() == "GOMP_SPINCOUNT=100"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setattr(threads.os, "environ", environment := {})
    wait_asleep()
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    assert threads.wait_policy() == "OMP_WAIT_POLICY=PASSIVE"


def test_it_is_too_late_to_choose_once_torch_is_there(monkeypatch):
    monkeypatch.setattr(threads.os, "environ", environment := {})
    wait_asleep()
    assert environment == {}
