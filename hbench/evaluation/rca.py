"""Reconstructor classification accuracy (RCA) of a run's directions (Table 1, Sec. 5.5)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch

from hbench.core.images import soft_clip
from hbench.core.intervals import student, wilson
from hbench.core.sampler import BATCH
from hbench.errors import HBenchError, check_at_least, check_seed, check_type
from hbench.evaluation.sampling import Pairs, batches_of, draw_pairs
from hbench.models.discriminator import judge
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.provenance import provenance
from hbench.store.records import Confusion, Interval, Nonnegative, Positive, Share, ShareOrNone
from hbench.store.results import Result
from hbench.store.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class RCA(Result):
    """Reconstructor classification accuracy on fresh pairs, and the numbers to read beside it."""

    NAME: ClassVar[str] = "rca"

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

    def __post_init__(self) -> None:
        """Check that the counts, the accuracies and n agree."""
        if len({len(self.confusion), len(self.per_direction), len(self.per_direction_interval)}) > 1:
            raise ValueError("per_direction and confusion are of different numbers of directions")
        if (counted := sum(map(sum, self.confusion))) != self.n:
            raise ValueError(f"confusion counts {counted} pairs, n is {self.n}")
        if abs(sum(row[k] for k, row in enumerate(self.confusion)) / self.n - self.accuracy) > 1e-9:
            raise ValueError("accuracy is not that of the confusion")

    def ranking(self) -> list[int]:
        """Return the directions, most accurate first."""
        return [int(k) for k in np.argsort(-np.nan_to_num(np.array(self.per_direction)), kind="stable")]

    def summary(self) -> str:
        """Return accuracy, magnitude error, D and the share outside, in three lines."""
        low, high = self.interval
        return (
            f"RCA {self.accuracy:.4f}  95% [{low:.4f}, {high:.4f}]  n {self.n}  chance {self.chance:.4f}\n"
            f"magnitude error {self.magnitude_error:.3f}  D raw {self.D_raw:.3f}  D shifted {self.D_shifted:.3f}\n"
            f"shifted samples outside the domain {self.outside:.2%}"
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
        TypeError: not a run.
        ValueError: no pair, or a number out of range.
    """
    check_type(Run, "as load_run returns it", run=run)
    check_at_least(1, pairs=pairs)
    check_seed(seed)
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
    magnitude_error, D_raw, D_shifted, outside = values.mean(0).tolist()
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
        outside=outside,
        outside_interval=wilson(int(seen.outside.sum()), pairs),
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
        pairs.x_0_shifted.abs().amax((1, 2, 3)) > 1.5,
    )
    return _Seen(*(value.cpu().numpy() for value in values))


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
