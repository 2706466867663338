import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hbench.config import Paper
from hbench.evaluation.rca import rca
from hbench.evaluation.sampling import draw_pairs
from hbench.reporting.rows import rca_rows
from hbench.store.run import load_model, load_run

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
    import dataclasses

    return dataclasses.replace(run, reconstructor=reconstructor)


def test_rca_says_when_the_diffusion_model_makes_noise(run):
    result = rca(run, pairs=40)
    assert (result.outside_raw, result.outside_raw_interval[1]) == (1, 1)
    assert abs(result.neighbours_raw) < 0.1
    assert "samples outside the domain: raw 100.00%, shifted 100.00%" in result.summary()
    outside, noise, destroyed, chance = result.cautions()
    assert outside.startswith("100% of the raw samples leave the image domain")
    assert "the samples look like noise" in noise
    assert destroyed.startswith("100% of the shifted samples leave the image domain")
    assert "does not lie above chance, 0.333" in chance


def test_rca_of_a_trained_run_has_no_cautions_and_older_files_do_not_know_the_raw_samples():
    result = rca(load_run("mnist16", device=CPU), pairs=40)
    assert result.cautions() == []
    assert (result.outside_raw, result.neighbours_raw > 0.6) == (0, True)
    values = result.to_json() | {"schema": 1}
    for new in ("outside_raw", "outside_raw_interval", "neighbours_raw"):
        del values[new]
    old = type(result).from_json(values, "rca.json")
    assert "raw not measured" in old.summary()
    assert old.cautions() == []
    assert len(rca_rows(old, Paper())) == len(rca_rows(result, Paper())) - 1


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


def test_traverse_has_the_original_in_the_middle(run):
    images = run.traverse([2, 0], examples=3, samples=5, seed=4).images
    assert images.shape == (2, 3, 5, 1, 16, 16)
    raw = run.generate(run.noise(3, seed=4))
    for direction in images:
        torch.testing.assert_close(direction[:, 2], raw, rtol=0.05, atol=0.05)
    assert not torch.equal(images[:, :, 0], images[:, :, 2])


def test_guided_diffusion_checkpoints_load_as_they_are(tmp_path, tiny, tiny_model):
    weights = {name: value.float() for name, value in load_file(tiny_model / "model.safetensors").items()}
    torch.save(weights, tmp_path / "ema_0.9999_000004.pt")
    loaded = load_model(tmp_path / "ema_0.9999_000004.pt", tiny)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
