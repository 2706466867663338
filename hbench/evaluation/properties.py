"""Homogeneity, consistency and linearity of a run's directions (Sec. 5.4 and Fig. 9), as numbers.

The paper shows that an edit looks "almost the same" with the sample's own direction, with the mean over samples, and
with the time-invariant direction. Here the directions are compared in h-space, and their edits both in pixels and by
the reconstructor's answers. The measured samples are never among those of the mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hbench.core import seeds
from hbench.core.directions import Directions, magnitudes
from hbench.core.images import soft_clip
from hbench.core.intervals import Array, jackknife, student
from hbench.core.sampler import BATCH
from hbench.errors import check_at_least, check_seed, check_type
from hbench.evaluation.mean_directions import compare, directions_of, grouped_means, regular_with_hidden, sources
from hbench.experiments import parse_experiment
from hbench.runtime.progress import progress
from hbench.store.directions import save_directions
from hbench.store.files import write_text
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Count, Number, Positive
from hbench.store.results import Result
from hbench.store.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame

MAGNITUDES = 10
"""Number of magnitudes of the measured samples, evenly from -S to S."""
RESAMPLES = 1000
"""Number of resamples of the bootstrap."""
PICTURED = (-1.0, -0.5, 0.5, 1.0)
"""Magnitudes in the picture, in units of S."""
MOST_PICTURED = 4
"""Number of directions in the picture, unless some are asked for."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of each direction, and last their mean, with 95 % intervals; nan if it is not defined."""

    value: list[Number]
    low: list[Number]
    high: list[Number]

    def __str__(self) -> str:
        """Return the mean over directions with its interval, in words."""
        return f"{self.value[-1]:.3f} [{self.low[-1]:.3f}, {self.high[-1]:.3f}]"

    def columns(self, name: str) -> dict[str, list[float]]:
        """Return the columns of a table, a row a direction and a last one for their mean."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


class Examples(NamedTuple):
    """The same edits with the three sources of delta_h, for the picture of Fig. 9."""

    labels: list[str]
    """Label of each direction."""
    magnitudes: list[float]
    images: Tensor
    """Images in about [-1, 1], on the CPU: float32 [directions, examples, 1 + 3 * magnitudes, C, H, W]. Each row shows
    one x_T: the original, then its own, mean and time-invariant edit at each magnitude."""


@dataclass(frozen=True, kw_only=True)
class Properties(Result):
    """Homogeneity, consistency and linearity of each direction, and edits with the three sources of delta_h.

    Each of the ``n`` measured samples is shifted along every direction, at one of the magnitudes from -S to S, which
    take turns. The intervals are percentile bootstraps over these samples; those of ``consistency`` and ``others`` are
    jackknives over groups of the samples in the mean. The folder also holds ``timesteps.csv``, the homogeneity at each
    timestep, and ``directions.safetensors``, the mean directions.
    """

    NAME: ClassVar[str] = "properties"

    n: Positive
    """Number of measured samples."""
    n_mean: Positive
    """Number of samples in the mean direction."""
    seed: Count
    """Seed of both kinds of samples."""
    timesteps: list[Count]
    """Timesteps of the shift interval, descending."""
    homogeneity: Estimate
    """Cosine of f_k(h_t, t) with the mean direction, on the regular chain of samples outside the mean."""
    consistency: Estimate
    """Cosine between the mean directions of two different timesteps, over all pairs of them."""
    others: Estimate
    """Cosine of the mean direction with those of the other k at the same timestep: the floor of the other cosines."""
    distance_mean: Estimate
    """Sum of ‖x_mean − x_own‖ over sum of ‖x_own − x_0‖: 0 for the same edit, 1 for one as far from it as x_0 is."""
    distance_global: Estimate
    """Sum of ‖x_global − x_own‖ over sum of ‖x_own − x_0‖."""
    accuracy_own: Estimate
    """Share of edits whose direction the reconstructor recognises."""
    accuracy_mean: Estimate
    accuracy_global: Estimate
    same_k_mean: Estimate
    """Share of samples in which the reconstructor sees the same direction in x_mean as in x_own."""
    same_k_global: Estimate
    s_difference_mean: Estimate
    """Mean |s_hat(x_mean) − s_hat(x_own)|, in units of s."""
    s_difference_global: Estimate
    slope: Estimate
    """Slope of the reconstructor's s_hat against s, by least squares, on x_own; ideally 1."""
    correlation: Estimate
    """Pearson's correlation of s_hat and s on x_own."""
    homogeneity_at: list[Estimate]
    """Homogeneity at each timestep."""
    consistency_between: list[list[float]]
    """Cosine of the mean directions between timesteps, [timesteps, timesteps], mean over directions."""
    magnitudes: list[float]
    s_hat: list[Estimate]
    """Mean of the reconstructor's s_hat on x_own at each of the magnitudes."""
    directions: Aside = field(default=None, compare=False, repr=False)
    """Mean :class:`Directions`; None in a result read back."""
    examples: Aside = field(default=None, compare=False, repr=False)
    """The :class:`Examples` for the picture; None in a result read back."""

    def __post_init__(self) -> None:
        """Check that all numbers are of the same directions and timesteps."""
        of_directions = [each for one in fields(self) if isinstance(each := getattr(self, one.name), Estimate)]
        of_directions += [*self.homogeneity_at, *self.s_hat]
        if len({len(each) for one in of_directions for each in (one.value, one.low, one.high)}) != 1:
            raise ValueError("the numbers are of different numbers of directions")
        if {len(self.homogeneity_at), len(self.consistency_between)} != {len(self.timesteps)}:
            raise ValueError("the numbers are of different numbers of timesteps")

    @property
    def K(self) -> int:
        """Number of directions."""
        return len(self.slope.value) - 1

    def summary(self) -> str:
        """Return the mean over directions of each number with its interval, a line a number."""
        shown = {
            "homogeneity (cosine of own and mean direction)": self.homogeneity,
            "consistency (cosine between timesteps)": self.consistency,
            "cosine between two directions": self.others,
            "distance of the mean edit / size of the own": self.distance_mean,
            "distance of the time-invariant edit / size": self.distance_global,
            "k recognised, own": self.accuracy_own,
            "k recognised, mean": self.accuracy_mean,
            "k recognised, time-invariant": self.accuracy_global,
            "same k in the mean edit as in the own": self.same_k_mean,
            "same k in the time-invariant edit": self.same_k_global,
            "|s_hat - s_hat of the own|, mean": self.s_difference_mean,
            "|s_hat - s_hat of the own|, time-invariant": self.s_difference_global,
            "slope of s_hat against s": self.slope,
            "correlation of s_hat and s": self.correlation,
        }
        first = f"mean of {self.K} directions, 95 % intervals, n {self.n} samples, means over {self.n_mean} others"
        return "\n".join([first, *(f"{text:48}{estimate}" for text, estimate in shown.items())])

    def table(self) -> "DataFrame":
        """Return each number with its interval and n, a row a direction and a last one, "all", for their mean."""
        import pandas as pd

        columns: dict[str, Any] = {"direction": self._rows}
        for each in fields(self):
            estimate = getattr(self, each.name)
            if isinstance(estimate, Estimate):
                columns |= estimate.columns(each.name)
        return pd.DataFrame(columns).assign(n=self.n, n_mean=self.n_mean)

    def timestep_table(self) -> "DataFrame":
        """Return the homogeneity of each direction, and of "all", at each timestep."""
        import pandas as pd

        tables = [
            pd.DataFrame({"t": t, "direction": self._rows} | estimate.columns("homogeneity"))
            for t, estimate in zip(self.timesteps, self.homogeneity_at, strict=True)
        ]
        return pd.concat(tables).assign(n=self.n, n_mean=self.n_mean)

    @property
    def _rows(self) -> list[Any]:
        return [*range(self.K), "all"]

    def write_into(self, folder: Path) -> None:
        """Write the result, and the mean directions if they are at hand, into a folder that the caller has claimed."""
        write_text(folder / "timesteps.csv", self.timestep_table().to_csv(index=False))
        if self.directions is not None:
            experiment = parse_experiment(self.provenance.experiment, "provenance")
            weights = self.detail("weights_sha256")["shift_block"]
            save_directions(folder / "directions.safetensors", self.directions, experiment, weights)
        super().write_into(folder)


# The measurement ----------------------------------------------------------------------------------------------------


def properties(
    run: Run,
    *,
    samples: int = 1000,
    pairs: int = 200,
    steps: int | None = None,
    examples: int = 3,
    directions: Sequence[int] = (),
    seed: int = 0,
) -> Properties:
    """Compare edits along the sample's own direction, the mean over samples, and the time-invariant direction.

    Cost: ``samples`` + ``pairs`` chains, and 3 K ``pairs`` shifted ones.

    Args:
        run: run with the directions.
        samples: number of samples in the mean direction, at least 2.
        pairs: number of other samples, each edited along every direction; at least 2 * MAGNITUDES, so that each
            magnitude has two.
        steps: number of generation steps M, 1..T; the run's by default.
        examples: number of rows in the picture, at least 1.
        directions: directions in the picture; the best recognised by default.
        seed: seed of all samples; other measurements draw the same ``pairs``.

    Raises:
        TypeError: not a run.
        ValueError: a number out of range, or no such direction.
        HBenchError: the steps are so few that no timestep lies in the shift interval.
    """
    check_type(Run, "as load_run returns it", run=run)
    check_at_least(2, samples=samples)
    check_at_least(2 * MAGNITUDES, pairs=pairs)
    check_at_least(1, examples=examples)
    check_seed(seed)
    run.check_edit(dict.fromkeys(directions, 0.0))
    M = run.experiment.discovery.M if steps is None else steps
    origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes, M=M)
    means, sums, sizes = grouped_means(run, samples, seed, M)
    values = magnitudes(run.S, MAGNITUDES)
    measured = _measure(run, means, np.resize(values, pairs), seed, M)
    estimates = _bootstrap(measured, seed)
    shown = list(directions) or np.argsort(estimates.accuracy_own.value[:-1])[::-1][:MOST_PICTURED].tolist()
    pictured = [run.S * share for share in PICTURED]
    return Properties(
        n=pairs,
        n_mean=samples,
        seed=seed,
        timesteps=list(means.timesteps),
        consistency=_jackknife(run, sums, sizes, _consistency),
        others=_jackknife(run, sums, sizes, _others),
        consistency_between=_cosines(means.mean).mean(0).tolist(),
        magnitudes=values,
        s_hat=[_mean_with_interval(measured.s_hat[measured.s == s, :, 0]) for s in values],
        **estimates._asdict(),
        directions=means,
        examples=Examples(
            labels=[f"{k}: {run.names[k]}" if k in run.names else f"direction {k}" for k in shown],
            magnitudes=pictured,
            images=compare(run, means, shown, pictured, examples, seed, M),
        ),
        provenance=origin.finished(n=pairs, n_mean=samples),
    )


class _Measured(NamedTuple):
    """Measurements of n samples along K directions."""

    s: Array
    """Magnitude of each sample, [n]."""
    cosine: Array
    """Cosine with the mean direction at each timestep, [n, K, timesteps]."""
    edit: Array
    """Size of the edit, ‖x_own − x_0‖, [n, K]."""
    distance: Array
    """‖x_mean − x_own‖ and ‖x_global − x_own‖, [n, K, 2]."""
    k_hat: NDArray[np.int64]
    """Direction that the reconstructor predicts for x_own, x_mean and x_global, [n, K, 3]."""
    s_hat: Array
    """Magnitude that it predicts for them, [n, K, 3]."""


@torch.no_grad()
def _measure(run: Run, directions: Directions, s: Array, seed: int, M: int | None) -> _Measured:
    n, K, bound = len(s), run.shift_block.K, run.experiment.discovery.soft_clip
    sampler, device = run.sampler.with_steps(M), run.device
    magnitude = torch.from_numpy(s).float().to(device)
    cosine = torch.empty(n, K, len(directions.timesteps))
    edit, distance = torch.empty(n, K), torch.empty(n, K, 2)
    k_hat, s_hat = torch.empty(n, K, 3, dtype=torch.long), torch.empty(n, K, 3)
    with progress(total=n * K, desc="edits", unit="edit") as bar:
        for first in range(0, n, BATCH):
            rows = slice(first, min(first + BATCH, n))
            x_T = run.noise(rows.stop - first, seed=seed, first=first)
            x_0, hidden = regular_with_hidden(run, sampler, x_T)
            for k in range(K):
                f_k = run.shift_block.direction(hidden, k)
                cosine[rows, k] = F.cosine_similarity(f_k.flatten(2), directions.mean[k].flatten(1), dim=2).cpu()
                chosen = torch.full((len(x_T),), k, device=device)
                edits = [sampler.generate(x_T, source(chosen, magnitude[rows])) for source in sources(run, directions)]
                edit[rows, k] = _norm(edits[0] - x_0)
                for i, image in enumerate(edits):
                    logits, predicted = run.reconstructor(soft_clip(x_0, bound), soft_clip(image, bound))
                    k_hat[rows, k, i], s_hat[rows, k, i] = logits.argmax(1).cpu(), predicted.cpu()
                    if i:
                        distance[rows, k, i - 1] = _norm(image - edits[0])
                bar.update(len(x_T))
    return _Measured(
        s=s,
        cosine=cosine.double().numpy(),
        edit=edit.double().numpy(),
        distance=distance.double().numpy(),
        k_hat=k_hat.numpy(),
        s_hat=s_hat.double().numpy(),
    )


def _norm(images: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norm.cpu()


# Estimates ----------------------------------------------------------------------------------------------------------


class _Numbers(NamedTuple, Generic[T]):
    """The numbers that are estimated from the measured samples, under the names of :class:`Properties`.

    The type T is an array [..., K] while they are computed, and an :class:`Estimate` at the end.
    """

    homogeneity: T
    distance_mean: T
    distance_global: T
    accuracy_own: T
    accuracy_mean: T
    accuracy_global: T
    same_k_mean: T
    same_k_global: T
    s_difference_mean: T
    s_difference_global: T
    slope: T
    correlation: T
    homogeneity_at: list[T]

    @classmethod
    def of(cls, values: Sequence[T]) -> "_Numbers[T]":
        """Return the numbers from their list, as :meth:`flat` returns it."""
        count = len(cls._fields) - 1
        return cls._make([*values[:count], list(values[count:])])

    def flat(self) -> list[T]:
        """Return all numbers in their order."""
        return [*self[:-1], *self.homogeneity_at]


def _summarise(measured: _Measured, rows: NDArray[np.int64]) -> _Numbers[Array]:
    """Return the numbers of each direction, [..., K], from the samples ``rows`` [..., n]."""

    def averaged(values: NDArray[Any]) -> Array:
        result: Array = values[rows].mean(-2)
        return result

    def centred(values: Array) -> Array:
        result: Array = values - values.mean(-2, keepdims=True)
        return result

    of_k = measured.k_hat == np.arange(measured.k_hat.shape[1])[:, None]
    same_k = measured.k_hat[..., 1:] == measured.k_hat[..., :1]
    s_difference = np.abs(measured.s_hat[..., 1:] - measured.s_hat[..., :1])
    s, s_hat = centred(measured.s[rows][..., None]), centred(measured.s_hat[rows, :, 0])
    size = averaged(measured.edit)
    with np.errstate(invalid="ignore", divide="ignore"):  # nan where nothing changes at all
        return _Numbers(
            homogeneity=averaged(measured.cosine.mean(2)),
            distance_mean=averaged(measured.distance[..., 0]) / size,
            distance_global=averaged(measured.distance[..., 1]) / size,
            accuracy_own=averaged(of_k[..., 0]),
            accuracy_mean=averaged(of_k[..., 1]),
            accuracy_global=averaged(of_k[..., 2]),
            same_k_mean=averaged(same_k[..., 0]),
            same_k_global=averaged(same_k[..., 1]),
            s_difference_mean=averaged(s_difference[..., 0]),
            s_difference_global=averaged(s_difference[..., 1]),
            slope=(s * s_hat).sum(-2) / (s * s).sum(-2),
            correlation=(s * s_hat).sum(-2) / np.sqrt((s * s).sum(-2) * (s_hat * s_hat).sum(-2)),
            homogeneity_at=[averaged(measured.cosine[..., i]) for i in range(measured.cosine.shape[2])],
        )


def _bootstrap(measured: _Measured, seed: int) -> _Numbers[Estimate]:
    """Return every number with its 95 % interval, by the percentile bootstrap over samples, common to directions."""
    from scipy.stats import bootstrap

    samples = np.arange(len(measured.s))

    def statistic(rows: NDArray[np.int64], axis: int = -1) -> Array:
        return np.stack([np.moveaxis(_with_mean(number), -1, 0) for number in _summarise(measured, rows).flat()])

    result = bootstrap(
        (samples,),
        statistic,
        n_resamples=RESAMPLES,
        batch=10,
        method="percentile",
        rng=np.random.default_rng(seeds.properties_bootstrap(seed, len(samples))),
    )
    found = zip(statistic(samples), *result.confidence_interval, strict=True)
    return _Numbers.of([_estimate(value, low, high) for value, low, high in found])


def _jackknife(run: Run, sums: Tensor, sizes: Tensor, statistic: Callable[[Tensor], Tensor]) -> Estimate:
    """Return a statistic [K] of the mean directions with its 95 % interval, by the jackknife over groups of samples."""

    def of(total: Tensor, count: Tensor) -> Array:
        return _with_mean(statistic(directions_of(run, total / count)).double().cpu().numpy())

    whole = of(sums.sum(0), sizes.sum())
    without = np.stack([of(sums.sum(0) - one, sizes.sum() - size) for one, size in zip(sums, sizes, strict=True)])
    low, high = jackknife(whole, without)
    return _estimate(whole, low, high)


def _mean_with_interval(values: Array) -> Estimate:
    """Return means over samples of values [n, K] with Student's 95 % intervals."""
    values = _with_mean(values)
    return _estimate(values.mean(0), *student(values))


def _estimate(value: Array, low: Array, high: Array) -> Estimate:
    return Estimate(value=value.tolist(), low=low.tolist(), high=high.tolist())


def _with_mean(values: Array) -> Array:
    """Return values [..., K] followed by their mean over directions, [..., K + 1]."""
    return np.concatenate([values, values.mean(-1, keepdims=True)], axis=-1)


def _consistency(directions: Tensor) -> Tensor:
    return _off_diagonal(_cosines(directions)).mean(1)


def _others(directions: Tensor) -> Tensor:
    return _off_diagonal(_cosines(directions.transpose(0, 1))).mean(0)


def _cosines(vectors: Tensor) -> Tensor:
    """Return the cosines between all pairs of feature maps [A, B, C, H, W], [A, B, B]."""
    flat = F.normalize(vectors.flatten(2), dim=2)
    return flat @ flat.mT


def _off_diagonal(square: Tensor) -> Tensor:
    """Return the mean of each row without its diagonal element, [A, B]; nan if there is no other element."""
    return (square.sum(2) - square.diagonal(dim1=1, dim2=2)) / (square.shape[2] - 1)
