"""Edits of real images by DDIM inversion (Fig. 8), and how good the inversion is.

A good reconstruction does not show that the inversion found the noise of the image: another x_T may give the same image
and react to edits in another way.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import wrap

import numpy as np
import torch
from torch import Tensor

from hbench.config import Precision
from hbench.core.directions import Edit, Source, edited, magnitudes
from hbench.core.images import to_float
from hbench.core.intervals import student
from hbench.core.sampler import BATCH
from hbench.errors import HBenchError, as_list, check_at_least, check_type
from hbench.evaluation.edit_cost import edit_costs
from hbench.evaluation.edited_images import EditedImages, Reconstruction, Recovery
from hbench.runtime.progress import progress
from hbench.store.account import content_sha256
from hbench.store.classifier import classifier_for, load_classifier
from hbench.store.datasets import RealImage
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.provenance import provenance
from hbench.store.run import Run, refuse_overflow

RECOVERED = 16
"""Number of generated images that are inverted: enough to tell 0.5 from 1, at the cost of some edits."""
FAR = 10
"""Multiple of S beyond which a magnitude leaves the domain for sure."""

log = logging.getLogger(__name__)


def edit(
    run: Run,
    images: Sequence[RealImage],
    edits: Edit | Sequence[Edit],
    *,
    steps: int = 100,
    precision: Precision = "float32",
    source: DirectionSource | None = None,
    mask: RealImage | None = None,
) -> EditedImages:
    """Invert real images to x_T and generate them again, as they are and with each edit.

    Some images are also generated from known x_T and inverted, which shows whether the inversion finds x_T: always from
    the first x_T of seed 0. Cost: for each image ``steps`` passes of the model to invert it, as many to reconstruct it,
    and almost twice as many for each edit; twice ``steps`` for each of the 16 generated ones.

    Args:
        run: run whose directions are applied.
        images: images, as :func:`hbench.read_images` reads them; at least one.
        edits: directions and magnitudes of each edit, as in ``[{3: 2.5}, {3: 2.5, 7: -1.0}]``; at least one.
        steps: number of inversion and of generation steps, 1..T.
        precision: precision of the network's passes; "bfloat16" inverts a little less exactly.
        source: kind of direction; each sample's own by default.
        mask: picture, as :func:`hbench.read_images` reads it, that is light where the edits may change the images.

    Raises:
        TypeError: not a run, or not such images.
        ValueError: nothing to edit, no such direction, a magnitude that is not finite, or steps out of range.
        HBenchError: an edited image is not finite.
    """
    check_type(Run, "as load_run returns it", run=run)
    images, edits = as_list(images), [edits] if isinstance(edits, Mapping) else as_list(edits)
    check_at_least(1, images=len(images), edits=len(edits))
    for each in edits:
        run.check_edit(each)
    check_type(RealImage, "as read_images returns it", **{f"images[{i}]": image for i, image in enumerate(images)})
    within = None if mask is None else read_mask(mask, run)
    warn_of_magnitudes(edits, run.S)
    source = source or direction_source(run)
    pixels = torch.stack([image.pixels for image in images])
    origin = provenance(
        run.experiment,
        run.device,
        None,
        weights_sha256=run.hashes,
        M=steps,
        precision=precision,
        images_sha256={str(image.file): image.sha256 for image in images},
        data={"used": len(pixels), "sha256": content_sha256(pixels)},
        **({"mask_sha256": {str(mask.file): mask.sha256}} if mask else {}),
        **source.details,
    )
    x_0 = to_float(pixels)
    x_T = run.invert(x_0, steps=steps, precision=precision)
    reconstructed = edit_each(run, x_T, [{}], source, steps, precision)
    errors = mean_square_error(reconstructed[:, 0], x_0).tolist()
    means, stds = x_T.mean((1, 2, 3)).tolist(), x_T.std((1, 2, 3)).tolist()
    edits_of_each = edit_each(run, x_T, edits, source, steps, precision)
    file = classifier_for(run.experiment, run.folder)
    known = load_classifier(file) if file else None
    return EditedImages(
        edits=[[(int(k), float(s)) for k, s in each.items()] for each in edits],
        images=[
            Reconstruction(
                image=str(image.file),
                mse=mse,
                psnr=psnr(mse),
                x_T_mean=means[i],
                x_T_std=stds[i],
                files=f"{i:02d}-{image.file.stem}",
            )
            for i, (image, mse) in enumerate(zip(images, errors, strict=True))
        ],
        recovery=recover(run, steps, precision),
        costs=edit_costs(reconstructed[:, 0], edits_of_each, known, within),
        pictures=torch.cat([x_0[:, None], reconstructed, edits_of_each], dim=1),
        names=run.names,
        provenance=origin.finished(n=len(images)),
    )


def read_mask(mask: RealImage, run: Run) -> Tensor:
    """Return where a picture is light, bool [H, W].

    Raises:
        TypeError: not such a picture.
        HBenchError: it has another size than the run's images, or is light or dark everywhere.
    """
    check_type(RealImage, "as read_images returns it", mask=mask)
    light = mask.pixels.float().mean(0) >= 128
    if light.shape != run.image_shape[1:]:
        found, wanted = ("x".join(map(str, shape)) for shape in (light.shape, run.image_shape[1:]))
        raise HBenchError(f"{mask.file}: the mask has {found} pixels, the images have {wanted}")
    if light.all() or not light.any():
        kind = "light" if light.all() else "dark"
        raise HBenchError(f"{mask.file}: the mask is {kind} everywhere: paint white where edits may change the images")
    return light


def recover(run: Run, M: int, precision: Precision = "float32", n: int = RECOVERED) -> Recovery:
    """Generate n images in M steps from known x_T, invert them, and compare. Cost: 2 M passes of the model for each."""
    sampler = replace(run.sampler.with_steps(M), precision=precision)
    x_T = run.noise(n)
    # not by Run.invert, which refuses what a bad model may generate
    inverted = sampler.invert(sampler.generate(x_T)).cpu().flatten(1).double().numpy()
    true = x_T.cpu().flatten(1).double().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # nan where an image is inverted to a constant
        values = np.array([[np.corrcoef(a, b)[0, 1], b.std()] for a, b in zip(true, inverted, strict=True)])
    (correlation, std), (lows, highs) = values.mean(0).tolist(), student(values)
    return Recovery(
        n=n,
        correlation=correlation,
        interval=(float(lows[0]), float(highs[0])),
        x_T_std=std,
        x_T_std_interval=(float(lows[1]), float(highs[1])),
    )


def edit_each(
    run: Run, x_T: Tensor, edits: Sequence[Edit], source: Source, M: int, precision: Precision = "float32"
) -> Tensor:
    """Return every edit of every x_T [N, C, H, W], generated in M steps: [N, len(edits), C, H, W], on the CPU.

    The empty edit gives the reconstruction. Nothing is clamped.
    """
    sampler = replace(run.sampler.with_steps(M), precision=precision)
    pairs = [(image, edit) for image in range(len(x_T)) for edit in edits]
    images = []
    for first in progress(range(0, len(pairs), BATCH), desc="edits", unit="batch"):
        chosen, shown = zip(*pairs[first : first + BATCH], strict=True)
        images.append(sampler.generate(x_T[list(chosen)], edited(source, shown, run.device)).cpu())
    refuse_overflow(torch.cat(images), edits)
    return torch.cat(images).reshape(len(x_T), len(edits), *x_T.shape[1:])


def warn_of_magnitudes(edits: Sequence[Edit], S: float) -> None:
    """Log a warning of each direction whose magnitude is more than FAR times S."""
    for k, s in dict.fromkeys((k, s) for each in edits for k, s in each.items()):
        if abs(s) > FAR * S:
            log.warning(
                "direction %d at s = %.3g is beyond %d times S = %g, the largest magnitude of the training: expect no "
                "image of the domain",
                k,
                s,
                FAR,
                S,
            )


def singly_and_together(edit: Edit) -> list[Edit]:
    """Return each shift of an edit alone, and if there are several, all of them at once."""
    return [{k: s} for k, s in edit.items()] + ([edit] if len(edit) > 1 else [])


def sweep(k: int, S: float, samples: int) -> list[Edit]:
    """Return edits along direction k at ``samples`` magnitudes, evenly from -S to S."""
    return [{k: s} for s in magnitudes(S, samples)]


def grid(first: int, second: int, S: float, samples: int) -> list[Edit]:
    """Return edits along two directions at once, row by row.

    The second direction goes from S down to -S over the rows, and in each row the first goes from -S to S.
    """
    values = magnitudes(S, samples)
    return [{first: s, second: u} for u in reversed(values) for s in values]


def caption(edit: Edit, names: Mapping[int, str] | None = None) -> str:
    """Return the lines above a picture: each direction with its s, and for a single one its name."""
    lines = [f"{k}, s = {s:.3g}" for k, s in edit.items()]
    if len(edit) == 1 and (name := (names or {}).get(next(iter(edit)))):
        lines += wrap(name, 18)
    return "\n".join(lines)


def mean_square_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean square error of each image, [B], after clamping both images to [-1, 1], as pictures do."""
    return (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(1)


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [-1, 1]; inf for equal images.

    Their peak-to-peak range is 2.
    """
    return 10 * math.log10(4 / mse) if mse else math.inf
