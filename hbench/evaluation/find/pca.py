"""Principal components of h_t over samples (Haas et al. 2023, "Discovering Interpretable Directions")."""

import torch
from torch import Tensor

from hbench.core.sampler import BATCH
from hbench.errors import HBenchError
from hbench.evaluation.find.method import Found, Method, Search, chained, largest_is_positive
from hbench.evaluation.sampling import batches_of
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress


def joint(search: Search) -> Found:
    """Find the principal components of whole chains: of h_t at all shifted timesteps, laid side by side.

    A component has its own part for each timestep, and these belong together. Cost: a chain a sample, and memory for
    all of their h_t.

    Raises:
        HBenchError: fewer than 3 samples.
    """
    h = all_h(search)
    components, share = principal_components(h.flatten(1), search.K)
    return Found(components.reshape(-1, *h.shape[1:]), details={"explained_variance": share.tolist()})


def each(search: Search) -> Found:
    """Find the principal components of h_t at each timestep by itself, in the order and sign of the one before.

    Cost and errors are those of :func:`joint`.
    """
    h = all_h(search)
    found = [principal_components(h[:, i].flatten(1), search.K) for i in range(h.shape[1])]
    components = torch.stack([one for one, _ in found], dim=1).reshape(-1, *h.shape[1:])
    ordered, cosine = chained(components)
    return Found(
        ordered,
        details={"explained_variance": [share.tolist() for _, share in found], "cosine_to_next": cosine},
    )


def all_h(search: Search) -> Tensor:
    """Return h_t of all samples, float32 [N, timesteps, C, H, W], on the CPU; each of several processes gets all."""
    if search.samples < 3:
        raise HBenchError(f"principal components of {search.samples} samples mean nothing: take more `samples`")
    batches = progress(turns(batches_of(search.samples, BATCH)), desc="h of samples", unit="batch")
    return torch.cat(all_gather([search.h_and_x_0(batch)[0].cpu() for batch in batches]))


def principal_components(values: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """Return the first principal components of values [N, D], and the share of the variance that each explains.

    They are unit vectors, float32 [K, D], or fewer where N - 1 or D is less than K; the largest number of each is
    positive. Cost: a singular value decomposition in float64.
    """
    centred = (values - values.mean(0)).double()
    _, sizes, components = torch.linalg.svd(centred, full_matrices=False)
    count = min(K, len(values) - 1, values.shape[1])
    share = sizes.square() / sizes.square().sum()
    return largest_is_positive(components[:count]).float(), share[:count]


SOURCE = "Haas et al. 2023, arXiv 2303.11073"
JOINT = Method(title="principal components of h over whole chains", source=SOURCE, find=joint, samples=1000)
EACH = Method(title="principal components of h_t at each timestep", source=SOURCE, find=each, samples=1000)
