"""Sheets for assessors: pages that work offline, pictures and empty tables of marks."""

import base64
import io
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

from hbench.core.images import ORANGE, tile
from hbench.errors import HBenchError
from hbench.evaluation.mos.marks import read_rows
from hbench.evaluation.mos.study import COLUMNS, KEY, Direction, Key, Sheet
from hbench.runtime.progress import progress
from hbench.store.files import replacing, write_json, write_text

CRITERIA = (
    "Smooth: in every row, the images change gradually from left to right.",
    "Consistent: the change is the same in all rows.",
    "Easy to interpret: you can say in a few words what changes.",
)
"""The paper's three criteria; a direction is marked 1 only if all hold."""

SECONDS = 20
"""Seconds that an assessor takes for an item, about; the sheet announces the minutes."""

DARK = (60, 60, 60)
"""Colour between the images, with a contrast of 3.9 to 1 to the frame of the original."""


def draw_grid(images: Tensor) -> np.ndarray:
    """Return images [examples, samples, C, H, W], uint8, as the pixels of one grid: RGB, uint8 [height, width, 3].

    Each example is a row, each magnitude a column; the middle column is framed.
    """
    samples, width = images.shape[1], images.shape[-1]
    margin = max(1, width // 16)
    tiles = tile(
        images.flatten(0, 1),
        samples,
        gap=2 * margin,
        edge=margin,
        background=DARK,
        frames={samples // 2: ORANGE},
        frame_width=margin,
    )
    return tiles.pixels.numpy()


def png(pixels: np.ndarray, scale: int = 1) -> bytes:
    """Return the bytes of a PNG file of RGB pixels, each enlarged to scale x scale."""
    file = io.BytesIO()
    enlarged = np.repeat(np.repeat(pixels, scale, 0), scale, 1)
    Image.fromarray(enlarged).save(file, format="png", optimize=True)
    return file.getvalue()


@dataclass(frozen=True)
class Worked:
    """A worked example of the instructions: a grid, the mark that it deserves, and why."""

    mark: int
    why: str
    seen: str
    """Picture in words, for those who do not see it."""
    picture: str
    """Data URI of the grid."""


def worked_examples(samples: int) -> list[Worked]:
    """Return an example of each mark, drawn from formulas, so that no direction of a study is given away.

    Args:
        samples: columns of a grid, an odd number.
    """
    s = torch.linspace(-1, 1, samples)
    grows = [_disc(x=x, y=y, radius=6 + 3 * s) for x, y in ((11, 12), (14, 10), (12, 14))]
    differs = [_disc(x=12, y=12, radius=6 + 3 * s), _disc(x=12 + 5 * s, y=13), _disc(x=12, y=11, grey=150 + 100 * s)]
    return [
        Worked(
            1,
            "the disc grows from left to right, step by step, in every row. All three hold.",
            f"Three rows of {samples} images: in every row a disc grows from left to right",
            _data_uri(png(draw_grid(torch.stack(grows)), 4)),
        ),
        Worked(
            0,
            "the disc grows in the first row, moves in the second and brightens in the third. "
            "The change is not the same in all rows.",
            f"Three rows of {samples} images: the disc of the first grows, the second's moves, the third's brightens",
            _data_uri(png(draw_grid(torch.stack(differs)), 4)),
        ),
    ]


def _disc(*, x: Tensor | float, y: float, radius: Tensor | float = 6.0, grey: Tensor | float = 220.0) -> Tensor:
    """Return images of a disc with soft edges on black, uint8 [samples, 1, 24, 24]; one argument varies."""
    given = torch.broadcast_tensors(*(torch.as_tensor(value)[..., None, None] for value in (x, y, radius, grey)))
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    distance = ((columns - given[0]) ** 2 + (rows - given[1]) ** 2).sqrt()
    images: Tensor = (given[3] * (given[2] - distance + 0.5).clamp(0, 1)).round().to(torch.uint8)[:, None]
    return images


def refuse_marked(folder: Path) -> None:
    """Raise HBenchError if a folder holds people's work: marks, other files of theirs, or a score.

    No option may overwrite these. All files in the folders of the sheets count, except those that hbench writes.
    """
    if (folder / "score").exists():
        raise HBenchError(f"{folder / 'score'}: scores an earlier study, not this one: choose another `out`")
    for file in sorted(path for sheet in folder.glob("sheet_*/") for path in sheet.rglob("*")):
        if not re.fullmatch(r"\d{3,}\.png|README\.txt|marks_\d+\.csv", file.name):
            raise HBenchError(f"{file}: is not of hbench, and would be lost: choose another `out`")
    for file in sorted(folder.rglob("marks*.csv")):
        if _holds_marks(file):
            raise HBenchError(f"{file}: holds marks, which a new study could not score: choose another `out`")


def _holds_marks(file: Path) -> bool:
    """Return whether a CSV file holds marks; one that cannot be read may."""
    try:
        return any(row["mark"] for _, row in read_rows(file))
    except HBenchError:
        return bool(file.read_bytes().strip())


def write_sheets(
    key: Key, images: Mapping[Direction, Tensor], folder: Path, label_studio: bool = False, asked_by: str = ""
) -> dict[Path, Sheet]:
    """Write a page and a folder of pictures per assessor, and the key. Return the sheet of each page.

    The page ``sheet_<assessor>.html`` needs no other file. The folder ``sheet_<assessor>`` holds a PNG per item and an
    empty ``marks_<assessor>.csv`` for those who prefer a spreadsheet. The file ``key.json`` must not reach the
    assessors. The sheets of an earlier study in the folder are removed.

    Args:
        key: key of the study.
        images: grid of each direction, uint8 [examples, samples, C, H, W].
        folder: output folder.
        label_studio: write tasks for Label Studio too.
        asked_by: people who ask, named on the sheets; empty for no name.
    """
    pages = Environment(
        loader=PackageLoader("hbench.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    grids = {direction: draw_grid(grid) for direction, grid in images.items()}
    examples, samples, _, height, width = next(iter(images.values())).shape
    shared = {
        "criteria": CRITERIA,
        "short": [criterion.partition(":")[0].lower() for criterion in CRITERIA],
        "columns": COLUMNS,
        "examples": examples,
        "samples": samples,
        "asked_by": " ".join(asked_by.split()),
    }
    worked = worked_examples(samples)
    html, text = pages.get_template("sheet.html"), pages.get_template("sheet.txt")
    for old in [*folder.glob("sheet_*"), *folder.glob("label_studio")]:  # of a study whose key is now replaced
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    key.write(folder / KEY)  # first: marks on a sheet without its key could not be scored
    written = {}
    for sheet in progress(key.sheets, desc="sheets", unit="sheet"):
        shown = [grids[item.shown] for item in sheet.items]
        words = shared | {"sheet": sheet, "minutes": math.ceil(len(sheet.items) * SECONDS / 60)}
        rows = [[_data_uri(png(row)) for row in np.split(grid, examples)] for grid in shown]
        page = folder / f"sheet_{sheet.assessor}.html"
        write_text(page, html.render(rows=rows, worked=worked, **words))
        beside = folder / f"sheet_{sheet.assessor}"
        scale = max(1, 96 // max(height, width))
        enlarged = [png(grid, scale) for grid in shown]
        for item, picture in zip(sheet.items, enlarged, strict=True):
            with replacing(beside / f"{item.item:03d}.png") as temporary:
                temporary.write_bytes(picture)
        lines = [",".join(COLUMNS), *(f"{sheet.sheet},{sheet.assessor},{i.item},," for i in sheet.items)]
        write_text(beside / f"marks_{sheet.assessor}.csv", "\n".join(lines) + "\n")
        write_text(beside / "README.txt", text.render(**words))
        if label_studio:
            fields = ({"sheet": sheet.sheet, "assessor": sheet.assessor, "item": item.item} for item in sheet.items)
            tasks = [{"data": {**f, "image": _data_uri(p)}} for f, p in zip(fields, enlarged, strict=True)]
            write_json(folder / "label_studio" / f"tasks_{sheet.assessor}.json", tasks)
        written[page] = sheet
    if label_studio:
        write_text(folder / "label_studio" / "config.xml", pages.get_template("label_studio.xml").render(**shared))
    return written


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
