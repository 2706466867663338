"""A method of another package: directions that shift whole channels."""

import torch

from hbench.evaluation.find.method import Found, Method, Search


def channels(search: Search) -> Found:
    C, H, W = search.h_shape
    names = [f"channel {c}" for c in range(search.K)]
    return Found(torch.eye(C)[: search.K, :, None, None].expand(-1, C, H, W), names)


CHANNELS = Method(title="single channels of h", find=channels)
