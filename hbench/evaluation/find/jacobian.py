"""Directions that change h most for the smallest change of x_t: the encoder's Jacobian (Park et al. 2023).

The leading right singular vectors v of J = dh_t / dx_t are those directions of x_t, the largest axes of the pullback
metric (arXiv 2307.12868, Sec. 3). J v = sigma u maps them to h, where u are the left ones. So the search runs in h: u
are the leading eigenvectors of J J^T, found by subspace iteration with products alone, J^T u by reverse and J v by
forward differentiation, and no Jacobian is ever stored. One sample gives its local directions. The global ones
are the eigenvectors of J J^T averaged over several: the authors average the local bases themselves, which depends on
how these are matched.
"""

import logging
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from hbench.core.backbone import Backbone
from hbench.core.diffusion import Transition
from hbench.core.sampler import BATCH
from hbench.evaluation.find.method import Found, Method, Search, chained, largest_is_positive, sum_over_processes
from hbench.evaluation.sampling import batches_of
from hbench.runtime.distributed import turns
from hbench.runtime.progress import progress

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Residual |J J^T u - sigma^2 u| / sigma^2 of every direction at which the iteration ends."""
MOST_ITERATIONS = 100
"""Iterations after which it ends without."""
SPARE = 8
"""Further vectors that are iterated, since the last ones converge slowest."""


class Subspace(NamedTuple):
    """Leading directions at one timestep."""

    directions: Tensor
    """Unit vectors in h, largest first, float32 [K, C, H, W]."""
    sizes: Tensor
    """Singular values, float64 [K]; of several samples the root of the mean square."""
    residual: float
    """Largest residual of the directions."""
    iterations: int


def jacobian(search: Search) -> Found:
    """Find the K directions that change h_t most, at each timestep of the shift interval.

    Direction k at one timestep is the one most alike direction k at the timestep before. Cost: for each sample,
    timestep, direction and iteration, of which there are some 10 to 50, three passes of the encoder, forward and back.
    """
    indices = turns(range(search.samples))
    batches = [search.nodes(indices[i : i + BATCH])[0] for i in range(0, len(indices), BATCH)]
    found = []
    for i, t in enumerate(progress(search.sampler.shift_interval, desc="jacobian", unit="timestep")):
        x_t = torch.cat([nodes[i][1] for nodes in batches]) if batches else None
        transition = next(each for each in search.sampler.transitions if each.t == t)

        def make(x_t: Tensor | None = x_t, transition: Transition = transition) -> Mapping[str, Tensor]:
            one = leading(search, transition, x_t)
            facts = torch.tensor([one.residual, one.iterations], dtype=torch.float64)
            return {"directions": one.directions, "sizes": one.sizes, "facts": facts}

        found.append(search.keep(f"timestep-{t}", make))
    ordered, cosine = chained(torch.stack([each["directions"] for each in found], dim=1))
    residuals, iterations = zip(*(each["facts"].tolist() for each in found), strict=True)
    if max(residuals) > TOLERANCE:
        log.warning(
            "caution: not converged after %d iterations, with a residual of %.1e, more than %.0e: the last directions "
            "are inexact; take a smaller `k`",
            MOST_ITERATIONS,
            max(residuals),
            TOLERANCE,
        )
    return Found(
        ordered,
        details={
            "singular_values": [each["sizes"].tolist() for each in found],
            "residual": list(residuals),
            "iterations": [int(each) for each in iterations],
            "tolerance": TOLERANCE,
            "converged": max(residuals) <= TOLERANCE,
            "cosine_to_next": cosine,
        },
    )


def leading(search: Search, transition: Transition, x_t: Tensor | None) -> Subspace:
    """Return the leading directions of one timestep, by the samples x_t [B, C, H, W] of this process; None for none."""
    D = torch.Size(search.h_shape).numel()
    K = min(search.K, D)
    width = min(K + SPARE, D)
    basis = torch.linalg.qr(torch.randn(D, width, generator=search.generator, dtype=torch.float64))[0].T
    residual, iteration = float("inf"), 0
    sizes = torch.zeros(width, dtype=torch.float64)
    while residual > TOLERANCE and iteration < MOST_ITERATIONS:
        iteration += 1
        image = _mean_product(search, transition, x_t, basis)
        # Rayleigh-Ritz: the best directions inside the subspace
        values, vectors = torch.linalg.eigh((basis @ image.T + image @ basis.T) / 2)
        order = values.argsort(descending=True)
        basis, image, sizes = vectors[:, order].T @ basis, vectors[:, order].T @ image, values[order]
        ritz = basis[:K]
        residual = ((image[:K] - sizes[:K, None] * ritz).norm(dim=1) / sizes[:K].clamp(min=1e-300)).max().item()
        basis = torch.linalg.qr(image.T)[0].T
    directions = largest_is_positive(ritz).float().reshape(K, *search.h_shape)
    return Subspace(directions, sizes[:K].clamp(min=0).sqrt(), residual, iteration)


def _mean_product(search: Search, transition: Transition, x_t: Tensor | None, basis: Tensor) -> Tensor:
    """Return the mean over all samples of J J^T u for vectors u [n, D], float64, on the CPU."""
    device, shape = search.sampler.device, search.h_shape
    u = basis.float().to(device).reshape(len(basis), *shape)
    total = torch.zeros_like(u)
    for x in () if x_t is None else x_t.split(1):
        for part in batches_of(len(u), BATCH // 2):
            chosen = slice(part[0], part[-1] + 1)
            total[chosen] += gram_product(search.sampler.backbone, transition, x, u[chosen])
    return (sum_over_processes(total) / search.samples).flatten(1).cpu().double()


def gram_product(backbone: Backbone, transition: Transition, x: Tensor, u: Tensor) -> Tensor:
    """Return J J^T u at one sample x [1, C, H, W], for vectors u [n, *h_shape] at once: passes are independent."""
    many = x.expand(len(u), *x.shape[1:]).contiguous()

    times = transition.times(many)

    def encode(x_t: Tensor) -> Tensor:
        return backbone.encode(x_t, times)[0].float()

    # the other kernels have no forward differentiation; PyTorch loads its rules by what it calls deprecated
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pull = vjp(encode, many)[1]
        (v,) = pull(u)
        product: Tensor = jvp(encode, (many,), (v.detach(),))[1]
    return product.detach()


JACOBIAN = Method(
    title="leading directions of the encoder's Jacobian",
    source="Park et al. 2023, arXiv 2307.12868",
    find=jacobian,
    samples=16,
)
