"""Homogeneity, consistency and linearity of a run's directions (Sec. 5.4 and Fig. 9), as numbers.

The paper shows that an edit looks "almost the same" with the sample's own direction, with the mean over samples, and
with the time-invariant direction. Here the directions are compared in h-space, and their edits both in pixels and by
the reconstructor's answers. The measured samples are never among those of the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hbench.core.directions import Directions, magnitudes
from hbench.core.images import soft_clip
from hbench.core.intervals import Array
from hbench.core.sampler import BATCH
from hbench.errors import check_at_least, check_seed, check_type, counted
from hbench.evaluation.estimates import (
    Estimate,
    Measured,
    bootstrap_all,
    consistency,
    cosine_to_others,
    cosines,
    jackknife_of,
    mean_with_interval,
)
from hbench.evaluation.mean_directions import compare, grouped_means, regular_with_hidden, sources
from hbench.evaluation.rca import known_rca
from hbench.evaluation.sampling import choose_x_T
from hbench.evaluation.untrained import Untrained, untrained
from hbench.experiments import parse_experiment
from hbench.runtime.progress import progress
from hbench.store.directions import save_directions
from hbench.store.directions_file import model_sha256
from hbench.store.files import sha256, write_text
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Count, Positive
from hbench.store.results import Result
from hbench.store.run import Run, judges_of

if TYPE_CHECKING:
    from pandas import DataFrame

MAGNITUDES = 10
"""Number of magnitudes of the measured samples, evenly from -S to S."""
PICTURED = (-1.0, -0.5, 0.5, 1.0)
"""Magnitudes in the picture, in units of S."""
MOST_PICTURED = 4
"""Number of directions in the picture, unless some are asked for."""


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
    SCHEMA: ClassVar[int] = 2

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
    random_outputs: Untrained | None
    """Homogeneity and consistency of the run's block with random output convolutions; None in older results."""
    untrained: Untrained | None
    """Those of blocks that nobody trained: the floor of both numbers; None in older results."""
    others: Estimate
    """Cosine of the mean direction with those of the other k at the same timestep: do the directions differ?"""
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
    model_sha256: Aside = field(default=None, compare=False, repr=False)
    """SHA-256 of the diffusion model, for the file of directions; None in a result read back."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values with the untrained blocks that older results lack."""
        return {"random_outputs": None, "untrained": None, **values}

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
            "cosine between two directions (do they differ?)": self.others,
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
        of = f"mean of {counted(self.K, 'direction')}, 95 % intervals"
        first = f"{of}, n {counted(self.n, 'sample')}, means over {counted(self.n_mean, 'other')}"
        lines = [first]
        for text, estimate in shown.items():
            lines.append(f"{text:48}{estimate}")
            lines += [f"  {name:46}{floor}" for name, floor in self.floors(text.split()[0]).items()]
        return "\n".join(lines)

    def floors(self, name: str) -> dict[str, str]:
        """Return what untrained blocks have in place of "homogeneity" or "consistency", in words; else nothing."""
        kinds = {"random outputs on the same features": self.random_outputs, "untrained blocks": self.untrained}
        return {
            kind: f"{getattr(found, name):.3f} [{low:.3f}, {high:.3f}], n {counted(found.blocks, 'block')}"
            for kind, found in kinds.items()
            if found and name in ("homogeneity", "consistency")
            for low, high in [getattr(found, f"{name}_interval")]
        }

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
        result = self
        if self.directions is not None:
            file = folder / "directions.safetensors"
            experiment = parse_experiment(self.provenance.experiment, "provenance")
            save_directions(
                file, self.directions, experiment, self.detail("weights_sha256")["shift_block"], self.model_sha256
            )
            result = self.with_details(directions_sha256=sha256(file))
        Result.write_into(result, folder)


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

    Cost: twice ``samples`` + ``pairs`` chains, and 3 K ``pairs`` shifted ones.

    Args:
        run: run with the directions.
        samples: number of samples in the mean direction, at least 2.
        pairs: number of other samples, each edited along every direction; at least 2 * MAGNITUDES, so that each
            magnitude has two.
        steps: number of generation steps M, 1..T; the run's by default.
        examples: number of rows in the picture, at least 1; :func:`choose_x_T` chooses their x_T.
        directions: directions in the picture; by default the best recognised ones of the run's own ``rca.json``, or of
            this measurement where there is none.
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
    judges_of(run)
    origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes, M=M)
    means, sums, sizes = grouped_means(run, samples, seed, M)
    values = magnitudes(run.S, MAGNITUDES)
    measured = _measure(run, means, np.resize(values, pairs), seed, M)
    estimates = bootstrap_all(measured, seed)
    known = known_rca(run)
    ranking = known.ranking() if known else np.argsort(estimates.accuracy_own.value[:-1])[::-1].tolist()
    shown = list(directions) or ranking[:MOST_PICTURED]
    chosen = choose_x_T(run, examples, seed, M)
    random_outputs, fresh = untrained(run, samples, pairs, seed, M)
    pictured = [run.S * share for share in PICTURED]
    return Properties(
        n=pairs,
        n_mean=samples,
        seed=seed,
        timesteps=list(means.timesteps),
        random_outputs=random_outputs,
        untrained=fresh,
        consistency=jackknife_of(run, sums, sizes, consistency),
        others=jackknife_of(run, sums, sizes, cosine_to_others),
        consistency_between=cosines(means.mean).mean(0).tolist(),
        magnitudes=values,
        s_hat=[mean_with_interval(measured.s_hat[measured.s == s, :, 0]) for s in values],
        **estimates._asdict(),
        directions=means,
        model_sha256=model_sha256(run.model),
        examples=Examples(
            labels=[f"{k}: {run.names[k]}" if k in run.names else f"direction {k}" for k in shown],
            magnitudes=pictured,
            images=compare(run, means, shown, pictured, chosen.noise(run), M),
        ),
        provenance=origin.finished(n=pairs, n_mean=samples, **chosen.details),
    )


@torch.no_grad()
def _measure(run: Run, directions: Directions, s: Array, seed: int, M: int | None) -> Measured:
    reconstructor, _ = judges_of(run)
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
                    logits, predicted = reconstructor(soft_clip(x_0, bound), soft_clip(image, bound))
                    k_hat[rows, k, i], s_hat[rows, k, i] = logits.argmax(1).cpu(), predicted.cpu()
                    if i:
                        distance[rows, k, i - 1] = _norm(image - edits[0])
                bar.update(len(x_T))
    return Measured(
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
