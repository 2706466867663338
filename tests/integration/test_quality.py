"""``hbench quality``: models whose samples are known, and the command."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from command_line import invoke, refused
from committed import RESULTS

import hbench
from hbench.core.images import to_float, to_uint8
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.evaluation.quality import Quality, default_steps, quality
from hbench.evaluation.sample_cache import are_outside, model_folders, pngs, read_pngs
from hbench.reporting import report
from hbench.reporting.charts.quality import draw_beside
from hbench.store.datasets import load_set
from hbench.store.files import sha256
from hbench.store.model import load_model
from hbench.store.weights import state_sha256

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model, device=CPU)


@pytest.fixture
def measured(tiny, model, classifier_file, tmp_path, monkeypatch):
    """Function of images, uint8 [N, 1, 16, 16]: the quality of a model that returns them, one after the other."""

    def measure(images, **options):
        place = [0]

        def generate(self, x_T, shift=None):
            chosen = torch.arange(place[0], place[0] + len(x_T)) % len(images)
            place[0] += len(x_T)
            return to_float(images[chosen])

        monkeypatch.setattr(Sampler, "generate", generate)
        settings = {"weights": classifier_file, "steps": 3, "device": CPU, "samples": len(images)} | options
        return quality(model, tiny, cache=tmp_path / "cache", **settings)

    return measure


def test_a_number_of_fewer_samples_has_its_own_n():
    found = Quality.load(RESULTS / "faces16" / "quality")
    near = found.steps[0].nearest
    assert near.n < found.n
    assert re.search(rf"very near a training image .*\] of {near.n:,}, outside", found.summary().splitlines()[0])


def test_a_model_that_repeats_training_images_is_caught(measured, tiny):
    training = load_set(tiny.data).images
    found = measured(training[:150])
    (each,) = found.steps
    assert (each.nearest.near, each.nearest.median, found.tested.near < 0.1) == (1, 0, True)
    assert "M = 3: 100.0% of the samples lie as near to a training image as" in " ".join(found.cautions())
    assert torch.equal(found.images.beside[0], found.images.beside[1])
    assert found.images.distances == [[0] * 12] * 2
    assert each.outside == 0


def test_real_images_pass_for_real_images(measured, tiny):
    """Test images in the place of samples: nothing is repeated, and every other number is about its floor."""
    test = load_set(tiny.data, split="test").images
    found = measured(test)
    (each,) = found.steps
    assert (each.distance.fd < 0.01 * found.halves, each.multiple < 0.01) == (True, True)
    assert each.precision_recall.precision > 0.8
    assert each.precision_recall.recall > 0.8
    assert [balance.distance for balance in each.balances] == [0]
    assert each.nearest == found.tested
    assert not any("repeats training images" in said for said in found.cautions())
    assert found.n_real == found.n == 179
    assert found.floor_at_n == pytest.approx(2 / 179 / (2 / 89))


def test_a_model_of_one_digit_is_out_of_balance(measured, tiny):
    train = load_set(tiny.data)
    noughts = train.images[train.labels.values[:, 0] == 0]
    found = measured(noughts[:120])
    (digit,) = found.at_shown.balances
    assert (digit.factor, digit.classes[digit.most], digit.is_off) == ("digit", "0", True)
    assert digit.distance > 0.5
    assert "too many 0 (" in found.summary()
    assert found.at_shown.precision_recall.recall < 0.5 * found.perfect.recall
    assert found.at_shown.multiple > 5
    assert measured(noughts[:120]) == found


@pytest.mark.slow
def test_the_steps_measured_and_the_one_shown(tiny, measured, tiny_run):
    test = load_set(tiny.data, split="test").images[:60]
    found = measured(test, steps=[5, 4, 4])
    assert ([each.M for each in found.steps], found.shown) == ([4, 5], 4)
    assert measured(test, steps=[5, 3]).shown == 3 == tiny.discovery.M
    assert default_steps(tiny) == [3, 6, 15]
    short = tiny.model_copy(update={"diffusion": tiny.diffusion.model_copy(update={"T": 10})})
    assert default_steps(short) == [3, 6]
    with pytest.raises(ValueError, match="samples must be at least 6, got 5"):
        measured(test, samples=5)
    with pytest.raises(ValueError, match="at least one number"):
        measured(test, steps=[])
    with pytest.raises(ValueError, match="1000"):
        measured(test, steps=[2, 1001])
    with pytest.raises(TypeError, match="load_model"):
        quality(tiny_run, tiny)


@pytest.mark.slow
def test_samples_of_a_model_are_kept_with_whether_they_left_the_domain(tiny, model, tmp_path, monkeypatch):
    sampler, state = Sampler.of(tiny, model, CPU), state_sha256(model)
    arguments = (sampler, state, tiny, [2, 3], 70, tmp_path, 1)
    folders = model_folders(*arguments)
    assert {M: len(pngs(folder)) for M, folder in folders.items()} == {2: 70, 3: 70}
    x_0 = sampler.with_steps(2).generate(sampler.noise(70, seed=1))
    paths = pngs(folders[2])
    assert (read_pngs(paths).int() - to_uint8(x_0).int()).abs().max() <= 1
    assert are_outside(paths) == (x_0.abs().amax((1, 2, 3)) > 1.5).tolist()
    assert any(are_outside(paths))
    before = paths[3].read_bytes()
    paths[3].unlink()
    assert model_folders(*arguments) == folders
    assert paths[3].read_bytes() == before

    def fail(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr(Sampler, "generate", fail)
    assert model_folders(*arguments) == folders
    with pytest.raises(AssertionError, match="generated again"):
        model_folders(sampler, "another model", *arguments[2:])


@pytest.mark.slow
def test_the_command_writes_a_result_like_any_other(tiny_model, classifier_file, tmp_path):
    words = ["quality", tiny_model, "--samples", 8, "--steps", "2,3", "--weights", classifier_file, "--quiet"]
    words += ["--cache", tmp_path / "cache", "--device", "cpu"]
    done = invoke(*words, "--out", tmp_path / "one")
    assert done.exit_code == 0, done.output
    names = {"quality.json", "quality.csv", "quality.png", "beside.png", "provenance.json"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    found = Quality.load(tmp_path / "one")
    assert found.detail("weights_sha256") == {"model": sha256(tiny_model / "model.safetensors")}
    assert (found.n, found.n_train, [each.M for each in found.steps]) == (8, 1618, [2, 3])
    assert found.summary() + "\n" == done.stdout
    assert "outside 100.00%" in done.stdout
    for said in ("M = 2: 100% of the raw samples leave the image domain", "8 samples for 120 features"):
        assert f"caution: {said}" in done.stderr
    assert list(found.table()["M"]) == ["2", "3", "real"]
    with pytest.raises(HBenchError, match="has nothing to draw: measure it again"):
        draw_beside(found, tmp_path / "x.png")
    hbench.plot(found, tmp_path / "x.png")
    again = invoke(*words, "--out", tmp_path / "two")
    assert (again.exit_code, again.stdout) == (0, done.stdout)
    assert (tmp_path / "two" / "quality.json").read_bytes() == (tmp_path / "one" / "quality.json").read_bytes()


def test_what_the_command_refuses(tiny_model, tmp_path):
    assert "at most 1000" in refused("quality", tiny_model, "--steps", "2,1001")
    assert "5 is not in the range x>=6" in refused("quality", tiny_model, "--samples", 5)
    assert "write whole numbers with commas" in refused("quality", tiny_model, "--steps", "2;3")
    assert "no such model" in refused("quality", tmp_path / "nothing")
    assert "--experiment" in refused("quality", saved_state_dict(tiny_model, tmp_path))


def saved_state_dict(tiny_model, folder):
    file = folder / "state.pt"
    torch.save(load_model(tiny_model, device=CPU).state_dict(), file)
    return file


def test_without_real_images_the_distance_alone_is_measured(tmp_path, monkeypatch):
    monkeypatch.delenv("HBENCH_DATA", raising=False)
    monkeypatch.setattr("hbench.store.datasets.DOWNLOADS", tmp_path / "nothing")
    words = ["quality", "mnist16", "--samples", 6, "--steps", 1, "--cache", tmp_path / "cache", "--quiet"]
    done = invoke(*words, "--out", tmp_path / "out", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "no real images at hand, so no nearest training images: --data-root takes their folder" in done.stderr
    assert "caution: the real images were not at hand" in done.stderr
    found = Quality.load(tmp_path / "out")
    assert (found.tested, found.n_train, found.steps[0].nearest) == (None, None, None)
    assert found.steps[0].distance.fd > 0
    assert (tmp_path / "out" / "beside.png").is_file()


def test_what_a_classifiers_file_keeps_stands_in_for_real_images(measured, tiny, monkeypatch):
    test = load_set(tiny.data, split="test").images
    here = measured(test)
    monkeypatch.setattr("hbench.evaluation.real_images.at_hand", lambda *_: False)
    away = measured(test)
    assert (away.tested, away.images.real, away.images.beside) == (None, None, None)
    assert away.halves == pytest.approx(here.halves, rel=0.01)
    assert away.at_shown.distance.fd == pytest.approx(here.at_shown.distance.fd, abs=0.02 * here.halves)
    assert away.at_shown.precision_recall.precision == pytest.approx(here.at_shown.precision_recall.precision, abs=0.1)
    assert away.perfect.recall == pytest.approx(here.perfect.recall, abs=0.1)
    (digit,) = away.at_shown.balances
    assert sum(digit.real) == pytest.approx(1)
    assert digit.distance > 0  # the real shares are those of the labels, of which this classifier knows little
    assert "no nearest training images could be measured" in " ".join(away.cautions())


@pytest.mark.slow
def test_the_page_has_the_quality_of_the_runs_model_and_of_no_other(tiny_run, results, measured, tiny, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(results, run)
    found = measured(load_set(tiny.data, split="test").images[:60])
    model = {"model": sha256(run / "model.safetensors")}
    found.with_details(weights_sha256=model).save(run / "quality")
    rows = {row.artifact: row for row in report.collect(run).rows}
    assert rows["FD (LeNet digits) of samples, M = 3"].n == "60 against 179 real"
    assert "digit: distance of its classes' shares, M = 3 (by chance" in " ".join(rows)
    other = replace(found).with_details(weights_sha256={"model": "0" * 64})
    other.save(run / "quality", overwrite=True)
    with pytest.raises(HBenchError, match=r'quality: of other weights than .* make it again by "hbench quality"'):
        report.collect(run)
    for name in ("model", "shift_block", "reconstructor", "discriminator"):
        (run / f"{name}.safetensors").unlink()
    with pytest.raises(HBenchError, match="are of different weights"):
        report.collect(run)
    assert json.loads((run / "quality" / "provenance.json").read_text())["state_sha256"]
