import random

import pytest
import torch

from hbench.core.backbone import Backbone
from hbench.core.directions import draw_shifts, magnitudes
from hbench.experiments import load_experiment
from hbench.models import build_discriminator, build_model, build_reconstructor, build_shift_block
from hbench.models.adm import ADMConfig, EncoderUNetModel, GroupNorm32, UNetModel
from hbench.models.guided_diffusion import config_from_guided_diffusion
from hbench.models.shift import ShiftBlock


def test_mnist32_has_the_papers_size():
    model = build_model(load_experiment("mnist32"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(17.8e6, rel=0.01)


def test_mnist16_fits_the_calibration():
    model = build_model(load_experiment("mnist16"))
    assert sum(p.numel() for p in model.parameters()) == 1_140_929
    assert model.h_shape == (64, 4, 4)


@pytest.mark.parametrize("name", ["digits16", "mnist32", "anime64"])
@torch.no_grad()
def test_every_network_of_an_experiment_fits_together(name):
    experiment = load_experiment(name, ["discovery.K=5"])
    model = build_model(experiment)
    size, channels = experiment.data.size, experiment.data.channels
    x = torch.randn(2, channels, size, size)
    h, skips, emb = model.encode(x, torch.tensor([0, 999]))
    delta_h = build_shift_block(experiment, model)(h, emb, torch.tensor([0, 4]))
    assert delta_h.shape == h.shape
    assert not delta_h.any()  # the output convolutions start at zero
    assert model.decode(h + delta_h, skips, emb).shape == x.shape
    logits, s = build_reconstructor(experiment).eval()(x, x)
    assert logits.shape == (2, 5)
    assert s.shape == (2,)
    assert build_discriminator(experiment)(x, torch.zeros(2, dtype=torch.long)).shape == (2, 1)


@torch.no_grad()
def test_resnet18_takes_pairs():
    experiment = load_experiment("celebahq128", ["discovery.K=5"])
    logits, s = build_reconstructor(experiment).eval()(torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    assert logits.shape == (1, 5)
    assert s.shape == (1,)


def test_shift_block_computes_each_samples_own_direction():
    torch.manual_seed(0)
    block = ShiftBlock(64, 128, K=4)
    torch.nn.init.normal_(block.out_weight)
    torch.nn.init.normal_(block.out_bias)
    h, emb = torch.randn(3, 64, 4, 4), torch.randn(3, 128)
    together = block(h, emb, torch.tensor([3, 0, 3]))
    for i, k in enumerate([3, 0, 3]):
        alone = block(h[i : i + 1], emb[i : i + 1], torch.tensor([k]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    hidden = block.out_layers(block.in_layers(h) + block.emb_layers(emb)[..., None, None])
    expected = torch.nn.functional.conv2d(hidden, block.out_weight[3][..., None, None], block.out_bias[3])
    torch.testing.assert_close(together[0], expected[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_h_scale_is_a_factor_of_every_direction_and_one_changes_no_bit():
    torch.manual_seed(0)
    block, scaled = ShiftBlock(64, 128, K=4), ShiftBlock(64, 128, K=4, h_scale=8.0)
    torch.nn.init.normal_(block.out_weight)
    torch.nn.init.normal_(block.out_bias)
    scaled.load_state_dict(block.state_dict())
    h, emb, k = torch.randn(3, 64, 4, 4), torch.randn(3, 128), torch.tensor([3, 0, 1])
    assert torch.equal(scaled(h, emb, k), 8 * block(h, emb, k))  # a power of two rounds nothing
    hidden = block.hidden(h, emb)
    assert torch.equal(scaled.direction(hidden, 2), 8 * block.direction(hidden, 2))
    unscaled = torch.baddbmm(block.out_bias[k][..., None], block.out_weight[k], hidden.flatten(2)).reshape(h.shape)
    assert torch.equal(block(h, emb, k), unscaled)


def test_a_discovery_starts_from_nothing_or_from_random_directions_of_its_size():
    block, random, large = (
        started(load_experiment("digits16", ["discovery.K=64", f"discovery.start={start}"])) for start in (0, 1, 2)
    )
    assert not block.out_weight.any()
    torch.testing.assert_close(2 * random.out_weight, large.out_weight)
    assert random.out_weight.std().item() == pytest.approx(random.out_weight.shape[-1] ** -0.5, rel=0.05)
    assert not random.out_bias.any()
    for name in ("in_layers.2.weight", "emb_layers.1.weight"):  # the rest starts as ever
        assert torch.equal(block.get_parameter(name), random.get_parameter(name))


def started(experiment):
    torch.manual_seed(0)
    backbone = build_model(experiment)
    torch.manual_seed(1)
    return build_shift_block(experiment, backbone)


def test_the_shift_block_of_an_experiment_has_its_h_scale():
    experiment = load_experiment("digits16", ["discovery.h_scale=12.5"])
    assert build_shift_block(experiment, build_model(experiment)).h_scale == 12.5


def test_draw_shifts_covers_the_ranges():
    k, s = draw_shifts(20_000, K=8, S=5.0, min_magnitude=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.bincount(k, minlength=8).min() > 2200
    assert s.abs().min() == 0.5
    assert 4.9 < s.abs().max() <= 5
    assert abs(s.mean()) < 0.1
    assert (s.abs() == 0.5).float().mean() == pytest.approx(0.1, abs=0.01)  # those raised to it


def test_magnitudes_hold_the_original_in_the_middle():
    assert magnitudes(5, 5) == [-5, -2.5, 0, 2.5, 5]


SMALL = {"image_size": 16, "in_channels": 1, "model_channels": 32, "out_channels": 1, "num_res_blocks": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_channels": 40}, "multiples of 32"),
        ({"image_size": 10, "channel_mult": (1, 1, 1)}, "cannot be halved"),
        ({"num_heads": 3}, "cannot be split into heads"),
        ({"num_heads": 0}, "cannot be split into heads"),
        ({"num_heads_upsample": 3}, "cannot be split into heads"),
        ({"num_head_channels": 48}, "cannot be split into heads"),
        ({"dims": 3}, "dims=3"),
        ({"use_checkpoint": True}, "use_checkpoint"),
        ({"use_fp16": True}, "use_fp16"),
        ({"pool": "attention"}, "pool='attention'"),
    ],
)
def test_impossible_models_are_refused(arguments, message):
    defaults = {"attention_resolutions": [2], "channel_mult": (1, 2)}
    with pytest.raises(ValueError, match=message):
        UNetModel(config_from_guided_diffusion(**{**SMALL, **defaults, **arguments}))


def test_attention_is_where_the_configuration_says():
    with pytest.raises(ValueError, match=r"\{4\}.* \(16, 8\) pixels wide"):
        ADMConfig(**SMALL, channel_mult=(1, 2), attention_resolutions=(8, 4))
    # guided-diffusion counts in downsampling factors, and ignores those that it never reaches
    config = config_from_guided_diffusion(**SMALL, channel_mult=[1, 2], attention_resolutions=[2, 4])
    assert config == ADMConfig(**SMALL, channel_mult=(1, 2), attention_resolutions=(8,))


def test_class_labels_are_required_exactly_where_the_model_has_them():
    config = ADMConfig(**SMALL, channel_mult=(1, 2), num_classes=10)
    model = UNetModel(config)
    x, t = torch.randn(1, 1, 16, 16), torch.tensor([3])
    with pytest.raises(ValueError, match="if and only if"):
        model(x, t)
    assert model(x, t, torch.tensor([7])).shape == x.shape
    plain = UNetModel(ADMConfig(**SMALL, channel_mult=(1, 2)))
    with pytest.raises(ValueError, match="if and only if"):
        plain(x, t, torch.tensor([7]))
    with pytest.raises(ValueError, match=r"\[B, 1, H, W\]"):
        plain(torch.randn(1, 3, 16, 16), t)
    with pytest.raises(ValueError, match="no class labels"):
        EncoderUNetModel(config)


class ToyBackbone(torch.nn.Module):
    """A second kind of model: one convolution down, one up, no skip but the image itself."""

    h_shape, emb_channels, in_channels, prediction = (32, 4, 4), 8, 1, "v"

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(1000, self.emb_channels)
        self.down = torch.nn.Conv2d(1, 32, 4, stride=4)
        self.up = torch.nn.ConvTranspose2d(32, 1, 4, stride=4)

    def encode(self, x, t):
        return self.down(x), [x], self.embed(t)

    def decode(self, h, skips, emb):
        return self.up(h) + skips[0]


@pytest.mark.parametrize("kind", ["adm", "toy"])
@torch.no_grad()
def test_both_kinds_of_model_are_backbones(kind):
    experiment = load_experiment("digits16")
    model = build_model(experiment) if kind == "adm" else ToyBackbone()
    assert isinstance(model, Backbone)
    assert not isinstance(build_discriminator(experiment), Backbone)  # it has no decoder
    assert model.prediction == {"adm": "eps", "toy": "v"}[kind]
    x, t = torch.randn(2, model.in_channels, 16, 16), torch.tensor([0, 999])
    h, skips, emb = model.encode(x, t)
    assert h.shape == (2, *model.h_shape)
    assert emb.shape == (2, model.emb_channels)
    block = build_shift_block(experiment, model)
    shifted = h + block(h, emb, torch.tensor([0, 1]))
    twice = [torch.cat([skip, skip]) for skip in skips]  # as a shifted step decodes, in one pass
    assert model.decode(torch.cat([h, shifted]), twice, torch.cat([emb, emb])).shape == (4, 1, 16, 16)


@pytest.mark.parametrize("seed", range(12))
def test_equals_guided_diffusion_for_random_configurations(seed):
    unet = pytest.importorskip("guided_diffusion.unet", reason="needs pip install --group guided-diffusion")
    rng = random.Random(seed)
    config = {
        "image_size": 32,
        "in_channels": rng.choice([1, 3]),
        "model_channels": rng.choice([32, 64]),
        "out_channels": rng.choice([1, 3, 6]),
        "num_res_blocks": rng.choice([1, 2]),
        "attention_resolutions": rng.choice([(), (2,), (2, 4)]),
        "channel_mult": rng.choice([(1, 2), (1, 2, 2), (1, 1, 2)]),
        "conv_resample": rng.random() < 0.5,
        "num_heads": rng.choice([1, 2, 4]),
        "num_head_channels": rng.choice([-1, 16, 32]),
        "use_scale_shift_norm": rng.random() < 0.5,
        "resblock_updown": rng.random() < 0.5,
        "use_new_attention_order": rng.random() < 0.5,
    }
    for ours, theirs, extra in (
        (UNetModel, unet.UNetModel, {"num_classes": rng.choice([None, 7])}),
        (EncoderUNetModel, unet.EncoderUNetModel, {"pool": "adaptive"}),
    ):
        reference = theirs(**config, **extra).eval()
        torch.manual_seed(seed)
        for parameter in reference.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        model = ours(config_from_guided_diffusion(**config, **extra)).eval()
        model.load_state_dict(reference.state_dict())
        x, t = torch.randn(2, config["in_channels"], 32, 32), torch.tensor([5, 900])
        y = (torch.tensor([1, 3]),) if extra.get("num_classes") else ()
        with torch.no_grad():
            torch.testing.assert_close(model(x, t, *y), reference(x, t, *y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 64, 8, 8), (4, 64, 16), (4, 48, 8, 8)])
def test_a_norm_with_cast_parameters_is_the_same_up_to_rounding(shape):
    torch.manual_seed(0)
    norm = GroupNorm32(shape[1])
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = (3 + torch.randn(shape)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = norm.with_cast_parameters(x)
    assert found.dtype == torch.bfloat16
    exact = norm(y := x.detach().float().requires_grad_())
    torch.testing.assert_close(found.float(), exact, rtol=0.01, atol=0.02)
    found.float().square().sum().backward()
    (pulled,) = torch.autograd.grad(exact.square().sum(), y)
    assert (x.grad - pulled).abs().max() < 0.02 * pulled.abs().max()
