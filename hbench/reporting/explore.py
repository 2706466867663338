"""The explorer: one page in which a reader moves directions of a run, by pictures that were all made in advance."""

import base64
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from hbench.core.images import tile
from hbench.errors import HBenchError, check_at_least, check_seed, check_type, counted
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.explore import (
    FEWEST,
    EditTable,
    Explored,
    Starts,
    check_magnitudes,
    facts_of,
    image_starts,
    is_of_images,
    known_attributes,
    sample_starts,
    visible_directions,
)
from hbench.evaluation.sampling import choose_x_T
from hbench.reporting.report import EXPLORER, html_template
from hbench.runtime.device import wall_seconds
from hbench.runtime.progress import duration, progress_is_shown
from hbench.store.datasets import RealImage
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.files import write_text
from hbench.store.folders import claimed_folder
from hbench.store.places import results_in
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import provenance
from hbench.store.registry import credit_of
from hbench.store.run import Run

LARGEST = 10_000_000
"""Size of the page in bytes, at most: it is sent by mail."""
TEXT = 200_000
"""Bytes of the page beside its pictures, at most."""
SAMPLES = 6
"""Number of samples, by default at most."""
ENOUGH = 16_000
"""Number of pictures from which on there are fewer samples by default: some minutes at 16x16 pixels on a laptop."""

log = logging.getLogger(__name__)


def explore(
    run: Run,
    out: str | Path,
    *,
    samples: int | None = None,
    magnitudes: int = 9,
    directions: Sequence[int] | None = None,
    images: Sequence[RealImage] = (),
    steps: int = 50,
    seed: int = 0,
    source: DirectionSource | None = None,
    attributes: Attributes | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``explore.html``, in which a reader moves sliders of directions, alone and two at a time; return its path.

    The page needs no other file and no network. It has every picture that it can show: each sample along each direction
    at all magnitudes, and along each two directions at every second one. It stays below 10 MB: where the samples would
    exceed that, there are fewer, and a warning says it. Time and size are told first. Cost: a shifted chain a picture;
    with 13 directions 1,353 pictures a sample.

    Args:
        run: run with the directions.
        out: output folder.
        samples: number of samples; by default 6, or fewer where there are many directions. 0 for real images alone.
        magnitudes: number of magnitudes from -S to S: 5, 9, 13, ...
        directions: directions to offer, in this order; by default those that a person sees, the most visible first, or
            all where that was not measured.
        images: real images, as :func:`hbench.read_images` reads them, which are inverted and come first.
        steps: number of inversion and of generation steps of the real images, 1..T.
        seed: seed of the samples.
        source: kind of direction; each sample's own by default.
        attributes: measurement of this run and source, for the words about each direction; by default that in the
            run's folder, if there is one.
        overwrite: accept a folder that already holds something.

    Raises:
        TypeError: not a run, or not such images.
        ValueError: a number out of range, no such direction, or a measurement of another run or source.
        HBenchError: nothing to show, a page of one sample would be too large, or ``out`` holds something else.
    """
    check_type(Run, "as load_run returns it", run=run)
    check_type(RealImage, "as read_images returns it", **{f"images[{i}]": each for i, each in enumerate(images)})
    check_at_least(0 if images else 1, samples=SAMPLES if samples is None else samples)
    check_seed(seed)
    scale = check_magnitudes(run.S, magnitudes)
    run.check_edit(dict.fromkeys(directions or (), 0.0))
    source = source or direction_source(run)
    if attributes is not None and not is_of_images(attributes, run, source):
        raise ValueError("these attributes were measured on other weights or directions: give those of this run")
    found = attributes or known_attributes(run, source, results_in(run.folder, Attributes.NAME) if run.folder else ())
    visible = visible_directions(run, source, found) if directions is None else list(dict.fromkeys(directions))
    table = EditTable(tuple(range(run.K) if visible is None else visible), scale)
    out = Path(out)
    with claimed_folder(out, overwrite=overwrite):
        origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes, **source.details)
        count = min(SAMPLES, max(1, ENOUGH // len(table.edits))) if samples is None else samples
        chosen = choose_x_T(run, count, seed) if count else None
        starts = [image_starts(run, images, steps)] if images else []
        starts += [sample_starts(run, chosen)] if chosen else []
        explored = [
            each
            for start, n in zip(starts, _fitting(run, source, table, starts), strict=True)
            for each in start.explored(run, source, table, n)
        ]
        origin = origin.finished(
            n=len(explored),
            directions=list(table.directions),
            magnitudes=list(table.magnitudes),
            images_sha256={str(image.file): image.sha256 for image in images},
            **({"inversion_steps": steps} if images else {}),
            **(chosen.details if chosen else {}),
        )
        left_out = [k for k in range(run.K) if k not in table.directions] if directions is None else []
        page = {
            "run": run,
            "table": table,
            "facts": [facts_of(run, k, found) for k in table.directions],
            "measured": found,
            "left_out": left_out,
            "is_known": visible is not None,
            "by_visibility": visible is not None and directions is None,
            "samples": [(each, sprite(each.original[None])) for each in explored],
            "credit": credit_of(run.experiment.data),
            "provenance": origin,
            "data": _data(run, table, explored),
        }
        text = html_template("explore.html").render(page)
        if (size := len(text.encode())) > LARGEST:
            raise HBenchError(f"the page has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}: {_remedy(table)}")
        write_text(out / EXPLORER, text)
        origin.write(out / PROVENANCE)
    return out / EXPLORER


def _fitting(run: Run, source: DirectionSource, table: EditTable, starts: Sequence[Starts]) -> list[int]:
    """Return the number of starts of each kind whose pictures fit into the page, after telling its time and size.

    Both are measured on the single directions of the first start.

    Raises:
        HBenchError: not even one fits.
    """
    first = starts[0]
    made: list[Tensor] = []
    seconds = wall_seconds(lambda: made.append(first.edited(run, source, table.single, 1)[0]), run.device)
    step = seconds / len(table.single) / first.steps
    size = len(sprite(made[0])) / len(table.single) * (len(table.edits) + 1)
    fitting = int((LARGEST - TEXT) / size)
    if not fitting:
        pictures = f"a single sample's {counted(len(table.edits), 'picture')} of {size / 1e6:.1f} MB"
        raise HBenchError(f"{pictures} exceed the {LARGEST / 1e6:.0f} MB of a page: {_remedy(table)}")
    counts: list[int] = []
    wanted = sum(len(each.names) for each in starts)
    for each in starts:
        counts.append(min(len(each.names), fitting - sum(counts)))
    if wanted > fitting:
        log.warning("caution: only %d of %d samples and images fit into %.0f MB", fitting, wanted, LARGEST / 1e6)
    chains = sum(n * each.steps for n, each in zip(counts, starts, strict=True)) * len(table.edits)
    if progress_is_shown():
        pictures = counted(sum(counts) * len(table.edits), "picture")
        log.info("%s: about %s and %.1f MB", pictures, duration(chains * step), (sum(counts) * size + TEXT / 2) / 1e6)
    return counts


def _remedy(table: EditTable) -> str:
    if len(table.magnitudes) > FEWEST:
        return "take fewer `magnitudes`, or fewer directions, by their numbers"
    return "take fewer directions, by their numbers"


def sprite(images: Tensor) -> str:
    """Return images, uint8 [N, C, H, W], as a data URI: one WebP picture without loss, row by row in a square."""
    pixels = tile(images, sprite_columns(len(images)), gap=0).pixels.numpy()
    file = io.BytesIO()
    # the slowest method with medium effort: a tenth smaller than the fastest, in some ms an image
    Image.fromarray(pixels).save(file, "webp", lossless=True, exact=True, quality=50, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def sprite_columns(count: int) -> int:
    """Return the number of columns of a sprite of ``count`` images."""
    return math.ceil(math.sqrt(count))


def _data(run: Run, table: EditTable, explored: Sequence[Explored]) -> dict[str, Any]:
    """Return what the page's script needs, in the form of JSON."""
    _, height, width = run.image_shape
    return {
        "width": width,
        "height": height,
        "columns": sprite_columns(len(table.edits)),
        "directions": list(table.directions),
        "magnitudes": list(table.magnitudes),
        "names": {k: name for k, name in sorted(run.names.items()) if k < run.K},
        "samples": [{"name": each.name, "note": _note(each), "sprite": sprite(each.edited)} for each in explored],
    }


def _note(each: Explored) -> str:
    """Return what is said of an edited picture: how well a real image is reconstructed."""
    return "" if each.psnr is None else f", reconstructed at {each.psnr:.1f} dB"
