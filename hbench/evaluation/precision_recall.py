"""Precision and recall of samples (Kynkaanniemi et al. 2019), by torch-fidelity's formulas.

The manifold of a set is what lies in the balls around its members that reach to their third neighbour. Precision is the
share of samples on the manifold of the real images, recall the share of real images on that of the samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_fidelity.metric_prc import calc_cdist_full

from hbench.core.intervals import jackknife, wilson
from hbench.errors import HBenchError
from hbench.evaluation.frechet import GROUPS
from hbench.store.records import Interval, Positive, Share

NEIGHBOUR = 3
"""The neighbour that a ball reaches to, as in torch-fidelity."""


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Precision and recall of samples against real images."""

    n: Positive
    """Number of samples."""
    n_real: Positive
    """Number of real images."""
    precision: Share
    """Share of samples that lie among the real images."""
    precision_interval: Interval
    """95 % interval for other samples of the same generator, by Wilson's formula."""
    recall: Share
    """Share of real images that lie among the samples; it grows with the number of samples."""
    recall_interval: Interval
    """95 % interval for other samples of the same generator and number, by the jackknife, rather wide."""


def precision_recall(samples: Tensor, real: Tensor) -> PrecisionRecall:
    """Return precision and recall of features [n, D] of samples against those of real images [n_real, D].

    Cost: three tables of distances, n x n, n_real x n and n_real x n_real, held in memory, and G passes over the first
    two for the jackknife.

    Raises:
        HBenchError: too few of either for a third neighbour.
    """
    groups = min(GROUPS, len(samples))
    needed = NEIGHBOUR + 1 + -(-len(samples) // groups)
    if len(samples) < needed or len(real) <= NEIGHBOUR:
        raise HBenchError(f"too few images for a neighbour {NEIGHBOUR} of each: use at least {2 * NEIGHBOUR} samples")
    within, across = calc_cdist_full(samples, samples), calc_cdist_full(real, samples)
    reach = _reach(calc_cdist_full(real, real))
    on_manifold = (reach >= across.T).any(1)
    replicates = []
    for g in range(groups):
        kept = torch.arange(len(samples)) % groups != g
        replicates.append(_recall(within[kept][:, kept], across[:, kept]))
    recall = _recall(within, across)
    low, high = jackknife(recall, replicates)
    return PrecisionRecall(
        n=len(samples),
        n_real=len(real),
        precision=float(on_manifold.double().mean()),
        precision_interval=wilson(int(on_manifold.sum()), len(samples)),
        recall=recall,
        recall_interval=(max(0.0, float(low)), min(1.0, float(high))),
    )


def _recall(within: Tensor, across: Tensor) -> float:
    """Return the recall from distances between samples [n, n] and from real images to samples [n_real, n]."""
    return float((across <= _reach(within)).any(1).double().mean())


def _reach(within: Tensor) -> Tensor:
    """Return the radius [n] of the ball around each image of a set, from its distances [n, n]."""
    return within.topk(NEIGHBOUR + 1, largest=False).values[:, -1]  # the image itself is the first
