"""A backbone that is no ADM and predicts v: pretrained, searched for directions, measured and traversed."""

import pytest
import torch
from torch import nn

import hbench
from hbench.core.backbone import Backbone
from hbench.core.diffusion import alpha_bar_schedule
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.experiments import override
from hbench.models import build_model
from hbench.store.weights import save_weights
from hbench.training.freeze import freeze
from hbench.training.pretrain import prediction_mse


class ToyUNet(nn.Module):
    """A UNet of two sizes that predicts v, without a base class of hbench."""

    in_channels, emb_channels, prediction = 1, 8, "v"

    def __init__(self, size):
        super().__init__()
        self.h_shape = (32, size // 4, size // 4)
        self.embed = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 8))
        self.into_h = nn.Linear(8, 32)
        self.fine = nn.Conv2d(1, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 32, 4, stride=4)
        self.up = nn.ConvTranspose2d(32, 8, 4, stride=4)
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def encode(self, x, t):
        emb = self.embed(t[:, None] / 1000)
        skip = self.fine(x)
        return self.down(skip.relu()) + self.into_h(emb)[..., None, None], [skip], emb

    def decode(self, h, skips, emb):
        return self.out(torch.cat([self.up(h.relu()), *skips], dim=1).relu())


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Let :func:`build_model` build toys."""
    monkeypatch.setattr("hbench.models.build_unet", lambda experiment: ToyUNet(experiment.data.size))


@pytest.mark.slow
def test_another_backbone_goes_from_pretraining_to_a_picture(tiny, tmp_path):
    assert isinstance(build_model(tiny), Backbone)
    images = hbench.load_images(tiny.data)
    assert hbench.pretrain(tiny, images, tmp_path / "pretrain", device="cpu")
    model = hbench.load_model(tmp_path / "pretrain", tiny, device="cpu")
    assert isinstance(model, ToyUNet)
    assert hbench.train(tiny, model, tmp_path / "train", device="cpu")
    run = hbench.load_run(tmp_path / "train", device="cpu")
    assert isinstance(run.model, ToyUNet)
    assert run.shift_block.out_weight.abs().max() > 0  # they start at zero
    measured = hbench.evaluate.rca(run, pairs=8)
    assert measured.n == 8
    assert 0 <= measured.accuracy <= 1
    grid = run.traverse([0, 2], examples=1, samples=3)
    grid.save(tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 0


def test_pretraining_measures_the_error_of_v(tiny):
    torch.manual_seed(0)
    model = build_model(tiny)
    x_0, eps, t = torch.rand(3, 1, 16, 16), torch.randn(3, 1, 16, 16), torch.tensor([0, 500, 999])
    a = alpha_bar_schedule()[t].float()[:, None, None, None]
    v = model.decode(*model.encode(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t))
    settings = tiny.pretrain.model_copy(update={"precision": "float32"})
    found = prediction_mse(model, alpha_bar_schedule(), x_0, t, eps, settings)
    torch.testing.assert_close(found, (v - (a.sqrt() * eps - (1 - a).sqrt() * x_0)).square().mean())


def test_blocks_that_a_backbone_lacks_are_refused(tiny):
    discovery = tiny.discovery.model_copy(update={"checkpoint_blocks": True})
    with pytest.raises(HBenchError, match="ToyUNet has no blocks to recompute"):
        freeze(tiny.model_copy(update={"discovery": discovery}), build_model(tiny), torch.device("cpu"))


def test_what_the_unet_predicts_is_a_setting_that_its_weights_carry(tiny, tmp_path, monkeypatch):
    monkeypatch.undo()  # the UNet again
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
