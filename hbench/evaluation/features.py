"""Features of image files, by the extractors of torch-fidelity."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.hub import get_dir
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from hbench.config import Data
from hbench.errors import HBenchError, is_out_of_memory
from hbench.evaluation.lenet import EXTRACTOR as LENET
from hbench.evaluation.lenet import fits
from hbench.runtime.progress import progress_is_shown
from hbench.store.files import replacing, sha256
from hbench.store.weights import load_pickled

INCEPTION = "inception-v3-compat"


def default_extractor(data: Data) -> str:
    """Inception, as the paper has it, but for digits the LeNet that knows them."""
    return INCEPTION if data.dataset == "folder" else LENET


def check_extractor(extractor: str, weights: Path | None, data: Data) -> None:
    """Refuses, before any image is made, an unknown extractor, and weights that are missing, unfit or hold code."""
    if extractor not in FEATURE_EXTRACTORS_REGISTRY:
        raise HBenchError(
            f'no feature extractor "{extractor}": choose one of {", ".join(sorted(FEATURE_EXTRACTORS_REGISTRY))}'
        )
    if extractor.startswith(("clip-", "dinov2-")):
        raise HBenchError(
            f"{extractor}: comes as code that would be run, not as plain weights: choose {INCEPTION}, vgg16 or {LENET}"
        )
    if extractor == LENET:
        assert weights is not None
        if not fits(weights, data):
            raise HBenchError(
                f'{weights}: was trained on other images than the run: make one with "hbench lenet", pass --weights'
            )
    elif weights is not None:
        load_pickled(weights)  # torch-fidelity would load it without this care


def features(
    paths: list[Path],
    extractor: str,
    weights: Path | None,
    cache: Path,
    device: torch.device,
) -> Tensor:
    """Features [N, D] of image files by an extractor of torch-fidelity, from the cache where they are known.

    Args:
        paths: PNGs of one size; grey ones become RGB by repeating their channel.
        extractor: its registered name.
        weights: its weights; None lets torch-fidelity take its own, downloading them if need be.
        cache: folder of the features, at most 4 D bytes an image.
        device: where to compute.

    Raises:
        HBenchError: the weights are neither here nor to be had.
    """
    digest = hashlib.sha256(f"{extractor} {sha256(weights) if weights else ''}".encode())
    for path in paths:
        digest.update(path.read_bytes())
    file = cache / "features" / f"{digest.hexdigest()[:32]}.safetensors"
    if file.is_file():
        try:
            return load_file(file)["features"]
        except (SafetensorError, KeyError) as error:
            raise HBenchError(f"{file}: damaged ({error}): remove it, and it will be made again") from error
    layer = FEATURE_EXTRACTORS_REGISTRY[extractor].get_default_feature_layer_for_metric("fid")
    cuda = device.type == "cuda"
    on_device = torch.cuda.device(device) if cuda else nullcontext()  # torch-fidelity takes the current GPU
    try:
        with _no_code_in_weights(), on_device:
            network = create_feature_extractor(
                extractor,
                [layer],
                cuda=cuda,
                feature_extractor_weights_path=None if weights is None else str(weights),
                verbose=False,
            )
    except (RuntimeError, KeyError, TypeError, UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise HBenchError(
            f"{weights or get_dir()}: holds no weights of {extractor} ({problem}): get the file again"
        ) from error
    except URLError as error:
        file_name = URL_INCEPTION_V3.rpartition("/")[2] if extractor == INCEPTION else "the file of its documentation"
        raise HBenchError(
            f"the weights of {extractor} cannot be fetched ({error.reason}): "
            f"put {file_name} into {get_dir()}/checkpoints, or pass it with --weights"
        ) from error
    shown = progress_is_shown() and sys.stderr.isatty()
    try:
        with on_device:
            found = get_featuresdict_from_dataset(ImagesPathDataset(paths), network, 64, cuda, not cuda, shown)[layer]
    except (OSError, SyntaxError) as error:  # of Pillow
        problem = (str(error).splitlines() or ["no more is known"])[-1]
        raise HBenchError(f"{cache}: an image is damaged ({problem}): remove it, and it will be made again") from error
    with replacing(file) as temporary:
        save_file({"features": found.contiguous()}, temporary)
    result: Tensor = found
    return result


@contextmanager
def _no_code_in_weights() -> Iterator[None]:
    """PyTorch loads nothing but tensors, whatever a library asks for: torch-fidelity would run what a pickle says."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
