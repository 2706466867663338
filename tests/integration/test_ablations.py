import json
import math
import shutil
from dataclasses import replace
from statistics import mean, stdev

import pandas as pd
import pytest
import torch
from command_line import TINY, copy_of_weights, invoke, refused, snapshot, tiny_options, written_again
from committed import V01
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hbench.evaluation.attributes.attributes as attributes_module
import hbench.evaluation.variants as variants_module
import hbench.training.step as step_module
from hbench.core.diffusion import alpha_bar_schedule, timesteps
from hbench.core.images import soft_clip, to_uint8
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.evaluation.ablations import OF_MEANING, Ablations, ablations, summarise
from hbench.evaluation.attributes.attributes import attributes
from hbench.evaluation.curves import TrainingCurves, train_curves
from hbench.evaluation.features import classifier_features
from hbench.evaluation.frechet import distance, frechet_distance, real_reference, statistics, stored_reference
from hbench.evaluation.sampling import draw_pairs
from hbench.evaluation.variants import Measured, train_variants
from hbench.experiments import load_experiment
from hbench.models import build_discriminator, build_model, build_reconstructor, build_shift_block
from hbench.reporting.artifacts import plot
from hbench.reporting.rows import variants
from hbench.store.classifier import load_classifier
from hbench.store.datasets import load_set
from hbench.store.model import load_model
from hbench.store.run import load_run
from hbench.store.weights import read_written_experiment
from hbench.training.checkpoint import CHECKPOINT
from hbench.training.discover import train
from hbench.training.step import Trained, losses, train_shift

CPU = torch.device("cpu")
FLOAT = "discovery.precision=float32"


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Look at few samples, where meaning is measured."""
    monkeypatch.setattr(variants_module, "MOST", 6)
    monkeypatch.setattr(attributes_module, "NATURAL", 130)


class Parts:
    """The trainable networks of an experiment, off their starting point, and one batch."""

    def __init__(self, experiment, model_path, seed=0, discriminator_seed=0):
        torch.manual_seed(seed)
        self.experiment = experiment
        self.model = load_model(model_path, experiment).requires_grad_(False)
        self.shift_block = build_shift_block(experiment, self.model)
        self.reconstructor = build_reconstructor(experiment)
        self.discriminator = build_discriminator(experiment).eval()
        torch.nn.init.normal_(self.shift_block.out_weight, std=0.05)
        self.x_T, self.x_0 = torch.randn(2, 4, 1, 16, 16)
        self.k, self.s = torch.tensor([0, 1, 2, 0]), torch.tensor([0.5, -2.0, 5.0, 1.0])
        torch.manual_seed(discriminator_seed)
        for parameter in self.discriminator.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        trained = [*self.shift_block.parameters(), *self.reconstructor.parameters()]
        self.optimizer = torch.optim.SGD(trained, lr=0.01)

    def train_shift(self):
        optimizer_D = torch.optim.SGD(self.discriminator.parameters(), lr=0.01)
        trained = Trained(self.shift_block, self.reconstructor, self.discriminator, self.optimizer, optimizer_D)
        return train_shift(
            self.experiment, Sampler.of(self.experiment, self.model, CPU), trained, self.x_T, self.x_0, self.k, self.s
        )


def tiny_with(*overrides):
    return load_experiment("digits16", [*TINY, FLOAT, *overrides])


def test_older_weights_get_the_defaults(tmp_path):
    file = copy_of_weights(V01, tmp_path / "run") / "shift_block.safetensors"
    with safe_open(file, "pt") as weights:
        metadata = weights.metadata()
    stored = json.loads(metadata["experiment"])
    del stored["discovery"]["fidelity"], stored["discovery"]["gradient"]  # as before they existed
    save_file(load_file(file), file, metadata | {"experiment": json.dumps(stored)})
    written_again(file.parent)
    settings = load_run(file.parent, device=CPU).experiment.discovery
    assert (settings.fidelity, settings.gradient) == ("adversarial", "chain")


@pytest.mark.parametrize(
    ("override", "column"),
    [
        ("discovery.fidelity=l1", "loss_l1"),
        ("discovery.fidelity=none", None),
        ("discovery.gradient=per-step", "loss_adv"),
        ("discovery.lambda_odd=1", "loss_adv"),
    ],
)
def test_each_setting_trains_directions_and_the_discriminator(override, column, tmp_path, tiny_model):
    experiment = load_experiment("digits16", [*TINY, override])
    torch.manual_seed(1)
    started = {name: value.clone() for name, value in build_discriminator(experiment).state_dict().items()}
    assert train(experiment, load_model(tiny_model, experiment), tmp_path, device=CPU)
    assert load_file(tmp_path / "shift_block.safetensors")["out_weight"].abs().sum() > 0
    zero = [name for name, value in started.items() if not value.any()]  # such as the last layer
    assert any(load_file(tmp_path / "discriminator.safetensors")[name].any() for name in zero)
    logged = set(pd.read_csv(tmp_path / "metrics.csv").columns)
    assert logged & {"loss_l1", "loss_adv"} == ({column} if column else set())
    assert ("loss_odd" in logged) == ("lambda_odd" in override)
    assert {"loss", "loss_k", "loss_s", "accuracy", "loss_D", "D_raw", "D_shifted"} <= logged


@pytest.mark.parametrize("gradient", ["chain", "per-step"])
@pytest.mark.parametrize(("fidelity", "felt"), [("adversarial", True), ("l1", False), ("none", False)])
def test_only_the_adversarial_loss_lets_the_shift_block_feel_the_discriminator(fidelity, felt, gradient, tiny_model):
    experiment = tiny_with(f"discovery.fidelity={fidelity}", f"discovery.gradient={gradient}")
    one, other = (Parts(experiment, tiny_model, discriminator_seed=seed) for seed in (1, 2))
    before = one.shift_block.out_weight.detach().clone()
    one.train_shift()
    other.train_shift()
    assert not torch.equal(one.shift_block.out_weight, before)
    assert torch.equal(one.shift_block.out_weight, other.shift_block.out_weight) != felt
    assert all(p.grad is None and p.requires_grad for p in one.discriminator.parameters())


def test_l1_is_weighted_by_the_magnitude(tiny_model):
    experiment = tiny_with("discovery.fidelity=l1", "discovery.lambda_l1=4", "discovery.lambda_reg=0")
    parts = Parts(experiment, tiny_model)
    x_0 = torch.zeros(4, 1, 16, 16)
    x_0_shifted = torch.tensor([0.1, 0.2, -0.5, 0.0])[:, None, None, None] * torch.ones_like(x_0)
    row = losses(experiment.discovery, parts, x_0, x_0_shifted, parts.k, parts.s)
    assert row["loss_l1"].item() == pytest.approx((0.1 / 0.5 + 0.2 / 2 + 0.5 / 5 + 0) / 4)
    assert row["loss"].item() == pytest.approx(row["loss_k"].item() + 4 * row["loss_l1"].item())


def test_the_oddness_loss_wants_both_signs_on_opposite_sides(tiny_model):
    experiment = tiny_with("discovery.fidelity=none", "discovery.lambda_odd=3", "discovery.lambda_reg=0")
    parts = Parts(experiment, tiny_model)
    one = torch.randn(1, 1, 16, 16)
    row = losses(
        experiment.discovery, parts, parts.x_0, parts.x_0 + torch.cat([one, -2 * one, one, one]), parts.k, parts.s
    )
    assert row["loss_odd"].item() == pytest.approx(1 + (-1 + 1) / 2, abs=1e-5)
    assert row["loss"].item() == pytest.approx(row["loss_k"].item() + 3 * row["loss_odd"].item())


@pytest.mark.parametrize("pool", [0, 8])
def test_oddness_trains_on_pairs_of_one_x_T_and_direction(pool, tiny_model, monkeypatch):
    experiment = tiny_with("discovery.lambda_odd=1", f"discovery.pool={pool}")
    sampler = Sampler.of(experiment, load_model(tiny_model, experiment).requires_grad_(False), CPU)
    trained, draw_raw = step_module.initial(experiment, sampler, 0), step_module.raw_pairs(experiment, sampler, 0)
    seen = []
    monkeypatch.setattr(step_module, "train_shift", lambda *args: seen.append(args) or train_shift(*args))
    row = step_module.train_step(experiment, sampler, trained, draw_raw, 0, 0)
    x_T, x_0, k, s = seen[0][3:7]
    assert 0 <= row["loss_odd"] <= 2
    assert (x_0 is None) == (not pool)
    for batch in (x_T, k) if x_0 is None else (x_T, x_0, k):
        assert torch.equal(batch[::2], batch[1::2])
    assert torch.equal(s[::2], -s[1::2])
    assert not torch.equal(x_T[0], x_T[2])


@pytest.mark.parametrize("gradient", ["chain", "per-step"])
def test_directions_that_keep_their_size_turn_and_do_not_shrink(gradient, tiny_model):
    shared = ["discovery.start=0.5", f"discovery.gradient={gradient}"]
    kept, free = (Parts(tiny_with(*shared, f"discovery.keep_size={keep}"), tiny_model) for keep in ("true", "false"))
    size = 0.5 * kept.shift_block.out_weight.shape[-1] ** 0.5
    for parts in (kept, free):
        with torch.no_grad():
            parts.shift_block.out_weight.mul_(size / outputs(parts).norm(dim=1)[:, None, None])
    before = outputs(kept).clone()
    for parts in (kept, free):
        parts.optimizer = torch.optim.Adam([parts.shift_block.out_weight], lr=0.01)
        parts.train_shift()
    norms = outputs(kept).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, size))
    assert (outputs(free).norm(dim=1) / size - 1).abs().min() > 1e-5
    assert torch.cosine_similarity(outputs(kept), before).max() < 1 - 1e-5


def outputs(parts):
    return parts.shift_block.out_weight.detach().flatten(1)


def test_only_the_reconstructor_sees_its_noise(tiny_model):
    for fidelity in ("adversarial", "l1"):
        parts = Parts(tiny_with(f"discovery.fidelity={fidelity}"), tiny_model)
        parts.reconstructor.eval()
        arguments = (parts.experiment.discovery, parts, parts.x_0, parts.x_0 + 0.1, parts.k, parts.s)
        noise = torch.randn(4, 2, 1, 16, 16)
        clean, noisy, none = losses(*arguments), losses(*arguments, noise), losses(*arguments, 0 * noise)
        judged = "loss_adv" if fidelity == "adversarial" else "loss_l1"
        assert noisy[judged] == clean[judged]
        assert noisy["loss_k"] != clean["loss_k"]
        assert all(torch.equal(none[name], clean[name]) for name in clean)
        raw, shifted = noise.unbind(1)
        by_hand, _ = parts.reconstructor(soft_clip(arguments[2], 1.1) + raw, soft_clip(arguments[3], 1.1) + shifted)
        assert torch.nn.functional.cross_entropy(by_hand, parts.k) == noisy["loss_k"]


def test_noise_of_zero_leaves_the_random_numbers_of_a_step_as_they_were(tiny, tiny_model, monkeypatch):
    """And another sigma scales the same noise, which is new in every step."""
    seen = {}

    def record(experiment, sampler, trained, x_T, x_0, k, s, noise):
        seen.setdefault(experiment.discovery.reconstructor_noise, []).append((x_T, k, s, noise))
        return {"loss": torch.zeros(())}, x_T, x_T

    monkeypatch.setattr(step_module, "train_shift", record)
    monkeypatch.setattr(step_module, "train_discriminator", lambda *_: {})
    for sigma in (0.0, 0.1, 0.2):
        experiment = tiny_with(f"discovery.reconstructor_noise={sigma}", "discovery.pool=0")
        sampler = Sampler.of(experiment, load_model(tiny_model, experiment).requires_grad_(False), CPU)
        trained, draw_raw = step_module.initial(experiment, sampler, 0), step_module.raw_pairs(experiment, sampler, 0)
        for step in range(2):
            step_module.train_step(experiment, sampler, trained, draw_raw, 0, step)
    for none, small, large in zip(*seen.values(), strict=True):
        assert none[3] is None
        assert all(
            torch.equal(a, b) and torch.equal(a, c) for a, b, c in list(zip(none, small, large, strict=True))[:3]
        )
        torch.testing.assert_close(2 * small[3], large[3])
    assert seen[0.1][0][3].std().item() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(seen[0.1][0][3], seen[0.1][1][3])


def test_per_step_equals_a_loop_written_out(tiny_model):
    experiment = tiny_with("discovery.gradient=per-step", "discovery.fidelity=l1")
    settings = experiment.discovery
    tested, written = Parts(experiment, tiny_model), Parts(experiment, tiny_model)
    row, _, x_0_shifted = tested.train_shift()

    a = [*alpha_bar_schedule().tolist(), 1.0]
    x, found = written.x_T, []
    written.reconstructor.train()
    descending = timesteps(settings.M)
    for t, t_prev in zip(descending, [*descending[1:], -1], strict=True):
        h, skips, emb = written.model.encode(x, torch.full((4,), t))
        eps = written.model.decode(h, skips, emb)
        used = eps
        if t >= settings.t_shift:
            delta_h = written.s[:, None, None, None] * written.shift_block(h, emb, written.k)
            used = written.model.decode(h + delta_h, skips, emb)
        P_t = (x - math.sqrt(1 - a[t]) * used) / math.sqrt(a[t])
        x = (math.sqrt(a[t_prev]) * P_t + math.sqrt(1 - a[t_prev]) * eps).detach()
        if t >= settings.t_shift:
            loss = losses(settings, written, written.x_0, P_t, written.k, written.s)["loss"]
            parameters = [*written.shift_block.parameters(), *written.reconstructor.parameters()]
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= 0.01 * gradient
            found.append(loss.item())
    assert len(found) == 2  # of the timesteps 999, 665, 332
    torch.testing.assert_close(x_0_shifted, x)
    assert row["loss"] == pytest.approx(sum(found) / 2, rel=1e-5)
    for one, other in zip(tested.shift_block.parameters(), written.shift_block.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_per_step_resumes_with_the_same_bits(precision, tmp_path, tiny_model):
    experiment = load_experiment("digits16", [*TINY, "discovery.gradient=per-step", f"discovery.precision={precision}"])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert train(experiment, load_model(tiny_model, experiment), whole, device=CPU)
    model = load_model(tiny_model, experiment)
    assert not train(experiment, model, broken, device=CPU, max_minutes=1e-6)
    assert train(experiment, model, broken, device=CPU, resume=True)
    for role in ("shift_block", "reconstructor", "discriminator"):
        expected, found = (load_file(folder / f"{role}.safetensors") for folder in (whole, broken))
        assert all(torch.equal(expected[key], found[key]) for key in expected), role
    assert (whole / "metrics.csv").read_text() == (broken / "metrics.csv").read_text()


@pytest.mark.slow
def test_checkpoints_of_earlier_versions_resume_as_what_they_were(tmp_path, tiny, tiny_model):
    model = load_model(tiny_model, tiny)
    train(tiny, model, tmp_path, device=CPU, max_minutes=1e-6)
    about = json.loads((tmp_path / CHECKPOINT).read_text())
    for key in ("fidelity", "lambda_l1", "gradient"):
        del about["experiment"]["discovery"][key]
    (tmp_path / CHECKPOINT).write_text(json.dumps(about))
    other = load_experiment("digits16", [*TINY, "discovery.fidelity=l1"])
    with pytest.raises(HBenchError, match=r"was started with discovery\.fidelity = 'adversarial'"):
        train(other, model, tmp_path, device=CPU, resume=True)
    assert train(tiny, model, tmp_path, device=CPU, resume=True)


def test_settings_that_cannot_work_are_refused(tmp_path, tiny_model):
    with pytest.raises(HBenchError, match=r"divides by \|s\|: make discovery.min_magnitude positive"):
        tiny_with("discovery.fidelity=l1", "discovery.min_magnitude=0")
    experiment = tiny_with("discovery.spacing=leading", "discovery.t_shift=900")
    with pytest.raises(HBenchError, match="t_shift = 900 shifts no timestep: need at most 666"):
        train(experiment, load_model(tiny_model, experiment), tmp_path, device=CPU)
    assert not any(tmp_path.iterdir())


def test_train_curves_of_runs_of_different_length(tmp_path, tiny_run, tiny):
    other = tmp_path / "other"
    other.mkdir()
    experiment = load_experiment("digits16", [*TINY, "discovery.fidelity=none", "discovery.K=5"])
    (other / "experiment.json").write_text(experiment.model_dump_json())
    rows = pd.DataFrame({"step": range(7), "accuracy": [0, 0, 0, 0, 0.1, 0.2, 0.6], "D_raw": 0.7, "D_shifted": 0.2})
    rows.to_csv(other / "metrics.csv", index=False)
    out = tmp_path / "out"
    result = invoke("train-curves", tiny_run, other, "--out", out)
    assert result.exit_code == 0, result.output
    names = {"train-curves.csv", "train-curves.json", "train-curves.png", "provenance.json"}
    assert {path.name for path in out.iterdir()} == names
    table = pd.read_csv(out / "train-curves.csv").set_index("run")
    assert table.loc["other", ["steps", "n"]].tolist() == [7, 3]
    assert table.loc["other", "accuracy"] == pytest.approx(0.3)
    assert table.loc["other", "settings"] == "K=5, fidelity=none"
    assert table.loc["train", "settings"] == "K=3, fidelity=adversarial"
    logged = pd.read_csv(tiny_run / "metrics.csv")
    assert table.loc["train", "loss_D"] == pytest.approx(logged["loss_D"].tail(2).mean())  # 2 = a third of 4, up
    record = json.loads((out / "train-curves.json").read_text())["runs"]
    assert record[1]["loss_D"] is None
    assert "add --overwrite" in refused("train-curves", other, "--out", out)
    assert "loss_l1" not in record[0]  # none of the runs has it
    back = TrainingCurves.load(out)
    assert back == train_curves([tiny_run, other])
    assert back.provenance.seed is None  # nothing in it is random
    with pytest.raises(HBenchError, match="has nothing to draw"):
        plot(back, tmp_path / "curves.png")
    assert "No such option" in refused("train-curves", other, "--seed", 1)


def test_train_curves_name_what_is_missing(tmp_path, tiny_run, tiny_model):
    out = ["--out", tmp_path / "out"]
    assert "no metrics.csv there: give the folder of a discovery" in refused("train-curves", tmp_path, *out)
    assert "its metrics.csv holds no discovery" in refused("train-curves", tiny_model, *out)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "experiment.json").write_text((tiny_run / "experiment.json").read_text())
    for text in ("", '"', "step,accuracy\n"):
        (broken / "metrics.csv").write_text(text)
        assert str(broken) in refused("train-curves", tiny_run, broken, *out)
    (broken / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused("train-curves", broken, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ablations_train_measure_and_resume(tmp_path, tiny_model):
    out = tmp_path / "out"
    small = tiny_options("discovery.M=2", "discovery.steps=2")
    run = ["ablations", "digits16", *small, "--pairs", 16, "--out", out, "--quiet"]
    stopped = invoke(*run, "--model", tiny_model, "--seeds", "0", "--max-minutes", 1e-6)
    assert stopped.exit_code == 0, stopped.output
    assert "go on with --resume" in stopped.stderr
    assert not (out / "ablations.csv").exists()

    assert "already holds results" in refused(*run, "--model", tiny_model)
    other = [*run, "--set", "model.channel_mult=[1,2]", "--model", "mnist16", "--resume"]
    assert "was trained with model.channel_mult = (1, 2, 2), not (1, 2)" in refused(*other)
    line = refused(*run, "--seeds", "0", "--resume", "--set", "discovery.lr=0.5")
    assert "full-seed0: was started with discovery.lr" in line

    result = invoke(*run, "--seeds", "0", "--resume")
    assert result.exit_code == 0, result.output
    assert "so neither KID nor FD" in result.stderr
    assert result.stderr.count("100% of the raw samples leave the image domain") == 3  # of the trainings left
    results = {"ablations.csv", "ablations.json", "ablations.png", "directions.png", "summary.csv", "provenance.json"}
    folders = {"full-seed0", "l1-seed0", "none-seed0", "per-step-seed0"}
    assert {path.name for path in out.iterdir()} == results | folders | {"model.safetensors", "experiment.json"}
    table = pd.read_csv(out / "ablations.csv")
    assert table["variant"].tolist() == ["full", "l1", "none", "per-step"]
    assert table["fd_raw"].isna().all()
    (measured, *_) = json.loads((out / "ablations.json").read_text())["runs"]
    assert measured["fd_raw"] is None
    assert (measured["threads"], measured["seconds"] > 0) == (1, True)
    settings = json.loads((out / "per-step-seed0" / "experiment.json").read_text())["discovery"]
    assert (settings["fidelity"], settings["gradient"]) == ("adversarial", "per-step")

    before = snapshot(out / "l1-seed0")
    assert invoke(*run, "--seeds", "0", "--resume").exit_code == 0
    assert snapshot(out / "l1-seed0") == before


def test_no_training_begins_once_the_time_is_over(tmp_path, tiny, monkeypatch, caplog):
    begun = []
    monkeypatch.setattr("hbench.evaluation.variants.train", lambda *_, seed, **__: begun.append(seed) or True)
    assert not train_variants(tiny, build_model(tiny), {"full": []}, (0, 1), tmp_path, device=CPU, max_minutes=0)
    assert begun == [0]  # each call gets further
    assert "stopped by `max_minutes` before full-seed1: go on with `resume=True`" in caplog.text


def test_a_finished_training_goes_on_where_it_is_to_get_more_steps(tmp_path, tiny, tiny_run, monkeypatch):
    begun = []
    monkeypatch.setattr("hbench.evaluation.variants.train", lambda wanted, *_, **__: begun.append(wanted) or True)
    shutil.copytree(tiny_run, tmp_path / "full-seed0")
    shutil.copy(tiny_run / "model.safetensors", tmp_path)
    for steps, expected in ((4, 0), (5, 1)):
        longer = load_experiment("digits16", [*TINY, f"discovery.steps={steps}"])
        assert train_variants(longer, build_model(tiny), {"full": []}, (0,), tmp_path, device=CPU)
        assert len(begun) == expected


@pytest.mark.slow
def test_each_value_of_a_setting_is_a_variant(tmp_path, tiny_model, classifier_file, monkeypatch):
    out = tmp_path / "settings"
    drawn = []
    monkeypatch.setattr("hbench.reporting.grids.draw_directions", lambda *arguments: drawn.append(arguments))
    over = ["--over", "discovery.lambda_adv=0,2", "--over", "discovery.spacing=linspace", "--over", "discovery.K=5"]
    run = [
        "ablations",
        "digits16",
        *tiny_options("discovery.M=2"),
        "--model",
        tiny_model,
        "--out",
        out,
        "--pairs",
        130,
        *over,
    ]
    result = invoke(*run, "--seeds", "0", "--classifier", classifier_file)
    assert result.exit_code == 0, result.output
    names = ["as it is", "lambda_adv=0", "lambda_adv=2", "spacing=linspace", "K=5"]
    table = pd.read_csv(out / "ablations.csv")
    assert table["variant"].tolist() == names
    assert table["chance"].tolist() == [pytest.approx(1 / K) for K in (3, 3, 3, 3, 5)]
    settings = [read_written_experiment(out / f"{name}-seed0" / "experiment.json").discovery for name in names]
    assert [each.lambda_adv for each in settings] == [1, 0, 2, 1, 1]
    assert [each.spacing for each in settings] == ["trailing", "trailing", "trailing", "linspace", "trailing"]
    spacings = [each.spacing for each in settings]
    for spacing in ("trailing", "linspace"):  # raw samples depend on nothing that is trained, and the x_T are the same
        assert table["fd_raw"][[each == spacing for each in spacings]].nunique() == 1
    measured = load_run(out / "K=5-seed0", device=CPU)
    pairs = draw_pairs(measured, 0, 0, 130)
    real = stored_reference(classifier_file).statistics
    images = load_set(measured.experiment.data, split="reference").images
    reference = real_reference(classifier_features(load_classifier(classifier_file), images))
    for kind, images in (("raw", "x_0"), ("shifted", "x_0_shifted")):
        found = classifier_features(load_classifier(classifier_file), to_uint8(getattr(pairs, images)))
        assert table[f"fd_{kind}"][4] == pytest.approx(frechet_distance(statistics(found), real), rel=1e-3), kind
        assert table[f"kid_{kind}"][4] == pytest.approx(distance(found, reference).kid, rel=1e-3), kind
    assert "the FDs compare only with each other: they are of n = 130" in result.stderr
    for seed, name in enumerate(names):
        effects = attributes(load_run(out / f"{name}-seed0", device=CPU), samples=variants_module.MOST)
        assert table["visible"][seed] == len(effects.visible) / len(effects.directions)
        assert table["named"][seed] == len(effects.proposed_names) / len(effects.directions)
    shown = ["RCA", "KID (LeNet digits) shifted", "KID raw", "FD (LeNet digits) shifted, n = 130"]
    assert variants(Ablations.load(out)).columns[2:6] == shown
    weights = [load_file(out / f"{name}-seed0" / "shift_block.safetensors")["out_weight"] for name in names]
    assert not torch.equal(weights[1], weights[2])  # the setting was used
    assert (out / "ablations.png").is_file()
    images, labels, *_, columns = drawn[0]
    assert len(images) == len(labels) == len(names) * columns  # a row each, of as many directions as the fewest have
    assert [label.split(":")[0] for label in labels] == [name for name in names for _ in range(3)]
    assert "variants" in json.loads((out / "provenance.json").read_text())


def test_ablations_refuse_mistakes_before_any_training(tmp_path, tiny_model):
    out = tmp_path / "out"
    for seeds in ("", "0,0", "0,-1", "a", "0;1"):
        assert "distinct non-negative integers" in refused(
            "ablations", "digits16", "--model", tiny_model, "--seeds", seeds, "--out", out
        )
    run = ["ablations", "mnist16-ablations", "--model", "mnist16", "--out", out]
    assert "n = 100 is too small for the FD" in refused(*run, "--pairs", 100)
    assert 'write "discovery.key=value,value"' in refused(*run, "--over", "pretrain.lr=1")
    assert 'did you mean "lambda_adv"' in refused(*run, "--over", "discovery.lamda_adv=1")
    assert "discovery.S=0: discovery.S" in refused(*run, "--over", "discovery.S=5,0")
    other = ["--lenet", V01 / "lenet" / "lenet.safetensors"]  # the option's name in hbench 0.1
    line = refused("ablations", "digits16", *tiny_options(), "--model", tiny_model, *other, "--out", out)
    assert "was trained on other images" in line
    assert not out.exists()


def test_summary_has_the_t_interval_over_seeds():
    unknown = ("magnitude_error", "D_raw", "D_shifted", "kid_raw", "kid_shifted", "fd_raw")
    nothing = dict.fromkeys((*unknown, *OF_MEANING), math.nan)
    rest = nothing | {"n": 9, "chance": 0.1, "device": "CPU", "threads": 1, "seconds": 1.0, "commit": None}
    runs = [
        Measured(variant=variant, seed=seed, rca=rca, outside=outside, fd_shifted=fd, rca_low=0.0, rca_high=1.0, **rest)
        for variant, seed, rca, outside, fd in (
            ("a", 0, 0.1, 0.0, 0.518),
            ("a", 1, 0.2, 0.09, 1.646),
            ("a", 2, 0.3, 0.09, 1.672),
            ("b", 0, 0.5, 0.0, 1.0),
        )
    ]
    found = {(mean.variant, mean.metric): mean for mean in summarise(runs)}
    rca = found["a", "rca"]
    assert rca.mean == pytest.approx(0.2)
    logits = [math.log(value / (1 - value)) for value in (0.1, 0.2, 0.3)]
    high = mean(logits) + 4.302653 * stdev(logits) / math.sqrt(3)  # t table, 2 degrees
    assert rca.high == pytest.approx(1 / (1 + math.exp(-high)))
    assert (rca.seeds, rca.min, rca.max) == (3, 0.1, 0.3)
    assert 0 < found["a", "fd_shifted"].low < 0.518  # a t-interval of the values themselves begins at -0.36
    assert found["a", "outside"].low == 0
    assert found["a", "outside"].high == pytest.approx(0.06 + 4.302653 * 0.09 / 3)
    assert math.isnan(found["b", "rca"].high)
    assert math.isnan(found["b", "outside"].low)
    seen = [replace(run, rca_visible=value) for run, value in zip(runs, (0.99, 1.0, math.nan, 0.5), strict=True)]
    (of_seen,) = (mean for mean in summarise(seen) if (mean.variant, mean.metric) == ("a", "rca_visible"))
    assert of_seen.high == 1  # Student's own interval ends above it
    table = variants(Ablations(runs=seen, means=summarise(seen)))
    cells = dict(zip(table.columns, table.lines[0], strict=True))
    assert cells["RCA, visible ones"].endswith("(of 2)")
    assert not cells["RCA"].endswith(")")
    guessing, distances, *_ = Ablations(runs=runs, means=summarise(runs)).cautions()
    assert "RCA of 4 of 4 trainings (a-seed0, a-seed1, a-seed2, b-seed0) does not lie above chance" in guessing
    assert distances.startswith("the FDs compare only")
    good = [replace(run, rca_low=0.4, outside=0.6 * run.seed, fd_shifted=math.nan) for run in runs[:2]]
    (destroyed,) = Ablations(runs=good, means=summarise(runs)).cautions()
    assert "the shifted samples of 1 of 2 trainings (a-seed1) leave the image domain" in destroyed


def test_damaged_older_ablations_are_refused_in_words():
    values = json.loads((V01 / "ablations" / "ablations.json").read_text()) | {"schema": 1}
    for runs in ([], [{}], [3], [values["runs"][0] | {"rca": "x"}]):
        with pytest.raises(HBenchError, match="is no ablations result as hbench"):
            Ablations.from_json(values | {"runs": runs}, "ablations.json")


@pytest.mark.parametrize("name", ["ablations", "settings"])
def test_the_committed_ablations_give_their_files_again(name, tmp_path):
    folder = V01 / name
    result = Ablations.load(folder)
    assert summarise(result.runs) == result.means  # the same bits
    result.write_into(tmp_path)
    assert json.loads((tmp_path / "ablations.json").read_text()).keys() >= {"runs", "summary"}
    for table in ("ablations.csv", "summary.csv"):
        assert (tmp_path / table).read_text() == (folder / table).read_text()


def test_ablations_from_python_check_what_they_are_asked(tiny, tmp_path):
    model = build_model(tiny)
    for wrong in ({"variants": {}}, {"seeds": ()}, {"pairs": 0}):
        with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
            ablations(tiny, model, tmp_path / "out", **wrong)
    (tmp_path / "file").touch()
    with pytest.raises(HBenchError, match="already holds results"):
        ablations(tiny, model, tmp_path, pairs=130)


@pytest.mark.parametrize("name", ["", "../outside", "a/b", "/outside"])
def test_a_variant_writes_into_no_other_folder(name, tiny, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="names a folder of its trainings"):
        ablations(tiny, build_model(tiny), tmp_path / "out", variants={"full": [], name: []}, pairs=130)
    assert not list((tmp_path / "out").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
