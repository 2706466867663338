"""Models of other makers: what is read, with which settings, and what is said of the rest."""

import tarfile
import zipfile
from collections import OrderedDict
from importlib.util import find_spec

import pytest
import torch
from conftest import Malicious
from packages import PLUGIN
from safetensors.torch import save_file

from hbench.config import Diffusion, Experiment, Model
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.experiments import filled_in, load_experiment, override
from hbench.models import build_model
from hbench.models.guided_diffusion import SILENT, silent_settings, with_its_defaults
from hbench.store.imported import import_model
from hbench.store.model import load_model, model_experiment, model_to_train_on
from hbench.store.run import load_run
from hbench.store.weights import read_written_experiment, write_experiment

TINY = [
    "data.size=16",
    "model.channel_mult=[1,2]",
    "model.num_res_blocks=1",
    "model.attention_resolutions=[8]",
    "discovery.M=2",
    "discovery.precision=float32",
]
OTHER = {
    "model.model_channels": [64],
    "model.channel_mult": [[1, 1], [2, 2], [1, 2, 2]],
    "model.num_res_blocks": [2],
    "model.attention_resolutions": [[], [16], [16, 8]],
    "model.num_heads": [2, 4],
    "model.num_head_channels": [16],
    "model.dropout": [0.5],
    "model.use_scale_shift_norm": [False],
    "model.resblock_updown": [True],
    "model.conv_resample": [False],
    "model.learn_sigma": [True],
    "model.use_new_attention_order": [True],
    "diffusion.prediction": ["v", "x_0"],
    "model.path": ["elsewhere"],
    "model.unet2d": [
        {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [32]},
    ],
    "model.backbone": ["toy"],
    "diffusion.T": [4000],
    "diffusion.noise_schedule": ["scaled_linear", "cosine"],
    "diffusion.trained_betas": [[0.01] * 1000],
    "diffusion.zero_terminal_snr": [True],
    "diffusion.steps_offset": [1],
    "diffusion.beta_start": [1e-3],
    "diffusion.beta_end": [0.01],
}
"""Other values of every setting that a state dict might betray."""
BASES = [
    ["model.num_heads=1"],
    ["model.num_heads=4", "model.learn_sigma=true"],
    ["model.num_heads=4", "model.resblock_updown=true", "model.use_scale_shift_norm=false"],
    ["model.num_heads=4", "model.channel_mult=[1]", "model.attention_resolutions=[16]"],
    ["model.num_heads=4", "diffusion.prediction=v"],
]


def experiment(*overrides) -> Experiment:
    return load_experiment("digits16", [*TINY, *overrides])


def filled(settings: Experiment) -> torch.nn.Module:
    """Return the experiment's network, whose last layers are not zero."""
    torch.manual_seed(0)
    model = build_model(settings).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(scope="module")
def weights():
    return filled(experiment("model.num_heads=4")).state_dict()


@pytest.mark.slow
def test_the_silent_settings_are_those_that_load_in_silence_and_change_the_samples(monkeypatch):
    monkeypatch.syspath_prepend(PLUGIN)  # the package with the toy
    listed = {f"{section}.{name}" for section, names in SILENT.items() for name in names}
    sections = {"model": Model, "diffusion": Diffusion}
    assert set(OTHER) == {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    silent = set()
    for base in BASES:
        settings = experiment(*base)
        model = filled(settings)
        noise = torch.randn(1, *settings.data.image_shape)
        images = Sampler.of(settings, model, torch.device("cpu")).generate(noise)
        for key, values in OTHER.items():
            for value in values:
                try:
                    other = load_experiment("digits16", [*TINY, *base], **{key: value})
                except HBenchError:
                    continue  # no such network
                if key == "model.unet2d" and find_spec("diffusers") is None:
                    continue
                network = build_model(other).eval()
                try:
                    network.load_state_dict(model.state_dict())
                except RuntimeError:
                    continue  # its shapes betray it
                samples = Sampler.of(other, network, torch.device("cpu")).generate(noise)
                if not torch.equal(samples, images):
                    silent.add(key)
    assert silent == listed


def test_the_size_of_the_images_which_no_shape_betrays_has_no_default():
    assert Experiment.model_fields["data"].annotation.model_fields["size"].is_required()


def test_settings_left_out_are_as_guided_diffusion_has_them(weights, tmp_path, caplog):
    torch.save(weights, tmp_path / "ema.pt")
    model = load_model(tmp_path / "ema.pt", experiment())
    assert model.config.num_heads == 4
    (said,) = caplog.messages
    assert "num_heads = 4 (its default), num_head_channels = -1 (its default)" in said
    assert (
        "use_new_attention_order = false (its default), prediction = eps (its default), T = 1000 (its default)" in said
    )
    caplog.clear()
    given = experiment("model.num_heads=2", "model.use_new_attention_order=true", "diffusion.beta_end=0.01")
    assert load_model(tmp_path / "ema.pt", given).config.num_heads == 2
    assert "num_heads = 2 (given)" in caplog.text
    assert "use_new_attention_order = true (given)" in caplog.text
    assert "beta_end = 0.01 (given)" in caplog.text


def test_the_betas_follow_the_number_of_timesteps_as_in_guided_diffusion():
    settings = with_its_defaults(experiment("diffusion.T=4000"))
    assert settings.diffusion.beta_start == pytest.approx(0.25e-4)
    assert settings.diffusion.beta_end == pytest.approx(0.005)
    assert with_its_defaults(experiment("diffusion.T=4000", "diffusion.beta_end=0.02")).diffusion.beta_end == 0.02
    with pytest.raises(HBenchError, match="too small for guided-diffusion's linear schedule"):
        with_its_defaults(experiment("diffusion.T=20", "discovery.t_shift=5"))


def test_a_given_value_is_known_from_a_default_until_all_is_written_down(tmp_path):
    settings = with_its_defaults(with_its_defaults(experiment()))
    assert "num_heads = 4 (its default)" in silent_settings(settings)
    write_experiment(tmp_path, settings)
    again = with_its_defaults(read_written_experiment(tmp_path / "experiment.json"))
    assert again == settings
    assert "num_heads = 4 (given)" in silent_settings(again)
    assert override(experiment(), []).model.num_heads == 1  # hbench's own default stays
    assert "num_head_channels = 32 (given)" in silent_settings(experiment("model.num_head_channels=32"))
    assert "num_heads =" not in silent_settings(experiment("model.num_head_channels=32"))  # it has no effect then


def test_filling_in_checks_the_whole():
    with pytest.raises(HBenchError, match="cannot be split"):
        filled_in(experiment(), {"model": {"num_heads": 5}})


@pytest.mark.slow
def test_a_discovery_keeps_the_settings_of_its_state_dict(weights, tmp_path, caplog):
    from hbench.training.discover import train

    torch.save(weights, tmp_path / "ema.pt")
    written = experiment("discovery.steps=1", "discovery.batch_size=2", "discovery.pool=0", "discovery.K=2")
    with pytest.raises(HBenchError, match="the model has num_heads = 4, the experiment 1"):
        train(written, load_model(tmp_path / "ema.pt", written), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    settings, model = model_to_train_on(tmp_path / "ema.pt", tmp_path / "run", written, resume=False)
    assert train(settings, model, tmp_path / "run", device="cpu")
    assert model_experiment(tmp_path / "run").model.num_heads == 4
    # the same experiment file goes on with it, and measures it
    caplog.clear()
    again, _ = model_to_train_on(None, tmp_path / "run", written, resume=True)
    assert again.model.num_heads == 4
    assert load_model(tmp_path / "run", written).config.num_heads == 4
    assert not caplog.messages
    with pytest.raises(HBenchError, match=r"was trained with model.num_heads = 4, not 2"):
        load_model(tmp_path / "run", experiment("model.num_heads=2"))


def under(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda w: w, None),
        (lambda w: OrderedDict(under("module.", w)), '"module"'),
        (lambda w: under("_orig_mod.", w), '"_orig_mod"'),
        (lambda w: under("model.", w), '"model"'),
        (lambda w: {"state_dict": under("denoise_fn.", w), "epoch": 3}, '"state_dict.denoise_fn"'),
        (lambda w: {"model": {"module": w}, "step": 5, "args": {"lr": 1.0}}, '"model.module"'),
        (lambda w: {"ema": w}, '"ema", a moving average'),
        (lambda w: {name: value.bfloat16() for name, value in w.items()}, None),
        (lambda w: {name: torch.nn.Parameter(value) for name, value in w.items()}, None),
        (lambda w: {**w, "betas": torch.linspace(1e-4, 0.02, 1000), "sqrt_alphas_cumprod": torch.ones(1000)}, None),
    ],
)
def test_a_state_dict_is_found_wherever_it_lies(wrap, said, weights, tmp_path, caplog):
    torch.save(wrap(weights), tmp_path / "w.pt")
    found = load_model(tmp_path / "w.pt", experiment()).state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-2) for name, value in weights.items())
    assert len(caplog.messages) == 1 + bool(said)
    assert not said or f"its weights are those under {said}" in caplog.messages[0]


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "noext"])
def test_safetensors_without_settings_are_state_dicts(name, weights, tmp_path):
    save_file(under("module.", weights), tmp_path / name)
    assert load_model(tmp_path / name, experiment()).config.num_heads == 4
    with pytest.raises(HBenchError, match="does not know its settings: name its `experiment`"):
        load_model(tmp_path / name)
    with pytest.raises(HBenchError, match="write its experiment by hand, from the flags of its training"):
        import_model(tmp_path / name)


@pytest.mark.parametrize("average", ["ema", "ema_model", "model_ema.module", "ema_0.9999", "average.module"])
def test_of_raw_and_averaged_weights_the_average_is_taken_and_named(average, weights, tmp_path, caplog):
    raw = {name: value + 1 for name, value in weights.items()}
    torch.save({**under("model.", raw), **under(f"{average}.", weights), "step": 3}, tmp_path / "w.ckpt")
    found = load_model(tmp_path / "w.ckpt", experiment()).state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert f'those under "{average}", a moving average; left out: "model"' in caplog.text


def test_an_average_inside_of_a_network_is_told_from_its_raw_weights(weights, tmp_path, caplog):
    raw = {name: value + 1 for name, value in weights.items()}
    torch.save({"ema": {**under("online_model.", raw), **under("ema_model.", weights)}}, tmp_path / "w.pt")
    found = load_model(tmp_path / "w.pt", experiment()).state_dict()
    assert torch.equal(found["out.2.bias"], weights["out.2.bias"])
    flat = {**raw, **under("ema.", weights)}  # beside each other, without a prefix for the raw ones
    torch.save(flat, tmp_path / "flat.pt")
    assert torch.equal(load_model(tmp_path / "flat.pt", experiment()).state_dict()["out.2.bias"], weights["out.2.bias"])
    assert 'left out: "(no prefix)"' in caplog.text


@pytest.mark.parametrize("names", [("a", "b"), ("ema_0.999", "ema_0.9999", "model")])
def test_among_several_models_none_is_guessed(names, weights, tmp_path):
    torch.save({name: weights for name in names}, tmp_path / "w.pt")
    with pytest.raises(HBenchError, match=f'holds {len(names)} models, "{names[0]}"'):
        load_model(tmp_path / "w.pt", experiment())


def many(*names):
    return {name: torch.zeros(2, 2) for name in names}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            many("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "mid_block.x"),
            "a UNet of diffusers",
        ),
        (many("down.0.block.0.norm1.weight", "temb.dense.0.weight"), "a UNet of the original DDPM"),
        (many("module.down.0.block.0.norm1.weight"), "a UNet of the original DDPM"),
        ({"model": many("all_modules.0.weight"), "optimizer": {}}, "a network of score_sde"),
        (many("unet.down_blocks.0.attn.lora_A.weight"), "a LoRA"),
        (many("lora_unet_down_blocks_0.lora_down.weight"), "a LoRA"),
        (many("encoder.down.0.block.0.conv1.weight", "quant_conv.weight"), "an autoencoder"),
        ({"model": many("downs.0.0.block1.proj.weight", "init_conv.weight")}, "denoising-diffusion-pytorch"),
        (many("blocks.0.attn.qkv.weight", "x_embedder.proj.weight"), "a transformer"),
        (many("enc.32x32_block0.conv0.weight"), "a network of EDM"),
        ({"state": {0: many("exp_avg")}, "param_groups": [{"lr": 1.0}]}, "the state of an optimiser"),
        (many("fc.weight"), r"holds no model known here \(fc.weight\)"),
        ({}, r"holds no model known here \(nothing\)"),
        ({"model": {}, "average": {}, "optimizer": {}}, "is a checkpoint of hbench, to resume from"),
    ],
)
def test_models_of_other_kinds_are_named(values, words, tmp_path):
    torch.save(values, tmp_path / "w.bin")
    with pytest.raises(HBenchError, match=words):
        load_model(tmp_path / "w.bin", experiment())


def test_latent_models_are_named_though_they_hold_a_unet_with_these_names(weights, tmp_path):
    latent = under("model.diffusion_model.", weights)
    torch.save({"state_dict": {**latent, **many("first_stage_model.encoder.conv_in.weight")}}, tmp_path / "ldm.ckpt")
    with pytest.raises(HBenchError, match="is a latent diffusion model"):
        load_model(tmp_path / "ldm.ckpt", experiment())
    text = many("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight")
    save_file({**latent, **text}, tmp_path / "sd.safetensors")
    with pytest.raises(HBenchError, match="text-conditional or latent"):
        load_model(tmp_path / "sd.safetensors", experiment())
    torch.save({"state_dict": latent | many("cond_stage_model.x"), "callbacks": Malicious()}, tmp_path / "objects.ckpt")
    with pytest.raises(HBenchError, match="is a latent diffusion model"):
        load_model(tmp_path / "objects.ckpt", experiment())
    torch.save({"state_dict": latent, "callbacks": Malicious()}, tmp_path / "objects.ckpt")
    with pytest.raises(HBenchError, match=r"it holds objects \(\w+.Path.touch\)|it holds objects"):
        load_model(tmp_path / "objects.ckpt", experiment())
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {**w, "label_emb.weight": torch.zeros(10, 128)}, r"class-conditional \(10 classes\)"),
        (lambda w: {n: v for n, v in w.items() if "output_blocks" not in n}, "a classifier or an encoder"),
        (lambda w: {**w, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}, "6 channels.*super-resolution"),
        (lambda w: {**w, "input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3)}, "set data.channels = 3"),
        (lambda w: {**w, "betas": torch.linspace(1e-4, 0.02, 4000)}, "set diffusion.T = 4000"),
        (
            lambda w: {**w, "alphas_cumprod": torch.linspace(1, 0, 1000).double()},
            "set diffusion.noise_schedule, such as cosine",
        ),
        (lambda w: {**w, "out.2.bias": w["out.2.bias"].to(torch.int8)}, "torch.int8, quantised"),
        (lambda w: {**w, "out.2.bias": w["out.2.bias"].to(torch.float8_e4m3fn)}, "float8_e4m3fn, quantised"),
        (lambda w: {**w, "out.2.bias": w["out.2.bias"].to(torch.complex64)}, "quantised or sparse"),
    ],
)
def test_unfit_state_dicts_say_what_they_are(change, words, weights, tmp_path):
    torch.save(change(weights), tmp_path / "w.pt")
    with pytest.raises(HBenchError, match=words):
        load_model(tmp_path / "w.pt", experiment())


def archive(path, kind):
    (path.parent / "inside").write_bytes(b"x")
    with zipfile.ZipFile(path, "w") if kind == "zip" else tarfile.open(path, kind) as file:
        file.write(path.parent / "inside") if kind == "zip" else file.add(path.parent / "inside")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pt", b"<!DOCTYPE html><html>AccessDenied</html>", "is a web page"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        ("w.pt", b"", "is empty"),
        ("w.onnx", b"\x08\x07\x12\x07pytorch", "is an ONNX graph"),
        ("w.pt", b"\x08\x07\x12\x07pytorch", "is an ONNX graph"),
        ("w.h5", b"\x89HDF\r\n", "HDF5"),
        ("w.npy", b"\x93NUMPY", "an array of NumPy"),
        ("w.gguf", b"GGUF\x03", r"\(GGUF\)"),
        ("w.pt.gz", b"\x1f\x8b\x08\x00", "is packed: unpack it"),
        ("w.png", b"\x89PNG\r\n\x1a\n", "is a picture"),
        ("w.json", b'{"_class_name": "UNet2DModel"}', "is text, not weights"),
        ("model.ckpt-790000.index", b"\x00\x01", "a checkpoint of TensorFlow"),
        ("model-00001-of-00002.safetensors", b"\x00\x01", "one part of several"),
        ("w.npz", "zip", "arrays of NumPy"),
        ("w.zip", "zip", r"an archive \(ZIP\)"),
        ("w.tar", "w", r"an archive \(tar\)"),
        ("w.pt", "w", r"an archive \(tar\)"),
        ("w.tar.gz", "w:gz", "is packed"),
    ],
)
def test_files_of_other_programs_are_named(name, content, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else archive(path, content)
    with pytest.raises(HBenchError, match=words):
        load_model(path, experiment())


def test_torchscript_and_halves_are_named(weights, tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as file:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            file.writestr(f"script/{name}", b"")
    with pytest.raises(HBenchError, match="TorchScript"):
        load_model(tmp_path / "script.pt", experiment())
    torch.save(weights, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HBenchError, match="is cut off or damaged"):
        load_model(tmp_path / "w.pt", experiment())


FOLDERS = {
    "model_index.json": ('{"_class_name": "DDPMPipeline"}', r"a model of diffusers \(DDPMPipeline\)"),
    "unet/config.json": ('{"_class_name": "UNet2DModel"}', r"config.json and no weights: add diffusion_pytorch_model"),
    "diffusion_pytorch_model.bin": ("", "a model of diffusers"),
    "adapter_config.json": ("{}", "a LoRA"),
    "config.json": ('{"model_type": "bert"}', "a model of transformers"),
    "saved_model.pb": ("", "a model of TensorFlow"),
    "ema.pt": ("", "holds no model.safetensors: give one of its files, such as .*ema.pt"),
    "pretrain/model.safetensors": ("", "holds no model.safetensors: give .*pretrain$"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_other_programs_are_named(name, tmp_path):
    content, words = FOLDERS[name]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(HBenchError, match=words):
        load_model(tmp_path, experiment())


@pytest.mark.parametrize(
    "address", ["https://x.org/ema.pt", "hf://google/ddpm", "huggingface.co/google/ddpm", "hf.co/google/ddpm"]
)
def test_addresses_are_named(address):
    with pytest.raises(HBenchError, match=rf"^{address}: is an address: hbench downloads no models"):
        load_model(address, experiment())
    with pytest.raises(HBenchError, match="is an address"):
        load_run(address, device="cpu")


def test_runs_are_no_models(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(HBenchError, match="a model of diffusers: give the folder of a run"):
        load_run(tmp_path, device="cpu")
    with pytest.raises(HBenchError, match="the Hugging Face Hub cannot be reached, nor is it"):
        load_run("google/ddpm-celebahq-256", device="cpu")
    with pytest.raises(HBenchError, match="is a file, and a run is a folder"):
        load_run(tmp_path / "model_index.json", device="cpu")


def test_ids_of_the_hub_are_named_unless_they_may_be_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(HBenchError, match="no such file or folder, and the Hugging Face Hub cannot be reached, nor"):
        load_model("google/ddpm-celebahq-256", experiment())
    for path in ("mine/run", "runs/mnist", "weights/ema.pt"):
        with pytest.raises(HBenchError, match="no such model: pretrain it"):
            load_model(path, experiment())


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.num_heads_upsample=2", "the decoder has as many heads as the encoder"),
        ("model.class_cond=true", "models are unconditional"),
        ("diffusion.beta_schedule='linear'", "it is called diffusion.noise_schedule here"),
        ("model.num_channels=64", "it is called model.model_channels here"),
        ("diffusion.diffusion_steps=1000", "it is called diffusion.T here"),
    ],
)
def test_flags_of_guided_diffusion_are_explained(key, words):
    with pytest.raises(HBenchError, match=words):
        experiment(key)
