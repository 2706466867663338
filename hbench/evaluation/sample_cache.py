"""Samples and real images as folders of PNGs, found by what determines them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hbench import __version__
from hbench.core.images import to_uint8
from hbench.core.sampler import BATCH
from hbench.errors import HBenchError
from hbench.evaluation.sampling import batches_of, draw_pairs
from hbench.runtime.distributed import barrier, rank, turns
from hbench.runtime.progress import progress
from hbench.store.files import temporary_name, write_json
from hbench.store.run import Run


def sample_folders(run: Run, count: int, cache: Path, seed: int, M: int | None = None) -> tuple[Path, Path]:
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
        "device": run.device.type,
        "versions": {"hbench": __version__, "torch": torch.__version__},
    }
    folder = cache / "samples" / _key(determining)
    if rank() == 0:
        write_json(folder / "samples.json", determining)
    raw, shifted = folder / "raw", folder / "shifted"
    batches = turns(batches_of(count, BATCH // 2))
    with progress(total=sum(map(len, batches)), desc="samples", unit="image") as bar:
        for chosen in batches:
            if not all(_png(kind, i).is_file() for kind in (raw, shifted) for i in chosen):
                pairs = draw_pairs(run, seed, chosen[0], len(chosen), M=M)
                _save_pngs(to_uint8(pairs.x_0), raw, chosen)
                _save_pngs(to_uint8(pairs.x_0_shifted), shifted, chosen)
            bar.update(len(chosen))
    barrier()
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


def _key(determining: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()[:32]
