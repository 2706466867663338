"""A folder that a command claims holds something when it ends, or is not there; settings are checked before."""

import math

import pytest
import torch
from command_line import invoke, refused, snapshot, tiny_options

import hbench
from hbench import load_model
from hbench.errors import HBenchError
from hbench.evaluation.rca import RCA
from hbench.experiments import load_experiment
from hbench.store.folders import claimed_folder


class Failed(Exception):
    pass


def fail_in(folder, *names, **options):
    """Claim a folder, write files there, and fail."""
    with claimed_folder(folder, **options):
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("half")
        raise Failed


def test_a_claim_that_fails_leaves_nothing_half_done(tmp_path):
    folder = tmp_path / "new" / "deep" / "out"
    for names in ([], ["picture.png"], ["a/b.csv", "experiment.json"]):
        with pytest.raises(Failed):
            fail_in(folder, *names)
        assert not (tmp_path / "new").exists()
    for name in ("provenance.json", "checkpoint.json", "deeper/samples.json"):  # some of the work is done
        with pytest.raises(Failed):
            fail_in(folder, name, "picture.png", overwrite=True, of_training=True)
        assert (folder / name).is_file()
        assert (folder / "picture.png").is_file()
    before = snapshot(folder)
    with pytest.raises(Failed):
        fail_in(folder, overwrite=True, of_training=True)  # what was there before is never touched
    assert snapshot(folder) == before


def test_a_folder_that_the_user_made_stays(tmp_path):
    with pytest.raises(Failed):
        fail_in(tmp_path, "x")
    assert list(tmp_path.iterdir()) == []
    with claimed_folder(tmp_path):
        (tmp_path / "x").touch()
    assert (tmp_path / "x").is_file()


@pytest.mark.parametrize("name", ["shift_block.safetensors", "checkpoint.json"])
def test_no_result_takes_the_place_of_a_training_whatever_is_asked_for(tmp_path, name):
    for file in (name, "provenance.json", "experiment.json"):
        (tmp_path / file).touch()
    before = snapshot(tmp_path)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(HBenchError, match="holds a training"), claimed_folder(tmp_path, **options):
            (tmp_path / "provenance.json").write_text("of a result")
    assert snapshot(tmp_path) == before
    with claimed_folder(tmp_path, overwrite=True, of_training=True):
        pass


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "digits16", "--set", "model.channel_mult=[1, 0]"],
        ["pretrain", "digits16", "--set", "discovery.K=99999999999999999999"],
        ["pretrain", "digits16", "--set", "discovery.K=100000"],
        ["pretrain", "mnist16", "--data-root", "absent"],
        ["fid", "mnist16", "--samples", 2],
        ["train", "digits16", "--model", "absent"],
        ["train", "digits16", "--model", "mnist16", "--seed", 2**63],
        ["train", "mnist16", "--model", "mnist16", "--max-minutes", "nan"],
        ["train", "mnist16", "--model", "mnist16", "--set", "discovery.strategy=offload", "--set", "discovery.pool=0"],
        ["classifier", "mnist16", "--data-root", "absent"],
        ["lenet", "digits16", "--epochs", 10**30],
        ["rca", "mnist16", "--pairs", 10**30],
        ["rca", "mnist16", "--seed", "9" * 5000],
        ["traverse", "mnist16", "--samples", 10**9],
        ["traverse", "mnist16", "--rca", "absent/rca.json"],
        ["properties", "mnist16", "--direction", 99],
        ["edit", "mnist16", "absent.png", "--shift", "3=1"],
        ["edit", "mnist16", "absent.png", "--shift", "3=1e40"],
        ["edit", "mnist16", "absent.png", "--shift", "3=nan"],
        ["edit", "mnist16", "absent.png", "--shift", "3=1e400"],
        ["fid", "mnist16", "--samples", 10**30],
        ["fid", "mnist16", "--feature-extractor", "absent"],
        ["sample", "mnist16", "--steps", 10**30],
        ["mos", "export", "mnist16", "--repeats", "nan"],
        ["mos", "export", "mnist16", "--assessors", 10**9],
        ["plan", "digits16", "--steps", "5,99999999999999999999"],
        ["vram-sweep", "digits16", "--strategies", "absent"],
        ["vram-sweep", "digits16", "--memory-limit", "9" * 400 + "GiB"],
        ["vram-sweep", "digits16", "--steps", 10**30],
        ["ablations", "digits16", "--model", "mnist16", "--seeds", "9" * 5000],
        ["ablations", "mnist16", "--model", "mnist16", "--pairs", 10, "--over", "discovery.S=1e300"],
        ["reproduce", "digits16", "--run", "absent"],
    ],
)
def test_a_command_that_fails_claims_nothing(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in ([], ["--out", tmp_path / "out"]):
        line = refused(*words, *out)
        assert line.startswith("Error: ")
        assert not any(tmp_path.iterdir()), words


def test_a_training_that_cannot_be_built_leaves_no_folder_and_an_overwritten_one_as_it_was(
    tmp_path, tiny, tiny_model, monkeypatch
):
    def fails(*arguments):
        raise MemoryError("cannot be built")

    images = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    model = load_model(tiny_model, tiny, device="cpu")
    out, finished = tmp_path / "out", tmp_path / "finished"
    assert hbench.pretrain(tiny, images, finished, device="cpu")
    before = snapshot(finished)
    with monkeypatch.context() as patch:
        patch.setattr("hbench.training.pretrain.build_model", fails)
        patch.setattr("hbench.training.discover.initial", fails)
        for folder in (out, finished):
            with pytest.raises(MemoryError):
                hbench.pretrain(tiny, images, folder, device="cpu", overwrite=True)
            with pytest.raises(MemoryError):
                hbench.train(tiny, model, folder, device="cpu", overwrite=True)
    assert not out.exists()
    assert snapshot(finished) == before


def test_a_first_step_that_is_not_finite_leaves_no_folder(tmp_path, tiny):
    diverging = tiny.model_copy(update={"pretrain": tiny.pretrain.model_copy(update={"lr": 1e30, "warmup_steps": 0})})
    diverging = diverging.model_copy(
        update={"pretrain": diverging.pretrain.model_copy(update={"checkpoint_every": 100})}
    )
    images = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    with pytest.raises(HBenchError, match="the loss is"):
        hbench.pretrain(diverging, images, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_measures_nothing_leaves_no_folder(tmp_path, monkeypatch):
    def fails(*arguments, **named):
        raise HBenchError("another process is on the GPU")

    monkeypatch.setattr("hbench.evaluation.vram_sweep.measure_all", fails)
    assert "another process" in refused("vram-sweep", "digits16", *tiny_options(), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_trainings_leave_the_global_random_state_alone(tmp_path, tiny, tiny_model):
    model = load_model(tiny_model, tiny, device="cpu")
    torch.manual_seed(7)
    expected = torch.rand(3)
    for number, call in enumerate(
        (
            lambda out: hbench.pretrain(tiny, torch.zeros(4, 1, 16, 16, dtype=torch.uint8), out, device="cpu"),
            lambda out: hbench.train(tiny, model, out, device="cpu"),
            lambda out: hbench.train(tiny, model, out, device="cpu", resume=True),
        )
    ):
        torch.manual_seed(7)
        assert call(tmp_path / ("train" if number else "pretrain"))
        assert torch.equal(torch.rand(3), expected)


def test_an_option_with_older_spellings_is_named_by_its_first(tmp_path):
    line = refused("plan", "digits16", "--m", "x", "--out", tmp_path / "out")
    assert "'--steps': " in line
    assert "--m" not in line


def test_the_longest_time_of_ablations_may_end_before_the_first_step(tmp_path, tiny, tiny_model):
    model = load_model(tiny_model, tiny, device="cpu")
    options = {"variants": {"a": []}, "seeds": [0], "pairs": 4, "device": "cpu"}
    assert hbench.evaluate.ablations(tiny, model, tmp_path, max_minutes=1e-12, **options) is None
    with pytest.raises(ValueError, match="max_minutes must be positive and finite"):
        hbench.evaluate.ablations(tiny, model, tmp_path, max_minutes=math.inf, resume=True, **options)


def test_a_dry_run_shows_that_bounds_are_wide():
    assert invoke("train", "mnist16", "--dry-run", "--set", "discovery.steps=1000000000").exit_code == 0
    assert load_experiment("mnist16", "model.num_head_channels=32").model.num_head_channels == 32


def test_a_picture_that_cannot_be_drawn_loses_no_number(tiny_run, tmp_path, monkeypatch):
    def full(result, folder):
        raise HBenchError("no room for the picture")

    monkeypatch.setattr("hbench.reporting.artifacts.draw", full)
    said = refused("rca", tiny_run, "--pairs", "4", "--out", tmp_path / "rca", "--device", "cpu", "--quiet")
    assert said == "Error: no room for the picture"
    assert RCA.load(tmp_path / "rca").provenance.details["result_sha256"]
