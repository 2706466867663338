"""Homogeneity, consistency and linearity of a run's directions (Sec. 5.4 and Fig. 9), as numbers.

The paper shows that an edit looks "almost the same" with the sample's own direction, with its mean over samples, and
with a time-invariant one. Here the directions are compared in h-space, their edits in pixels, and both by what the
reconstructor says of them. The samples that are measured are never among those of the mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hbench.core import seeds
from hbench.core.directions import Directions, Source, magnitudes, mean, time_invariant
from hbench.core.images import soft_clip
from hbench.core.intervals import Array, jackknife, student
from hbench.core.sampler import BATCH, Sampler
from hbench.runtime.progress import progress
from hbench.store.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame

GROUPS = 20  # of the mean's samples, for the jackknife
MAGNITUDES = 10  # that the measured samples are shifted by, evenly from -S to S
RESAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Estimate:
    """A number of each direction, and last their mean, with 95 % intervals; nan where it is not defined."""

    value: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Properties:
    """What the three sources of delta_h have in common, per direction.

    Sample i of the ``n`` measured ones is shifted by every direction with the i-th of the magnitudes -S … S, over and
    over. The intervals are percentile bootstraps over these samples; those of ``consistency`` and ``others`` are
    jackknives over groups of the samples in the mean.
    """

    n: int
    """Measured samples."""
    n_mean: int
    """Samples in the mean direction."""
    seed: int
    timesteps: list[int]
    """Of the shift interval, descending."""
    homogeneity: Estimate
    """Cosine of f_k(h_t, t) with the mean direction, on the regular chain of samples outside the mean."""
    consistency: Estimate
    """Cosine between the mean directions of two different timesteps, over all pairs of them."""
    others: Estimate
    """Cosine of the mean direction with those of the other k at the same timestep: the floor of the other cosines."""
    distance_mean: Estimate
    """Sum of ‖x_mean − x_own‖ over sum of ‖x_own − x_0‖: 0 = the same edit, 1 = as far from it as x_0 is."""
    distance_global: Estimate
    """The same with x_global."""
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
    """Of the reconstructor's s_hat against s, by least squares, on x_own: 1 is ideal."""
    correlation: Estimate
    """Pearson's, of s_hat and s on x_own."""
    homogeneity_at: list[Estimate]
    """Homogeneity at each timestep."""
    consistency_between: list[list[float]]
    """Cosine of the mean directions between timesteps, [timesteps, timesteps], mean over directions."""
    magnitudes: list[float]
    s_hat: list[Estimate]
    """Mean of the reconstructor's s_hat on x_own at each of the magnitudes."""

    def table(self) -> "DataFrame":
        """One row a direction and a last one, "all", for their mean; each number with its interval and n."""
        import pandas as pd

        columns: dict[str, Any] = {"direction": [*range(len(self.slope.value) - 1), "all"]}
        for field in fields(self):
            estimate = getattr(self, field.name)
            if isinstance(estimate, Estimate):
                columns |= _columns(field.name, estimate)
        return pd.DataFrame(columns).assign(n=self.n, n_mean=self.n_mean)

    def timestep_table(self) -> "DataFrame":
        """Homogeneity of each direction, and of "all", at each timestep."""
        import pandas as pd

        directions = [*range(len(self.slope.value) - 1), "all"]
        tables = [
            pd.DataFrame({"t": t, "direction": directions} | _columns("homogeneity", estimate))
            for t, estimate in zip(self.timesteps, self.homogeneity_at, strict=True)
        ]
        return pd.concat(tables).assign(n=self.n, n_mean=self.n_mean)


def _columns(name: str, estimate: Estimate) -> dict[str, list[float]]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


# The mean direction -------------------------------------------------------------------------------------------------


def mean_directions(run: Run, n: int, seed: int = 0, M: int | None = None) -> Directions:
    """The mean over ``n`` samples of f_k(h_t, t), at each timestep of the shift interval of M steps (the run's).

    h_t is that of the regular chain of each sample: the direction before any edit, which needs no magnitude. x_T is
    from a stream of its own, so the samples of ``seed`` that other commands draw are not among them. Cost: one chain a
    sample, for all K directions together, since the output convolutions of the shift block are affine.
    """
    return _mean_and_groups(run, n, seed, M)[0]


def _mean_and_groups(run: Run, n: int, seed: int, M: int | None) -> tuple[Directions, Tensor, Tensor]:
    """The mean directions, and of what: sums of the hidden features over groups of samples, and the groups' sizes.

    The sums are float64 [groups, timesteps, C, H, W].
    """
    own_stream = seeds.mean_samples(seed, n)
    sampler = run.sampler.with_steps(M)
    group = torch.arange(n) % min(GROUPS, n)
    sums: Tensor | None = None
    with progress(total=n, desc="mean direction", unit="image") as bar:
        for first in range(0, n, BATCH):
            _, hidden = _regular(run, sampler, run.noise(min(BATCH, n - first), seed=own_stream, first=first))
            if sums is None:
                sums = hidden.new_zeros(int(group.max()) + 1, *hidden[0].shape, dtype=torch.float64)
            sums.index_add_(0, group[first : first + BATCH].to(hidden.device), hidden.double())
            bar.update(len(hidden))
    assert sums is not None
    mean = Directions(sampler.shift_interval, _directions(run, sums.sum(0) / n), n, seed)
    return mean, sums, torch.bincount(group).to(sums.device)


def _regular(run: Run, sampler: Sampler, x_T: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 of the regular process, and the shift block's hidden features on the way, [B, timesteps, C, H, W]."""
    seen = []

    def record(h: Tensor, emb: Tensor, t: int) -> Tensor:
        seen.append(run.shift_block.hidden(h, emb).float())
        return torch.zeros_like(h)

    x_0 = sampler.generate(x_T, record)
    return x_0, torch.stack(seen, dim=1)


@torch.no_grad()
def _directions(run: Run, hidden: Tensor) -> Tensor:
    """All directions, float32 [K, timesteps, C, H, W], of mean hidden features [timesteps, C, H, W]."""
    return torch.stack([run.shift_block.direction(hidden.float(), k) for k in range(run.shift_block.K)])


# The measurement ----------------------------------------------------------------------------------------------------


def properties(
    run: Run, n_mean: int = 1000, n: int = 200, seed: int = 0, M: int | None = None
) -> tuple[Properties, Directions]:
    """The properties of a run's directions, and the mean directions that they were measured with.

    Args:
        run: the discovery.
        n_mean: samples in the mean direction, at least 2.
        n: measured samples, at least 2 * MAGNITUDES, so that each magnitude has two.
        seed: of both kinds of samples; the measured ones are those that other commands draw.
        M: generation steps, by default the run's.

    Cost: n_mean + n chains, and 3 K n shifted ones.
    """
    directions, sums, sizes = _mean_and_groups(run, n_mean, seed, M)
    values = magnitudes(run.experiment.discovery.S, MAGNITUDES)
    measured = _measure(run, directions, np.resize(values, n), seed, M)
    estimates = _bootstrap(measured, seed)
    result = Properties(
        n=n,
        n_mean=n_mean,
        seed=seed,
        timesteps=list(directions.timesteps),
        consistency=_jackknife(run, sums, sizes, _consistency),
        others=_jackknife(run, sums, sizes, _others),
        homogeneity_at=[estimates.pop(f"homogeneity_{i}") for i in range(len(directions.timesteps))],
        consistency_between=_cosines(directions.mean).mean(0).tolist(),
        magnitudes=values,
        s_hat=[_mean_with_interval(measured.s_hat[measured.s == s, :, 0]) for s in values],
        **estimates,
    )
    return result, directions


@torch.no_grad()
def compare(
    run: Run,
    directions: Directions,
    shown: Sequence[int],
    values: Sequence[float],
    examples: int,
    seed: int = 0,
    M: int | None = None,
) -> Tensor:
    """Fig. 9: float32 [shown, examples, 1 + 3 * values, C, H, W], on the CPU.

    In each row one x_T: the original, then its own, mean and time-invariant edit at each magnitude of ``values``.
    """
    sampler = run.sampler.with_steps(M)
    x_T = run.noise(examples, seed=seed)
    original = sampler.generate(x_T)
    panels = []
    for k in shown:
        chosen = torch.full((examples,), k, device=run.device)
        row = [original]
        for s in values:
            magnitude = torch.full((examples,), s, device=run.device)
            row += [sampler.generate(x_T, source(chosen, magnitude)) for source in _sources(run, directions)]
        panels.append(torch.stack(row, dim=1).cpu())
    return torch.stack(panels)


def _sources(run: Run, directions: Directions) -> list[Source]:
    return [run.own, partial(mean, directions), partial(time_invariant, directions)]


@dataclass(frozen=True)
class _Measured:
    """The raw numbers, [n, K] each with what is given."""

    s: Array  # [n]
    cosine: Array  # with the mean direction, at each timestep: [n, K, timesteps]
    edit: Array  # ‖x_own − x_0‖
    distance: Array  # ‖x_mean − x_own‖ and ‖x_global − x_own‖: [n, K, 2]
    k_hat: NDArray[np.int64]  # [n, K, 3], on x_own, x_mean, x_global
    s_hat: Array  # [n, K, 3]


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
            x_0, hidden = _regular(run, sampler, x_T)
            for k in range(K):
                f_k = run.shift_block.direction(hidden, k)
                cosine[rows, k] = F.cosine_similarity(f_k.flatten(2), directions.mean[k].flatten(1), dim=2).cpu()
                chosen = torch.full((len(x_T),), k, device=device)
                edits = [sampler.generate(x_T, source(chosen, magnitude[rows])) for source in _sources(run, directions)]
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


def _summarise(measured: _Measured, rows: NDArray[np.int64]) -> dict[str, Array]:
    """Every number of each direction, [..., K], from the samples ``rows`` [..., n]."""
    of_k = measured.k_hat == np.arange(measured.k_hat.shape[1])[:, None]
    same_k = measured.k_hat[..., 1:] == measured.k_hat[..., :1]
    s_difference = np.abs(measured.s_hat[..., 1:] - measured.s_hat[..., :1])
    s = measured.s[rows][..., None]
    s = s - s.mean(-2, keepdims=True)
    s_hat = measured.s_hat[rows, :, 0]
    s_hat = s_hat - s_hat.mean(-2, keepdims=True)

    def averaged(values: NDArray[Any]) -> Array:
        result: Array = values[rows].mean(-2)
        return result

    numbers = {f"homogeneity_{i}": averaged(measured.cosine[..., i]) for i in range(measured.cosine.shape[2])}
    numbers["homogeneity"] = averaged(measured.cosine.mean(2))
    for i, name in enumerate(("own", "mean", "global")):
        numbers[f"accuracy_{name}"] = averaged(of_k[..., i])
    with np.errstate(invalid="ignore", divide="ignore"):  # nan where nothing changes at all
        for i, name in enumerate(("mean", "global")):
            numbers[f"distance_{name}"] = averaged(measured.distance[..., i]) / averaged(measured.edit)
            numbers[f"same_k_{name}"] = averaged(same_k[..., i])
            numbers[f"s_difference_{name}"] = averaged(s_difference[..., i])
        numbers["slope"] = (s * s_hat).sum(-2) / (s * s).sum(-2)
        numbers["correlation"] = (s * s_hat).sum(-2) / np.sqrt((s * s).sum(-2) * (s_hat * s_hat).sum(-2))
    return numbers


def _bootstrap(measured: _Measured, seed: int) -> dict[str, Estimate]:
    """Every number with its 95 % percentile interval over the measured samples, which all directions share."""
    from scipy.stats import bootstrap

    samples = np.arange(len(measured.s))
    whole = _summarise(measured, samples)

    def statistic(rows: NDArray[np.int64], axis: int = -1) -> Array:
        return np.stack([np.moveaxis(_with_mean(v), -1, 0) for v in _summarise(measured, rows).values()])

    result = bootstrap(
        (samples,),
        statistic,
        n_resamples=RESAMPLES,
        batch=10,
        method="percentile",
        rng=np.random.default_rng(seeds.properties_bootstrap(seed, len(samples))),
    )
    low, high = result.confidence_interval
    return {
        name: Estimate(_with_mean(value).tolist(), low[i].tolist(), high[i].tolist())
        for i, (name, value) in enumerate(whole.items())
    }


def _jackknife(run: Run, sums: Tensor, sizes: Tensor, statistic: Callable[[Tensor], Tensor]) -> Estimate:
    """A statistic [K] of the mean directions with its 95 % interval, leaving out one group of samples at a time."""

    def of(total: Tensor, count: Tensor) -> Array:
        return _with_mean(statistic(_directions(run, total / count)).double().cpu().numpy())

    whole = of(sums.sum(0), sizes.sum())
    without = np.stack([of(sums.sum(0) - one, sizes.sum() - size) for one, size in zip(sums, sizes, strict=True)])
    low, high = jackknife(whole, without)
    return Estimate(whole.tolist(), low.tolist(), high.tolist())


def _mean_with_interval(values: Array) -> Estimate:
    """Means over samples of values [n, K] with Student's 95 % intervals; the last is of the mean over directions."""
    values = _with_mean(values)
    low, high = student(values)
    return Estimate(values.mean(0).tolist(), low.tolist(), high.tolist())


def _with_mean(values: Array) -> Array:
    """Values [..., K] with their mean over directions as a last one."""
    return np.concatenate([values, values.mean(-1, keepdims=True)], axis=-1)


def _consistency(directions: Tensor) -> Tensor:
    return _off_diagonal(_cosines(directions)).mean(1)


def _others(directions: Tensor) -> Tensor:
    return _off_diagonal(_cosines(directions.transpose(0, 1))).mean(0)


def _cosines(vectors: Tensor) -> Tensor:
    """Cosines between all pairs, [A, B, B], of feature maps [A, B, C, H, W]."""
    flat = F.normalize(vectors.flatten(2), dim=2)
    return flat @ flat.mT


def _off_diagonal(square: Tensor) -> Tensor:
    """Mean of each row without its diagonal element, [A, B]; nan where there is nothing else."""
    return (square.sum(2) - square.diagonal(dim1=1, dim2=2)) / (square.shape[2] - 1)
