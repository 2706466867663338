"""Models of diffusers on disk: pipelines, and their ``UNet2DModel`` alone, read by their JSON and without diffusers.

A folder may come from anyone: nothing in it is run, and what hbench cannot do of a network or schedule is refused by
name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from hbench.config import Experiment, UNet2D
from hbench.errors import HBenchError, as_list
from hbench.experiments import parse_experiment
from hbench.store.files import a_path
from hbench.store.folders import refuse_links
from hbench.store.foreign import WEIGHTS as SUFFIXES
from hbench.store.foreign import is_hub_id, kind_of, read_json, refuse_other_files
from hbench.store.hub import STEM, hub_entry, snapshot
from hbench.store.run_files import locate
from hbench.store.weights import carries_experiment, is_safetensors, load_pickled, read_metadata

CONFIG, INDEX, SCHEDULER = "config.json", "model_index.json", "scheduler_config.json"
"""Files of settings: of a network, of a pipeline, and of its noise schedule."""
NETWORK = "UNet2DModel"
"""The class of diffusers that hbench has as a backbone."""
PARTS = {
    "text_encoder": "prompts",
    "image_encoder": "images as prompts",
    "bert": "prompts",
    "vae": "an autoencoder between images and latents",
    "vqvae": "an autoencoder between images and latents",
    "movq": "an autoencoder between images and latents",
    "prior": "a second model",
    "transformer": "a transformer in place of a UNet",
}
"""Parts of a pipeline that hbench lacks, and what they are for."""
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
"""Noise schedules of diffusers, and their names here."""
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
"""Predictions of diffusers, and their names here."""
WITH_BETAS = re.compile(
    r"(DDPM|DDIM|DDIMInverse|DDPMParallel|DDIMParallel|PNDM|DPMSolverMultistep|DPMSolverSinglestep|DPMSolverSDE|"
    r"DEISMultistep|UniPCMultistep|LMSDiscrete|EulerDiscrete|EulerAncestralDiscrete|HeunDiscrete|KDPM2Discrete|"
    r"KDPM2AncestralDiscrete)Scheduler"
)
"""Schedulers of models that were trained along betas, whatever they sample by."""
OLDER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an attention layer's parts in diffusers before 0.16, and today's."""


@dataclass(frozen=True)
class Pipeline:
    """A ``UNet2DModel`` on disk, with the noise schedule of its pipeline."""

    name: str
    """Name for messages: path, or id of the Hugging Face Hub."""
    weights: Path
    """File of its weights."""
    unet: dict[str, Any]
    """Settings of its network: ``config.json``."""
    scheduler: dict[str, Any] | None
    """Settings of its noise schedule: ``scheduler_config.json``; None where there is none."""


# Places -------------------------------------------------------------------------------------------------------------


def find_pipeline(path: str | Path) -> Pipeline | None:
    """Return the model of diffusers at a path; None where there is nothing, or a model of another kind.

    Args:
        path: folder of a pipeline, folder or weights file of its UNet, or an id of the Hugging Face Hub.

    Raises:
        HBenchError: a pipeline or network that hbench does not have, which the message names, or without weights.
    """
    path = a_path(path)
    if not path.exists() and is_hub_id(path):
        return _in_folder(snapshot(path.as_posix()), path.as_posix())
    if entry := hub_entry(path):
        refuse_links(entry)  # those of a snapshot lead to other folders of its entry
        return _in_folder(path, str(path))
    path = locate(path)
    if path.is_dir() and not (path / "model.safetensors").is_file():
        return _in_folder(path, str(path))
    if path.is_file() and path.suffix in SUFFIXES:
        config = read_json(path.with_name(CONFIG))
        if config.get("_class_name") == NETWORK and not carries_experiment(path):
            return Pipeline(str(path), path, config, _scheduler(path.parent))
    return None


def model_name(path: str | Path) -> str:
    """Return a name for a model: that of its folder, of the pipeline that holds its UNet, or on the Hub."""
    folder = Path(path).resolve()
    if entry := hub_entry(folder):
        return entry.name.rpartition("--")[2]
    folder = folder.parent if folder.is_file() else folder
    return (folder.parent if folder.name.startswith("unet") else folder).name or "model"


def _in_folder(folder: Path, name: str) -> Pipeline | None:
    _check_parts(_settings(folder / INDEX), name)
    inside = folder / "unet"
    unet = inside if (inside / CONFIG).is_file() else folder
    config = _settings(unet / CONFIG)
    kind = config.get("_class_name")
    if kind != NETWORK:
        if not isinstance(kind, str):
            _check_alone(inside, folder)
            return None
        raise HBenchError(f"{name}: is {kind[:60]} of diffusers, and hbench takes {NETWORK} alone: give one")
    weights = [unet / f"{STEM}.safetensors", unet / f"{STEM}.bin"]
    variants = sorted(each for each in unet.glob(f"{STEM}.*") if each.suffix in SUFFIXES and each not in weights)
    found = next((each for each in [*weights, *variants] if each.is_file()), None)
    if found is None:
        raise HBenchError(f"{name}: holds {CONFIG} and no weights: add {weights[0].name} or {weights[1].name}")
    return Pipeline(name, found, config, _scheduler(unet))


def _check_alone(*folders: Path) -> None:
    """Raise an HBenchError where weights of diffusers lie in one of the folders, which have no settings of them."""
    found = (each for folder in folders for each in sorted(folder.glob(f"{STEM}.*")) if each.suffix in SUFFIXES)
    if alone := next(found, None):
        raise HBenchError(
            f"{alone}: is of a model of diffusers, and {CONFIG} beside it is missing, or of no network: add the one it "
            "was saved with"
        )


def _check_parts(index: Mapping[str, Any], name: str) -> None:
    """Raise an HBenchError that names what a pipeline has and hbench lacks."""
    kind = index.get("_class_name")
    present = [part for part, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    lacking = {purpose: part for part in present for stem, purpose in PARTS.items() if part.startswith(stem)}
    if lacking:
        shown = " and ".join(f"{purpose} ({part})" for purpose, part in lacking.items())
        raise HBenchError(
            f"{name}: is {str(kind)[:60]} of diffusers, which needs {shown}, and hbench has none: give a pipeline of a "
            f"{NETWORK} and a scheduler alone, such as DDPMPipeline"
        )


def _scheduler(unet: Path) -> dict[str, Any] | None:
    """Return the settings of the noise schedule of the pipeline to which a UNet's folder belongs; None without any."""
    folders = [unet / "scheduler", unet] + ([unet.parent / "scheduler"] if unet.name.startswith("unet") else [])
    return next((found for folder in folders if (found := _settings(folder / SCHEDULER))), None)


def _settings(path: Path) -> dict[str, Any]:
    """Return what a file of settings holds; nothing where there is no file.

    Raises:
        HBenchError: damaged. Defaults in the place of its settings would make other images without a word.
    """
    if not path.is_file():
        return {}
    if not (found := read_json(path)):
        raise HBenchError(f"{path}: holds no settings, or is damaged: get the file again")
    return found


# Settings -----------------------------------------------------------------------------------------------------------


def experiment_of(pipeline: Pipeline, name: str = "pipeline", class_label: int | None = None) -> Experiment:
    """Return the experiment that a model's own settings describe; those of the discovery suit its size.

    The discriminator, which ADM's settings shape, has the levels and channels of the network.

    Args:
        pipeline: model of diffusers.
        name: name of the experiment.
        class_label: class of a class-conditional network.

    Raises:
        HBenchError: network or schedule is none that hbench has; the message names why.
    """
    unet, source = pipeline.unet, f"{pipeline.name}: {CONFIG}"
    channels, outputs = unet.get("in_channels", 3), unet.get("out_channels", 3)
    if reason := _unlike(unet):
        raise HBenchError(f"{source}: {reason}: give a model without")
    if channels not in (1, 3):
        raise HBenchError(f"{source}: its images have {channels} channels, neither grey nor RGB: give another model")
    if outputs not in (channels, 2 * channels):
        raise HBenchError(
            f"{source}: it makes {outputs} channels of {channels}, and hbench knows predictions, alone or with a "
            "variance: give another model"
        )
    size, *others = as_list(unet.get("sample_size")) or [None]
    if not isinstance(size, int) or any(other != size for other in others):
        raise HBenchError(f"{source}: sample_size is no width of square images: write it there, as a whole number")
    settings = {key: unet[key] for key in UNet2D.model_fields if key in unet} | {"class_label": class_label}
    settings |= {"attention_head_dim": unet.get("attention_head_dim", 8) or 0}
    for key in ("down_block_types", "up_block_types"):
        settings[key] = [str(block).removeprefix("UNetRes") for block in as_list(settings.get(key, []))]
    diffusion = _diffusion(pipeline)
    values = {
        "name": name,
        "data": {
            "dataset": "folder",
            "label": re.sub(r"[^\w .()+-]", " ", model_name(pipeline.name)).strip(" .()+-")[:100] or "Pictures",
            "size": size,
            "channels": channels,
        },
        "model": {"unet2d": settings, "learn_sigma": outputs == 2 * channels, **_discriminator(settings, size)},
        "diffusion": diffusion,
        "discovery": _discovery(size, diffusion["T"], (pipeline.scheduler or {}).get("timestep_spacing", "leading")),
    }
    return parse_experiment(values, source)


def _unlike(unet: Mapping[str, Any]) -> str:
    """Return what keeps a network from being split at its middle block, in words; empty where nothing does."""
    blocks = [str(each) for key in ("down_block_types", "up_block_types") for each in as_list(unet.get(key, []))]
    if skips := [each for each in blocks if "Skip" in each]:
        return f"its blocks ({skips[0]}) add a picture to the output that goes past the middle block"
    if unet.get("mid_block_type", "UNetMidBlock2D") is None:
        return "it has no middle block (mid_block_type), and so no h-space"
    if unet.get("time_embedding_type") == "fourier":
        return 'it divides its output by the level of noise (time_embedding_type "fourier")'
    if unet.get("center_input_sample"):
        return "its images are in 0..1 (center_input_sample), not in -1..1"
    if unet.get("class_embed_type") is not None:
        return f"it takes classes as {unet['class_embed_type']} (class_embed_type)"
    return ""


def _diffusion(pipeline: Pipeline) -> dict[str, Any]:
    """Return the section [diffusion] of a scheduler's settings; diffusers' defaults where there are none."""
    scheduler, source = pipeline.scheduler or {}, f"{pipeline.name}: {SCHEDULER}"
    kind = scheduler.get("_class_name", "DDPMScheduler")
    if not WITH_BETAS.fullmatch(str(kind)) or scheduler.get("use_flow_sigmas"):
        raise HBenchError(f"{source}: {str(kind)[:60]} is not for a model of betas: give a model of DDPMScheduler")
    betas, T = scheduler.get("trained_betas"), scheduler.get("num_train_timesteps", 1000)
    schedule = _known(SCHEDULES, scheduler, "beta_schedule", "linear", source) if betas is None else "linear"
    return {
        "prediction": _known(PREDICTIONS, scheduler, "prediction_type", "epsilon", source),
        "T": len(betas) if isinstance(betas, list) else T,
        "noise_schedule": schedule,
        "beta_start": scheduler.get("beta_start", 1e-4),
        "beta_end": scheduler.get("beta_end", 0.02),
        "trained_betas": betas,
        "zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr", False)),
        "steps_offset": scheduler.get("steps_offset", 0),
    }


def _known(names: Mapping[str, str], scheduler: Mapping[str, Any], key: str, default: str, source: str) -> str:
    """Return hbench's name of a scheduler's setting.

    Raises:
        HBenchError: it has none.
    """
    value = str(scheduler.get(key, default))
    if value not in names:
        raise HBenchError(f"{source}: {key} is {value[:60]}, hbench has {', '.join(names)}: give another model")
    return names[value]


def _discriminator(settings: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the settings of ADM's encoder that has about the levels, channels and attention of a network."""
    channels = [each for each in as_list(settings.get("block_out_channels", [])) if isinstance(each, int)] or [32]
    base = max(32, channels[0] // 32 * 32)
    attends = [size >> i for i, block in enumerate(settings["down_block_types"][:-1]) if block.startswith("Attn")]
    return {
        "model_channels": base,
        "channel_mult": [max(1, round(each / base)) for each in channels],
        "num_res_blocks": settings.get("layers_per_block", 2),
        "attention_resolutions": attends,
    }


def _discovery(size: int, T: Any, spacing: Any) -> dict[str, Any]:
    """Return a discovery of a length for one GPU: fewer pairs a step the larger the images."""
    steps = T if isinstance(T, int) and T > 0 else 1000
    return {
        "K": 16,
        "S": 5.0,
        "M": min(20, steps),
        "t_shift": steps * 2 // 5,
        "spacing": spacing,
        "steps": 2400,
        "batch_size": max(2, min(32, 2048 // max(1, size))),
        "lambda_adv": 1.0,
        "reconstructor": "lenet" if 12 <= size <= 64 else "resnet18",
    }


# Weights ------------------------------------------------------------------------------------------------------------


def read_unet(pipeline: Pipeline) -> dict[str, Tensor]:
    """Return the parameters of a model's network, under today's names of diffusers.

    Raises:
        HBenchError: damaged, not plain tensors, or a model of another kind, which the message names.
    """
    file = pipeline.weights
    refuse_other_files(file)
    if is_safetensors(file):
        read_metadata(file)
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    else:
        tensors = load_pickled(file)
    if "conv_in.weight" not in tensors:
        kind = kind_of(tensors) or "of another kind"
        raise HBenchError(f"{file}: is {kind}, and {CONFIG} beside it is that of a {NETWORK}: give one")
    return {_today(name): value for name, value in tensors.items()}


def _today(name: str) -> str:
    head, _, part = name.rpartition(".attentions.")
    if not head:
        return name
    number, layer, *rest = part.split(".")
    return ".".join([f"{head}.attentions", number, OLDER_NAMES.get(layer, layer), *rest])
