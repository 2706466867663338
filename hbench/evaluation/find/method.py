"""A method that finds directions: what it is given, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hbench.core.diffusion import Transition
from hbench.core.sampler import Sampler
from hbench.runtime.distributed import all_reduce, world_size
from hbench.store.classifier import Classifier

Keep = Callable[[str, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""Function (name, make) -> tensors: a piece of long work, made once, and read back where the search goes on later."""


@dataclass(frozen=True, eq=False)
class Search:
    """What a method is given. Several processes search alike, and share work by :mod:`hbench.runtime.distributed`."""

    sampler: Sampler
    """Frozen model with its chain; directions act at the timesteps of its ``shift_interval``."""
    K: int
    """Number of directions that are wanted."""
    samples: int
    """Number of samples to look at."""
    x_T_seed: int
    """Seed of the samples' x_T, which no measurement draws."""
    seed: int
    """Seed of everything else that is random."""
    classifier: Classifier | None
    """Classifier of the images; None where there is none."""
    keep: Keep = lambda name, make: make()

    @property
    def h_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one sample's h_t."""
        return self.sampler.backbone.h_shape

    @property
    def generator(self) -> torch.Generator:
        """Random numbers of the search, on the CPU, from the start."""
        return torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def nodes(self, samples: Sequence[int]) -> tuple[list[tuple[Transition, Tensor]], Tensor]:
        """Return x_t [B, C, H, W] at each timestep of the shift interval, and x_0, of regular chains.

        Cost: a chain a sample.
        """
        x = torch.cat([self.sampler.noise(1, seed=self.x_T_seed, first=i) for i in samples])
        found = []
        with self.sampler.autocast():
            for transition, step in zip(self.sampler.transitions, self.sampler.steps(), strict=True):
                if transition.t >= self.sampler.t_shift:
                    found.append((transition, x))
                x = step(x)
        return found, x

    @torch.no_grad()
    def h_and_x_0(self, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return h_t at each timestep of the shift interval, float32 [B, timesteps, C, H, W], and x_0, on the device.

        Cost: a chain a sample, and one more pass of the encoder a timestep.
        """
        nodes, x_0 = self.nodes(samples)
        with self.sampler.autocast():
            h = [self.sampler.backbone.encode(x_t, step.times(x_t))[0].float() for step, x_t in nodes]
        return torch.stack(h, dim=1), x_0


@dataclass(frozen=True, eq=False)
class Found:
    """Directions that a method has found. Their sizes count against each other; the scale of all is chosen later."""

    delta_h: Tensor
    """Directions, [K, timesteps, C, H, W], or [K, C, H, W] for all timesteps; K may be less than was wanted."""
    names: Sequence[str] | None = None
    """Name of each direction, where the method knows what it does."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the search for its file, such as how far it has converged."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to find directions."""

    title: str
    """What its directions are, in a few words."""
    source: str = ""
    """Publication."""
    find: Callable[[Search], Found]
    """Function that finds them; HBenchError with a remedy where it cannot."""
    samples: int = 0
    """Number of samples that it looks at by default; 0 if it looks at none."""


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, bit by bit the same on each."""
    if world_size() > 1:
        all_reduce(tensor)
    return tensor


def chained(delta_h: Tensor) -> tuple[Tensor, float]:
    """Return directions of each timestep, put into the order and the sign of those of the timestep before.

    What is found for each timestep by itself has any sign, and its order changes where two sizes cross: direction k
    would then turn round within one chain. The pairs are those whose absolute cosines have the largest sum.

    Args:
        delta_h: directions, [K, timesteps, C, H, W].

    Returns:
        The same, and the mean absolute cosine of one timestep's direction with the next one's; nan for one timestep.
    """
    from scipy.optimize import linear_sum_assignment

    flat = torch.nn.functional.normalize(delta_h.flatten(2).double(), dim=2)
    chosen, found = [torch.arange(len(delta_h))], [torch.ones(len(delta_h))]
    met = []
    for i in range(1, delta_h.shape[1]):
        before = flat[chosen[-1], i - 1] * found[-1][:, None]
        cosine = before @ flat[:, i].T
        _, columns = linear_sum_assignment(cosine.abs().numpy(), maximize=True)
        order = torch.from_numpy(columns)
        pairs = cosine.gather(1, order[:, None])[:, 0]
        chosen.append(order)
        found.append(torch.where(pairs < 0, -1.0, 1.0))
        met.append(pairs.abs().mean().item())
    ordered = [
        delta_h[order, i] * sign[:, None, None, None] for i, (order, sign) in enumerate(zip(chosen, found, strict=True))
    ]
    return torch.stack(ordered, dim=1), sum(met) / len(met) if met else float("nan")


def largest_is_positive(directions: Tensor) -> Tensor:
    """Return directions [K, ...] with the sign by which each one's largest number is positive."""
    flat = directions.flatten(1)
    largest = flat.gather(1, flat.abs().argmax(1, keepdim=True))
    return (flat * torch.where(largest < 0, -1.0, 1.0)).reshape(directions.shape)
