"""The user study: each direction as a grid of images, blind and shuffled, to be marked 0 or 1 (Sec. 5.5).

A study has one sheet per assessor. The key names the direction of each item of a sheet; assessors never see it.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from hbench.core import seeds
from hbench.core.images import to_uint8
from hbench.errors import MOST_ASSESSORS, MOST_COLUMNS, check_at_least, check_seed, check_type
from hbench.models.shift import ShiftBlock, randomise_outputs
from hbench.store.files import sha256
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Count, Positive, Record, Share
from hbench.store.results import Result
from hbench.store.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("sheet", "assessor", "item", "mark", "name")
"""Columns of a file of marks, which has one line per item."""
KEY = "key.json"
"""Name of the file with the key."""
FORMULA = ("=", "+", "-", "@")
"""First characters of a cell that a spreadsheet runs as a formula."""


class Direction(NamedTuple):
    """A direction of a run; a control is untrained."""

    run: str
    direction: int
    control: bool


# Key ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item of a sheet."""

    item: Positive
    run: str
    direction: Count
    control: bool
    repeat_of: int | None
    """Earlier item of the same sheet that this one repeats; None for a first showing."""

    @property
    def shown(self) -> Direction:
        """Direction that the item shows."""
        return Direction(self.run, self.direction, self.control)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The items that one assessor sees, in order."""

    sheet: str
    """Hash of the sheet's pictures, their order and the assessor."""
    assessor: str
    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A run of the study."""

    run: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Key(Record):
    """The directions of the items of all sheets, kept back until the marks are in.

    Raises:
        ValueError: a sheet, assessor, item or direction occurs twice, or a reference leads nowhere.
    """

    seed: Count
    runs: tuple[StudyRun, ...]
    sheets: tuple[Sheet, ...]

    def __post_init__(self) -> None:
        """Check that sheets, runs and repeats refer to each other."""
        if len({sheet.sheet for sheet in self.sheets}) < len(self.sheets):
            raise ValueError("the same sheet twice")
        if len({sheet.assessor for sheet in self.sheets}) < len(self.sheets):
            raise ValueError("the same assessor twice")
        runs = {run.run for run in self.runs}
        for sheet in self.sheets:
            items = {item.item for item in sheet.items}
            first = {item.item: item.shown for item in sheet.items if item.repeat_of is None}
            if len(items) < len(sheet.items) or len(set(first.values())) < len(first):
                raise ValueError(f"{sheet.sheet}: the same item or direction twice")
            for item in sheet.items:
                if item.run not in runs:
                    raise ValueError(f"{sheet.sheet}: item {item.item} is of no run")
                if item.repeat_of is not None and first.get(item.repeat_of) != item.shown:
                    raise ValueError(f"{sheet.sheet}: item {item.item} does not repeat item {item.repeat_of}")

    @classmethod
    def read(cls, path: Path, remedy: str = "give the key.json of the study") -> Self:
        """Read the key of a study; :meth:`Record.from_json` names the errors."""
        return super().read(path, remedy)


# Study --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Study(Result):
    """The design of a user study, with the images to be marked."""

    NAME: ClassVar[str] = "design"

    assessors: Positive
    """Number of sheets."""
    votes: Positive
    """Number of assessors per direction."""
    examples: Positive
    """Rows of each grid: random x_T."""
    samples: Positive
    """Columns of each grid: magnitudes from -S to S."""
    repeats: Share
    """Share of each sheet's directions that it shows twice."""
    controls: Count
    """Number of untrained directions per run."""
    key: Aside = field(default=None, repr=False)
    """The :class:`Key`, which has its own file."""
    images: Aside = field(default=None, compare=False, repr=False)
    """Grid of each :class:`Direction`, uint8 [examples, samples, C, H, W]; None in a study read back."""

    def summary(self) -> str:
        """Return the numbers of sheets, items, directions and votes, in one line."""
        items = [item for sheet in self.key.sheets for item in sheet.items]
        shown = {item.shown for item in items}
        untrained = sum(direction.control for direction in shown)
        return (
            f"sheets {self.assessors}  items {len(items)}  directions {len(shown)}, {untrained} of them untrained  "
            f"votes a direction {self.votes}"
        )

    def table(self) -> "DataFrame":
        """Return the run and direction of each item of each sheet, a row an item."""
        import pandas as pd

        return pd.DataFrame(
            {"assessor": sheet.assessor, "sheet": sheet.sheet, **asdict(item), "run": guarded(item.run)}
            for sheet in self.key.sheets
            for item in sheet.items
        ).astype({"repeat_of": "Int64"})

    def _content(self) -> str:
        return super()._content() + json.dumps(self.key and self.key.to_json(), sort_keys=True)

    def write_into(self, folder: Path) -> None:
        """Write the design and its key into a folder that the caller has claimed."""
        self.key.write(folder / KEY)
        Result.write_into(self.with_details(key_sha256=sha256(folder / KEY)), folder)

    @classmethod
    def load(cls, folder: str | Path, remedy: str = "make it again") -> Self:
        """Read the design and its key from a folder; the images are not read back.

        Raises:
            HBenchError: missing, damaged, or not as any version of hbench writes it.
        """
        return replace(super().load(folder, remedy), key=Key.read(Path(folder) / KEY, remedy))


def mos_study(
    runs: Mapping[str, Run],
    *,
    assessors: int = 5,
    votes: int | None = None,
    examples: int = 10,
    samples: int = 5,
    repeats: float = 0.1,
    controls: int = 3,
    seed: int = 0,
) -> Study:
    """Generate the grid of every direction of some runs, and deal the grids out to assessors, blind and shuffled.

    Untrained directions are mixed in as a floor: their steps are as large as the trained ones. The function
    ``hbench.reporting.sheets.write_sheets`` makes pages of the study. Cost: ``samples`` - 1 shifted chains per
    direction and example.

    Args:
        runs: runs by name; the results show these names.
        assessors: number of sheets, at least 1.
        votes: number of assessors per direction, 1 to ``assessors``; all by default.
        examples: number of rows of a grid, at least 1.
        samples: number of columns of a grid, odd and at least 3, so that the middle one is the original.
        repeats: share of each sheet's directions that it shows twice, 0 to 0.5.
        controls: number of untrained directions per run, at least 0.
        seed: seed of x_T, of the untrained directions and of every shuffle.

    Raises:
        TypeError: something else than runs by name.
        ValueError: no run, or a number out of its range.
    """
    check_type(Mapping, "from names to runs", runs=runs)
    for name, run in runs.items():
        check_type(Run, "as load_run returns it", **{f"runs[{name!r}]": run})
    check_at_least(0, controls=controls)
    check_at_least(1, examples=examples)
    check_at_least(1, most=MOST_ASSESSORS, assessors=assessors)
    check_at_least(0, most=MOST_COLUMNS, samples=samples)
    check_seed(seed)
    votes = assessors if votes is None else votes
    for wrong, message in (
        (not runs, "need at least one run"),
        (not 1 <= votes <= assessors, f"votes must be 1 to {assessors}, the number of assessors, got {votes}"),
        (samples < 3 or samples % 2 == 0, f"samples must be odd and at least 3, got {samples}"),
        (not 0 <= repeats <= 0.5, f"repeats must be 0 to 0.5, got {repeats}"),
    ):
        if wrong:
            raise ValueError(message)
    origin = provenance(
        None,
        next(iter(runs.values())).device,
        seed,
        runs={
            name: {"experiment": run.experiment.model_dump(mode="json"), "weights_sha256": run.hashes}
            for name, run in runs.items()
        },
    )
    images = pictures(runs, examples, samples, controls, seed)
    key = design(images, {name: run.experiment.title for name, run in runs.items()}, assessors, votes, repeats, seed)
    settings: dict[str, Any] = {
        "assessors": assessors,
        "votes": votes,
        "examples": examples,
        "samples": samples,
        "repeats": repeats,
        "controls": controls,
    }
    n = sum(len(sheet.items) for sheet in key.sheets)
    return Study(**settings, key=key, images=images, provenance=origin.finished(n=n, **settings))


def guarded(text: str) -> str:
    """Return text with an apostrophe in front if a spreadsheet would run it as a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


# Images -------------------------------------------------------------------------------------------------------------


def untrained(run: Run, count: int, examples: int, seed: int = 0) -> Run:
    """Return the run with ``count`` untrained directions instead: the floor that trained ones must beat.

    A fresh shift block changes nothing, since its output convolutions are zero. Here they are Gaussian, each scaled so
    that delta_h has the root mean square of the trained directions at the same magnitude: as large a step in h-space,
    in an untrained direction. Such steps may leave the image domain (Sec. 5.5), which lowers the floor too. Cost: two
    shifted chains of ``examples`` samples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.controls(seed, count))
        block = randomise_outputs(ShiftBlock(run.model.h_shape[0], run.model.emb_channels, count))
    x_T = run.noise(examples, seed=seed)
    control = replace(run, shift_block=block.to(run.device).eval().requires_grad_(False))
    wanted = delta_h_rms(run, x_T).square().mean().sqrt()
    block.out_weight.mul_((wanted / delta_h_rms(control, x_T))[:, None, None])
    return control


def delta_h_rms(run: Run, x_T: Tensor) -> Tensor:
    """Return the root mean square of f_k(h_t, t) over the regular processes from x_T, for each direction: [K].

    Only timesteps t >= t_shift count.
    """
    squares = []

    def observe(h: Tensor, emb: Tensor, t: int) -> Tensor:
        each = [run.shift_block(h, emb, torch.full((len(h),), k, device=h.device), t) for k in range(run.K)]
        squares.append(torch.stack([delta_h.float().square().mean() for delta_h in each]))
        return torch.zeros_like(h)

    run.sampler.generate(x_T, observe)
    return torch.stack(squares).mean(0).sqrt()


def pictures(
    runs: Mapping[str, Run], examples: int = 10, samples: int = 5, controls: int = 3, seed: int = 0
) -> dict[Direction, Tensor]:
    """Return the grid of every direction of some runs: uint8 [examples, samples, C, H, W] each.

    The x_T of the rows are the same for all directions of a run. Arguments and cost are those of :func:`mos_study`.
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
    """Return the directions, of ``count``, that each assessor sees.

    Each direction gets ``votes`` assessors, and the loads are at most one apart.
    """
    seen: list[list[int]] = [[] for _ in range(assessors)]
    for direction in rng.permutation(count):
        tie = rng.permutation(assessors)
        for assessor in sorted(range(assessors), key=lambda a: (len(seen[a]), tie[a]))[:votes]:
            seen[assessor].append(int(direction))
    return seen


def shuffle(directions: Sequence[int], repeats: float, rng: np.random.Generator) -> list[tuple[int, int | None]]:
    """Return the items of a sheet in order: (direction, None), or for a repeat (direction, index of its first showing).

    A share ``repeats`` (0 to 0.5, rounded up) of the directions, all from the first half, is shown again, scattered
    over the second half.
    """
    order = [int(direction) for direction in rng.permutation(list(directions))]
    count = math.ceil(repeats * len(order))
    half = max(count, len(order) // 2)
    again = [int(index) for index in rng.choice(half, count, replace=False)] if count else []
    second = [(direction, None) for direction in order[half:]] + [(order[index], index) for index in again]
    return [(d, None) for d in order[:half]] + [second[i] for i in rng.permutation(len(second))]


def design(
    images: Mapping[Direction, Tensor],
    titles: Mapping[str, str],
    assessors: int,
    votes: int,
    repeats: float = 0.1,
    seed: int = 0,
) -> Key:
    """Return the key of a study: the assessors, and the directions that each sees, in order.

    Args:
        images: grid of each direction; the sheets' hashes are made of them.
        titles: title of each run.
        assessors: number of sheets.
        votes: number of assessors per direction, 1 to ``assessors``.
        repeats: share of each sheet's directions that it shows twice, 0 to 0.5.
        seed: seed of every shuffle.
    """
    rng = np.random.default_rng(seeds.study_design(seed))
    directions = list(images)
    hashes = [hashlib.sha256(grid.numpy().tobytes()).hexdigest() for grid in images.values()]
    sheets = []
    for number, seen in enumerate(assign(len(directions), assessors, votes, rng), start=1):
        order = shuffle(seen, repeats, rng)
        digest = hashlib.sha256(json.dumps([number, *(hashes[d] for d, _ in order)]).encode()).hexdigest()
        items = tuple(
            Item(item=i, **directions[d]._asdict(), repeat_of=None if first is None else first + 1)
            for i, (d, first) in enumerate(order, start=1)
        )
        # the word in front keeps spreadsheets from reading a hash such as 12e4 as a number
        sheets.append(Sheet(sheet=f"sheet-{digest[:12]}", assessor=str(number), items=items))
    runs = tuple(StudyRun(run=run, title=title) for run, title in titles.items())
    return Key(seed=seed, runs=runs, sheets=tuple(sheets))
