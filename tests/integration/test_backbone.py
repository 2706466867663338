"""A backbone of another package: no ADM, and it predicts v. It goes the whole way, with a method of that package."""

import pytest
import torch
from packages import PLUGIN, package

import hbench
from hbench.core.backbone import Backbone
from hbench.core.diffusion import alpha_bar_schedule
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.evaluation.attributes import attributes
from hbench.evaluation.benchmark.measure import Counts
from hbench.experiments import override
from hbench.models import build_model
from hbench.store.weights import save_weights
from hbench.training.freeze import freeze
from hbench.training.pretrain import prediction_mse


@pytest.fixture
def toy(tiny, monkeypatch):
    """The tiny experiment with the backbone of a package that is installed."""
    monkeypatch.syspath_prepend(PLUGIN)
    return override(tiny, "model.backbone=toy")


@pytest.mark.slow
def test_backbone_method_and_attributes_of_a_package_go_from_pretraining_to_the_bench(toy, tmp_path, monkeypatch):
    experiment = override(toy, ["data.dataset=stripes", "data.label=Stripes"])
    model = build_model(experiment)
    assert isinstance(model, Backbone)
    assert type(model).__name__ == "ToyUNet"
    assert hbench.pretrain(experiment, hbench.load_images(experiment.data), tmp_path / "pretrain", device="cpu")
    model = hbench.load_model(tmp_path / "pretrain", device="cpu")  # its file says which backbone it is
    assert type(model).__name__ == "ToyUNet"

    found = hbench.find(model, experiment, "channels", tmp_path / "find", k=2, device="cpu")
    assert found.names == {0: "channel 0", 1: "channel 1"}
    file_run = hbench.directions_run(found.path, tmp_path / "pretrain", device="cpu")
    assert file_run.generate(file_run.noise(1), {0: 1.0}).shape == (1, 1, 16, 16)

    assert hbench.train(experiment, model, tmp_path / "train", device="cpu")
    run = hbench.load_run(tmp_path / "train", device="cpu")
    assert type(run.model).__name__ == "ToyUNet"
    assert run.shift_block.out_weight.abs().max() > 0  # they start at zero
    measured = hbench.evaluate.rca(run, pairs=8)
    assert measured.n == 8
    assert 0 <= measured.accuracy <= 1
    run.traverse([0, 2], examples=1, samples=3).save(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 0

    monkeypatch.setattr(attributes, "NATURAL", 20)
    effects = hbench.evaluate.attributes(run, samples=6)
    assert "uprightness" in [each.name for each in effects.attributes]
    counts = Counts(pairs=8, samples=6, images=0, reconstructor_steps=2)
    bench = hbench.evaluate.benchmark(
        tmp_path / "train",
        tmp_path / "bench",
        methods=["trained", "channels"],
        add=[found.path.rename(tmp_path / "two.safetensors")],
        counts=counts,
        device="cpu",
    )
    assert [(each.name, each.K) for each in bench.methods] == [("trained", 3), ("channels", 3), ("two", 2)]


def test_a_backbone_that_no_package_has_is_named(tiny, tmp_path, monkeypatch):
    experiment = override(tiny, "model.backbone=toy")
    with pytest.raises(HBenchError, match=r'no backbone "toy" \(model.backbone\): install the package that has it$'):
        build_model(experiment)
    for name, entry, said in (
        ("wrong", "toy = math:sqrt", "package wrong is broken"),
        ("list", "toy = builtins:list", "has a list in place of a Backbone: update it"),
    ):
        with monkeypatch.context() as patch:
            package(tmp_path / name, name, "hbench.backbones", entry)
            patch.syspath_prepend(tmp_path / name)
            with pytest.raises(HBenchError, match=said):
                build_model(experiment)
            with pytest.raises(HBenchError, match="install the package that has it, or choose one of toy"):
                build_model(override(experiment, "model.backbone=other"))


def test_pretraining_measures_the_error_of_v(toy):
    torch.manual_seed(0)
    model = build_model(toy)
    x_0, eps, t = torch.rand(3, 1, 16, 16), torch.randn(3, 1, 16, 16), torch.tensor([0, 500, 999])
    a = alpha_bar_schedule()[t].float()[:, None, None, None]
    v = model.decode(*model.encode(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t))
    settings = toy.pretrain.model_copy(update={"precision": "float32"})
    found = prediction_mse(model, settings, x_0, eps, t, a)
    torch.testing.assert_close(found, (v - (a.sqrt() * eps - (1 - a).sqrt() * x_0)).square().mean())


def test_blocks_that_a_backbone_lacks_are_refused(toy):
    discovery = toy.discovery.model_copy(update={"checkpoint_blocks": True})
    with pytest.raises(HBenchError, match="ToyUNet has no blocks to recompute"):
        freeze(toy.model_copy(update={"discovery": discovery}), build_model(toy), torch.device("cpu"))


def test_what_the_unet_predicts_is_a_setting_that_its_weights_carry(tiny, tmp_path):
    of_v = override(tiny, ["diffusion.prediction=v"])
    model = build_model(of_v)
    assert model.prediction == "v"
    save_weights(tmp_path / "model.safetensors", model, of_v, "model")
    assert hbench.load_model(tmp_path / "model.safetensors", device="cpu").prediction == "v"
    with pytest.raises(HBenchError, match=r"trained with diffusion.prediction = 'v', not 'eps'"):
        hbench.load_model(tmp_path / "model.safetensors", override(tiny, ["diffusion.prediction=eps"]), device="cpu")
    with pytest.raises(HBenchError, match="the model has prediction = v, the experiment eps"):
        hbench.train(tiny, model, tmp_path / "train", device="cpu")
    noise = torch.randn(2, *tiny.data.image_shape)
    kinds = {
        kind: Sampler.of(
            override(tiny, [f"diffusion.prediction={kind}"]),
            build_model(override(tiny, [f"diffusion.prediction={kind}"])),
            torch.device("cpu"),
        )
        for kind in ("eps", "v", "x_0")
    }
    # an untrained UNet predicts 0: no noise, no velocity, no image
    images = {kind: sampler.generate(noise) for kind, sampler in kinds.items()}
    assert images["x_0"].abs().max() == 0
    assert images["v"].abs().max() < 5
    assert images["eps"].abs().max() > 50
