"""Distances of raw and shifted samples to real images, through torch-fidelity (Table 2).

Samples and real images become folders of PNGs in a cache, so that they can be looked at, resumed, and given to the
``fidelity`` command, which finds the same numbers. Everything in the cache is found by its content: images by all that
determines them, features by the bytes of the images and of the extractor's weights.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.hub import get_dir
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from hbench import __version__
from hbench.config import Data
from hbench.distributed import rank, turns, wait
from hbench.errors import HBenchError, is_out_of_memory
from hbench.evaluate import BATCH, batches_of, draw_pairs
from hbench.files import replacing, sha256, temporary_name, write_json
from hbench.images import to_uint8
from hbench.intervals import jackknife
from hbench.lenet import EXTRACTOR as LENET
from hbench.lenet import fits, load_lenet
from hbench.load import Run
from hbench.progress import progress
from hbench.weights import load_pickled

INCEPTION = "inception-v3-compat"
TOO_FEW = "one image has no covariance: use more samples"
GROUPS = 20
"""Of the jackknife: each replicate leaves one of so many equal parts of the samples out."""

Statistics = dict[str, np.ndarray]
"""Mean ``mu`` and covariance ``sigma`` of features, as torch-fidelity has them."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with."""

    statistics: Statistics
    n: int
    halves: float
    """Distance between two random halves of the real images: what is below it cannot be told from them at that n."""
    halves_interval: tuple[float, float] | None
    """None where only the statistics are at hand."""
    sha256: str
    """Of mean and covariance."""
    features: Tensor | None = None
    """[n, D], for KID; None where only the statistics are at hand."""


@dataclass(frozen=True)
class Distance:
    """Distances of one kind of samples to the reference."""

    n: int
    fd: float
    interval: tuple[float, float]
    """95 % interval of ``fd`` for other samples of the same generator, by the jackknife."""
    replicates: list[float]
    """``fd`` without each of the jackknife's groups of samples."""
    kid: float | None
    kid_std: float | None
    """Over torch-fidelity's 100 subsets; None where each of them holds all images, and so says nothing."""


@dataclass(frozen=True)
class Fidelity:
    """Distances of raw and shifted samples to real images (Table 2)."""

    metric: str
    """What the distance may be called: "FID" only with Inception features."""
    feature_size: int
    n_real: int
    halves: float
    halves_interval: tuple[float, float] | None
    raw: Distance
    shifted: Distance
    ratio: float
    """Shifted over raw; 1 = shifting costs no fidelity."""
    ratio_interval: tuple[float, float]
    """By the jackknife: shifted sample i is raw sample i, shifted, and both are left out together."""


def default_extractor(data: Data) -> str:
    """Inception, as the paper has it, but for digits the LeNet that knows them."""
    return INCEPTION if data.dataset == "folder" else LENET


def metric_name(extractor: str) -> str:
    """The name of the Frechet distance in an extractor's features."""
    return {INCEPTION: "FID", LENET: "FD (LeNet digits)"}.get(extractor, f"FD ({extractor})")


def fidelity(
    samples: tuple[Path, Path],
    reference: Reference,
    extractor: str,
    weights: Path | None,
    cache: Path,
    device: torch.device,
    count: int,
    quiet: bool = False,
) -> Fidelity:
    """Distances of the first ``count`` images in the folders of raw and shifted samples to the reference."""
    found = [features(pngs(folder, count), extractor, weights, cache, device, quiet) for folder in samples]
    raw, shifted = (distance(each, reference) for each in found)
    ratio = shifted.fd / raw.fd
    low, high = jackknife(ratio, np.array(shifted.replicates) / np.array(raw.replicates))
    return Fidelity(
        metric=metric_name(extractor),
        feature_size=found[0].shape[1],
        n_real=reference.n,
        halves=reference.halves,
        halves_interval=reference.halves_interval,
        raw=raw,
        shifted=shifted,
        ratio=ratio,
        ratio_interval=(float(low), float(high)),
    )


def distance(found: Tensor, reference: Reference) -> Distance:
    """Distances of features [n, D] to the reference."""
    fd = frechet_distance(statistics(found), reference.statistics)
    root = _root(reference.statistics["sigma"])
    replicates = [_distance_by_root(part, reference.statistics, root) for part in _without_each_group(found)]
    low, high = jackknife(fd, replicates)
    subsets: dict[str, float] = {}
    alike = len(found) == reference.n <= 1000
    if reference.features is not None:
        size = min(1000, len(found), reference.n)
        subsets = kid_features_to_metric(found, reference.features, kid_subset_size=size, verbose=False)
    return Distance(
        n=len(found),
        fd=fd,
        interval=(float(low), float(high)),
        replicates=replicates,
        kid=subsets.get("kernel_inception_distance_mean"),
        kid_std=None if alike else subsets.get("kernel_inception_distance_std"),
    )


def _without_each_group(found: Tensor) -> Iterator[Statistics]:
    """The statistics of the features [n, D] without each of the jackknife's groups: one pass over all, and D^2 each."""
    centre = found.double().mean(0)
    groups = [(found[g::GROUPS].double() - centre).numpy() for g in range(min(GROUPS, len(found)))]
    products = sum(group.T @ group for group in groups)
    sums = sum(group.sum(0) for group in groups)
    for group in groups:
        if (n := len(found) - len(group)) < 2:
            raise HBenchError(TOO_FEW)
        mean = (sums - group.sum(0)) / n
        sigma = (products - group.T @ group - n * np.outer(mean, mean)) / (n - 1)
        yield {"mu": mean + centre.numpy(), "sigma": sigma}


def real_reference(found: Tensor) -> Reference:
    """The reference made of the features [n, D] of real images."""
    if len(found) < 6:
        raise HBenchError(f"{len(found)} real images: need at least 6 to compare two halves of them: add images")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    first, second = (found[half] for half in order.chunk(2))
    halves = frechet_distance(statistics(first), statistics(second))
    parts = zip(_without_each_group(first), _without_each_group(second), strict=False)
    low, high = jackknife(halves, [_distance_by_root(a, b, _root(b["sigma"])) for a, b in parts])
    stats = statistics(found)
    return Reference(stats, len(found), halves, (float(low), float(high)), _digest(stats), found)


def lenet_reference(weights: Path) -> Reference:
    """The reference that a LeNet's file carries: its real test set."""
    lenet = load_lenet(weights)
    stats = {"mu": lenet.real_mu.numpy(), "sigma": lenet.real_sigma.numpy()}
    return Reference(stats, int(lenet.real_n), float(lenet.real_halves), None, _digest(stats))


def statistics(found: Tensor) -> Statistics:
    """Mean and covariance of features [n, D]."""
    if len(found) < 2:
        raise HBenchError(TOO_FEW)
    stats: Statistics = fid_features_to_statistics(found)
    return stats


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Frechet distance of two Gaussians; a little below 0 for equal ones, by rounding."""
    return float(fid_statistics_to_metric(first, second, False)["frechet_inception_distance"])


def _distance_by_root(first: Statistics, second: Statistics, root: np.ndarray) -> float:
    """:func:`frechet_distance`, several times as fast where ``root``, that of second's covariance, is known.

    Its product with the first covariance on both sides is symmetric, and has the eigenvalues of S1 S2.
    """
    eigenvalues = np.linalg.eigvalsh(root @ first["sigma"] @ root)
    traces = np.trace(first["sigma"]) + np.trace(second["sigma"]) - 2 * np.sqrt(eigenvalues.clip(0)).sum()
    return float(((first["mu"] - second["mu"]) ** 2).sum() + traces)


def _root(sigma: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(sigma)
    root: np.ndarray = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root


# Features -----------------------------------------------------------------------------------------------------------


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
    quiet: bool = False,
) -> Tensor:
    """Features [N, D] of image files by an extractor of torch-fidelity, from the cache where they are known.

    Args:
        paths: PNGs of one size; grey ones become RGB by repeating their channel.
        extractor: its registered name.
        weights: its weights; None lets torch-fidelity take its own, downloading them if need be.
        cache: folder of the features, at most 4 D bytes an image.
        device: where to compute.
        quiet: no progress bar.

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
    shown = not quiet and sys.stderr.isatty()
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


# Images -------------------------------------------------------------------------------------------------------------


def sample_folders(
    run: Run, count: int, cache: Path, seed: int, quiet: bool = False, M: int | None = None
) -> tuple[Path, Path]:
    """Folders with at least ``count`` raw and shifted samples as PNGs, made where they are missing.

    Sample i depends only on the run, the number M of generation steps (the run's unless given) and (seed, i). A killed
    call goes on where it stopped. Several processes make them together, into the same folders.

    Raises:
        HBenchError: the folders cannot be written, or lack what the other processes wrote.
    """
    settings = run.experiment.discovery
    determining = {
        "weights": {role: run.hashes[role] for role in ("model", "shift_block")},
        "diffusion": run.experiment.diffusion.model_dump(),
        "discovery": settings.model_dump(include={"K", "S", "t_shift", "spacing", "min_magnitude", "precision"}),
        "M": M or settings.M,
        "seed": seed,
        "device": next(run.model.parameters()).device.type,
        "versions": {"hbench": __version__, "torch": torch.__version__},
    }
    folder = cache / "samples" / _key(determining)
    if rank() == 0:
        write_json(folder / "samples.json", determining)
    raw, shifted = folder / "raw", folder / "shifted"
    batches = turns(batches_of(count, BATCH // 2))
    with progress(total=sum(map(len, batches)), desc="samples", unit="image", quiet=quiet) as bar:
        for chosen in batches:
            if not all(_png(kind, i).is_file() for kind in (raw, shifted) for i in chosen):
                pairs = draw_pairs(run, seed, chosen[0], len(chosen), M=M)
                _save_pngs(to_uint8(pairs.x_0), raw, chosen)
                _save_pngs(to_uint8(pairs.x_0_shifted), shifted, chosen)
            bar.update(len(chosen))
    wait()
    if missing := [file for kind in (raw, shifted) for i in range(count) if not (file := _png(kind, i)).is_file()]:
        raise HBenchError(f"{missing[0]}: not to be seen: choose a --cache that all processes share")
    return raw, shifted


def image_folder(images: Tensor, cache: Path) -> Path:
    """A folder with uint8 images [N, C, H, W] as PNGs, found by their content."""
    digest = hashlib.sha256(str(tuple(images.shape)).encode() + images.numpy().tobytes())
    folder = cache / "real" / digest.hexdigest()[:32]
    if not all(_png(folder, i).is_file() for i in range(len(images))):
        _save_pngs(images, folder, range(len(images)))
    return folder


def pngs(folder: Path, count: int | None = None) -> list[Path]:
    """The first ``count`` PNGs of a folder, or all, by name."""
    return sorted(folder.glob("*.png"))[:count]


def _png(folder: Path, i: int) -> Path:
    return folder / f"{i:06d}.png"


def _save_pngs(images: Tensor, folder: Path, indices: Iterable[int]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in zip(indices, images.cpu(), strict=True):
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            temporary = temporary_name(_png(folder, i))
            Image.fromarray(pixels).save(temporary, format="PNG")
            temporary.replace(_png(folder, i))  # a kill leaves no half image; no fsync, since it can be made again
    except OSError as error:
        advice = "free some space or choose another --cache"
        raise HBenchError(f"{folder}: cannot write ({error}): {advice}") from error


def _digest(stats: Statistics) -> str:
    return hashlib.sha256(stats["mu"].tobytes() + stats["sigma"].tobytes()).hexdigest()


def _key(determining: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:32]
