import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hbench import evaluate
from hbench.data import load_labelled
from hbench.errors import HBenchError
from hbench.evaluate import generate, noise, pairs, rca, traverse
from hbench.features import features, fidelity, frechet_distance, statistics, train_lenet
from hbench.load import load_model, load_run

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_run):
    return load_run(tiny_run, CPU)


class Oracle(nn.Module):
    """Answers with what was drawn, in the order of the pairs."""

    def __init__(self, run, count, seed):
        super().__init__()
        batches = list(pairs(run, count, seed, quiet=True))
        self.k, self.s = torch.cat([b.k for b in batches]), torch.cat([b.s for b in batches])
        self.K = run.experiment.discovery.K
        self.first = 0

    def forward(self, x_0, x_0_shifted):
        chosen = slice(self.first, self.first + len(x_0))
        self.first += len(x_0)
        return nn.functional.one_hot(self.k[chosen], self.K).float(), self.s[chosen]


def with_reconstructor(run, reconstructor):
    import dataclasses

    return dataclasses.replace(run, reconstructor=reconstructor)


def test_an_oracle_is_always_right(run):
    result = rca(with_reconstructor(run, Oracle(run, 100, 3)), 100, seed=3, quiet=True)
    assert result.accuracy == 1
    assert result.interval[1] == 1
    assert result.magnitude_error == 0
    assert result.per_direction == [1, 1, 1]
    assert sum(map(sum, result.confusion)) == 100


def test_a_constant_answer_is_at_chance(run):
    class Constant(nn.Module):
        def forward(self, x_0, x_0_shifted):
            return torch.tensor([[1.0, 0, 0]]).repeat(len(x_0), 1), torch.zeros(len(x_0))

    result = rca(with_reconstructor(run, Constant()), 200, quiet=True)
    assert result.interval[0] < 1 / 3 < result.interval[1]
    assert result.chance == pytest.approx(1 / 3)
    assert result.ranking()[0] == 0


def test_the_interval_is_wilsons(run):
    result = rca(run, 50, quiet=True)
    n, p, z = 50, result.accuracy, 1.959964
    center, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
    )
    assert result.interval == pytest.approx((center - half, center + half), abs=1e-5)


def test_pairs_do_not_depend_on_the_batch_size(run, monkeypatch):
    whole = next(iter(pairs(run, 6, 5, quiet=True)))
    monkeypatch.setattr(evaluate, "BATCH", 4)
    first, second = pairs(run, 6, 5, quiet=True)
    assert torch.equal(whole.k, torch.cat([first.k, second.k]))
    assert torch.equal(whole.s, torch.cat([first.s, second.s]))
    # bfloat16 kernels round differently for other batch sizes
    torch.testing.assert_close(whole.x_0, torch.cat([first.x_0, second.x_0]), rtol=0.05, atol=0.05)


def test_traverse_has_the_original_in_the_middle(run):
    images = traverse(run, [2, 0], examples=3, samples=5, seed=4, quiet=True)
    assert images.shape == (2, 3, 5, 1, 16, 16)
    raw = generate(run, noise(run, 4, 0, 3))
    for direction in images:
        torch.testing.assert_close(direction[:, 2], raw, rtol=0.05, atol=0.05)
    assert not torch.equal(images[:, :, 0], images[:, :, 2])


def test_frechet_distance_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(500, 8, generator=generator)
    a, b = statistics(found), statistics(found + 5)
    assert frechet_distance(a, b) == pytest.approx(8 * 25, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, statistics(2 * found)) == pytest.approx(
        float(found.mean(0).square().sum() + found.var(0).sum()), rel=1e-5
    )
    with pytest.raises(HBenchError, match="rank-deficient"):
        statistics(found[:8])


@pytest.fixture(scope="module")
def lenet(tmp_path_factory, tiny):
    path = tmp_path_factory.mktemp("lenet") / "lenet.safetensors"
    result = train_lenet(
        tiny, load_labelled(tiny.data), load_labelled(tiny.data, split="train"), path, epochs=3, quiet=True
    )
    assert result["accuracy"] > 0.9
    assert result["floor"] > 0
    return path


def test_lenet_features_do_not_depend_on_neighbours(lenet, tiny):
    images = load_labelled(tiny.data)[0][:300]
    whole = features(images, lenet)
    assert whole.shape == (300, 120)
    torch.testing.assert_close(whole[:7], features(images[:7], lenet), rtol=1e-4, atol=1e-5)


def test_fidelity_reports_both_kinds_with_their_intervals(run, lenet):
    result = fidelity(run, lenet, 130, quiet=True)
    assert result.n == 130
    assert result.n_real == 1618
    assert result.raw > 0
    assert result.raw_interval[0] < result.raw < result.raw_interval[1]
    assert result.shifted_interval[0] < result.shifted < result.shifted_interval[1]


def test_guided_diffusion_checkpoints_load_as_they_are(tmp_path, tiny, tiny_model):
    weights = {name: value.float() for name, value in load_file(tiny_model / "model.safetensors").items()}
    torch.save(weights, tmp_path / "ema_0.9999_000004.pt")
    loaded = load_model(tmp_path / "ema_0.9999_000004.pt", tiny)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
