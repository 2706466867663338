"""Recomputation inside a network: the backward pass keeps only the ends of each block and makes its inside again."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hbench.errors import HBenchError

Output = TypeVar("Output")


class Recomputable(nn.Module):
    """Base class of a network or block that the backward pass can recompute: it calls :meth:`compute` for its parts."""

    recomputed = False
    """True if the backward pass recomputes the inside."""

    def compute(self, inside: Callable[..., Output], *inputs: Any) -> Output:
        """Return ``inside(*inputs)``, tensors [B, ...], keeping its graph or only its ends."""
        if self.recomputed and torch.is_grad_enabled():
            out: Output = checkpoint(inside, *inputs, use_reentrant=False, preserve_rng_state=self.training)
            return out
        return inside(*inputs)


def checkpoint_blocks(network: nn.Module, recomputed: bool = True) -> None:
    """Make the backward pass keep only the ends of each block of a network and recompute the inside, or not.

    Cost: about one more forward pass.

    Raises:
        HBenchError: the network has no such block.
    """
    blocks = [module for module in network.modules() if isinstance(module, Recomputable)]
    if recomputed and not blocks:
        name = type(network).__name__
        raise HBenchError(f"discovery.checkpoint_blocks = true: {name} has no blocks to recompute: leave it out")
    for block in blocks:
        block.recomputed = recomputed
