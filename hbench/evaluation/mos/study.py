"""Sheets for a user study: each direction as a grid of images, blind and shuffled, to be marked 0 or 1 (Sec. 5.5).

A study has one sheet per assessor. The key says what each item of a sheet is; assessors never see it.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from hbench import __version__
from hbench.config import Section
from hbench.core import seeds
from hbench.core.images import to_uint8
from hbench.models.shift import ShiftBlock
from hbench.store.run import Run

COLUMNS = ("sheet", "assessor", "item", "mark", "name")
"""Of a file of marks, one line per item."""


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


def untrained(run: Run, count: int, examples: int, seed: int = 0) -> Run:
    """The run with ``count`` untrained directions in place of its own: the floor that trained ones must beat.

    A fresh shift block changes nothing, since its output convolutions are zero. Here they are Gaussian instead, each
    scaled so that delta_h has the root mean square of the trained directions' at the same magnitude: as large a step in
    h-space, in a direction that nobody looked for. Such steps may leave the image domain (Sec. 5.5); that is part of
    what the floor shows. Cost: two shifted chains of ``examples`` samples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.controls(seed, count))
        block = ShiftBlock(run.model.h_shape[0], run.model.emb_channels, count)
        torch.nn.init.normal_(block.out_weight, std=run.model.h_shape[0] ** -0.5)
    x_T = run.noise(examples, seed=seed)
    control = replace(run, shift_block=block.to(run.device).eval().requires_grad_(False))
    wanted = delta_h_rms(run, x_T).square().mean().sqrt()
    block.out_weight.mul_((wanted / delta_h_rms(control, x_T))[:, None, None])
    return control


def delta_h_rms(run: Run, x_T: Tensor) -> Tensor:
    """Root mean square of each direction's f_k(h_t, t), [K], over the regular processes from x_T while t >= t_shift."""
    squares = []

    def observe(h: Tensor, emb: Tensor, t: int) -> Tensor:
        each = [run.shift_block(h, emb, torch.full((len(h),), k, device=h.device)) for k in range(run.K)]
        squares.append(torch.stack([delta_h.float().square().mean() for delta_h in each]))
        return torch.zeros_like(h)

    run.sampler.generate(x_T, observe)
    return torch.stack(squares).mean(0).sqrt()


def pictures(
    runs: Mapping[str, Run], examples: int = 10, samples: int = 5, controls: int = 3, seed: int = 0
) -> dict[Direction, Tensor]:
    """The grids of every direction of some runs: uint8 [examples, samples, C, H, W] each.

    Args:
        runs: by the name that the results will show.
        examples: rows, random x_T: the same for all directions of a run.
        samples: columns, s evenly from -S to S; odd, so that the middle is the original.
        controls: untrained directions per run.
        seed: of x_T and the controls.

    Cost: samples - 1 shifted chains per direction and example.
    """
    images: dict[Direction, Tensor] = {}
    for name, run in runs.items():
        found = [(run, False)]
        if controls:
            found.append((untrained(run, controls, examples, seed), True))
        for shown, control in found:
            grids = to_uint8(shown.traverse(examples=examples, samples=samples, seed=seed).images)
            images |= {Direction(name, k, control): grid for k, grid in enumerate(grids)}
    return images


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
    rng = np.random.default_rng(seeds.study_design(seed))
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
