"""Reconstructor classification accuracy (RCA) of a run's directions (Table 1, Sec. 5.5)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch

from hbench.core.domain import Look, neighbours, outside
from hbench.core.images import soft_clip
from hbench.core.intervals import student, wilson
from hbench.core.sampler import BATCH
from hbench.errors import HBenchError, check_at_least
from hbench.evaluation.sampling import Pairs, batches_of, draw_pairs
from hbench.models.discriminator import judge
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.provenance import provenance
from hbench.store.records import Interval, Number
from hbench.store.results import Result
from hbench.store.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame


MANY_OUTSIDE = 0.5
"""Share of shifted samples outside the domain from which on directions rather destroy than edit."""


@dataclass(frozen=True, kw_only=True)
class RCA(Result):
    """Reconstructor classification accuracy on fresh pairs, and the numbers to read beside it."""

    NAME: ClassVar[str] = "rca"
    SCHEMA: ClassVar[int] = 2

    n: int
    """Number of pairs."""
    accuracy: float
    interval: Interval
    """95 % Wilson interval of the accuracy."""
    chance: float
    """Accuracy of guessing, 1/K."""
    magnitude_error: Number
    """Mean absolute error of the predicted magnitude, in units of s."""
    magnitude_error_interval: Interval
    per_direction: list[Number]
    """Accuracy of each direction; nan if none of its pairs was drawn."""
    per_direction_interval: list[Interval]
    """95 % Wilson intervals of the accuracies."""
    confusion: list[list[int]]
    """Counts: true direction by predicted direction."""
    D_raw: Number
    """Mean output of the discriminator on raw samples; ideally 0.5."""
    D_raw_interval: Interval
    D_shifted: Number
    D_shifted_interval: Interval
    outside: float
    """Share of shifted samples with a pixel beyond +-1.5; a high accuracy is worthless if many leave the domain."""
    outside_interval: Interval
    outside_raw: float | None
    """Share of raw samples with such a pixel; none of a good diffusion model. None in files of older versions."""
    outside_raw_interval: Interval | None
    neighbours_raw: float | None
    """Mean correlation of neighbouring pixels in raw samples, 0 for noise; None in files of older versions."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's; the first ones say nothing about raw samples."""
        return {"outside_raw": None, "outside_raw_interval": None, "neighbours_raw": None} | values

    def cautions(self) -> list[str]:
        """Return what makes the accuracy worthless: a poor diffusion model, shifts that destroy, or mere guessing."""
        found = []
        if self.outside_raw is not None and self.neighbours_raw is not None:
            found += Look(self.outside_raw, self.neighbours_raw).doubts()
        if self.outside >= MANY_OUTSIDE:
            found.append(
                f"{self.outside:.0%} of the shifted samples leave the image domain: the directions destroy images, "
                "which makes them easy to tell apart"
            )
        if self.interval[0] <= self.chance:
            low, high = self.interval
            found.append(
                f"the interval of RCA, [{low:.3f}, {high:.3f}] of {self.n:,} pairs, does not lie above chance, "
                f"{self.chance:.3f}: this may be guessing; train longer, or measure more pairs"
            )
        return found

    def ranking(self) -> list[int]:
        """Return the directions, most accurate first."""
        return [int(k) for k in np.argsort(-np.nan_to_num(np.array(self.per_direction)), kind="stable")]

    def summary(self) -> str:
        """Return accuracy, magnitude error, D and the shares outside, in three lines."""
        low, high = self.interval
        raw = "not measured" if self.outside_raw is None else f"{self.outside_raw:.2%}"
        return (
            f"RCA {self.accuracy:.4f}  95% [{low:.4f}, {high:.4f}]  n {self.n}  chance {self.chance:.4f}\n"
            f"magnitude error {self.magnitude_error:.3f}  D raw {self.D_raw:.3f}  D shifted {self.D_shifted:.3f}\n"
            f"samples outside the domain: raw {raw}, shifted {self.outside:.2%}"
        )

    def table(self) -> "DataFrame":
        """Return the accuracy of each direction with its interval and n, a row a direction."""
        import pandas as pd

        lows, highs = zip(*self.per_direction_interval, strict=True)
        return pd.DataFrame(
            {
                "direction": range(len(self.per_direction)),
                "accuracy": self.per_direction,
                "low": lows,
                "high": highs,
                "n": np.sum(self.confusion, axis=1),
            }
        )


class _Seen(NamedTuple):
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

    Several processes share the batches, and each gets the result. Cost: two chains a pair.

    Args:
        run: run with the directions and the reconstructor.
        pairs: number of fresh pairs, at least 1.
        seed: seed of x_T, k and s.
        source: kind of direction; each sample's own by default.
        on_pairs: function that is called with each batch of pairs, for their images.

    Raises:
        ValueError: no pair.
    """
    check_at_least(1, pairs=pairs)
    source = source or direction_source(run)
    origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes, **source.details)
    batches = []
    for batch in progress(turns(batches_of(pairs, BATCH // 2)), desc="RCA", unit="batch"):
        drawn = draw_pairs(run, seed, batch[0], len(batch), source)
        if on_pairs:
            on_pairs(drawn)
        batches.append(_look(run, drawn))
    seen = _Seen(*(np.concatenate(column) for column in zip(*all_gather(batches), strict=True)))
    K = run.experiment.discovery.K
    confusion = np.zeros((K, K), dtype=int)
    np.add.at(confusion, (seen.k, seen.k_hat), 1)
    right, n_of = confusion.diagonal(), confusion.sum(1)
    values = np.stack([seen.magnitude_error, seen.D_raw, seen.D_shifted, seen.outside], axis=1, dtype=float)
    magnitude_error, D_raw, D_shifted, left = values.mean(0).tolist()
    bounds = [(float(low), float(high)) for low, high in zip(*student(values), strict=True)]
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
        provenance=origin.finished(n=pairs),
    )


def _look(run: Run, pairs: Pairs) -> _Seen:
    bound = run.experiment.discovery.soft_clip
    raw, shifted = soft_clip(pairs.x_0, bound), soft_clip(pairs.x_0_shifted, bound)
    logits, s_hat = run.reconstructor(raw, shifted)
    values = (
        pairs.k,
        logits.argmax(1),
        (s_hat - pairs.s).abs().double(),
        judge(run.discriminator, raw).sigmoid().double(),
        judge(run.discriminator, shifted).sigmoid().double(),
        outside(pairs.x_0_shifted),
        outside(pairs.x_0),
        neighbours(pairs.x_0),
    )
    return _Seen(*(value.cpu().numpy() for value in values))


def read_rca(path: Path, run: Run, source: DirectionSource) -> RCA:
    """Read an earlier measurement of this run and source from its ``rca.json``.

    Raises:
        HBenchError: the file is damaged, or of other weights or directions.
    """
    result = RCA.load(path.parent) if path.name == "rca.json" else RCA.read(path, "give its rca.json")
    if result.detail("weights_sha256") != run.hashes or result.detail("direction_source", "own") != source.name:
        raise HBenchError(f"{path}: was measured on other weights or directions: give that of this run")
    return result
