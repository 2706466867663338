"""Cache of samples and real images: folders of PNGs, named by a hash of everything that determines them.

Each PNG carries the SHA-256 of its place and its pixels, so that no other picture is measured in its stead.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from hbench import __version__
from hbench.config import Experiment
from hbench.core.domain import outside
from hbench.core.images import to_uint8
from hbench.core.sampler import BATCH, Sampler
from hbench.errors import HBenchError
from hbench.evaluation.sampling import batches_of, draw_pairs
from hbench.runtime.distributed import barrier, rank, turns
from hbench.runtime.progress import progress
from hbench.store.account import content_sha256
from hbench.store.files import temporary_name
from hbench.store.folders import mark_cache
from hbench.store.picture_files import UNREADABLE
from hbench.store.records import Count, Positive, Record
from hbench.store.run import Run

SHA256 = "sha256"
"""Key of the text in a PNG that has the SHA-256 of its place and pixels."""
OUTSIDE = "outside"
"""Key of the text in the PNG of a model's sample that tells, by 1 or 0, if it left the image domain unclamped."""
VERSIONS = {"hbench": __version__, "torch": torch.__version__}
"""Versions that samples depend on."""


@dataclass(frozen=True, kw_only=True)
class SampleSet(Record):
    """Everything that determines cached samples, as ``samples.json`` in their folder."""

    weights: dict[str, str]
    """SHA-256 of the weights of diffusion model and shift block, by role."""
    model: dict[str, Any]
    """Settings of the diffusion model: no weights tell its heads, or the class of a class-conditional one."""
    diffusion: dict[str, Any]
    """Settings of the diffusion."""
    discovery: dict[str, Any]
    """Settings of the discovery that change a sample."""
    M: Positive
    """Number of generation steps."""
    seed: Count
    device: str
    """Type of the device: "cpu", "cuda" or "mps"."""
    versions: dict[str, str]
    directions: list[Count] | None = None
    """Directions that k is drawn from; None for all."""

    @property
    def key(self) -> str:
        """Name of the folder: 32 hexadecimal digits."""
        values = self.to_json()
        del values["schema"]  # the form of the file determines no sample
        if self.directions is None:
            del values["directions"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def sample_folders(
    run: Run, count: int, cache: Path, seed: int, M: int | None = None, directions: Sequence[int] | None = None
) -> tuple[Path, Path]:
    """Return folders with at least ``count`` raw and shifted samples as PNGs, after making those that are missing.

    Sample i depends only on the run, the number M of generation steps (the run's by default), the directions that k is
    drawn from (all by default) and (seed, i). Called again after a kill, it goes on where it stopped. Several processes
    make the samples together.

    Raises:
        HBenchError: the folders cannot be written, hold other samples than their name says or other pictures than were
            put there, or the other processes' samples are not there.
    """
    settings = run.experiment.discovery
    samples = SampleSet(
        weights={role: run.hashes[role] for role in ("model", "shift_block")},
        model=run.experiment.model.model_dump(),
        diffusion=run.experiment.diffusion.model_dump(),
        discovery=settings.model_dump(include={"K", "S", "t_shift", "spacing", "min_magnitude", "precision"}),
        M=M or settings.M,
        seed=seed,
        device=run.device.type,
        versions=VERSIONS,
        directions=None if directions is None else list(directions),
    )
    folder = _opened(samples, cache)
    raw, shifted = folder / "raw", folder / "shifted"
    batches = turns(batches_of(count, BATCH // 2))
    with progress(total=sum(map(len, batches)), desc="samples", unit="image") as bar:
        for chosen in batches:
            if not all(_is_kept(kind, i) for kind in (raw, shifted) for i in chosen):
                pairs = draw_pairs(run, seed, chosen[0], len(chosen), M=M, directions=directions)
                _save_pngs(to_uint8(pairs.x_0), raw, chosen)
                _save_pngs(to_uint8(pairs.x_0_shifted), shifted, chosen)
            bar.update(len(chosen))
    _check_complete([raw, shifted], count)
    return raw, shifted


def model_folders(
    sampler: Sampler, weights: str, experiment: Experiment, steps: Sequence[int], count: int, cache: Path, seed: int
) -> dict[int, Path]:
    """Return a folder with at least ``count`` samples of a diffusion model for each number of generation steps.

    Samples of all numbers start from the same x_T, which depend on (seed, i) alone. They are made, shared and resumed
    as those of :func:`sample_folders`, but on their own: batches of pairs round differently.

    Args:
        sampler: sampler of the model.
        weights: SHA-256 of the model's tensors.
        experiment: experiment of the model.
        steps: numbers M of generation steps.
        count: number of samples for each M.
        cache: folder of the samples.
        seed: seed of x_T.

    Raises:
        HBenchError: as for :func:`sample_folders`.
    """
    samplers = {M: sampler.with_steps(M) for M in steps}
    folders = {}
    for M in samplers:
        samples = SampleSet(
            weights={"model": weights},
            model=experiment.model.model_dump(),
            diffusion=experiment.diffusion.model_dump(),
            discovery={"spacing": sampler.spacing, "precision": sampler.precision},
            M=M,
            seed=seed,
            device=sampler.device.type,
            versions=VERSIONS,
        )
        folders[M] = _opened(samples, cache) / "raw"
    batches = turns(batches_of(count))
    passes = sum(samplers) * sum(map(len, batches))
    with progress(total=passes, desc="samples", unit="pass", unit_scale=True) as bar:
        for M, folder in folders.items():
            for chosen in batches:
                if not all(_is_kept(folder, i) for i in chosen):
                    x_T = sampler.noise(len(chosen), seed=seed, first=chosen[0])
                    x_0 = samplers[M].generate(x_T)
                    texts = [{OUTSIDE: str(int(is_outside))} for is_outside in outside(x_0).tolist()]
                    _save_pngs(to_uint8(x_0), folder, chosen, texts)
                bar.update(M * len(chosen))
    _check_complete([*folders.values()], count)
    return folders


def _opened(samples: SampleSet, cache: Path) -> Path:
    """Return the folder of a set of samples, after the main process has written what they are, or compared it."""
    folder = cache / "samples" / samples.key
    if rank() == 0:
        mark_cache(cache)
        about = folder / "samples.json"
        if not about.is_file():
            samples.write(about)
        elif SampleSet.read(about, "remove its folder") != samples:
            raise HBenchError(f"{about}: is of other samples than its folder: remove it, and they will be made again")
    return folder


def _check_complete(folders: Sequence[Path], count: int) -> None:
    """Wait for the other processes, and raise an HBenchError where their samples are not there."""
    barrier()
    if missing := [file for kind in folders for i in range(count) if not (file := _png(kind, i)).is_file()]:
        raise HBenchError(f"{missing[0]}: not to be seen: choose a `cache` that all processes share")


def image_folder(images: Tensor, cache: Path) -> Path:
    """Return the folder with uint8 images [N, C, H, W] as PNGs, after making it if it is missing.

    Raises:
        HBenchError: it cannot be written, or holds another picture than was put there.
    """
    mark_cache(cache)
    folder = cache / "real" / content_sha256(images)[:32]
    if not all(_is_kept(folder, i) for i in range(len(images))):
        _save_pngs(images, folder, range(len(images)))
    return folder


def are_outside(paths: Sequence[Path]) -> list[bool]:
    """Return which samples of :func:`model_folders` left the image domain before they were clamped."""
    found = []
    for path in paths:
        with Image.open(path) as picture:
            found.append(picture.info.get(OUTSIDE) == "1")
    return found


def pngs(folder: Path, count: int | None = None) -> list[Path]:
    """Return the first ``count`` PNGs of a folder of the cache, or all, in their order."""
    return sorted(folder.glob("*.png")) if count is None else [_png(folder, i) for i in range(count)]


def read_pngs(paths: Sequence[Path]) -> Tensor:
    """Return the pixels of images of one size: uint8 [N, C, H, W]."""
    pixels = np.stack([np.atleast_3d(np.asarray(Image.open(path))) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _png(folder: Path, i: int) -> Path:
    return folder / f"{i:06d}.png"


def _is_kept(folder: Path, i: int) -> bool:
    """Return whether image i of a folder is there.

    Raises:
        HBenchError: it is damaged, or another picture than was put there.
    """
    file = _png(folder, i)
    if not file.is_file():
        return False
    try:
        with Image.open(file) as picture:
            found = picture.info.get(SHA256) == _sha256(folder, i, np.asarray(picture))
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise HBenchError(f"{file}: an image is damaged ({error}): remove it, and it will be made again") from error
    if not found:
        raise HBenchError(f"{file}: is not the image that hbench put there: remove it, and it will be made again")
    return True


def _sha256(folder: Path, i: int, pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of image i of a folder: of both their names, and of its pixels."""
    place = f"{folder.parent.name}/{folder.name}/{i} {pixels.shape}"
    return hashlib.sha256(place.encode() + pixels.tobytes()).hexdigest()


def _save_pngs(
    images: Tensor, folder: Path, indices: Iterable[int], texts: Iterable[Mapping[str, str]] | None = None
) -> None:
    """Write uint8 images [B, C, H, W] as images ``indices`` of a folder, with further texts of each."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, image, words in zip(indices, images.cpu(), texts or [{}] * len(images), strict=True):
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            temporary, info = temporary_name(_png(folder, i)), PngInfo()
            for key, word in {SHA256: _sha256(folder, i, pixels), **words}.items():
                info.add_text(key, word)
            Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info)
            temporary.replace(_png(folder, i))  # a kill leaves no half image; no fsync, since it can be made again
    except OSError as error:
        raise HBenchError(f"{folder}: cannot write ({error}): free some space or choose another `cache`") from error
