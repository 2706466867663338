"""Grids of images along every direction of a run, most recognisable first (Figs. 1 and 5 to 7)."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from hbench.errors import MOST_COLUMNS, check_at_least, check_seed, check_type, counted
from hbench.evaluation.rca import OTHER_RANKING, RCA, is_of, known_rca, rca
from hbench.evaluation.sampling import choose_x_T
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Count, Positive, ShareOrNone
from hbench.store.results import Result
from hbench.store.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame

PAIRS = 1000
"""Number of fresh pairs to rank by, where no earlier measurement lies beside the run."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankedDirection:
    """A direction of the ranking."""

    direction: Count
    name: str
    """Name that someone gave it by eye; empty if nobody did."""
    accuracy: ShareOrNone
    """Share of its pairs in which it is recognised; nan if none was drawn."""
    visible: bool | None = None
    """True if a person sees something of it; None where that was not measured, as in older versions."""

    @property
    def label(self) -> str:
        """Index, name and accuracy, as in "3: thickness (0.82)", and whether it cannot be seen."""
        return direction_label(self.direction, self.accuracy, self.name, is_hidden=self.visible is False)


@dataclass(frozen=True, kw_only=True)
class Traversal(Result):
    """The directions of a run, ranked by how well they are recognised, and a grid of images along each."""

    NAME: ClassVar[str] = "traverse"
    SCHEMA: ClassVar[int] = 2

    examples: Positive
    """Number of rows of each grid: one x_T each."""
    samples: Positive
    """Number of columns: magnitudes evenly from -S to S."""
    pairs: Positive
    """Number of pairs that the accuracies were measured on."""
    directions: list[RankedDirection]
    """Directions, most recognisable first, and those that nobody sees after the others; or those that were asked for,
    in that order."""
    grid: Aside = field(default=None, compare=False, repr=False)
    """The :class:`hbench.Grid` in the same order; None in a result read back."""

    def summary(self) -> str:
        """Return the directions with names and accuracies, a line a direction, most recognisable first."""
        count = counted(len(self.directions), "direction")
        first = f"{count}, ranked by n = {counted(self.pairs, 'pair')}, with their accuracy"
        return "\n".join([first, *(each.label for each in self.directions)])

    def table(self) -> "DataFrame":
        """Return index, name and accuracy of each direction, a row a direction, most recognisable first."""
        import pandas as pd

        return pd.DataFrame(self.directions)


def direction_label(k: int, accuracy: float, name: str = "", *, is_hidden: bool = False) -> str:
    """Return a direction's index, its name if it has one, its accuracy if it was drawn, and that nobody sees it."""
    share = "not drawn" if math.isnan(accuracy) else f"{accuracy:.2f}"
    label = f"{k}: {name} ({share})" if name else f"{k} ({share})"
    return f"{label}, invisible" if is_hidden else label


def traverse(
    run: Run,
    *,
    examples: int = 6,
    samples: int = 5,
    pairs: int | None = None,
    seed: int = 0,
    source: DirectionSource | None = None,
    ranking: RCA | None = None,
    directions: Sequence[int] | None = None,
) -> Traversal:
    """Rank directions of a run by their RCA, and generate images along each; see :meth:`Run.traverse`.

    Args:
        run: run with the directions.
        examples: number of rows of each grid, at least 1; :func:`choose_x_T` chooses their x_T.
        samples: number of columns of each grid, at least 2.
        pairs: number of fresh pairs to rank by, at least 1. By default the run is ranked by its own ``rca.json``, see
            :func:`known_rca`, and by 1,000 fresh pairs where there is none.
        seed: seed of the pairs and of x_T.
        source: kind of direction; each sample's own by default.
        ranking: earlier measurement of this run and source to rank by, instead of fresh ``pairs``.
        directions: directions to show, in this order; by default all, most recognisable first.

    Raises:
        TypeError: not a run.
        ValueError: a number out of range, no such direction, or a ranking of another run or source.
    """
    check_type(Run, "as load_run returns it", run=run)
    check_at_least(1, examples=examples, pairs=PAIRS if pairs is None else pairs)
    check_at_least(2, most=MOST_COLUMNS, samples=samples)
    check_seed(seed)
    for k in directions or ():
        run.check_edit({k: 0.0})
    source = source or direction_source(run)
    if ranking is not None and not is_of(ranking, run, source):
        raise ValueError(OTHER_RANKING)
    origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes, **source.details)
    if ranking is None and pairs is None:
        ranking = known_rca(run, source)
    ranking = ranking or rca(run, pairs=pairs or PAIRS, seed=seed, source=source)
    for caution in ranking.cautions():
        log.warning("caution: %s", caution)
    chosen = choose_x_T(run, examples, seed)
    order = ranking.ranking() if directions is None else list(dict.fromkeys(directions))
    hidden = ranking.invisible
    is_known = ranking.n_visible is not None
    return Traversal(
        examples=examples,
        samples=samples,
        pairs=ranking.n,
        directions=[
            RankedDirection(
                direction=k,
                name=run.names.get(k, ""),
                accuracy=ranking.per_direction[k],
                visible=k not in hidden if is_known else None,
            )
            for k in order
        ],
        grid=run.traverse(order, examples=chosen.indices, samples=samples, seed=seed, source=source),
        provenance=origin.finished(n=ranking.n, **chosen.details),
    )
