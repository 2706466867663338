"""Every number of a user is finite, within float32 and within bounds; every argument is of its type."""

import logging
import math
from pathlib import Path

import pytest
import torch
from committed import V01

import hbench
from hbench import evaluate
from hbench.config import Diffusion, Experiment
from hbench.core.diffusion import alpha_bar_schedule
from hbench.core.seeds import starting_noise
from hbench.errors import MOST_SEED, HBenchError, as_list, check_at_least, check_seed, shown
from hbench.evaluation.rca import RCA
from hbench.experiments import _warn_once, load_experiment, override, warn_of_schedule
from hbench.store.datasets import RealImage

NUMBERS = [
    (section, key)
    for section, field in Experiment.model_fields.items()
    if hasattr(field.annotation, "model_fields")
    for key, setting in field.annotation.model_fields.items()
    if setting.annotation in (int, float, int | None, float | None)
]


@pytest.mark.parametrize(("section", "key"), NUMBERS)
@pytest.mark.parametrize("value", ["99999999999999999999", "-99999999999999999999", "1e300", "1e400", "nan", "true"])
def test_no_number_of_an_experiment_is_absurd(section, key, value):
    with pytest.raises(HBenchError) as error:
        load_experiment("mnist16", f"{section}.{key}={value}")
    assert f"{section}.{key}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["[1, 0]", "[1, -2]", "[]", "[1000000]", "[1, 99999999999999999999]", "[1, 2, 300]"])
def test_no_shape_of_a_network_is_absurd(value):
    with pytest.raises(HBenchError, match=r"channel_mult|8192"):
        load_experiment("mnist16", f"model.channel_mult={value}")


def test_a_number_of_any_length_is_refused_in_one_short_line():
    for value in (10**5000, -(10**5000)):
        with pytest.raises(HBenchError, match="a number of 5001 digits") as error:
            load_experiment("mnist16", **{"discovery.K": value})
        assert len(str(error.value)) < 300
    assert shown(12) == "12"


def test_settings_of_the_shipped_experiments_are_within_bounds():
    assert load_experiment("celebahq128").discovery.K == 256


# The noise schedule -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("T", "end"), [(1000, 0.02), (100, 0.02), (50, 0.3), (2, 0.5)])
def test_the_last_alpha_bar_is_that_of_the_schedule(T, end):
    settings = Diffusion(T=T, beta_end=end)
    assert settings.last_alpha_bar == pytest.approx(float(alpha_bar_schedule(T, 1e-4, end)[-1]))


def test_a_schedule_that_does_not_end_in_noise_is_noticed_once_with_a_remedy(caplog):
    _warn_once.cache_clear()
    caplog.set_level(logging.WARNING)
    small = ["discovery.M=4", "discovery.t_shift=10"]
    short = load_experiment("mnist16", ["diffusion.T=100", *small])
    warn_of_schedule(load_experiment("mnist16"))
    assert not caplog.messages
    warn_of_schedule(short)
    warn_of_schedule(short)
    (said,) = caplog.messages
    assert "leave alpha_bar(T - 1) = 0.36, which should be near 0" in said
    remedy = said.rpartition("set ")[2].replace(" = ", "=")
    assert remedy.startswith("diffusion.beta_end=0.")
    mended = load_experiment("mnist16", ["diffusion.T=100", remedy, *small])
    assert mended.diffusion.advice is None
    assert 1e-6 < mended.diffusion.last_alpha_bar < 1e-3
    assert "make diffusion.T larger" in Diffusion(T=2, beta_end=0.02).advice
    with pytest.raises(HBenchError, match="too little for float32"):
        load_experiment("mnist16", ["diffusion.beta_end=0.9"])


def test_training_and_sampling_tell_of_the_schedule(tmp_path, caplog, tiny_model, tiny):
    _warn_once.cache_clear()
    caplog.set_level(logging.WARNING)
    short = override(tiny, ["diffusion.T=100", "discovery.t_shift=10"])
    with pytest.raises(HBenchError, match="already holds results"):
        hbench.pretrain(short, torch.zeros(4, 1, 16, 16, dtype=torch.uint8), tiny_model, device="cpu")
    assert "which should be near 0" in caplog.messages[0]
    _warn_once.cache_clear()
    model = hbench.load_model(tiny_model, device="cpu")
    evaluate.sample(model, short, samples=1, steps=1, device="cpu")
    assert len([message for message in caplog.messages if "near 0" in message]) == 2


# Arguments ----------------------------------------------------------------------------------------------------------


def test_counts_and_seeds_have_bounds():
    check_at_least(1, pairs=10**7)
    for value, said in ((0, "at least 1, got 0"), (10**30, "at most 10000000, got 1000"), (10**99, "of 100 digits")):
        with pytest.raises(ValueError, match=said):
            check_at_least(1, pairs=value)
    for wrong in (2.5, True):
        with pytest.raises(TypeError, match="whole number"):
            check_at_least(1, pairs=wrong)
    assert starting_noise(MOST_SEED, 1) >= 0
    for seed in (-1, 2**63, 10**5000):
        for call in (check_seed, lambda seed: starting_noise(seed, 0)):
            with pytest.raises(ValueError, match="seed must be at"):
                call(seed)


def test_a_text_is_one_value_of_a_list(tmp_path):
    assert as_list("node") == ["node"]
    assert as_list(tmp_path) == [tmp_path]
    assert as_list(3) == [3]
    assert as_list((1, 2)) == [1, 2]
    assert load_experiment("mnist16", "discovery.K=3").discovery.K == 3
    assert override(load_experiment("mnist16"), "discovery.K=3").discovery.K == 3
    with pytest.raises(HBenchError, match=r"r: no metrics\.csv there"):
        evaluate.train_curves("r")
    with pytest.raises(HBenchError, match=r"im\.png: no such image"):
        hbench.read_images("im.png", load_experiment("mnist16").data)
    with pytest.raises(HBenchError, match=r"discovery\.strategy = 'n'"):
        evaluate.vram_sweep(load_experiment("mnist16"), strategies="n", steps=1, device="cpu")
    with pytest.raises(HBenchError, match=r"key\.json: "):
        evaluate.mos_score("marks.csv", tmp_path / "key.json")


@pytest.fixture(scope="module")
def run():
    return hbench.load_run("mnist16", device="cpu")


MNIST16 = load_experiment("mnist16")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: evaluate.plan(MNIST16, steps=[]), "steps must be at least 1"),
        (lambda run: evaluate.vram_sweep(MNIST16, steps=[]), "steps must be at least 1"),
        (lambda run: evaluate.vram_sweep(MNIST16, strategies=[]), "strategies must be at least 1"),
        (lambda run: evaluate.vram_sweep(MNIST16, memory_limit_mib=math.nan), "memory_limit_mib must be positive"),
        (lambda run: evaluate.vram_sweep(MNIST16, seed=2**64), "seed must be at most"),
        (lambda run: evaluate.rca(run, pairs=10**30), "pairs must be at most"),
        (lambda run: evaluate.rca(run, seed=2**64), "seed must be at most"),
        (lambda run: evaluate.fid(run, seed=-1), "seed must be at least 0"),
        (lambda run: run.noise(1, seed=2**63), "seed must be at most"),
        (lambda run: run.traverse(samples=10**9), "samples must be at most 1001"),
        (lambda run: run.generate(run.noise(1), {3: 10**400}), "must be finite, got a number of 401 digits"),
        (lambda run: run.generate(run.noise(1), {3: 1e40}), r"must be finite, got 1e\+40: float32 ends at"),
        (lambda run: run.generate(run.noise(1) * math.nan), "x_T must be finite"),
        (lambda run: hbench.train(MNIST16, run.model, "never", max_minutes=-1), "max_minutes must be positive"),
        (lambda run: hbench.train(MNIST16, run.model, "never", max_minutes=math.nan), "max_minutes must be positive"),
        (lambda run: hbench.train(MNIST16, run.model, "never", seed=2**63), "seed must be at most"),
        (lambda run: evaluate.mos_study({"a": run}, samples=10**9 + 1), "samples must be at most"),
        (lambda run: evaluate.mos_study({"a": run}, assessors=10**9), "assessors must be at most"),
        (lambda run: evaluate.sample(run.model, MNIST16, steps=10**30), "steps must be at most 1000"),
    ],
)
def test_a_number_out_of_bounds_is_refused(run, call, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        call(run)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: evaluate.rca("mnist16"), "run must be of type Run, as load_run returns it, got str"),
        (lambda run: evaluate.traverse(MNIST16), "run must be of type Run"),
        (lambda run: evaluate.properties("mnist16"), "run must be of type Run"),
        (lambda run: evaluate.edit("mnist16", [], {}), "run must be of type Run"),
        (
            lambda run: evaluate.edit(run, ["im.png"], {3: 1.0}),
            r"images\[0\] must be of type RealImage",
        ),
        (lambda run: evaluate.fid("mnist16"), "run must be of type Run"),
        (lambda run: evaluate.mos_study(run), "runs must be of type Mapping"),
        (lambda run: evaluate.mos_study({"a": "mnist16"}), r"runs\['a'\] must be of type Run"),
        (lambda run: hbench.direction_source("mnist16"), "run must be of type Run"),
        (
            lambda run: evaluate.sample(run, MNIST16),
            "must be of type Backbone, as load_model returns it, got Run",
        ),
        (lambda run: evaluate.sample(run.model, "mnist16"), "experiment must be of type Experiment"),
        (lambda run: evaluate.plan("mnist16"), "experiment must be of type Experiment"),
        (lambda run: evaluate.vram_sweep(run), "experiment must be of type Experiment"),
        (lambda run: evaluate.classifier("mnist16"), "experiment must be of type Experiment"),
        (lambda run: evaluate.ablations("mnist16", run.model, "never"), "experiment must be of type Experiment"),
        (lambda run: evaluate.ablations(MNIST16, run, "never"), "model must be of type Backbone"),
        (
            lambda run: evaluate.ablations(MNIST16, run.model, "never", variants=["a"]),
            "variants must be of type Map",
        ),
        (lambda run: hbench.train("mnist16", run.model, "never"), "experiment must be of type Experiment"),
        (lambda run: hbench.train(MNIST16, "mnist16", "never"), "model must be of type Backbone"),
        (lambda run: hbench.pretrain("mnist16", torch.zeros(1), "never"), "experiment must be of type Experiment"),
        (lambda run: hbench.pretrain(MNIST16, "folder", "never"), "images must be of type Tensor"),
        (lambda run: hbench.load_model("mnist16", "mnist16"), "experiment must be of type Experiment"),
        (lambda run: hbench.load_images(MNIST16), "data must be of type Data, the data of an experiment"),
        (lambda run: hbench.read_images([], MNIST16), "data must be of type Data"),
        (lambda run: hbench.plot(run, "never.png"), "result must be of type Result, as a measurement returns it"),
    ],
)
def test_an_argument_in_place_of_another_is_named(run, call, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=said):
        call(run)
    assert not any(tmp_path.iterdir())


def test_magnitudes_beyond_the_domain_are_noticed_and_those_without_an_image_refused(run, caplog):
    caplog.set_level(logging.WARNING)
    image = hbench.evaluate.sample(run.model, run.experiment, samples=1, steps=2, device="cpu").images
    real = [RealImage(Path("a.png"), ((image[0].clamp(-1, 1) + 1) * 127.5).to(torch.uint8), "", "0")]
    evaluate.edit(run, real, {3: 2 * run.S}, steps=2)
    assert not caplog.messages
    evaluate.edit(run, real, [{3: 1e3}, {3: 1e3, 7: 1.0}], steps=2)
    (said,) = caplog.messages
    assert said.startswith("direction 3 at s = 1e+03 is beyond 10 times S = 5")
    x_T = run.noise(1)
    assert torch.isfinite(run.generate(x_T, {3: 1e3}, steps=2)).all()
    for call in (lambda: run.generate(x_T, {3: 1e30}, steps=2), lambda: evaluate.edit(run, real, {3: 1e30}, steps=2)):
        with pytest.raises(HBenchError, match=r"edited by \|s\| up to 1e\+30 is not finite: take smaller magnitudes"):
            call()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 300 + "/y"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path, name):
    result = RCA.load(V01 / "rca")
    for call in (
        lambda: result.save(tmp_path / name),
        lambda: hbench.load_run(tmp_path / name),
        lambda: hbench.load_model(tmp_path / name),
        lambda: hbench.plot(result, tmp_path / name),
    ):
        with pytest.raises(HBenchError, match=r"null character|longer than a path can be"):
            call()
    assert not any(tmp_path.iterdir())
