import json
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY, invoke, snapshot, tiny_options
from PIL import Image
from processes import start_command
from safetensors.torch import load_file

from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.experiments import experiments_folder, load_experiment, override
from hbench.store.datasets import load_images
from hbench.store.model import load_model
from hbench.store.provenance import provenance
from hbench.store.weights import read_metadata
from hbench.training.checkpoint import read_checkpoint
from hbench.training.discover import estimated_seconds, train
from hbench.training.loop import stop_requests
from hbench.training.pretrain import flipped, lr_factor, pretrain
from hbench.training.step import initial, raw_pairs, train_step

CPU = torch.device("cpu")


def test_training_never_sees_the_noise_of_the_evaluation(tiny, tiny_model, monkeypatch):
    import hbench.training.step as module
    from hbench.core.sampler import Sampler
    from hbench.core.seeds import draw_x_T

    seen = []

    def train_nothing(experiment, sampler, trained, x_T, *_):
        seen.append(x_T)
        return {"loss": torch.zeros(())}, x_T, x_T

    monkeypatch.setattr(module, "train_shift", train_nothing)
    monkeypatch.setattr(module, "train_discriminator", lambda *_: {})
    settings = tiny.discovery.model_copy(update={"pool": 0})
    experiment = tiny.model_copy(update={"discovery": settings})
    sampler = Sampler.of(experiment, load_model(tiny_model, tiny).requires_grad_(False), CPU)
    trained, draw_raw = module.initial(experiment, sampler, 0), module.raw_pairs(experiment, sampler, 0)
    for step in range(6):
        module.train_step(experiment, sampler, trained, draw_raw, 0, step)
    used = torch.cat(seen).flatten(1)
    evaluated = draw_x_T(0, 0, 64, (1, 16, 16)).flatten(1)
    assert not (used[:, None] == evaluated[None]).all(-1).any()


@pytest.mark.slow
def test_sigterm_stops_with_a_checkpoint_and_says_so(tmp_path, tiny_model):
    out, log = tmp_path / "run", tmp_path / "log"
    options = tiny_options("discovery.steps=100000")
    process = start_command(["train", "digits16", *options, "--model", tiny_model, "--out", out, "--quiet"], log)
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.json").exists() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
    process.terminate()
    process.join(60)
    assert process.exitcode == 0
    said = log.read_text()
    assert "stopped by SIGTERM after step" in said
    assert "--resume" in said
    assert not (out / "shift_block.safetensors").exists()


def test_max_minutes_then_resume(tmp_path, tiny):
    images = load_images(tiny.data)
    out = tmp_path / "run"
    out.mkdir()
    assert not pretrain(tiny, images, out, device=CPU, max_minutes=1e-6)
    assert len(pd.read_csv(out / "metrics.csv")) == 1
    assert pretrain(tiny, images, out, device=CPU, resume=True)
    assert pd.read_csv(out / "metrics.csv")["step"].tolist() == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "train"])
def test_the_provenance_has_every_piece_of_a_training(name, tmp_path, tiny, tiny_model):
    def run_(**options):
        if name == "pretrain":
            return pretrain(tiny, load_images(tiny.data), tmp_path, device=CPU, **options)
        return train(tiny, load_model(tiny_model, tiny), tmp_path, device=CPU, **options)

    assert not run_(max_minutes=1e-6)
    assert not run_(max_minutes=1e-6, resume=True)
    assert run_(resume=True)
    origin = json.loads((tmp_path / "provenance.json").read_text())
    pieces = origin["pieces"]
    assert [piece["started_utc"] for piece in pieces] == sorted({piece["started_utc"] for piece in pieces})
    assert len(pieces) == 3
    assert origin["wall_seconds"] == pytest.approx(sum(piece["wall_seconds"] for piece in pieces), abs=0.05)
    assert all(piece["git"] == origin["git"] and piece["device"] == origin["device"] for piece in pieces)
    before = snapshot(tmp_path)
    assert run_(resume=True)  # which is over: nothing is written again, the provenance least of all
    assert snapshot(tmp_path) == before


def test_a_handler_that_python_did_not_set_stays(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # as where another language embeds Python
    changed = []
    monkeypatch.setattr(signal, "signal", lambda *given: changed.append(given))
    with stop_requests(None) as reason:
        assert reason() is None
    assert changed == []


def test_an_estimate_leaves_the_random_state(tiny, tiny_model):
    before = torch.get_rng_state()
    experiment = override(tiny, ["discovery.strategy=node"])
    assert estimated_seconds(experiment, load_model(tiny_model, tiny), device=CPU) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_discriminator_is_itself_again_after_a_step_that_failed(tiny, tiny_model, monkeypatch):
    settings = {"strategy": "node", "pool": 0}
    experiment = tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update=settings)})
    sampler = Sampler.of(experiment, load_model(tiny_model, tiny).requires_grad_(False), CPU)
    trained, draw_raw = initial(experiment, sampler, 0), raw_pairs(experiment, sampler, 0)

    def fail(*_, **__):
        assert not any(p.requires_grad for p in trained.discriminator.parameters())
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("hbench.training.step.accumulate", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train_step(experiment, sampler, trained, draw_raw, 0, 0)
    assert all(p.requires_grad for p in trained.discriminator.parameters())


def test_resume_refuses_other_settings_and_other_seeds(tmp_path, tiny):
    images = load_images(tiny.data)
    out = tmp_path / "run"
    out.mkdir()
    pretrain(tiny, images, out, device=CPU, max_minutes=1e-6)
    other = load_experiment("digits16", [*TINY, "pretrain.lr=0.5"])
    with pytest.raises(HBenchError, match=r"was started with pretrain\.lr = 0\.001"):
        pretrain(other, images, out, device=CPU, resume=True)
    with pytest.raises(HBenchError, match="was started with `seed=0`, not 1"):
        pretrain(tiny, images, out, device=CPU, resume=True, seed=1)


def test_resume_refuses_other_images(tmp_path, tiny):
    images, out = load_images(tiny.data), tmp_path / "run"
    assert not pretrain(tiny, images, out, device=CPU, max_minutes=1e-6)
    before = snapshot(out)
    with pytest.raises(HBenchError, match=r"was started on 1,618 images with the SHA-256 \w{12}, and these are 1,617"):
        pretrain(tiny, images[1:], out, device=CPU, resume=True)
    brighter = images.clone()
    brighter[7, 0, 0, 0] += 1
    with pytest.raises(
        HBenchError, match=r"and these are 1,618 with \w{12}: bring the same images back, or use another"
    ):
        pretrain(tiny, brighter, out, device=CPU, resume=True)
    assert snapshot(out) == before
    assert not pretrain(tiny, images.clone(), out, device=CPU, resume=True, max_minutes=1e-6)


def test_processes_that_read_different_images_are_refused(tmp_path, tiny, monkeypatch):
    images = load_images(tiny.data)
    monkeypatch.setattr("hbench.runtime.distributed.all_gather", lambda results: [*results, "of another process"])
    with pytest.raises(HBenchError, match="the processes read different images: give all of them the same folder"):
        pretrain(tiny, images, tmp_path / "run", device=CPU, max_minutes=1e-6)
    assert not (tmp_path / "run").exists()


def test_an_older_checkpoint_has_no_hash_and_resumes_with_a_notice(tmp_path, tiny, caplog):
    images = load_images(tiny.data)
    assert not pretrain(tiny, images, tmp_path, device=CPU, max_minutes=1e-6)
    pointer = json.loads((tmp_path / "checkpoint.json").read_text())
    assert pointer["images"]["n"] == 1618
    del pointer["images"]
    del pointer["experiment"]["data"]["background"]  # nor did it know this setting
    (tmp_path / "checkpoint.json").write_text(json.dumps(pointer))
    assert not pretrain(tiny, images, tmp_path, device=CPU, resume=True, max_minutes=1e-6)
    assert "an older hbench kept no hash of its images" in caplog.text
    assert json.loads((tmp_path / "checkpoint.json").read_text())["images"]["n"] == 1618


def pictures(folder):
    """Write a dozen pictures and an experiment on them; return its file."""
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
    file = folder / "mine.toml"
    text = (experiments_folder() / "digits16.toml").read_text()
    file.write_text(text.replace('dataset = "digits"', 'dataset = "folder"\nroot = "pictures"'))
    return file


def test_a_training_reads_the_root_of_its_file_but_never_its_own_pictures(tmp_path, monkeypatch):
    file = pictures(tmp_path)
    monkeypatch.chdir(tmp_path / "pictures")
    options = [*tiny_options("pretrain.sample_every=1"), "--quiet"]
    first = invoke("pretrain", file, *options, "--max-minutes", 1e-6)
    assert first.exit_code == 0, first.output
    out = tmp_path / "pictures" / "runs" / "mine" / "pretrain"
    assert list((out / "samples").glob("*.png"))
    (tmp_path / "pictures" / "runs").rename(tmp_path / "runs")
    shutil.move(tmp_path / "pictures", tmp_path / "moved")  # the data may move
    monkeypatch.chdir(tmp_path / "moved")
    (tmp_path / "runs").rename(tmp_path / "moved" / "runs")
    again = invoke("pretrain", file, *options, "--resume", "--data-root", tmp_path / "moved")
    assert again.exit_code == 0, again.output
    assert "pictures in" in again.output
    assert "12 found, 11 used to train on (each tenth is kept for tests); left out: 1 of hbench (runs/mine/pretr" in (
        again.output
    )
    out = tmp_path / "moved" / "runs" / "mine" / "pretrain"
    origin = json.loads((out / "provenance.json").read_text())
    assert (origin["data"]["used"], origin["data"]["left_out"]) == (11, {"of hbench": 1})
    kept = (out / "experiment.json").read_text() + (out / "checkpoint.json").read_text()
    kept += (
        str(read_metadata(out / "model.safetensors")) + json.dumps(origin["experiment"]) + json.dumps(origin["data"])
    )
    assert '"root"' not in kept  # the folder is no part of the experiment
    assert '"flip"' in kept


def test_flips_mirror_half_of_a_batch_and_change_nothing_else():
    x_0 = torch.rand(400, 1, 2, 3)
    found = flipped(x_0, 5, 3)
    mirrored = (found == x_0.flip(-1)).flatten(1).all(1)
    assert (mirrored | (found == x_0).flatten(1).all(1)).all()
    assert 150 < mirrored.sum() < 250
    assert torch.equal(found, flipped(x_0, 5, 3))
    assert not torch.equal(found, flipped(x_0, 5, 4))


def test_flips_reach_the_training_only_where_they_are_asked_for(tmp_path, tiny, monkeypatch):
    seen = []

    def mirrored(x_0, seed, step):
        seen.append((seed, step))
        return flipped(x_0, seed, step)

    monkeypatch.setattr("hbench.training.pretrain.flipped", mirrored)
    images = load_images(tiny.data)
    assert not pretrain(tiny, images, tmp_path / "without", device=CPU, max_minutes=1e-6)
    assert seen == []
    flipping = load_experiment("digits16", [*TINY, "data.dataset=folder", "data.flip=true"])
    assert not pretrain(flipping, images, tmp_path / "with", device=CPU, seed=3, max_minutes=1e-6)
    assert seen == [(3, 0)]


@pytest.mark.slow
def test_resume_takes_settings_that_do_not_matter(tmp_path, tiny, tiny_model):
    """Those of another stage, and how often something is written: a pretraining goes on beside changes for later."""
    images = load_images(tiny.data)
    expected, out, discovery = tmp_path / "whole", tmp_path / "run", tmp_path / "discovery"
    for folder in (expected, out, discovery):
        folder.mkdir()
    pretrain(tiny, images, expected, device=CPU)
    assert not pretrain(tiny, images, out, device=CPU, max_minutes=1e-6)
    changes = ["discovery.K=7", "pretrain.checkpoint_every=1", "evaluation.fid_samples=3"]
    assert pretrain(load_experiment("digits16", [*TINY, *changes]), images, out, device=CPU, resume=True)
    found, whole = (load_file(folder / "model.safetensors") for folder in (out, expected))
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    model = load_model(tiny_model, tiny)
    assert not train(tiny, model, discovery, device=CPU, max_minutes=1e-6)
    assert train(load_experiment("digits16", [*TINY, "pretrain.steps=9"]), model, discovery, device=CPU, resume=True)
    compiled = load_experiment("digits16", [*TINY, "discovery.compile=true"])
    assert read_checkpoint(discovery, compiled, 0, "discovery").step == 4
    other = load_experiment("digits16", [*TINY, "discovery.K=7"])
    with pytest.raises(HBenchError, match=r"was started with discovery\.K = 3"):
        train(other, model, discovery, device=CPU, resume=True)


@pytest.mark.slow
def test_from_python_nothing_is_overwritten_unasked(tmp_path, tiny):
    images, out = load_images(tiny.data), str(tmp_path / "run")
    assert pretrain(tiny, images, out)
    before = snapshot(tmp_path)
    with pytest.raises(HBenchError, match="already holds results"):
        pretrain(tiny, images, out)
    assert snapshot(tmp_path) == before
    other = load_experiment("digits16", [*TINY, "pretrain.lr=0.01"])
    assert not pretrain(other, images, out, overwrite=True, max_minutes=1e-6)
    assert not (tmp_path / "run" / "provenance.json").exists()  # the old training does not pass for this one
    assert pretrain(other, images, out, resume=True)


def test_curves_are_drawn_before_each_checkpoint(tmp_path, tiny, tiny_model):
    seen = []

    def draw(folder):
        about = read_checkpoint(folder, tiny, 0, "discovery")
        seen.append((folder, len(pd.read_csv(folder / "metrics.csv")), about and about.step))

    assert train(tiny, load_model(tiny_model, tiny), tmp_path / "run", draw=draw)
    assert seen == [(tmp_path / "run", 2, None), (tmp_path / "run", 4, 2)]


def test_training_leaves_the_given_model_as_it_is(tmp_path, tiny, tiny_model):
    experiment = load_experiment("digits16", [*TINY, "pretrain.weights=float16"])
    model = load_model(tiny_model, tiny)
    with torch.no_grad():
        next(model.parameters()).fill_(1 + 2**-20)  # which the folder cannot hold
    train(experiment, model, tmp_path, max_minutes=1e-6)
    assert (next(model.parameters()) == 1 + 2**-20).all()


def test_a_package_that_no_command_needed_may_be_missing(monkeypatch):
    monkeypatch.setattr("hbench.store.provenance.PACKAGES", ("torch", "no-such-package"))
    versions = provenance(None, CPU, 0).versions
    assert versions["torch"]
    assert versions["no-such-package"] is None


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    experiment = load_experiment("digits16", [*TINY, "pretrain.warmup_steps=0"])
    diverging = experiment.pretrain.model_copy(update={"lr": 1e30})  # no file may ask for it
    experiment = experiment.model_copy(update={"pretrain": diverging})
    out = tmp_path / "run"
    out.mkdir()
    with pytest.raises(HBenchError, match=r"step \d+: the loss is (nan|inf)"):
        pretrain(experiment, load_images(experiment.data), out, device=CPU)
    assert not (out / "model.safetensors").exists()


@pytest.mark.slow
def test_training_moves_only_what_it_should(tmp_path, tiny, tiny_model):
    model = load_model(tiny_model, tiny)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(tiny, model, tmp_path, device=CPU)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    shift_block = load_file(tmp_path / "shift_block.safetensors")
    assert shift_block["out_weight"].abs().sum() > 0


def test_a_run_folder_holds_its_whole_record(tiny_run, tiny_model):
    for name in ("model", "shift_block", "reconstructor", "discriminator"):
        assert (tiny_run / f"{name}.safetensors").is_file()
    for name in ("curves.png", "metrics.csv", "metrics.jsonl", "experiment.json", "checkpoint.json"):
        assert (tiny_run / name).is_file()
    record = json.loads((tiny_run / "provenance.json").read_text())
    assert record["title"] == "Digits16-400-3-3-5"
    assert record["seed"] == 0
    assert record["experiment"]["discovery"]["K"] == 3
    pretrained = json.loads((tiny_model / "provenance.json").read_text())
    assert record["model_tensors_sha256"] == pretrained["model_tensors_sha256"]
    assert set(record["weights_sha256"]) == {"model", "shift_block", "reconstructor", "discriminator"}
    rows = pd.read_csv(tiny_run / "metrics.csv")
    assert {"loss", "accuracy", "D_raw", "D_shifted"} <= set(rows.columns)
    assert rows["D_raw"][0] == pytest.approx(0.5, abs=1e-3)  # the game starts at its equilibrium
    assert rows["D_shifted"][0] == pytest.approx(0.5, abs=1e-3)


def test_learning_rate_warms_up_and_decays():
    settings = load_experiment("digits16").pretrain
    assert lr_factor(settings, 0) == pytest.approx(1 / 100)
    assert lr_factor(settings, 100) == 1
    assert lr_factor(settings, settings.steps - 1) < 1e-3


@pytest.mark.parametrize("images", [torch.zeros(4, 1, 16, 16), torch.zeros(4, 3, 16, 16, dtype=torch.uint8)])
def test_images_and_seeds_that_cannot_be_are_refused_before_the_folder_is_made(tiny, tmp_path, images):
    with pytest.raises(ValueError, match="images must be uint8"):
        pretrain(tiny, images, tmp_path / "out", device=CPU)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        pretrain(tiny, load_images(tiny.data), tmp_path / "out", device=CPU, seed=-1)
    assert not (tmp_path / "out").exists()


def test_trainings_say_that_the_samples_are_noise(tmp_path, tiny, tiny_model, caplog):
    """The end of a pretraining that was too short, and the start of a discovery on its model."""
    noise = "100% of the raw samples leave the image domain"
    pretrain(tiny, load_images(tiny.data), tmp_path / "pretrain", device=CPU)
    assert caplog.text.count(noise) == 1
    caplog.clear()
    assert not train(tiny, load_model(tiny_model, tiny), tmp_path / "train", device=CPU, max_minutes=1e-6)
    assert caplog.text.count(noise) == 1
    caplog.clear()
    assert train(tiny, load_model(tiny_model, tiny), tmp_path / "train", device=CPU, resume=True)
    assert noise not in caplog.text  # said before


def longer(tiny_model, folder, *settings):
    """Return a function of more settings that trains or goes on with a discovery, or without a model a pretraining."""

    def go(*more, resume=False, **options):
        experiment = load_experiment("digits16", [*TINY, *settings, *more])
        if tiny_model is None:
            return pretrain(experiment, load_images(experiment.data), folder, device=CPU, resume=resume, **options)
        model = load_model(tiny_model, experiment)
        return train(experiment, model, folder, device=CPU, resume=resume, **options)

    return go


def weights_of(folder):
    return {path.name: load_file(path) for path in folder.glob("*.safetensors")}


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(value, expected[file][name]) for file, tensors in found.items() for name, value in tensors.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "discovery"])
def test_a_longer_training_without_decay_has_the_bits_of_one_that_was_as_long(stage, tmp_path, tiny_model, caplog):
    model = tiny_model if stage == "discovery" else None
    flat = "discovery.decay=0" if model else "pretrain.decay=false"
    whole, part = (longer(model, tmp_path / name, flat) for name in ("whole", "part"))
    assert whole(f"{stage}.steps=8")
    assert part()  # 4 steps, complete
    with_4 = weights_of(tmp_path / "part")
    caplog.clear()
    assert not part(f"{stage}.steps=6", resume=True, max_minutes=1e-6)
    assert "goes on after step 4 to 6 steps instead of 4: it ends as if it had had them from the start" in caplog.text
    assert not (tmp_path / "part" / "provenance.json").exists()  # it is complete no more
    assert same(weights_of(tmp_path / "part"), with_4)  # but still what it was
    assert part(f"{stage}.steps=8", f"{stage}.checkpoint_every=3", resume=True)  # stopped, and longer again
    assert same(weights_of(tmp_path / "part"), weights_of(tmp_path / "whole"))
    origin = json.loads((tmp_path / "part" / "provenance.json").read_text())
    assert origin["steps_before"] == [4, 6]
    assert origin["experiment"][stage]["steps"] == 8
    assert len(origin["pieces"]) == 3
    rows = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("part", "whole")]
    pd.testing.assert_frame_equal(*rows)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "discovery"])
def test_a_longer_training_with_decay_says_what_that_means(stage, tmp_path, tiny_model, caplog):
    model = tiny_model if stage == "discovery" else None
    settings = ["discovery.decay=0.5"] if model else ["pretrain.decay=true", "pretrain.warmup_steps=2"]
    go = longer(model, tmp_path / "run", *settings)
    assert go()
    assert go(f"{stage}.steps=5", resume=True)
    assert "its learning rate, 50.0% by the schedule of 4, is " in caplog.text
    assert "so it differs from one training of 5; without decay it would not" in caplog.text


@pytest.mark.slow
def test_a_training_that_has_not_begun_to_decay_may_grow(tmp_path, tiny_model, caplog):
    whole, part = (longer(tiny_model, tmp_path / name, "discovery.decay=0.25") for name in ("whole", "part"))
    assert not part(max_minutes=1e-6)
    assert part("discovery.steps=6", resume=True)
    assert "as if it had had them from the start" in caplog.text
    assert whole("discovery.steps=6")
    assert same(weights_of(tmp_path / "part"), weights_of(tmp_path / "whole"))


@pytest.mark.slow
def test_fewer_steps_than_were_taken_are_refused(tmp_path, tiny_model):
    go = longer(tiny_model, tmp_path / "run")
    assert go()
    before = snapshot(tmp_path)
    with pytest.raises(HBenchError, match=r"has taken 4 of 4 steps, and discovery.steps = 3 asks for fewer"):
        go("discovery.steps=3", resume=True)
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_a_stopped_training_may_end_where_it_is(tmp_path, tiny_model):
    short, cut = (longer(tiny_model, tmp_path / name, "discovery.decay=0") for name in ("short", "cut"))
    assert not cut(max_minutes=1e-6)
    assert cut("discovery.steps=1", resume=True)
    assert short("discovery.steps=1")
    assert same(weights_of(tmp_path / "cut"), weights_of(tmp_path / "short"))
