"""Random streams: every random number of hbench follows from a seed that is named here."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def draw_x_T(seed: int, first: int, count: int, shape: Sequence[int]) -> Tensor:
    """Starting noise of images ``first`` .. ``first + count - 1``: float32 [count, *shape], on the CPU.

    Each image has its own seed, so it does not depend on the batch size or on where a run was resumed.
    """
    x_T = torch.empty(count, *shape)
    for i in range(count):
        x_T[i].normal_(generator=torch.Generator().manual_seed(seed_of(seed, first + i)))
    return x_T


def seed_of(*entropy: int) -> int:
    """A 63-bit seed that is a well-mixed function of the given non-negative numbers; zeros at the end do not count."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
