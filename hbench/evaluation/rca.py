"""Reconstructor classification accuracy (RCA) of a run's directions (Table 1, Sec. 5.5)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch

from hbench.core.domain import Look, neighbours, outside
from hbench.core.images import soft_clip
from hbench.core.intervals import in_words, mean_of, student, wilson
from hbench.core.sampler import BATCH
from hbench.errors import HBenchError, check_at_least, check_seed, check_type, counted
from hbench.evaluation.sampling import Pairs, batches_of, draw_pairs
from hbench.evaluation.visible import OLD_VISIBLE, VISIBLE, enough, in_most, look, older_rule
from hbench.models.discriminator import judge
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.folders import refuse_links
from hbench.store.provenance import provenance
from hbench.store.records import Confusion, Interval, Nonnegative, Number, Positive, Share, ShareOrNone
from hbench.store.results import Result
from hbench.store.run import Run, judges_of

if TYPE_CHECKING:
    from pandas import DataFrame


OTHER_RANKING = "ranking was measured on other weights or directions: give that of this run and source"
"""What is wrong with a measurement of another run."""
MANY_OUTSIDE = 0.5
"""Share of shifted samples outside the domain from which on directions rather destroy than edit."""


@dataclass(frozen=True, kw_only=True)
class RCA(Result):
    """Reconstructor classification accuracy on fresh pairs, and the numbers to read beside it."""

    NAME: ClassVar[str] = "rca"
    SCHEMA: ClassVar[int] = 5

    n: Positive
    """Number of pairs."""
    accuracy: Share
    interval: Interval
    """95 % Wilson interval of the accuracy."""
    chance: Share
    """Accuracy of guessing, 1/K."""
    magnitude_error: Nonnegative
    """Mean absolute error of the predicted magnitude, in units of s."""
    magnitude_error_interval: Interval
    per_direction: list[ShareOrNone]
    """Accuracy of each direction; nan if none of its pairs was drawn."""
    per_direction_interval: list[Interval]
    """95 % Wilson intervals of the accuracies."""
    confusion: Confusion
    """Counts: true direction by predicted direction."""
    D_raw: ShareOrNone
    """Mean output of the discriminator on raw samples; ideally 0.5."""
    D_raw_interval: Interval
    D_shifted: ShareOrNone
    D_shifted_interval: Interval
    outside: Share
    """Share of shifted samples with a pixel beyond +-1.5; a high accuracy is worthless if many leave the domain."""
    outside_interval: Interval
    outside_raw: Share | None
    """Share of raw samples with such a pixel; none of a good diffusion model. None in files of older versions."""
    outside_raw_interval: Interval | None
    neighbours_raw: float | None
    """Mean correlation of neighbouring pixels in raw samples, 0 for noise; None in files of older versions."""

    n_visible: Positive | None
    """Number of samples that the numbers below were measured on; None in files of older versions, as they are."""
    visible_change: list[Nonnegative] | None
    """Visible change of each direction between -S and S, as a share of the range, mean over samples."""
    visible_in_most: list[Nonnegative] | None
    """Visible change of each direction that three of four samples exceed; None in files of older versions."""
    visible_from: Nonnegative | None
    """Visible change in most samples, in older files in the mean, beyond which a person sees a direction."""
    visible_change_interval: list[Interval] | None
    oddness: list[Number] | None
    """Oddness of each direction: 1 where its signs do opposite things to the image, -1 where they do the same."""
    accuracy_visible: ShareOrNone
    """Accuracy over the pairs of visible directions; by chance 1/K, too. nan if none is visible, or none was drawn."""
    accuracy_visible_interval: Interval

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's; the first say nothing about raw samples, nor what is seen."""
        of_raw = ["outside_raw", "outside_raw_interval", "neighbours_raw"]
        seen = [
            "n_visible",
            "visible_change",
            "visible_change_interval",
            "visible_in_most",
            "oddness",
            "accuracy_visible",
        ]
        known = dict.fromkeys([*of_raw, *seen]) | {"accuracy_visible_interval": (None, None)} | values
        return {"visible_from": None if known["n_visible"] is None else OLD_VISIBLE} | known

    def cautions(self) -> list[str]:
        """Return what makes the accuracy worthless: a poor diffusion model, shifts that destroy, or mere guessing."""
        found = []
        if self.outside_raw is not None and self.neighbours_raw is not None:
            found += Look(self.outside_raw, self.neighbours_raw).doubts()
        if hidden := self.invisible:
            found.append(
                f"{len(hidden)} of {counted(len(self.per_direction), 'direction')} cannot be seen: "
                f"{', '.join(map(str, hidden))}"
                + (f"; over the others RCA is {in_words(self.accuracy_visible)}" if self.visible else "")
            )
        if self.n_visible is not None and self.visible_from is not None and self.visible_in_most is None:
            found.append(older_rule(self.visible_from))
        if self.outside >= MANY_OUTSIDE:
            found.append(
                f"{self.outside:.0%} of the shifted samples leave the image domain: the directions destroy images, "
                "which makes them easy to tell apart"
            )
        if self.interval[0] <= self.chance:
            low, high = self.interval
            found.append(
                f"the interval of RCA, [{low:.3f}, {high:.3f}] of {counted(self.n, 'pair')}, does not lie above "
                f"chance, {self.chance:.3f}: this may be guessing; train longer, or measure more pairs"
            )
        return found

    def __post_init__(self) -> None:
        """Check that the counts, the accuracies and n agree."""
        if len({len(self.confusion), len(self.per_direction), len(self.per_direction_interval)}) > 1:
            raise ValueError("per_direction and confusion are of different numbers of directions")
        if (total := sum(map(sum, self.confusion))) != self.n:
            raise ValueError(f"confusion counts {total} pairs, n is {self.n}")
        lists = (self.visible_change, self.visible_change_interval, self.visible_in_most, self.oddness)
        if any(each is not None and len(each) != len(self.confusion) for each in lists):
            raise ValueError("what is seen is of another number of directions than the confusion")
        if abs(sum(row[k] for k, row in enumerate(self.confusion)) / self.n - self.accuracy) > 1e-9:
            raise ValueError("accuracy is not that of the confusion")

    @property
    def brief(self) -> str:
        """Accuracy with its interval and n, as in "0.680 [0.671, 0.689] at n = 10,000"."""
        low, high = self.interval
        return f"{self.accuracy:.3f} [{low:.3f}, {high:.3f}] at n = {self.n:,}"

    @property
    def invisible(self) -> list[int]:
        """Directions of which a person sees nothing; none is known in files of older versions."""
        changes = self.visible_in_most or self.visible_change
        if changes is None or self.visible_from is None:
            return []
        return [k for k, change in enumerate(changes) if change <= self.visible_from]

    @property
    def visible(self) -> list[int]:
        """Directions of which a person sees something; all in files of older versions."""
        hidden = self.invisible
        return [k for k in range(len(self.per_direction)) if k not in hidden]

    @property
    def pairs_visible(self) -> int:
        """Number of pairs of visible directions, those behind ``accuracy_visible``."""
        return sum(sum(self.confusion[k]) for k in self.visible)

    def ranking(self) -> list[int]:
        """Return the directions, most accurate first, and those that nobody sees after the others."""
        hidden, accuracy = self.invisible, np.nan_to_num(self.per_direction).tolist()
        return sorted(range(len(accuracy)), key=lambda k: (k in hidden, -accuracy[k]))

    def summary(self) -> str:
        """Return accuracy, magnitude error, D and the shares outside, and the larger measurement beside the run."""
        low, high = self.interval
        raw = "not measured" if self.outside_raw is None else f"{self.outside_raw:.2%}"
        larger = self.detail("larger_measurement", "")
        seen = self._seen_in_words()
        return (
            f"RCA {self.accuracy:.4f}  95% [{low:.4f}, {high:.4f}]  n {self.n}  chance {self.chance:.4f}\n"
            f"magnitude error {self.magnitude_error:.3f}  D raw {self.D_raw:.3f}  D shifted {self.D_shifted:.3f}\n"
            f"samples outside the domain: raw {raw}, shifted {self.outside:.2%}{seen}"
            + (larger and f"\nlarger measurement of this run: RCA {larger}")
        )

    def _seen_in_words(self) -> str:
        """Return the accuracy over visible directions in a line; nothing where that was not measured."""
        if self.n_visible is None:
            return ""
        (low, high), seen = self.accuracy_visible_interval, f"{len(self.visible)} of {len(self.per_direction)}"
        if not (n := self.pairs_visible):
            return f"\nvisible directions {seen}"
        return f"\nvisible directions {seen}: RCA {self.accuracy_visible:.4f}  95% [{low:.4f}, {high:.4f}]  n {n}"

    def table(self) -> "DataFrame":
        """Return accuracy, visible change and oddness of each direction, with n of each, a row a direction."""
        import pandas as pd

        lows, highs = zip(*self.per_direction_interval, strict=True)
        columns = {
            "direction": range(len(self.per_direction)),
            "accuracy": self.per_direction,
            "low": lows,
            "high": highs,
            "n": np.sum(self.confusion, axis=1),
        }
        if self.visible_change and self.visible_change_interval:
            lows, highs = zip(*self.visible_change_interval, strict=True)
            columns |= {"visible_change": self.visible_change, "visible_change_low": lows, "visible_change_high": highs}
            columns |= {"visible_in_most": self.visible_in_most} if self.visible_in_most else {}
            columns |= {"oddness": self.oddness, "n_visible": self.n_visible}
        return pd.DataFrame(columns)


class Answers(NamedTuple):
    """Answers of the networks to pairs, [B] each, on the CPU."""

    k: np.ndarray
    k_hat: np.ndarray
    magnitude_error: np.ndarray
    """|s_hat - s|."""
    D_raw: np.ndarray
    D_shifted: np.ndarray
    outside: np.ndarray
    """True if the shifted sample has left the domain."""
    outside_raw: np.ndarray
    neighbours_raw: np.ndarray
    """Correlation of neighbouring pixels in the raw sample."""


@torch.no_grad()
def rca(
    run: Run,
    *,
    pairs: int = 10_000,
    seed: int = 0,
    source: DirectionSource | None = None,
    on_pairs: Callable[[Pairs], None] | None = None,
) -> RCA:
    """Measure the accuracy of a run's reconstructor on fresh pairs.

    Several processes share the batches, and each gets the result. Cost: two chains a pair, and to look at the
    directions up to 48 chains each.

    Args:
        run: run with the directions and the reconstructor.
        pairs: number of fresh pairs, at least 1.
        seed: seed of x_T, k and s.
        source: kind of direction; each sample's own by default.
        on_pairs: function that is called with each batch of pairs, for their images.

    Raises:
        TypeError: not a run.
        ValueError: no pair, or a number out of range.
    """
    check_type(Run, "as load_run returns it", run=run)
    check_at_least(1, pairs=pairs)
    check_seed(seed)
    judges_of(run)
    source = source or direction_source(run)
    origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes, **source.details)
    batches = []
    for batch in progress(turns(batches_of(pairs, BATCH // 2)), desc="RCA", unit="batch"):
        drawn = draw_pairs(run, seed, batch[0], len(batch), source)
        if on_pairs:
            on_pairs(drawn)
        batches.append(answers(run, drawn))
    known = known_rca(run, source)
    larger = {"larger_measurement": known.brief} if known and known.n > pairs else {}
    seen = Answers(*(np.concatenate(column) for column in zip(*all_gather(batches), strict=True)))
    K = run.experiment.discovery.K
    confusion = np.zeros((K, K), dtype=int)
    np.add.at(confusion, (seen.k, seen.k_hat), 1)
    right, n_of = confusion.diagonal(), confusion.sum(1)
    looked = look(run, source, enough(pairs, K), seed)
    visible = looked.visible
    right_visible, n_of_visible = int(right[visible].sum()), int(n_of[visible].sum())
    values = np.stack([seen.magnitude_error, seen.D_raw, seen.D_shifted, seen.outside], axis=1, dtype=float)
    magnitude_error, D_raw, D_shifted, left = values.mean(0).tolist()
    ends = np.stack(student(values)).clip(0, [np.inf, 1, 1, 1])  # of few pairs they may leave the range
    bounds = [(float(low), float(high)) for low, high in ends.T]
    return RCA(
        n=pairs,
        accuracy=float(right.sum() / pairs),
        interval=wilson(int(right.sum()), pairs),
        chance=1 / K,
        magnitude_error=magnitude_error,
        magnitude_error_interval=bounds[0],
        per_direction=[float(c / n) if n else float("nan") for c, n in zip(right, n_of, strict=True)],
        per_direction_interval=[wilson(int(c), int(n)) for c, n in zip(right, n_of, strict=True)],
        confusion=confusion.tolist(),
        D_raw=D_raw,
        D_raw_interval=bounds[1],
        D_shifted=D_shifted,
        D_shifted_interval=bounds[2],
        outside=left,
        outside_interval=wilson(int(seen.outside.sum()), pairs),
        outside_raw=float(seen.outside_raw.mean()),
        outside_raw_interval=wilson(int(seen.outside_raw.sum()), pairs),
        neighbours_raw=float(seen.neighbours_raw.mean()),
        n_visible=len(looked.visible_change),
        visible_change=looked.visible_change.mean(0).tolist(),
        visible_in_most=in_most(looked.visible_change).tolist(),
        visible_from=VISIBLE,
        visible_change_interval=[
            (max(0.0, float(low)), float(high)) for low, high in zip(*student(looked.visible_change), strict=True)
        ],
        oddness=mean_of(looked.oddness).tolist(),
        accuracy_visible=right_visible / n_of_visible if n_of_visible else float("nan"),
        accuracy_visible_interval=wilson(right_visible, n_of_visible),
        provenance=origin.finished(n=pairs, **larger),
    )


def answers(run: Run, pairs: Pairs) -> Answers:
    """Return what reconstructor and discriminator say of pairs, and what their images are like."""
    bound = run.experiment.discovery.soft_clip
    raw, shifted = soft_clip(pairs.x_0, bound), soft_clip(pairs.x_0_shifted, bound)
    reconstructor, discriminator = judges_of(run)
    logits, s_hat = reconstructor(raw, shifted)
    values = (
        pairs.k,
        logits.argmax(1),
        (s_hat - pairs.s).abs().cpu().double(),  # some devices have no float64
        judge(discriminator, raw).sigmoid().cpu().double(),
        judge(discriminator, shifted).sigmoid().cpu().double(),
        outside(pairs.x_0_shifted),
        outside(pairs.x_0),
        neighbours(pairs.x_0),
    )
    return Answers(*(value.cpu().numpy() for value in values))


def known_rca(run: Run, source: DirectionSource | None = None) -> RCA | None:
    """Return the largest measurement of this run and source in the folder ``rca`` of the run or beside it, if any.

    Those of other weights or directions do not count.

    Raises:
        HBenchError: a file is damaged, or a link.
    """
    source = source or direction_source(run)
    around = [run.folder, run.folder.resolve().parent] if run.folder else []
    folders = [folder / RCA.NAME for folder in around if (folder / RCA.NAME / f"{RCA.NAME}.json").is_file()]
    for folder in folders:
        refuse_links(folder)
    found = [result for result in map(RCA.load, folders) if is_of(result, run, source)]
    return max(found, key=lambda result: result.n, default=None)


def read_rca(path: Path, run: Run, source: DirectionSource) -> RCA:
    """Read an earlier measurement of this run and source from its ``rca.json``.

    Raises:
        HBenchError: the file is damaged, or of other weights or directions.
    """
    result = RCA.load(path.parent) if path.name == "rca.json" else RCA.read(path, "give its rca.json")
    if not is_of(result, run, source):
        raise HBenchError(f"{path}: was measured on other weights or directions: give that of this run")
    return result


def is_of(result: RCA, run: Run, source: DirectionSource) -> bool:
    """Return whether a measurement is of this run's weights and of this kind of direction."""
    measured = {key: result.detail(key) for key in source.details} | {"weights_sha256": result.detail("weights_sha256")}
    known = {"direction_source": measured["direction_source"] or "own"}  # the first results named none
    return measured | known == source.details | {"weights_sha256": run.hashes}
