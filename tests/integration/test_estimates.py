"""Times of trainings, said before they begin, and results, said when they end."""

import re

import pytest
import torch
from command_line import invoke, tiny_options
from safetensors.torch import load_file

import hbench.training.estimate as module
from hbench.evaluation.classifier import train_classifier
from hbench.evaluation.sweep_cells import Row, cells
from hbench.evaluation.vram_sweep import seconds_of_rest
from hbench.experiments import load_experiment
from hbench.runtime.progress import duration, show_progress
from hbench.store.datasets import load_set
from hbench.training.estimate import timed_steps, undone

ESTIMATE = r"^(?:\d+ of )?\d+ steps of \d+ (?:pairs|images): about [\d.]+ (?:s|min|h|days)$"


@pytest.fixture
def worth(monkeypatch):
    """An estimate is worth its time, short as the training is."""
    for place in ("training.estimate", "evaluation.classifier", "evaluation.variants"):
        monkeypatch.setattr(f"hbench.{place}.FEWEST", 1)
    monkeypatch.setattr(module, "SECONDS", 0.0)
    yield
    show_progress(False)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (5400, "1.5 h"), (16_900, "4.7 h"), (3e5, "3.5 days")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def parts_of(folder):
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {f"{path.name} {name}": value.tolist() for path in files for name, value in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pretrain", "train"])
def test_an_estimate_changes_no_bit_of_a_training(command, tiny_model, tmp_path, worth):
    """Neither from the start nor from a checkpoint on."""
    given = [command, "digits16", *tiny_options(), *(["--model", tiny_model] if command == "train" else [])]
    silent = invoke(*given, "--out", tmp_path / "silent", "--quiet")
    assert silent.exit_code == 0, silent.output
    assert not re.search(ESTIMATE, silent.stderr, re.MULTILINE)
    first = invoke(*given, "--out", tmp_path / "out", "--max-minutes", 1e-9)
    assert re.search(ESTIMATE, first.stderr, re.MULTILINE), first.stderr
    second = invoke(*given, "--out", tmp_path / "out", "--resume")
    assert re.search("^3 of 4 steps of 4 ", second.stderr, re.MULTILINE), second.stderr
    assert parts_of(tmp_path / "out") == parts_of(tmp_path / "silent")
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (tmp_path / "silent" / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_finished_training_says_its_result_and_what_comes_next(tiny_model, tmp_path):
    given = [*tiny_options(), "--out", tmp_path / "a b"]
    train = invoke("train", "digits16", *given, "--model", tiny_model)
    assert train.stdout == f"{tmp_path / 'a b'}\n"
    assert re.search(r"^RCA [\d.]+  95% \[.*\]  n 8  chance 0.3333$", train.stderr, re.MULTILINE)
    assert re.search(rf"^took \d+ s; next: hbench traverse '{tmp_path / 'a b'}'$", train.stderr, re.MULTILINE)
    pretrain = invoke("pretrain", "digits16", *tiny_options(), "--out", tmp_path / "model")
    assert re.search(r"^loss \d\.\d{4}, mean of the last 4 of 4 steps$", pretrain.stderr, re.MULTILINE)
    assert f"see {tmp_path / 'model' / 'samples' / '000004.png'}" in pretrain.stderr
    assert "next: hbench train digits16 --set 'model.channel_mult=[1,2]'" in pretrain.stderr
    assert pretrain.stderr.rstrip().endswith(f"--model {tmp_path / 'model'}")


def test_what_steps_change_is_undone():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters())

    def step(i=0):
        network(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        return {}

    for _ in range(2):  # without a state of the optimiser, and with one
        before = {name: value.clone() for name, value in network.state_dict().items()}
        state = repr(optimizer.state_dict())
        with undone({"network": network, "optimizer": optimizer}):
            step()
            assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert repr(optimizer.state_dict()) == state
        step()


def test_the_first_step_does_not_count(monkeypatch):
    clock = iter([1.0, 3.0])
    monkeypatch.setattr(module, "wall_seconds", lambda work, device: work() or next(clock))
    taken = []
    seconds, row = timed_steps(lambda i: taken.append(i) or {"loss": len(taken)}, torch.device("cpu"), 20)
    assert (seconds, len(taken), row) == (2.0, 3, {"loss": 3})


def test_short_trainings_are_not_estimated(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "training_seconds", lambda *_, **__: pytest.fail("estimated"))
    result = invoke("train", "digits16", *tiny_options(), "--model", tiny_model, "--out", tmp_path)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_classifier_says_its_time_and_learns_the_same(worth, caplog):
    wanted = load_experiment("digits16")
    digits = load_set(wanted.data)
    images, labels = digits.images[:300], digits.labels.of(torch.arange(300))
    networks = []
    for shown in (False, True):
        show_progress(shown)
        with caplog.at_level("INFO"):
            networks.append(train_classifier(wanted, images, labels, epochs=1).network.state_dict())
    said = [record.getMessage()[:32] for record in caplog.records if record.name == "hbench.evaluation.classifier"]
    assert said == ["3 steps of 128 images: about 0 s"]
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


@pytest.mark.slow
def test_ablations_say_the_time_of_all_trainings(tiny_model, tmp_path, worth):
    options = ["--model", tiny_model, "--seeds", 0, "--over", "discovery.S=2", "--pairs", 200, "--out", tmp_path]
    result = invoke("ablations", "digits16", *tiny_options(), *options)
    assert result.exit_code == 0, result.output
    assert re.search(r"^2 trainings: about [\d.]+ s$", result.stderr, re.MULTILINE)


def test_the_rest_of_a_sweep_by_hand(tiny):
    row = Row("node", 2, 4, "float32", "cpu", step_seconds=(0.5, 1.5))
    rest = cells(tiny, ["node"], [4, 8], device="cpu")
    # the first cell: 4 steps of 1 s after a start of 3 s
    assert seconds_of_rest(row, rest, 7.0) == 2 * 3 + 4 * 2 + 4 * 4
