"""UNets of diffusers against diffusers: outputs, gradients, noise schedules and steps."""

import json
import math
import sys

import pytest
import torch
from samplers import sampler_of

from hbench.config import Diffusion, Experiment
from hbench.core.backbone import Backbone
from hbench.core.chain import backpropagate
from hbench.core.diffusion import alpha_bar_schedule, regular_step, timesteps, transition
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.experiments import load_experiment
from hbench.models import build_model, build_shift_block
from hbench.models.recompute import checkpoint_blocks
from hbench.models.shift import randomise_outputs
from hbench.store.pipeline import Pipeline, experiment_of
from hbench.training.freeze import freeze

diffusers = pytest.importorskip("diffusers", reason='needs pip install "hbench[diffusers]"')
hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

CPU = torch.device("cpu")
SMALL = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [32, 48],
    "layers_per_block": 1,
    "norm_num_groups": 16,
}
"""Settings of a network whose h_t has 48 channels, no multiple of 32."""
quick = hypothesis.settings(deadline=None, max_examples=40, suppress_health_check=list(hypothesis.HealthCheck))


def filled(model):
    """Return a network whose parameters are random, the last convolution's too."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def small(**settings) -> Experiment:
    """Return an experiment of a small network, whose discovery runs in float32."""
    values = {"model.unet2d": SMALL, "discovery.precision": "float32", "discovery.K": 4}
    return load_experiment("digits16", **(values | settings))


@st.composite
def configs(draw):
    """Draw the config.json of a network, of every kind of block, resampling, norm and embedding, and a class."""
    levels = draw(st.integers(1, 3))
    blocks = [draw(st.sampled_from(["", "Attn", "Resnet"])) for _ in range(2 * levels)]
    groups = draw(st.sampled_from([2, 4, 8]))
    classes = draw(st.sampled_from([None, 3]))
    return {
        "sample_size": draw(st.sampled_from([8, 12])),
        "in_channels": (channels := draw(st.integers(1, 4))),
        "out_channels": channels * draw(st.sampled_from([1, 2])),
        "down_block_types": [f"{b}DownsampleBlock2D" if b == "Resnet" else f"{b}DownBlock2D" for b in blocks[:levels]],
        "up_block_types": [f"{b}UpsampleBlock2D" if b == "Resnet" else f"{b}UpBlock2D" for b in blocks[levels:]],
        "block_out_channels": [draw(st.sampled_from([8, 16, 24])) for _ in range(levels)],
        "layers_per_block": draw(st.integers(1, 2)),
        "mid_block_scale_factor": draw(st.sampled_from([1, 2.0])),
        "downsample_padding": draw(st.integers(0, 1)),
        "downsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "upsample_type": draw(st.sampled_from(["conv", "resnet"])),
        "dropout": draw(st.sampled_from([0.0, 0.1])),
        "act_fn": draw(st.sampled_from(["silu", "swish", "gelu", "mish", "relu"])),
        "attention_head_dim": draw(st.sampled_from([None, 3, 8])),
        "norm_num_groups": groups,
        "attn_norm_num_groups": draw(st.sampled_from([None, 2])),
        "norm_eps": draw(st.sampled_from([1e-5, 1e-6])),
        "resnet_time_scale_shift": draw(st.sampled_from(["default", "scale_shift"])),
        "add_attention": draw(st.booleans()),
        "time_embedding_type": (time := draw(st.sampled_from(["positional", "learned"]))),
        "time_embedding_dim": draw(st.sampled_from([None, 20])),
        "num_train_timesteps": 1000 if time == "learned" else None,
        "freq_shift": draw(st.integers(0, 1)),
        "flip_sin_to_cos": draw(st.booleans()),
        "num_class_embeds": classes,
    }, draw(st.integers(0, 2)) if classes else None


def described(config, class_label=None):
    """Return the experiment of a config.json, also of images that are neither grey nor RGB, which no file may have."""
    channels = config["in_channels"]
    asked = config | {"in_channels": 1, "out_channels": config["out_channels"] // channels}
    found = experiment_of(Pipeline("model", None, asked, None), "model", class_label)
    return found.model_copy(update={"data": found.data.model_copy(update={"channels": channels})})


@pytest.mark.slow
@quick
@hypothesis.given(configs())
@torch.no_grad()
def test_the_two_halves_make_the_output_of_the_whole_bit_by_bit(drawn):
    config, label = drawn
    torch.manual_seed(1)
    theirs = filled(diffusers.UNet2DModel(**config))
    model = build_model(described(config, label)).eval()
    model.unet.load_state_dict(theirs.state_dict())
    assert isinstance(model, Backbone)
    x = torch.randn(2, config["in_channels"], config["sample_size"], config["sample_size"])
    t = torch.tensor([3, 999])
    labels = None if label is None else torch.full((2,), label)
    expected = theirs(x, t, class_labels=labels).sample
    h, skips, emb = model.encode(x, t)
    assert h.shape == (2, *model.h_shape)
    assert emb.shape == (2, model.emb_channels)
    assert torch.equal(model.decode(h, skips, emb), expected)
    assert torch.equal(model.decode(h, skips, emb), expected)  # it leaves the skip connections as they were
    assert expected.shape[1] == config["out_channels"]
    assert not torch.allclose(model.decode(h + 1, skips, emb), expected)


@pytest.mark.parametrize("types", [("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "ResnetUpsampleBlock2D")])
@pytest.mark.parametrize("how", [{"strategy": "node"}, {"strategy": "node", "keep": 1}, {"strategy": "offload"}])
def test_gradients_node_by_node_are_those_of_the_whole_chain(types, how):
    down, up = types
    settings = SMALL | {"down_block_types": ["DownBlock2D", down], "up_block_types": [up, "UpBlock2D"]}
    experiment = small(**{"model.unet2d": settings})
    torch.manual_seed(0)
    model = filled(build_model(experiment)).double().requires_grad_(False)
    block = randomise_outputs(build_shift_block(experiment, model)).double()
    sampler = sampler_of(model, [999, 600, 200], t_shift=400)
    x_T, k = torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.tensor([0, 3])

    def gradients(**chosen):
        block.zero_grad()
        steps = sampler.steps(lambda h, emb, t: 2.0 * block(h, emb, k))
        loss, x_0 = backpropagate(steps, x_T, lambda x: x.square().mean(), **chosen)
        return loss, x_0, [parameter.grad.clone() for parameter in block.parameters()]

    loss, x_0, grads = gradients(**how)
    expected_loss, expected_x_0, expected = gradients(strategy="vanilla")
    assert loss.dtype == torch.float64
    assert torch.equal(x_0, expected_x_0)
    assert loss == expected_loss
    for found, wanted in zip(grads, expected, strict=True):
        assert found.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-14)


def test_its_blocks_can_be_recomputed():
    model = filled(build_model(small())).requires_grad_(False)
    x, t = torch.randn(2, 1, 16, 16, requires_grad=True), torch.tensor([0, 999])
    (expected,) = torch.autograd.grad(model(x, t).square().sum(), x)
    checkpoint_blocks(model)
    (found,) = torch.autograd.grad(model(x, t).square().sum(), x)
    assert torch.equal(found, expected)


def test_it_runs_in_bfloat16_with_the_outputs_of_autocast():
    experiment = small(**{"discovery.precision": "bfloat16"})
    model = filled(build_model(experiment))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0, 999])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(freeze(experiment, model, CPU)(x, t), model(x, t))


def test_what_does_not_fit_it_is_a_callers_mistake():
    model = build_model(small())
    with pytest.raises(ValueError, match=r"x must be \[B, 1, H, W\], got \[2, 3, 16, 16\]"):
        model.encode(torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long))
    h, skips, emb = model.encode(torch.zeros(2, 1, 16, 16), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"h must be \[B, 48, H, W\]"):
        model.decode(h[:, :4], skips, emb)


# Noise schedules ----------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "linear": {},
    "short": {"num_train_timesteps": 50, "beta_end": 0.2},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.001 + 0.02 * (i / 99) ** 3 for i in range(100)], "num_train_timesteps": 100},
    "zero-terminal SNR": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
    "zero-terminal SNR, sample": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "sample",
        "beta_schedule": "scaled_linear",
    },
    "v": {"prediction_type": "v_prediction"},
    "offset": {"steps_offset": 1},
}
each_scheduler = pytest.mark.parametrize("settings", SCHEDULERS.values(), ids=SCHEDULERS)


def scheduled(settings, **more):
    """Return a scheduler of diffusers that does not clip, and the [diffusion] of its scheduler_config.json."""
    scheduler = diffusers.DDIMScheduler(**settings, **more, clip_sample=False)
    config = json.loads(scheduler.to_json_string())
    unet = json.loads(diffusers.UNet2DModel(**SMALL, sample_size=16).to_json_string())
    found = experiment_of(Pipeline("model", None, unet, config))
    return scheduler, found.diffusion, found.discovery.spacing


@each_scheduler
def test_noise_schedules_are_those_of_diffusers(settings):
    scheduler, diffusion, _ = scheduled(settings)
    found = alpha_bar_schedule(**diffusion.schedule)
    assert found.dtype == torch.float64
    assert (found.diff() < 0).all()
    torch.testing.assert_close(found, scheduler.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
    assert diffusion.last_alpha_bar == pytest.approx(float(found[-1]), rel=1e-6, abs=1e-12)


class Constant:
    """A backbone whose output is one image at all times."""

    def __init__(self, output, prediction):
        self.output, self.prediction = output, prediction

    def encode(self, x, t):
        return x, [], t

    def decode(self, h, skips, emb):
        return self.output.expand_as(h)


@each_scheduler
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("M", [10, 25])
def test_every_step_is_that_of_diffusers(settings, spacing, M):
    scheduler, diffusion, chosen = scheduled(settings, timestep_spacing=spacing)
    assert chosen == spacing
    scheduler.set_timesteps(M)
    alpha_bar = alpha_bar_schedule(**diffusion.schedule)
    found = timesteps(M, alpha_bar, spacing, steps_offset=diffusion.steps_offset)
    if spacing == "linspace":  # Asyrp rounds down, diffusers to the nearest
        assert (torch.tensor(found) - scheduler.timesteps).abs().max() <= 1
    else:
        assert found == scheduler.timesteps.tolist()
    torch.manual_seed(0)
    backbone = Constant(torch.randn(1, 1, 4, 4), diffusion.prediction)
    x = torch.randn(2, 1, 4, 4)
    for t in scheduler.timesteps.tolist():
        expected = scheduler.step(backbone.output.expand_as(x), t, x, eta=0.0).prev_sample
        # diffusers goes a whole stride down from each timestep, also where the next one is another
        x = regular_step(backbone, transition(alpha_bar, t, t - diffusion.T // M), x)
        torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-4)


def test_a_generation_is_the_loop_of_diffusers():
    scheduler, diffusion, spacing = scheduled(SCHEDULERS["cosine"], prediction_type="v_prediction")
    experiment = small(**{"discovery.M": 10, "discovery.spacing": spacing}).model_copy(update={"diffusion": diffusion})
    model = filled(build_model(experiment))
    sampler = Sampler.of(experiment, model, CPU)
    x_T = sampler.noise(2)
    scheduler.set_timesteps(10)
    x = x_T
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model.unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(sampler.generate(x_T), x, rtol=1e-3, atol=1e-3)
    again = sampler.generate(sampler.invert(x_T * 0.5))
    assert torch.isfinite(again).all()


def test_inversion_reaches_a_schedule_without_an_image():
    _, diffusion, _ = scheduled(SCHEDULERS["zero-terminal SNR"])
    experiment = small(**{"discovery.M": 5}).model_copy(update={"diffusion": diffusion})
    sampler = Sampler.of(experiment, filled(build_model(experiment)), CPU)
    x_T = sampler.invert(sampler.generate(sampler.noise(2)))
    assert torch.isfinite(x_T).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"zero_terminal_snr": True}, 'set diffusion.prediction to "v" or "x_0"'),
        ({"trained_betas": [0.1, 1.0], "T": 2}, "alpha_bar"),
        ({"trained_betas": [0.1, 0.2]}, "has 2 values, and diffusion.T is 1000: set diffusion.T = 2"),
    ],
)
def test_schedules_that_do_not_go_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Diffusion(**values)


def test_a_schedule_that_ends_before_noise_is_told_whatever_its_kind():
    assert Diffusion(noise_schedule="cosine").advice is None
    assert Diffusion(zero_terminal_snr=True, prediction="v").advice is None
    stable = Diffusion(noise_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert "leaves alpha_bar(T - 1) = 0.0047" in stable.advice
    assert math.isclose(stable.last_alpha_bar, 0.0047, rel_tol=0.01)


def test_leading_timesteps_with_an_offset_stay_below_T():
    alpha_bar = alpha_bar_schedule(10)
    assert timesteps(10, alpha_bar, "leading", steps_offset=1) == [*range(9, -1, -1)]
    assert timesteps(5, alpha_bar, "leading", steps_offset=1) == [9, 7, 5, 3, 1]
    assert timesteps(5, alpha_bar, "trailing", steps_offset=1) == timesteps(5, alpha_bar)


def test_guided_diffusions_cosine_schedule_is_the_same():
    diffusion = pytest.importorskip("guided_diffusion.gaussian_diffusion", reason="needs guided-diffusion")
    betas = torch.from_numpy(diffusion.get_named_beta_schedule("cosine", 1000))
    found = alpha_bar_schedule(noise_schedule="cosine")
    torch.testing.assert_close(found, torch.cumprod(1 - betas, dim=0), rtol=1e-10, atol=0)


# Refusals -----------------------------------------------------------------------------------------------------------

PLAIN = {"sample_size": 16, "in_channels": 1, "out_channels": 1, **SMALL}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, r"blocks \(SkipDownBlock2D\)"),
        ({"up_block_types": ["UpBlock2D", "AttnSkipUpBlock2D"]}, r"blocks \(AttnSkipUpBlock2D\)"),
        ({"mid_block_type": None}, "no middle block"),
        ({"time_embedding_type": "fourier"}, "fourier"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"class_embed_type": "timestep"}, "takes classes as timestep"),
        ({"num_class_embeds": 7}, r"class-conditional \(7 classes\).*give `class_label`"),
        ({"in_channels": 4, "out_channels": 4}, "4 channels, neither grey nor RGB"),
        ({"out_channels": 3}, "it makes 3 channels of 1"),
        ({"sample_size": [16, 32]}, "sample_size is no width of square images"),
        ({"sample_size": None}, "sample_size is no width"),
        ({"sample_size": 15}, "data.size 15 cannot be halved"),
        ({"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}, "CrossAttnDownBlock2D"),
        ({"block_out_channels": [32]}, "differ in length"),
        ({"norm_num_groups": 5}, "cannot be normalised in 5 groups"),
        ({"attn_norm_num_groups": 5}, "must divide the channels"),
        ({"attention_head_dim": 64}, "more than 32"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift"),
        ({"downsample_type": "fir"}, "downsample_type"),
        ({"time_embedding_type": "learned"}, "needs num_train_timesteps"),
    ],
)
def test_networks_that_cannot_be_split_are_refused_by_name(change, words):
    with pytest.raises(HBenchError, match=rf"^(model: config\.json: .*)?{words}|{words}") as error:
        experiment_of(Pipeline("model", None, PLAIN | change, None))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ({"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler is not for a model of betas"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler is not for a model of betas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler is not"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is sigmoid, hbench has linear, scaled_linear, squaredcos_cap_v2"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is flow_prediction"),
        ({"rescale_betas_zero_snr": True}, "leaves no image in the last x_t"),
        ({"num_train_timesteps": 1}, "diffusion.T"),
        ({"beta_end": "much"}, "diffusion.beta_end"),
    ],
)
def test_schedules_that_hbench_does_not_have_are_refused_by_name(scheduler, words):
    with pytest.raises(HBenchError, match=words):
        experiment_of(Pipeline("model", None, PLAIN, {"_class_name": "DDPMScheduler"} | scheduler))


ODD = [None, True, "x", "", -1, 0, 3.5, 10**12, [], [None], [[1]], {}, {"a": 1}, ["DownBlock2D", 3]]


@pytest.mark.slow
def test_settings_of_any_kind_are_described_or_refused_in_a_line():
    scheduler = json.loads(diffusers.DDPMScheduler().to_json_string())
    unet = json.loads(diffusers.UNet2DModel(**PLAIN).to_json_string())
    described, lines = 0, []
    for key in [*unet, *scheduler]:
        for value in ODD:
            changed = [each | ({key: value} if key in each else {}) for each in (unet, scheduler)]
            try:
                experiment_of(Pipeline("model", None, *changed))
                described += 1
            except HBenchError as error:
                lines.append(str(error))
    assert not any("\n" in line for line in lines)
    assert described > 100  # most of them where hbench does not look


def test_a_discovery_has_no_more_steps_than_the_schedule():
    found = experiment_of(Pipeline("model", None, PLAIN, {"num_train_timesteps": 10, "beta_end": 0.5}))
    assert (found.diffusion.T, found.discovery.M, found.discovery.t_shift) == (10, 10, 4)


def test_a_class_is_one_of_the_models():
    with pytest.raises(HBenchError, match=r"class_label = 7: its classes are 0\.\.6"):
        experiment_of(Pipeline("model", None, PLAIN | {"num_class_embeds": 7}, None), class_label=7)
    with pytest.raises(HBenchError, match="the network has no classes: leave it out"):
        experiment_of(Pipeline("model", None, PLAIN, None), class_label=0)


class Missing:
    """A finder of modules to which diffusers is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'", name=name)


def test_without_diffusers_a_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(HBenchError, match=r'which is not installed: pip install "hbench\[diffusers\]"'):
        build_model(small())
