"""Models of diffusers by the command line: from a folder to directions and their measures, and all that is refused."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from command_line import invoke, refused
from PIL import Image
from safetensors.torch import load_file, save_file

import hbench
from hbench.cli.tasks import TASKS, Job
from hbench.errors import HBenchError
from hbench.experiments import load_experiment, to_toml
from hbench.store.model import load_model, model_experiment
from hbench.store.pipeline import find_pipeline
from hbench.store.weights import read_written_experiment

diffusers = pytest.importorskip("diffusers", reason='needs pip install "hbench[diffusers]"')

NETWORK = {
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "attention_head_dim": None,
}
SHORT = ["K=3", "M=3", "steps=2", "batch_size=4", "strategy=node", "precision=float32", "checkpoint_every=1"]
"""A discovery of seconds."""


def network(seed=0, **settings):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(**NETWORK | settings)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder that a pipeline of diffusers wrote."""
    folder = tmp_path_factory.mktemp("diffusers") / "tiny"
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(network(), scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def experiment_file(pipeline, tmp_path_factory):
    """The experiment file that "hbench import" writes of it."""
    out = tmp_path_factory.mktemp("imported") / "mine.toml"
    result = invoke("import", pipeline, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out)
    return out


@pytest.fixture(scope="module")
def run(experiment_file, tmp_path_factory):
    """A run in it, trained by the file alone."""
    out = tmp_path_factory.mktemp("trained") / "train"
    short = [part for each in SHORT for part in ("--set", f"discovery.{each}")]
    result = invoke("train", experiment_file, *short, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    for i in range(24):
        Image.fromarray(torch.randint(0, 256, (16, 16), dtype=torch.uint8).numpy()).save(folder / f"{i}.png")
    return folder


def changed(pipeline, folder, file, **values):
    """Return a copy of a pipeline's folder in which one of its JSON files has other values."""
    copy = shutil.copytree(pipeline, folder / "changed")
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | values))
    return copy


@pytest.mark.slow
def test_an_imported_experiment_is_that_of_the_model(experiment_file, pipeline):
    experiment = load_experiment(experiment_file)
    assert experiment.name == "mine"
    assert experiment.data.label == "tiny"
    assert experiment.data.image_shape == (1, 16, 16)
    assert experiment.model.path == str(pipeline)
    assert experiment.model.unet2d.block_out_channels == (32, 32)
    assert experiment.model.unet2d.attention_head_dim == 0  # one head, null in the file of diffusers
    assert experiment.diffusion.noise_schedule == "cosine"
    assert experiment.diffusion.prediction == "v"
    assert experiment.discovery.h_scale != 1
    assert model_experiment(pipeline).model.unet2d == experiment.model.unet2d


@pytest.mark.slow
def test_a_run_keeps_the_network_but_not_its_place(run, pipeline):
    found = hbench.load_run(run, device="cpu")
    theirs = diffusers.UNet2DModel.from_pretrained(pipeline / "unet").eval()
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 900])
    with torch.no_grad():
        assert torch.equal(found.model(x, t), theirs(x, t).sample)
    assert found.experiment.model.path is None
    assert str(pipeline) not in (run / "experiment.json").read_text()
    assert read_written_experiment(run / "experiment.json").model.unet2d is not None
    assert found.shift_block.out_weight.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("rca", ["--pairs", 8]),
        ("traverse", ["--pairs", 8, "--examples", 1]),
        ("attributes", ["--samples", 8]),
        ("fid", ["--samples", 8, "--feature-extractor", "random-resnet18", "--data-root", "PICTURES"]),
        ("edit", ["PICTURE", "--shift", "0=2"]),
    ],
)
def test_its_directions_are_measured(command, options, run, pictures, tmp_path):
    options = [{"PICTURES": pictures, "PICTURE": pictures / "0.png"}.get(each, each) for each in options]
    extra = ["--cache", tmp_path / "cache"] if command == "fid" else []
    result = invoke(command, run, *options, *extra, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "provenance.json").is_file()


@pytest.mark.slow
def test_its_memory_is_measured(experiment_file, tmp_path):
    options = ["--steps", 2, "--strategies", "node", "--repeats", 1, "--batch-size", 2, "--out", tmp_path / "s"]
    result = invoke("vram-sweep", experiment_file, *options, "--quiet")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "s" / "provenance.json").is_file()


@pytest.mark.slow
def test_its_samples_are_drawn_and_judged_without_an_experiment(pipeline, pictures, tmp_path):
    real = ["--feature-extractor", "random-resnet18", "--data-root", pictures, "--cache", tmp_path / "cache"]
    for command, options in (("sample", ["--samples", 2]), ("quality", ["--samples", 8, *real])):
        result = invoke(command, pipeline, *options, "--steps", 3, "--out", tmp_path / command, "--quiet")
        assert result.exit_code == 0, result.output
        assert (tmp_path / command / "provenance.json").is_file()


@pytest.mark.slow
def test_a_discovery_is_resumed_with_the_same_file(experiment_file, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "train")
    short = [part for each in [*SHORT, "steps=3"] for part in ("--set", f"discovery.{each}")]
    result = invoke("train", experiment_file, *short, "--out", copy, "--resume", "--quiet")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_reproduction_takes_the_model_instead_of_pretraining_one(experiment_file, pipeline):
    tasks = {task.folder: task for task in TASKS}
    job = Job(load_experiment(experiment_file), str(experiment_file), None)
    assert not tasks["pretrain"].wanted(job)
    assert "--model" not in tasks["train"].words(job)
    other = Job(load_experiment("digits16"), "digits16", None)
    assert tasks["pretrain"].wanted(other)
    assert "--model" in tasks["train"].words(other)
    result = invoke("train", experiment_file, "--dry-run")
    assert f"model.path = {pipeline}" in result.stderr
    assert "path" not in json.loads(result.stdout)["model"]


@pytest.mark.slow
def test_another_experiment_takes_network_and_schedule_from_the_model(pipeline):
    experiment = model_experiment(pipeline, load_experiment("digits16"))
    assert experiment.model.unet2d is not None
    assert experiment.diffusion.noise_schedule == "cosine"
    assert experiment.discovery == load_experiment("digits16").discovery
    with pytest.raises(HBenchError, match=r"trained with diffusion\.prediction = 'v', not 'eps': use its settings"):
        model_experiment(pipeline, load_experiment("digits16", "diffusion.prediction=eps"))
    with pytest.raises(HBenchError, match="trained on images of 16x16 with 1 channel, not 16x16 with 3 channels"):
        model_experiment(pipeline, load_experiment("faces16"))
    own = experiment.model.unet2d.model_dump()
    with pytest.raises(HBenchError, match=r"trained with model\.unet2d\.norm_eps = 1e-05, not 1e-06"):
        model_experiment(pipeline, load_experiment("digits16", **{"model.unet2d": own | {"norm_eps": 1e-6}}))


# Places -------------------------------------------------------------------------------------------------------------


def same(model, unet):
    wanted = unet.state_dict()
    return all(torch.equal(value, wanted[name]) for name, value in model.unet.state_dict().items())


def test_a_network_is_read_wherever_it_lies(pipeline, tmp_path, caplog):
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    for path in (pipeline, pipeline / "unet", pipeline / "unet" / "diffusion_pytorch_model.safetensors"):
        assert same(load_model(path, device="cpu"), unet)
        assert model_experiment(path).diffusion.noise_schedule == "cosine"
    assert not caplog.messages
    # early pipelines: the network beside the index, in a pickle
    early = tmp_path / "early"
    early.mkdir()
    torch.save(unet.state_dict(), early / "diffusion_pytorch_model.bin")
    shutil.copy(pipeline / "unet" / "config.json", early)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", early)
    shutil.copy(pipeline / "model_index.json", early)
    assert same(load_model(early, device="cpu"), unet)
    assert same(load_model(early / "diffusion_pytorch_model.bin", device="cpu"), unet)
    assert not caplog.messages


def test_a_variant_in_16_bits_is_read_where_there_is_no_other(pipeline, tmp_path):
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet").half()
    unet.save_pretrained(tmp_path / "half", variant="fp16")
    shutil.copytree(pipeline / "scheduler", tmp_path / "half" / "scheduler")
    assert same(load_model(tmp_path / "half", device="cpu"), unet.float())


def test_names_of_early_attention_layers_are_todays(pipeline, tmp_path):
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    copy = shutil.copytree(pipeline, tmp_path / "older")
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    renamed = {}
    for name, value in tensors.items():
        for today, then in older.items():
            name = name.replace(f".{today}.", f".{then}.")
        renamed[name] = value
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file)
    assert same(load_model(copy, device="cpu"), diffusers.UNet2DModel.from_pretrained(pipeline / "unet"))


def test_without_a_scheduler_the_schedule_is_said(pipeline, tmp_path, caplog):
    alone = shutil.copytree(pipeline / "unet", tmp_path / "network")
    load_model(alone, device="cpu")
    (said,) = caplog.messages
    assert "no scheduler_config.json beside it: read with prediction = eps" in said
    assert "beta_end = 0.02, diffusers' defaults unless the experiment has others; wrong" in said
    assert "given" not in said
    given = load_experiment("digits16", "diffusion.prediction=v")
    assert model_experiment(alone, given).diffusion.prediction == "v"


def test_a_class_is_fixed(tmp_path):
    unet = network(num_class_embeds=5)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "classes")
    line = refused("import", tmp_path / "classes", "--out", tmp_path / "a.toml")
    assert line.endswith(
        "is class-conditional (5 classes), and directions are those of one class: set model.unet2d.class_label, or "
        "give --class-label"
    )
    result = invoke("import", tmp_path / "classes", "--out", tmp_path / "a.toml", "--class-label", 3, "--quiet")
    assert result.exit_code == 0, result.output
    experiment = load_experiment(tmp_path / "a.toml")
    model = load_model(tmp_path / "classes", experiment, device="cpu")
    x, t = torch.randn(1, 1, 16, 16), torch.tensor([5])
    with torch.no_grad():
        assert torch.equal(model(x, t), unet.eval()(x, t, class_labels=torch.tensor([3])).sample)
    other = load_experiment(tmp_path / "a.toml", "model.unet2d.class_label=1")
    assert other.model.unet2d.class_label == 1


def test_the_variance_that_a_network_also_predicts_is_left_out(tmp_path):
    diffusers.DDPMPipeline(network(out_channels=2), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "sigma")
    experiment = model_experiment(tmp_path / "sigma")
    assert experiment.model.learn_sigma
    run = load_model(tmp_path / "sigma", experiment, device="cpu")
    assert run(torch.zeros(1, 1, 16, 16), torch.tensor([5])).shape == (1, 2, 16, 16)


def test_an_experiment_file_holds_what_was_given(pipeline, tmp_path):
    given = load_experiment("faces16").model_copy(update={"name": "again"})
    (tmp_path / "again.toml").write_text(to_toml(given, tmp_path))
    assert load_experiment(tmp_path / "again.toml") == given
    below = given.model_copy(update={"model": given.model.model_copy(update={"path": str(tmp_path / "again.toml")})})
    assert 'path = "again.toml"' in to_toml(below, tmp_path)
    assert f'path = "{tmp_path / "again.toml"}"' in to_toml(below, tmp_path / "elsewhere")
    hub = given.model_copy(update={"model": given.model.model_copy(update={"path": "google/ddpm-cat-256"})})
    (tmp_path / "hub.toml").write_text(to_toml(hub, tmp_path))
    assert load_experiment(tmp_path / "hub.toml").model.path == "google/ddpm-cat-256"


def test_models_of_hbench_are_imported_with_their_own_experiment(tiny_model, tmp_path):
    result = invoke("import", tiny_model, "--out", tmp_path / "own.toml", "--quiet")
    assert result.exit_code == 0, result.output
    experiment, own = load_experiment(tmp_path / "own.toml"), model_experiment(tiny_model)
    assert experiment.model.path == str(tiny_model)
    assert experiment.discovery == own.discovery
    assert experiment.model.unet2d is None


def test_an_import_replaces_nothing_unasked(pipeline, tmp_path):
    (tmp_path / "a.toml").write_text("mine")
    assert refused("import", pipeline, "--out", tmp_path / "a.toml").endswith(
        "a.toml: is there already: choose another --out, or add --overwrite"
    )
    assert "an experiment is a .toml file" in refused("import", pipeline, "--out", tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]
    assert (tmp_path / "a.toml").read_text() == "mine"


# What is refused ----------------------------------------------------------------------------------------------------

STABLE = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
LATENT = {
    "_class_name": "LDMPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
    "vqvae": ["diffusers", "VQModel"],
}


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            STABLE,
            "is StableDiffusionPipeline of diffusers, which needs prompts (text_encoder) and an autoencoder between "
            "images and latents (vae), and hbench has none: give a pipeline of a UNet2DModel and a scheduler alone, "
            "such as DDPMPipeline",
        ),
        (LATENT, "is LDMPipeline of diffusers, which needs an autoencoder between images and latents (vqvae)"),
    ],
)
def test_pipelines_with_other_parts_say_in_a_line_what_is_missing(index, words, tmp_path):
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "model_index.json").write_text(json.dumps(index))
    line = refused("import", tmp_path / "sd", "--out", tmp_path / "a.toml")
    assert words in line
    assert refused("sample", tmp_path / "sd") == line
    assert not (tmp_path / "a.toml").exists()


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("unet/config.json", {"mid_block_type": None}, "it has no middle block (mid_block_type), and so no h-space"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "is UNet2DConditionModel of diffusers"),
        ("unet/config.json", {"act_fn": "tanh"}, "act_fn"),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler is not for"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(file, values, words, pipeline, tmp_path):
    line = refused("import", changed(pipeline, tmp_path, file, **values), "--out", tmp_path / "a.toml")
    assert words in line
    assert not (tmp_path / "a.toml").exists()


@pytest.mark.parametrize("content", ["", '{"_class_name": "DDIM', "[]"])
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_damaged_settings_are_not_taken_for_missing_ones(file, content, pipeline, tmp_path):
    copy = shutil.copytree(pipeline, tmp_path / "copy")
    (copy / file).write_text(content)
    line = refused("import", copy, "--out", tmp_path / "a.toml")
    assert line == f"Error: {copy / file}: holds no settings, or is damaged: get the file again"


def test_weights_without_settings_name_the_file_that_is_missing(pipeline, tmp_path):
    copy = shutil.copytree(pipeline, tmp_path / "copy")
    (copy / "unet" / "config.json").unlink()
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    words = "is of a model of diffusers, and config.json beside it is missing, or of no network: add the one it was "
    for folder in (copy, copy / "unet"):
        assert refused("import", folder, "--out", tmp_path / "a.toml").startswith(f"Error: {weights}: {words}")


def test_weights_that_do_not_fit_are_named(pipeline, tmp_path):
    copy = changed(pipeline, tmp_path, "unet/config.json", block_out_channels=[32, 64])
    with pytest.raises(HBenchError, match=r"of its parameters do not fit the model \(unet"):
        load_model(copy, device="cpu")
    alone = tmp_path / "diffusion_pytorch_model.safetensors"
    shutil.copy(pipeline / "unet" / alone.name, alone)
    with pytest.raises(HBenchError, match=r"is a UNet of diffusers without its config.json beside it"):
        load_model(alone, load_experiment("digits16"), device="cpu")
    save_file({"a": torch.zeros(2)}, copy / "unet" / alone.name)
    with pytest.raises(HBenchError, match=r"is of another kind, and config.json beside it is that of a UNet2DModel"):
        load_model(copy, device="cpu")
    for file in (copy / "unet").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(HBenchError, match=r"holds config.json and no weights: add diffusion_pytorch_model"):
        load_model(copy, device="cpu")


def test_no_code_in_weights_is_run(pipeline, bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(pipeline / "unet" / "config.json", tmp_path)
    shutil.copy(bad, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(HBenchError, match="it holds objects"):
        load_model(tmp_path / "diffusion_pytorch_model.bin", device="cpu")
    assert not Path("owned").exists()


# The Hub ------------------------------------------------------------------------------------------------------------


def test_an_id_of_the_hub_is_read_from_its_cache(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def snapshot(name, *, allow_patterns, local_files_only=False):
        asked.append((name, local_files_only))
        return str(pipeline)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_pipeline("somebody/tiny").name == "somebody/tiny"
    assert set(asked) == {("somebody/tiny", True)}
    result = invoke("import", "somebody/tiny", "--quiet")
    assert result.exit_code == 0, result.output
    assert load_experiment(tmp_path / "tiny.toml").model.path == "somebody/tiny"
    result = invoke("sample", "somebody/tiny", "--samples", 1, "--steps", 2, "--quiet")
    assert result.exit_code == 0, result.output
    assert Path("runs/tiny/sample/provenance.json").is_file()
    assert not Path("somebody").exists()


def test_a_folder_of_the_cache_is_read_though_its_files_are_links(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(pipeline, entry / "blobs")
    snapshot = entry / "snapshots" / "0123abc"
    for file in sorted((entry / "blobs").rglob("*.*")):
        link = snapshot / file.relative_to(entry / "blobs")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    result = invoke("sample", snapshot, "--samples", 1, "--steps", 2, "--quiet")
    assert result.exit_code == 0, result.output
    assert Path("runs/tiny/sample/provenance.json").is_file()
    (snapshot / "model_index.json").unlink()
    (snapshot / "model_index.json").symlink_to(pipeline / "model_index.json")
    assert "model_index.json: is a link out of its folder" in refused("sample", snapshot)


def test_an_id_that_the_cache_lacks_is_downloaded(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def snapshot(name, *, allow_patterns, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError("not here")
        return str(pipeline)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_pipeline("somebody/tiny").weights.parent == pipeline / "unet"


def test_without_a_network_a_line_comes_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    line = refused("import", "google/ddpm-cat-256")
    assert line == (
        "Error: google/ddpm-cat-256: no such file or folder, and the Hugging Face Hub cannot be reached, nor is it in "
        "its cache: give the folder of a run or model"
    )
    assert time.monotonic() - began < 5
    assert not list(tmp_path.iterdir())
