"""Models of other makers: state dicts of guided-diffusion, found wherever they lie, and words for all that is not read.

A file may come from anyone: nothing in it is run, and no name in it is trusted.
"""

import json
import logging
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from hbench.config import Experiment
from hbench.core.diffusion import alpha_bar_schedule
from hbench.errors import HBenchError
from hbench.store.weights import has_header, is_safetensors, load_pickled, names_in_pickle, read_metadata

log = logging.getLogger(__name__)

INSTEAD = (
    "hbench reads its own models, UNets of guided-diffusion, and UNet2DModels of diffusers with their pipelines: "
    "pretrain a model on your images, or give one of these"
)
"""Advice where a model is of another kind."""
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Suffixes of PyTorch's weights."""
FIRST_LAYER = "time_embed.0.weight"
"""Name by which a UNet of guided-diffusion is found among others; the part before it is its prefix."""
AVERAGE = re.compile(r"ema|average|avg|shadow", re.IGNORECASE)
"""Names of moving averages."""
BUFFERS = re.compile(r"betas|\w*alphas\w*|posterior_\w+|lvlb_weights|logvar|\w*loss_weight")
"""Names of the noise schedule, which some programs keep beside the network."""
OWN_CHECKPOINTS = (
    {"model", "average", "optimizer"},
    {"shift_block", "reconstructor", "discriminator", "optimizer", "optimizer_D"},
)
"""Parts of the checkpoints of hbench's own trainings."""
DEEPEST = 8
"""Deepest nesting of dicts that is looked into."""

NAMES_FIRST = (
    (r"lora[_.]|\.lora$|hada_w1|lokr_w", "a LoRA, which changes another model and is none by itself"),
    (r"(^|\.)(first|cond)_stage_model\.", "a latent diffusion model (CompVis, Stable Diffusion)"),
    (
        r"(^|\.)transformer_blocks\.\d",
        "the network of a text-conditional or latent model (Stable Diffusion and others)",
    ),
)
"""Patterns of parameters' names, and the kind of model that has them, even where it holds a UNet with ADM's names."""
NAMES = (
    (r"(^|\.)(down|up)_blocks\.\d+\.|(^|\.)mid_block\.", "a UNet of diffusers without its config.json beside it"),
    (r"(^|\.)(encoder|decoder)\.(down|up)\.\d+\.|(^|\.)quant_conv\.", "an autoencoder of a latent diffusion model"),
    (r"(^|\.)(down|up)\.\d+\.block\.\d+\.|(^|\.)temb\.dense\.", "a UNet of the original DDPM"),
    (r"(^|\.)all_modules\.\d+\.", "a network of score_sde"),
    (r"(^|\.)(enc|dec)\.\d+x\d+_", "a network of EDM"),
    (r"(^|\.)(downs\.\d+\.|init_conv\.)", "a UNet of denoising-diffusion-pytorch"),
    (r"(^|\.)(x_embedder\.|pos_embed$|blocks\.\d+\.(attn|adaLN)|transformer\.)", "a transformer"),
    (r"(^|\.)(text_model\.|token_embedding\.|embeddings\.word)", "a text encoder"),
    (r"(^|\.)(mapping|synthesis)\.", "a StyleGAN"),
    (r"(^|\.)exp_avg(_sq)?$|(^|\.)param_groups", "the state of an optimiser, without a model"),
)
"""Patterns of models without a UNet of ADM's names."""
FIRST_BYTES = (
    (rb"\s*<(!doctype|html|\?xml|head)", "is a web page: the download failed; get the file again"),
    (rb"version https://git-lfs", 'is a pointer of Git LFS: fetch the file itself by "git lfs pull"'),
    (rb"\x89HDF", f"is HDF5, as Keras writes it: {INSTEAD}"),
    (rb"\x93NUMPY", f"is an array of NumPy: {INSTEAD}"),
    (rb"GGUF|GGML", f"is a quantised model (GGUF): {INSTEAD}"),
    (rb"\x08[\x03-\x14]\x12", f"is an ONNX graph: {INSTEAD}"),
    (
        rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd",
        "is packed: unpack it, and give the file of weights inside",
    ),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF|BM", "is a picture, not a model: give a file of weights"),
)
"""First bytes of files that hold no weights for PyTorch, and what to say of them."""
SUFFIXES = {
    ".onnx": "an ONNX graph",
    ".pb": "a graph of TensorFlow",
    ".index": "a checkpoint of TensorFlow",
    ".meta": "a checkpoint of TensorFlow",
    ".h5": "HDF5, as Keras writes it",
    ".keras": "a model of Keras",
    ".tflite": "a model of TensorFlow",
    ".msgpack": "a model of Flax",
    ".npz": "arrays of NumPy",
    ".gguf": "a quantised model (GGUF)",
}
"""Suffixes of other programs, and the kinds of file they stand for."""


# Places -------------------------------------------------------------------------------------------------------------


def refuse_elsewhere(path: Path, advice: str = INSTEAD) -> None:
    """Raise an HBenchError where a path is an address, or a folder of other programs.

    Args:
        path: path of which nothing of hbench's was found.
        advice: remedy where it is of another kind.
    """
    text = re.sub(r"^(\w+):/(?!/)", r"\1://", path.as_posix())  # a path has no two slashes in a row
    if re.match(r"(https?|ftp|hf|s3|gs|file|git)://|(www\.)?(huggingface\.co|hf\.co)/", text):
        raise HBenchError(f"{text}: is an address: hbench downloads no models: fetch the file, and give its path")
    if path.is_dir():
        _refuse_folder(path, advice)


def is_hub_id(path: Path) -> bool:
    """Return whether a path, at which nothing lies, may be an id of the Hugging Face Hub: "google/ddpm-cifar10-32"."""
    parts = path.parts
    if len(parts) != 2 or not all(re.fullmatch(r"[A-Za-z0-9][\w.@:-]*", part) for part in parts):
        return False
    return path.suffix not in WEIGHTS and parts[0] != "runs" and not Path(parts[0]).exists()


def _refuse_folder(folder: Path, advice: str) -> None:
    kind = ""
    settings = [read_json(folder / name) for name in ("model_index.json", "config.json", "unet/config.json")]
    if any("_class_name" in each or "_diffusers_version" in each for each in settings):
        classes = [each["_class_name"] for each in settings if isinstance(each.get("_class_name"), str)]
        kind = f"a model of diffusers ({classes[0][:60]})" if classes else "a model of diffusers"
    elif (folder / "model_index.json").is_file() or next(folder.glob("diffusion_pytorch_model*"), None):
        kind = "a model of diffusers"
    elif (folder / "adapter_config.json").is_file():
        kind = "a LoRA, which changes another model and is none by itself"
    elif "model_type" in settings[1] or "architectures" in settings[1]:
        kind = "a model of transformers"
    elif (folder / "snapshots").is_dir() and (folder / "refs").is_dir():
        kind = "a cache of the Hugging Face Hub"
    elif (folder / "saved_model.pb").is_file() or next(folder.glob("*.ckpt*.index"), None):
        kind = "a model of TensorFlow"
    if kind:
        raise HBenchError(f"{folder}: is {kind}: {advice}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the dict in a JSON file; an empty one where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def weights_beside(folder: Path) -> list[str]:
    """Return the names of weights of PyTorch in a folder, for advice."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHTS) if folder.is_dir() else []


# Files --------------------------------------------------------------------------------------------------------------


def read_state_dict(path: Path, experiment: Experiment) -> dict[str, Tensor]:
    """Return the parameters of the UNet in a file of guided-diffusion's names, under whatever prefix and nesting.

    Where there are several, the one moving average is taken, and a notice says so.

    Args:
        path: pickle of tensors and plain values, or safetensors.
        experiment: experiment whose images and schedule the UNet must have.

    Raises:
        HBenchError: damaged, not plain tensors, or a model of another kind, which the message names.
    """
    if is_safetensors(path):
        read_metadata(path)
        with safe_open(path, "pt") as file:
            values: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    else:
        try:
            values = load_pickled(path)
        except HBenchError as error:
            if kind := kind_of(names_in_pickle(path)):
                raise HBenchError(f"{path}: is {kind}: {INSTEAD}") from error
            raise
    if values.keys() in OWN_CHECKPOINTS:
        raise HBenchError(
            f"{path}: is a checkpoint of hbench, to resume from: give the model.safetensors of that training"
        )
    tensors = dict(_flat(values))
    if kind := kind_of(tensors, NAMES_FIRST):
        raise HBenchError(f"{path}: is {kind}: {INSTEAD}")
    prefixes = [name.removesuffix(FIRST_LAYER) for name in tensors if re.search(rf"(^|\.){FIRST_LAYER}$", name)]
    if not prefixes:
        found = (
            f"is {kind}" if (kind := kind_of([*tensors, *values])) else f"holds no model known here ({_some(values)})"
        )
        raise HBenchError(f"{path}: {found}: {INSTEAD}")
    prefix = _chosen(path, prefixes)
    check_schedule(tensors, experiment, str(path))
    others = tuple(each for each in prefixes if each.startswith(prefix) and each != prefix)
    chosen = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and not name.startswith(others)
    }
    chosen = {name: value for name, value in chosen.items() if not BUFFERS.fullmatch(name)}
    _check_kind(path, chosen)
    return chosen


def refuse_other_files(path: Path) -> None:
    """Raise an HBenchError where suffix or first bytes say that a file is none of PyTorch's."""
    with path.open("rb") as file:
        first = file.read(512)
    if re.search(r"-\d{5}-of-\d{5}\b", path.name):
        raise HBenchError(f"{path}: is one part of several: join them to one state dict, and save that")
    if has_header(first):
        return
    if not first:
        raise HBenchError(f"{path}: is empty: get the file again")
    if kind := SUFFIXES.get(path.suffix.lower()):
        raise HBenchError(f"{path}: is {kind}: {INSTEAD}")
    for pattern, words in FIRST_BYTES:
        if re.match(pattern, first, re.IGNORECASE):
            raise HBenchError(f"{path}: {words}")
    if first.startswith(b"PK"):
        _refuse_zip(path)
    elif first[257:262] == b"ustar":
        raise HBenchError(f"{path}: is an archive (tar): unpack it, and give the file of weights inside")
    elif not re.search(rb"[^\t\n\r\x20-\x7e]", first):
        raise HBenchError(f"{path}: is text, not weights: give a file of weights")


def _refuse_zip(path: Path) -> None:
    """Refuse a ZIP archive that torch.save has not written."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise HBenchError(f"{path}: is cut off or damaged: get the file again") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise HBenchError(f"{path}: is TorchScript, which holds code: save the state dict of the model by itself")
    if not any(name.endswith("data.pkl") for name in names):
        raise HBenchError(f"{path}: is an archive (ZIP): unpack it, and give the file of weights inside")


def kind_of(names: Iterable[str], patterns: Iterable[tuple[str, str]] = (*NAMES_FIRST, *NAMES)) -> str | None:
    """Return the kind of model that has parameters of these names, None where no pattern knows it."""
    names = [str(name) for name in names]
    return next((kind for pattern, kind in patterns if any(re.search(pattern, name) for name in names)), None)


def _flat(values: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested dicts, named by the keys that lead to them."""
    for key, value in values.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)


def _chosen(path: Path, prefixes: Collection[str]) -> str:
    """Return the prefix of the model to take: the only one, or the only moving average.

    Raises:
        HBenchError: there are several, and none or more than one is an average.
    """
    shown = {prefix: f'"{prefix.rstrip(".") or "(no prefix)"}"' for prefix in sorted(prefixes)}
    averages = [prefix for prefix in shown if _is_average(prefix)]
    if len(shown) == 1:
        (prefix,) = shown
        if prefix:
            what = ", a moving average" if averages else ""
            log.warning("%s: its weights are those under %s%s", path, shown[prefix], what)
        return prefix
    if len(averages) != 1:
        raise HBenchError(
            f"{path}: holds {len(shown)} models, {', '.join(shown.values())}: save the state dict of one by itself"
        )
    rest = ", ".join(words for prefix, words in shown.items() if prefix != averages[0])
    log.warning(
        "%s: its weights are those under %s, a moving average; left out: %s, which you can save by itself",
        path,
        shown[averages[0]],
        rest,
    )
    return averages[0]


def _is_average(prefix: str) -> bool:
    """Return whether the last telling part of a prefix names a moving average: "ema.online_model." is none."""
    parts = [part for part in prefix.split(".") if part not in ("", "module", "_orig_mod", "model", "state_dict")]
    return bool(parts) and "online" not in parts[-1] and any(AVERAGE.search(part) for part in parts)


def _some(values: Mapping[Any, Any]) -> str:
    """Return the first names of a dict, for a message."""
    return ", ".join(str(name)[:60] for name in list(values)[:3]) or "nothing"


def _check_kind(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise an HBenchError where parameters of guided-diffusion's names are not those of an unconditional UNet."""
    first = tensors.get("input_blocks.0.0.weight")
    if first is None:
        return  # the model's own names say the rest
    if "label_emb.weight" in tensors:
        n = len(tensors["label_emb.weight"])
        raise HBenchError(
            f"{path}: is class-conditional ({n} classes), and hbench takes unconditional models alone: give one "
            "that was trained without classes"
        )
    if not any(name.startswith("output_blocks.") for name in tensors):
        raise HBenchError(f"{path}: is a classifier or an encoder, without a decoder: give the diffusion model itself")
    if first.ndim == 4 and first.shape[1] not in (1, 3):
        raise HBenchError(
            f"{path}: its input has {first.shape[1]} channels, so it is a model for super-resolution or "
            f"inpainting, or a latent one: {INSTEAD}"
        )


def check_schedule(tensors: Mapping[str, Tensor], experiment: Experiment, source: str) -> None:
    """Raise an HBenchError where a file keeps its noise schedule, and it is another than the experiment's."""
    wanted = alpha_bar_schedule(**experiment.diffusion.schedule)
    for name, value in tensors.items():
        last = name.rpartition(".")[2]
        if last not in ("betas", "alphas_cumprod") or value.ndim != 1:
            continue
        found = value.double() if last == "alphas_cumprod" else torch.cumprod(1 - value.double(), dim=0)
        if len(found) != len(wanted):
            raise HBenchError(
                f"{source}: its noise schedule has {len(found)} timesteps: set diffusion.T = {len(found)}"
            )
        if not torch.allclose(found, wanted, atol=1e-3):
            raise HBenchError(
                f"{source}: its noise schedule is another than the {experiment.diffusion.noise_schedule} one of "
                "[diffusion]: set diffusion.noise_schedule, such as cosine, or diffusion.beta_start and beta_end"
            )
