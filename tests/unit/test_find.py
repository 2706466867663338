"""Methods that find directions, each against another way to compute the same."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from packages import PLUGIN
from torch.func import jacfwd
from torch.nn import functional as F

from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.evaluation import visible
from hbench.evaluation.find import jacobian, labels, pca
from hbench.evaluation.find.find import LOOKED_AT, checked, find, make_search
from hbench.evaluation.find.method import Found, Search, chained
from hbench.evaluation.find.methods import METHODS, known_methods, method_named
from hbench.experiments import override
from hbench.models import build_model
from hbench.runtime.progress import show_progress
from hbench.store.labels import Factor

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def search(tiny):
    """A search on a tiny model with random weights."""
    torch.manual_seed(0)
    model = build_model(tiny).eval().requires_grad_(False)
    for parameter in model.parameters():  # its last convolutions start at zero
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.02)
    return make_search(model, tiny, CPU, 3, 6, 0, lambda name, make: make())


def test_h_is_that_of_the_regular_chain(search):
    seen = []
    x_T = search.sampler.noise(6, seed=search.x_T_seed)
    x_0 = search.sampler.generate(x_T, lambda h, emb, t: seen.append(h) or torch.zeros_like(h))
    h, found = search.h_and_x_0(range(6))
    torch.testing.assert_close(h, torch.stack(seen, 1))
    torch.testing.assert_close(found, x_0)


def test_principal_components_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.decomposition")
    values = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.linspace(3, 0.1, 50))
    found, share = pca.principal_components(values, 5)
    known = sklearn.PCA(5, svd_solver="full").fit(values.double().numpy())
    np.testing.assert_allclose(np.abs((found.numpy() * known.components_).sum(1)), 1, atol=1e-6)
    np.testing.assert_allclose(share.numpy(), known.explained_variance_ratio_, rtol=1e-6)
    assert len(pca.principal_components(values[:4], 5)[0]) == 3  # three differences of four samples


@pytest.mark.parametrize("kind", ["pca", "pca-each"])
def test_pca_of_a_model_is_that_of_scikit_learn(search, kind):
    sklearn = pytest.importorskip("sklearn.decomposition")
    h = pca.all_h(search).double().numpy()
    found = METHODS[kind].find(search).delta_h.double().numpy()
    if kind == "pca":
        known = sklearn.PCA(3, svd_solver="full").fit(h.reshape(6, -1)).components_
        np.testing.assert_allclose(np.abs((found.reshape(3, -1) * known).sum(1)), 1, atol=1e-5)
        return
    for i in range(h.shape[1]):  # the same directions, in any order
        known = sklearn.PCA(3, svd_solver="full").fit(h[:, i].reshape(6, -1)).components_
        cosines = np.abs(found[:, i].reshape(3, -1) @ known.T)
        np.testing.assert_allclose(np.sort(cosines.max(1)), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 3])
def test_jacobian_directions_are_those_of_a_full_decomposition(search, samples):
    own = Search(search.sampler, 3, samples, search.x_T_seed, search.seed, None)
    nodes, _ = own.nodes(range(samples))
    transition, x_t = nodes[0]
    found = jacobian.leading(own, transition, x_t)
    assert found.residual <= jacobian.TOLERANCE

    def encode(x):
        return own.sampler.backbone.encode(x, transition.times(x))[0].flatten()

    J = torch.stack([jacfwd(encode)(x[None]).flatten(1) for x in x_t]).double()
    if samples == 1:
        u, sizes, v = torch.linalg.svd(J[0], full_matrices=False)
        mapped = F.normalize(v[:3] @ J[0].T, dim=1)  # J v, which is sigma u
        torch.testing.assert_close((mapped * u[:, :3].T).sum(1).abs(), torch.ones(3).double(), atol=1e-4, rtol=0)
        expected = mapped
    else:
        stacked = torch.cat(list(J), 1) / samples**0.5  # its left singular vectors are the eigenvectors of the mean
        u, sizes, _ = torch.linalg.svd(stacked, full_matrices=False)
        expected = u[:, :3].T
    torch.testing.assert_close(found.sizes, sizes[:3], rtol=1e-4, atol=0)
    cosines = (found.directions.flatten(1).double() * expected).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3).double(), atol=1e-3, rtol=0)


def test_directions_keep_their_order_and_sign_over_time():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4, 1, 2, 3, 3, generator=generator).expand(4, 3, 2, 3, 3)
    shuffled = true.clone()
    shuffled[:, 1] = -true[[2, 0, 3, 1], 1]
    shuffled[:, 2] = true[[1, 0, 2, 3], 2] * torch.tensor([1, -1, 1, -1]).reshape(4, 1, 1, 1)
    ordered, cosine = chained(shuffled)
    torch.testing.assert_close(ordered, true)
    assert cosine == pytest.approx(1)
    assert np.isnan(chained(true[:, :1])[1])


def test_labels_are_the_differences_of_class_means(search, monkeypatch):
    class Known:
        factors = (Factor("hat", ("no", "yes")), Factor("colour", ("red", "green", "blue")))

    own = Search(search.sampler, 3, 40, search.x_T_seed, search.seed, Known())
    h, x_0 = own.h_and_x_0(range(40))
    hat = torch.arange(40) % 2
    colour = torch.arange(40) % 3

    def classes(classifier, images):
        assert torch.equal(images, x_0.clamp(-1, 1)) or images.shape == x_0.shape
        return torch.stack([hat, colour], 1)

    monkeypatch.setattr(labels, "predicted_classes", classes)
    found = labels.labels(own)
    assert found.names[0] == "hat"
    torch.testing.assert_close(found.delta_h[0], h[hat == 1].mean(0) - h[hat == 0].mean(0), atol=1e-4, rtol=1e-3)
    assert len(found.names) == 3  # and two of the three colours
    k = found.names.index("colour more red")
    torch.testing.assert_close(found.delta_h[k], h[colour == 0].mean(0) - h[colour != 0].mean(0), atol=1e-4, rtol=1e-3)
    with pytest.raises(HBenchError, match="needs a classifier"):
        labels.labels(search)
    monkeypatch.setattr(labels, "predicted_classes", lambda classifier, images: torch.zeros(len(images), 2).long())
    with pytest.raises(HBenchError, match="take more `samples`"):
        labels.labels(own)


def test_baselines_are_what_they_say(search):
    axes = METHODS["axes"].find(search).delta_h
    assert axes.shape == (3, *search.h_shape)
    assert axes.flatten(1).count_nonzero(1).tolist() == [1, 1, 1]
    assert torch.equal(METHODS["random"].find(search).delta_h, METHODS["random"].find(search).delta_h)
    with pytest.raises(HBenchError, match="take a smaller `k`"):
        METHODS["axes"].find(Search(search.sampler, 10**6, 0, 0, 0, None))


def test_what_a_method_returns_is_checked(search):
    h_shape = search.h_shape
    good = checked(Found(3 * torch.ones(3, *h_shape)), "mine", 3, search).delta_h
    assert torch.equal(good, torch.ones(3, *h_shape))
    for delta_h, said in (
        (torch.ones(3, 2), "need .K, "),
        (torch.ones(2, *h_shape), "finds 2 directions: take a smaller `k`"),
        (torch.zeros(3, *h_shape), "zero or not finite"),
        (torch.full((3, *h_shape), torch.nan), "zero or not finite"),
    ):
        with pytest.raises(HBenchError, match=said):
            checked(Found(delta_h), "mine", 3, search)


def test_a_method_of_another_package_is_found(search, tiny, monkeypatch, tmp_path):
    with pytest.raises(HBenchError, match='no method "channels": choose one of random, axes, pca, pca-each'):
        method_named("channels")
    monkeypatch.syspath_prepend(PLUGIN)
    assert known_methods()[-1] == "channels"
    found = find(search.sampler.backbone, tiny, "channels", tmp_path / "out", k=2, visible_change=0.05, device=CPU)
    assert found.names == {0: "channel 0", 1: "channel 1"}
    assert found.about.details["visible_change"] == pytest.approx(0.05, rel=0.05)


@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on(search, tiny, monkeypatch, tmp_path):
    model = search.sampler.backbone
    monkeypatch.setattr(visible, "MOST_DOUBLINGS", 1)
    whole = find(model, tiny, "jacobian", tmp_path / "whole", k=2, samples=1, device=CPU)
    before, done = jacobian.leading, []

    def stopped(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return before(*arguments)

    monkeypatch.setattr(jacobian, "leading", stopped)
    settings = {"k": 2, "samples": 1, "device": CPU}
    with pytest.raises(KeyboardInterrupt):
        find(model, tiny, "jacobian", tmp_path / "part", **settings)
    monkeypatch.setattr(jacobian, "leading", before)
    with pytest.raises(HBenchError, match="was started as another search"):
        find(model, tiny, "jacobian", tmp_path / "part", **settings | {"k": 3}, resume=True)
    done.clear()
    monkeypatch.setattr(jacobian, "leading", stopped)  # one timestep is left
    resumed = find(model, tiny, "jacobian", tmp_path / "part", **settings, resume=True)
    assert torch.equal(resumed.delta_h, whole.delta_h)
    assert {path.name for path in resumed.path.parent.iterdir()} == {
        "experiment.json",
        "jacobian.safetensors",
        "provenance.json",
    }
    again = find(model, tiny, "jacobian", tmp_path / "part", **settings, resume=True)
    assert again.sha256 == resumed.sha256
    with pytest.raises(HBenchError, match="holds another search: choose another `out`"):
        find(model, tiny, "jacobian", tmp_path / "part", **settings, visible_change=0.1, resume=True)
    with pytest.raises(HBenchError, match="already holds results"):
        find(model, tiny, "jacobian", tmp_path / "part", **settings)


def test_a_search_goes_on_with_the_same_settings_alone(search, tiny, tmp_path):
    settings = {"visible_change": 0.05, "device": CPU}
    found = find(search.sampler.backbone, tiny, "random", tmp_path / "out", **settings)
    again = partial(find, search.sampler.backbone, method="random", out=tmp_path / "out", resume=True)
    assert again(tiny, **settings).sha256 == found.sha256
    with pytest.raises(HBenchError, match="holds another search"):
        again(tiny, **settings | {"visible_change": 0.1})
    for setting in ("discovery.M=4", "discovery.t_shift=100", "discovery.S=4", "discovery.K=4"):
        with pytest.raises(HBenchError, match="was started with another chain, S or K: choose another `out`"):
            again(override(tiny, [setting]), **settings)
    assert again(override(tiny, ["discovery.lr=1"]), **settings).sha256 == found.sha256


def test_sampler_of_the_search_is_in_float32(search):
    assert isinstance(search.sampler, Sampler)
    assert search.sampler.precision == "float32"


def saturating(most, rate=1.0):
    """Return a median change that is known: ``most`` tanh(factor)."""
    return lambda factor: most * np.tanh(rate * factor)


@pytest.mark.parametrize("rate", [1e-2, 0.5, 1.0, 30.0])
def test_directions_are_scaled_to_a_visible_change(rate):
    factor, change = visible.searched(saturating(0.9, rate), 0.5)
    assert change == pytest.approx(0.5, rel=0.02)
    assert change == pytest.approx(0.9 * np.tanh(rate * factor))


def test_directions_that_cannot_change_so_much_are_scaled_to_where_they_are_saturated(caplog):
    factor, change = visible.searched(saturating(0.2), 0.5)
    assert factor == 4  # the first power of two with 98 % of the most
    assert change == pytest.approx(0.2 * np.tanh(4))
    assert "change images by 0.20 at most, not by 0.50" in caplog.text


def test_the_search_for_the_scale_says_how_long_it_takes(search, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hbench.runtime.progress.SECONDS", 0)
    show_progress()
    try:
        find(search.sampler.backbone, tiny, "random", tmp_path / "out", k=2, visible_change=0.05, device=CPU)
    finally:
        show_progress(False)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scale: ")]
    looks = visible.LOOKS * LOOKED_AT * 2
    assert any(re.match(rf"scale: 12 of {looks}, \S+ gone, \S+ left", line) for line in lines), lines
    done, total = re.match(r"scale: (\d+) of (\d+),", lines[-1]).groups()
    assert done == total
