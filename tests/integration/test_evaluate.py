import dataclasses
import math
import shutil

import pytest
import torch
from command_line import invoke
from committed import V01
from safetensors.torch import load_file
from torch import nn

from hbench.config import Paper
from hbench.errors import HBenchError
from hbench.evaluation import evaluate, sampling
from hbench.evaluation.rca import known_rca, rca, read_rca
from hbench.evaluation.sampling import ChosenNoise, choose_x_T, draw_pairs
from hbench.reporting.rows import rca_rows
from hbench.store.classifier import load_classifier, shipped_classifier
from hbench.store.directions import DirectionSource
from hbench.store.model import load_model
from hbench.store.run import load_run

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_run):
    return load_run(tiny_run, device=CPU)


class Oracle(nn.Module):
    """Answers with what was drawn, in the order of the pairs."""

    def __init__(self, run, count, seed):
        super().__init__()
        pairs = draw_pairs(run, seed, 0, count)
        self.k, self.s = pairs.k, pairs.s
        self.K = run.experiment.discovery.K
        self.first = 0

    def forward(self, x_0, x_0_shifted):
        chosen = slice(self.first, self.first + len(x_0))
        self.first += len(x_0)
        return nn.functional.one_hot(self.k[chosen], self.K).float(), self.s[chosen]


def with_reconstructor(run, reconstructor):
    return dataclasses.replace(run, reconstructor=reconstructor)


def test_rca_says_when_the_diffusion_model_makes_noise(run):
    result = rca(run, pairs=40)
    assert (result.outside_raw, result.outside_raw_interval[1]) == (1, 1)
    assert abs(result.neighbours_raw) < 0.1
    assert "samples outside the domain: raw 100.00%, shifted 100.00%" in result.summary()
    outside, noise, *_, destroyed, chance = result.cautions()
    assert outside.startswith("100% of the raw samples leave the image domain")
    assert "the samples look like noise" in noise
    assert destroyed.startswith("100% of the shifted samples leave the image domain")
    assert "does not lie above chance, 0.333" in chance


@pytest.mark.parametrize("pairs", [1, 2])
def test_intervals_of_few_pairs_stay_in_range(run, pairs):
    result = rca(run, pairs=pairs)
    for name, highest in (("magnitude_error", math.inf), ("D_raw", 1), ("D_shifted", 1)):
        low, high = getattr(result, f"{name}_interval")
        assert math.isnan(low) if pairs == 1 else 0 <= low <= getattr(result, name) <= high <= highest


def test_rca_of_a_trained_run_warns_of_what_nobody_sees_and_older_files_know_neither_that_nor_the_raw_samples():
    result = rca(load_run(V01, device=CPU), pairs=40)
    (hidden,) = result.cautions()
    assert hidden.startswith("10 of 32 directions cannot be seen: 6, 14, 15, 16, 18, 20, 23, 26, 28, 29; ")
    assert (result.outside_raw, result.neighbours_raw > 0.6) == (0, True)
    values = result.to_json() | {"schema": 1}
    for new in ("outside_raw", "outside_raw_interval", "neighbours_raw", "n_visible", "visible_change", "oddness"):
        del values[new]
    for new in ("visible_change_interval", "visible_in_most", "accuracy_visible", "accuracy_visible_interval"):
        del values[new]
    old = type(result).from_json(values, "rca.json")
    assert "raw not measured" in old.summary()
    assert old.cautions() == []
    assert len(rca_rows(old, Paper())) == len(rca_rows(result, Paper())) - 2


@pytest.mark.slow
def test_an_oracle_is_always_right(run):
    result = rca(with_reconstructor(run, Oracle(run, 100, 3)), pairs=100, seed=3)
    assert result.accuracy == 1
    assert result.interval[1] == 1
    assert result.magnitude_error == 0
    assert result.per_direction == [1, 1, 1]
    assert sum(map(sum, result.confusion)) == 100


@pytest.mark.slow
def test_a_constant_answer_is_at_chance(run):
    class Constant(nn.Module):
        def forward(self, x_0, x_0_shifted):
            return torch.tensor([[1.0, 0, 0]]).repeat(len(x_0), 1), torch.zeros(len(x_0))

    result = rca(with_reconstructor(run, Constant()), pairs=200)
    assert result.interval[0] < 1 / 3 < result.interval[1]
    assert result.chance == pytest.approx(1 / 3)
    assert result.ranking()[0] == 0


def test_the_interval_is_wilsons(run):
    result = rca(run, pairs=50)
    n, p, z = 50, result.accuracy, 1.959964
    center, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
    )
    assert result.interval == pytest.approx((center - half, center + half), abs=1e-5)


def test_a_pair_depends_only_on_the_seed_and_its_number(run):
    whole, part = draw_pairs(run, 5, 0, 6), draw_pairs(run, 5, 4, 2)
    assert torch.equal(whole.k[4:], part.k)
    assert torch.equal(whole.s[4:], part.s)
    # bfloat16 kernels round differently for other batch sizes
    torch.testing.assert_close(whole.x_0_shifted[4:], part.x_0_shifted, rtol=0.05, atol=0.05)
    assert not torch.equal(whole.s, draw_pairs(run, 6, 0, 6).s)


def test_pairs_along_some_directions_are_else_the_same(run):
    some, others = draw_pairs(run, 5, 0, 12, directions=[0, 2]), draw_pairs(run, 5, 0, 12)
    assert set(some.k.tolist()) == {0, 2}
    assert torch.equal(some.s, others.s)
    torch.testing.assert_close(some.x_0, others.x_0)


def test_traverse_has_the_original_in_the_middle(run):
    images = run.traverse([2, 0], examples=3, samples=5, seed=4).images
    assert images.shape == (2, 3, 5, 1, 16, 16)
    raw = run.generate(run.noise(3, seed=4))
    for direction in images:
        torch.testing.assert_close(direction[:, 2], raw, rtol=0.05, atol=0.05)
    assert not torch.equal(images[:, :, 0], images[:, :, 2])


def measured(folder, run, *options):
    """Measure the RCA of a run folder into another folder."""
    result = invoke("rca", run, *options, "--out", folder, "--quiet")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def around(tmp_path, tiny_run):
    """A copy of the tiny run, with an RCA of 24 pairs in it and one of 40 beside it."""
    folder = tmp_path / "train"
    shutil.copytree(tiny_run, folder)
    measured(folder / "rca", folder, "--pairs", 24)
    measured(tmp_path / "rca", tiny_run, "--pairs", 40)
    return folder


@pytest.mark.slow
def test_the_largest_measurement_of_the_run_ranks_its_directions(tmp_path, around):
    run = load_run(around, device=CPU)
    assert known_rca(run).n == 40
    assert known_rca(load_run(around.parent / "train", device="cpu")).brief.endswith("at n = 40")
    by_it = invoke("traverse", around, "--examples", 1, "--quiet")
    assert "ranked by n = 40 pairs" in by_it.stdout
    assert evaluate.Traversal.load(around / "traverse").pairs == 40
    fresh = invoke("traverse", around, "--examples", 1, "--pairs", 8, "--out", tmp_path / "fresh", "--quiet")
    assert "ranked by n = 8 pairs" in fresh.stdout
    said = measured(tmp_path / "small", around, "--pairs", 8).splitlines()
    assert "n 8" in said[0]
    assert said[-1] == f"larger measurement of this run: RCA {known_rca(run).brief}"
    assert "larger" not in measured(tmp_path / "large", around, "--pairs", 64)


@pytest.mark.slow
def test_a_measurement_of_other_weights_or_directions_ranks_nothing(around):
    run = load_run(around, device=CPU)
    of_others = dataclasses.replace(run, hashes=run.hashes | {"shift_block": "0" * 64})
    assert known_rca(of_others) is None
    for found in (DirectionSource("mean", run.own, "1" * 64), DirectionSource("own", run.own, "1" * 64)):
        assert known_rca(run, found) is None
        with pytest.raises(HBenchError, match="other weights or directions"):
            read_rca(around / "rca" / "rca.json", run, found)
    (around / "rca" / "rca.json").write_text("{")
    with pytest.raises(HBenchError, match=r"rca\.json"):
        known_rca(run)


@pytest.mark.slow
def test_pictures_show_samples_that_the_classifier_is_sure_of(monkeypatch):
    trained = load_run(V01, device=CPU)
    chosen = choose_x_T(trained, 6)
    network = load_classifier(shipped_classifier(trained.experiment.data)).network
    sure = network(trained.generate(trained.noise(12)).clamp(-1, 1))[0].softmax(1).amax(1) >= 0.999
    assert chosen.indices == sure.nonzero().flatten().tolist()[:6]
    assert len(chosen.indices) == 6
    assert chosen.indices != [0, 1, 2, 3, 4, 5]  # two of which are no digits
    assert chosen.rule == "the first x_T whose sample the classifier is sure of"
    assert choose_x_T(trained, 4).indices == chosen.indices[:4]
    torch.testing.assert_close(chosen.noise(trained)[3], trained.noise(1, first=chosen.indices[3])[0])
    walk = evaluate.traverse(trained, examples=2, samples=3)
    assert walk.detail("x_T") == chosen.indices[:2]
    assert walk.detail("x_T_rule") == chosen.rule
    originals = trained.generate(trained.noise(12))[chosen.indices[:2]]
    torch.testing.assert_close(walk.grid.images[0, :, 1], originals, rtol=0.1, atol=0.1)
    monkeypatch.setattr(sampling, "SURE", 1.1)  # of nothing
    assert choose_x_T(trained, 2) == ChosenNoise([0, 1], 0, "the first x_T")


def test_images_without_a_classifier_show_the_first_x_T(run):
    assert choose_x_T(run, 3, seed=2) == ChosenNoise([0, 1, 2], 2, "the first x_T")


def test_rows_of_a_traversal_may_be_any_x_T(run):
    images = run.traverse([1], examples=[5, 2], samples=3, seed=4).images
    both = torch.cat([run.noise(1, seed=4, first=i) for i in (5, 2)])
    torch.testing.assert_close(images[0, :, 1], run.generate(both))
    with pytest.raises(ValueError, match="examples must be at least 1"):
        run.traverse([1], examples=[])
    with pytest.raises(ValueError, match="first must be at least 0"):
        run.traverse([1], examples=[-1])


def test_guided_diffusion_checkpoints_load_as_they_are(tmp_path, tiny, tiny_model):
    weights = {name: value.float() for name, value in load_file(tiny_model / "model.safetensors").items()}
    torch.save(weights, tmp_path / "ema_0.9999_000004.pt")
    loaded = load_model(tmp_path / "ema_0.9999_000004.pt", tiny)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
