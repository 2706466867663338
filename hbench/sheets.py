"""Sheets for a user study: each direction as a grid of images, blind and shuffled, to be marked 0 or 1 (Sec. 5.5).

A study has one sheet per assessor. The key says what each item of a sheet is; assessors never see it.
"""

import base64
import csv
import hashlib
import io
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from hbench import __version__
from hbench.config import Section
from hbench.diffusion import seed_of
from hbench.errors import HBenchError
from hbench.evaluate import generate, noise, traverse
from hbench.files import replacing, write_json, write_text
from hbench.images import to_uint8
from hbench.load import Run
from hbench.models.shift import ShiftBlock
from hbench.progress import progress

COLUMNS = ("sheet", "assessor", "item", "mark", "name")
"""Of a file of marks, one line per item."""
CRITERIA = (
    "Smooth: in every row, the images change gradually from left to right.",
    "Consistent: the change is the same in all rows.",
    "Easy to interpret: you can say in a few words what changes.",
)
"""The paper's three: a direction is marked 1 only if all hold."""
GREY, FRAME = 60, (230, 126, 0)
"""Colours between the images, and around the original: 3.9 to 1 in contrast."""


class Direction(NamedTuple):
    """What one item shows: a direction of a run, or (control) an untrained one."""

    run: str
    direction: int
    control: bool


class Item(Section):
    """One item of a sheet."""

    item: int = Field(ge=1)
    run: str
    direction: int = Field(ge=0)
    control: bool
    repeat_of: int | None
    """The earlier item of the same sheet that this one shows again."""


class Sheet(Section):
    """What one assessor sees, in order."""

    sheet: str
    """Hash of the sheet's pictures, their order and the assessor."""
    assessor: str
    items: tuple[Item, ...]


class StudyRun(Section):
    """A run of the study."""

    run: str
    title: str


class Key(Section):
    """What each item of each sheet is: kept back until the marks are in."""

    hbench: str
    seed: int
    runs: tuple[StudyRun, ...]
    sheets: tuple[Sheet, ...]

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        if len({sheet.sheet for sheet in self.sheets}) < len(self.sheets):
            raise ValueError("the same sheet twice")
        if len({sheet.assessor for sheet in self.sheets}) < len(self.sheets):
            raise ValueError("the same assessor twice")
        runs = {run.run for run in self.runs}
        for sheet in self.sheets:
            shown = {item.item: item for item in sheet.items}
            first = {i.item: (i.run, i.direction, i.control) for i in sheet.items if i.repeat_of is None}
            if len(shown) < len(sheet.items) or len(set(first.values())) < len(first):
                raise ValueError(f"{sheet.sheet}: the same item or direction twice")
            for item in sheet.items:
                if item.run not in runs:
                    raise ValueError(f"{sheet.sheet}: item {item.item} is of no run")
                if item.repeat_of is not None and first.get(item.repeat_of) != (item.run, item.direction, item.control):
                    raise ValueError(f"{sheet.sheet}: item {item.item} does not repeat item {item.repeat_of}")
        return self


# Pictures -----------------------------------------------------------------------------------------------------------


def untrained(run_: Run, count: int, examples: int, seed: int = 0) -> Run:
    """The run with ``count`` untrained directions in place of its own: the floor that trained ones must beat.

    A fresh shift block changes nothing, since its output convolutions are zero. Here they are Gaussian instead, each
    scaled so that delta_h has the root mean square of the trained directions' at the same magnitude: as large a step in
    h-space, in a direction that nobody looked for. Such steps may leave the image domain (Sec. 5.5); that is part of
    what the floor shows. Cost: two shifted chains of ``examples`` samples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, count))
        block = ShiftBlock(run_.model.h_shape[0], run_.model.emb_channels, count)
        torch.nn.init.normal_(block.out_weight, std=run_.model.h_shape[0] ** -0.5)
    x_T = noise(run_, seed, 0, examples)
    control = replace(run_, shift_block=block.to(x_T.device).eval().requires_grad_(False))
    wanted = delta_h_rms(run_, x_T).square().mean().sqrt()
    block.out_weight.mul_((wanted / delta_h_rms(control, x_T))[:, None, None])
    return control


def delta_h_rms(run_: Run, x_T: Tensor) -> Tensor:
    """Root mean square of each direction's f_k(h_t, t), [K], over the regular processes from x_T while t >= t_shift."""
    squares = []

    def observe(h: Tensor, emb: Tensor, t: int) -> Tensor:
        each = [run_.shift_block(h, emb, torch.full((len(h),), k, device=h.device)) for k in range(run_.shift_block.K)]
        squares.append(torch.stack([delta_h.float().square().mean() for delta_h in each]))
        return torch.zeros_like(h)

    generate(run_, x_T, observe)
    return torch.stack(squares).mean(0).sqrt()


def pictures(
    runs: Mapping[str, Run], examples: int = 10, samples: int = 5, controls: int = 3, seed: int = 0, quiet: bool = False
) -> dict[Direction, Tensor]:
    """The grids of every direction of some runs: uint8 [examples, samples, C, H, W] each.

    Args:
        runs: by the name that the results will show.
        examples: rows, random x_T: the same for all directions of a run.
        samples: columns, s evenly from -S to S; odd, so that the middle is the original.
        controls: untrained directions per run.
        seed: of x_T and the controls.
        quiet: no progress bars.

    Cost: samples - 1 shifted chains per direction and example.
    """
    images: dict[Direction, Tensor] = {}
    for name, run_ in runs.items():
        found = [(run_, run_.shift_block.K, False)]
        if controls:
            found.append((untrained(run_, controls, examples, seed), controls, True))
        for shown, count, control in found:
            grids = to_uint8(traverse(shown, range(count), examples, samples, seed, quiet))
            images |= {Direction(name, k, control): grid for k, grid in enumerate(grids)}
    return images


def draw_grid(images: Tensor) -> np.ndarray:
    """A grid as RGB, uint8 [height, width, 3]: a row per example, a column per magnitude, the middle one framed.

    Args:
        images: uint8 [examples, samples, C, H, W].
    """
    examples, samples, _, height, width = images.shape
    margin = max(1, width // 16)
    canvas = torch.full((examples, samples, 3, height + 2 * margin, width + 2 * margin), GREY, dtype=torch.uint8)
    canvas[:, samples // 2] = torch.tensor(FRAME, dtype=torch.uint8)[:, None, None]
    canvas[..., margin:-margin, margin:-margin] = images  # grey is repeated
    rows, columns = examples * (height + 2 * margin), samples * (width + 2 * margin)
    return canvas.permute(0, 3, 1, 4, 2).reshape(rows, columns, 3).numpy()


def png(pixels: np.ndarray, scale: int = 1) -> bytes:
    """RGB pixels as a PNG file, each pixel scale x scale."""
    file = io.BytesIO()
    enlarged = np.repeat(np.repeat(pixels, scale, 0), scale, 1)
    Image.fromarray(enlarged).save(file, format="png", optimize=True)
    return file.getvalue()


# Design -------------------------------------------------------------------------------------------------------------


def assign(count: int, assessors: int, votes: int, rng: np.random.Generator) -> list[list[int]]:
    """Which of ``count`` directions each assessor sees: each direction ``votes`` assessors, loads at most one apart."""
    seen: list[list[int]] = [[] for _ in range(assessors)]
    for direction in rng.permutation(count):
        tie = rng.permutation(assessors)
        for assessor in sorted(range(assessors), key=lambda a: (len(seen[a]), tie[a]))[:votes]:
            seen[assessor].append(int(direction))
    return seen


def shuffle(directions: Sequence[int], repeats: float, rng: np.random.Generator) -> list[tuple[int, int | None]]:
    """The order of a sheet: (direction, None), or (direction, place of its first showing from 0) for a repeat.

    The share ``repeats`` (0 to 0.5, rounded up) of the directions comes from the first half and is shown again,
    scattered over the second.
    """
    order = [int(direction) for direction in rng.permutation(list(directions))]
    count = math.ceil(repeats * len(order))
    half = max(count, len(order) // 2)
    again = [int(place) for place in rng.choice(half, count, replace=False)] if count else []
    second = [(direction, None) for direction in order[half:]] + [(order[place], place) for place in again]
    return [(d, None) for d in order[:half]] + [second[i] for i in rng.permutation(len(second))]


def design(
    images: Mapping[Direction, Tensor],
    titles: Mapping[str, str],
    assessors: int,
    votes: int,
    repeats: float = 0.1,
    seed: int = 0,
) -> Key:
    """The key of a study: who sees which directions, in which order.

    Args:
        images: the grid of each direction.
        titles: of each run.
        assessors: number of sheets.
        votes: assessors per direction, at most all of them.
        repeats: share of each sheet's directions that it shows twice, 0 to 0.5.
        seed: of every shuffle.
    """
    rng = np.random.default_rng(seed)
    directions = list(images)
    hashes = [hashlib.sha256(grid.numpy().tobytes()).hexdigest() for grid in images.values()]
    sheets = []
    for number, seen in enumerate(assign(len(directions), assessors, votes, rng), start=1):
        order = shuffle(seen, repeats, rng)
        digest = hashlib.sha256(json.dumps([number, *(hashes[d] for d, _ in order)]).encode()).hexdigest()
        items = tuple(
            Item(item=i, **directions[d]._asdict(), repeat_of=None if place is None else place + 1)
            for i, (d, place) in enumerate(order, start=1)
        )
        # the word in front keeps spreadsheets from reading a hash such as 12e4 as a number
        sheets.append(Sheet(sheet=f"sheet-{digest[:12]}", assessor=str(number), items=items))
    runs = tuple(StudyRun(run=run, title=title) for run, title in titles.items())
    return Key(hbench=__version__, seed=seed, runs=runs, sheets=tuple(sheets))


# Files --------------------------------------------------------------------------------------------------------------


def refuse_marked(folder: Path) -> None:
    """HBenchError where a folder holds what people have made, or its score: no option may cost them their work.

    That is any file in the folders of the sheets but hbench's own, and a CSV of marks that is not empty.
    """
    if (folder / "score").exists():
        raise HBenchError(f"{folder / 'score'}: scores an earlier study, not this one: choose another --out")
    for file in sorted(path for sheet in folder.glob("sheet_*/") for path in sheet.rglob("*")):
        if not re.fullmatch(r"\d{3,}\.png|README\.txt|marks_\d+\.csv", file.name):
            raise HBenchError(f"{file}: is not of hbench, and would be lost: choose another --out")
    for file in sorted(folder.rglob("marks*.csv")):
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        delimiter = max(",;\t", key=(lines or [""])[0].count)
        if any((row.get("mark") or "").strip() for row in csv.DictReader(lines, delimiter=delimiter)):
            raise HBenchError(f"{file}: holds marks, which a new study could not score: choose another --out")


def write_sheets(
    key: Key, images: Mapping[Direction, Tensor], folder: Path, label_studio: bool = False, quiet: bool = False
) -> None:
    """Writes a study: a page and a folder of pictures per assessor, the key, and with them tasks for Label Studio.

    ``sheet_<assessor>.html`` needs nothing beside it. ``sheet_<assessor>/`` holds a PNG per item and an empty
    ``marks_<assessor>.csv`` for those who prefer a spreadsheet. ``key.json`` must not reach the assessors.
    """
    pages = Environment(
        loader=PackageLoader("hbench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    grids = {direction: draw_grid(grid) for direction, grid in images.items()}
    examples, samples, _, height, width = next(iter(images.values())).shape
    shared = {"criteria": CRITERIA, "columns": COLUMNS, "examples": examples, "samples": samples}
    for old in [*folder.glob("sheet_*"), *folder.glob("label_studio")]:  # of a study whose key is now replaced
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    write_json(folder / "key.json", key.model_dump(mode="json"))
    for sheet in progress(key.sheets, desc="sheets", unit="sheet", quiet=quiet):
        shown = [grids[Direction(i.run, i.direction, i.control)] for i in sheet.items]
        rows = [[_data_uri(png(row)) for row in np.split(grid, examples)] for grid in shown]
        page = pages.get_template("sheet.html").render(sheet=sheet, rows=rows, **shared)
        write_text(folder / f"sheet_{sheet.assessor}.html", page)
        beside = folder / f"sheet_{sheet.assessor}"
        scale = max(1, 96 // max(height, width))
        enlarged = [png(grid, scale) for grid in shown]
        for item, picture in zip(sheet.items, enlarged, strict=True):
            with replacing(beside / f"{item.item:03d}.png") as temporary:
                temporary.write_bytes(picture)
        lines = [",".join(COLUMNS), *(f"{sheet.sheet},{sheet.assessor},{i.item},," for i in sheet.items)]
        write_text(beside / f"marks_{sheet.assessor}.csv", "\n".join(lines) + "\n")
        write_text(beside / "README.txt", pages.get_template("sheet.txt").render(sheet=sheet, **shared))
        if label_studio:
            fields = ({"sheet": sheet.sheet, "assessor": sheet.assessor, "item": item.item} for item in sheet.items)
            tasks = [{"data": {**f, "image": _data_uri(p)}} for f, p in zip(fields, enlarged, strict=True)]
            write_json(folder / "label_studio" / f"tasks_{sheet.assessor}.json", tasks)
    if label_studio:
        write_text(folder / "label_studio" / "config.xml", pages.get_template("label_studio.xml").render(**shared))


def _data_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()
