"""Directions that nobody looked for: the baselines of GANLatentDiscovery (Voynov & Babenko 2020), in h-space."""

import torch

from hbench.errors import HBenchError
from hbench.evaluation.find.method import Found, Method, Search


def random(search: Search) -> Found:
    """Draw K Gaussian directions, the same at all timesteps."""
    return Found(torch.randn(search.K, *search.h_shape, generator=search.generator))


def axes(search: Search) -> Found:
    """Draw K different coordinate axes of h, each one number of one channel, the same at all timesteps.

    Raises:
        HBenchError: h has fewer than K numbers.
    """
    count = torch.Size(search.h_shape).numel()
    if count < search.K:
        raise HBenchError(f"h_t has {count} axes, fewer than K = {search.K}: take a smaller `k`")
    chosen = torch.randperm(count, generator=search.generator)[: search.K]
    directions = torch.zeros(search.K, count)
    directions[torch.arange(search.K), chosen] = 1
    C, H, W = search.h_shape
    where = [f"{i // (H * W)}, {i // W % H}, {i % W}" for i in chosen.tolist()]
    return Found(directions.reshape(search.K, C, H, W), details={"axes": where})


SOURCE = "GANLatentDiscovery (Voynov & Babenko 2020), its baselines"
RANDOM = Method(title="Gaussian directions", source=SOURCE, find=random)
AXES = Method(title="coordinate axes of h", source=SOURCE, find=axes)
