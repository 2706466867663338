"""The sampler: a frozen model, its noise schedule, and the timesteps that a generation visits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hbench.config import Experiment, Precision
from hbench.core.backbone import Backbone
from hbench.core.chain import Step, run_chain
from hbench.core.diffusion import (
    DeltaH,
    Transition,
    alpha_bar_schedule,
    inverse_transitions,
    timesteps,
    transitions,
)
from hbench.core.directions import scaled
from hbench.core.seeds import draw_x_T
from hbench.core.steps import GenerationStep, Kind, pair, pair_from_x_T, regular, shifted
from hbench.errors import HBenchError, counted
from hbench.runtime.capture import Graphs, graphs_of
from hbench.runtime.device import autocast

BATCH = 64
"""Images generated at once, raw and shifted ones counted; no number depends on it, up to the rounding of kernels."""


def visited(experiment: Experiment, M: int | None = None, spacing: str | None = None) -> tuple[int, ...]:
    """Return the timesteps that a generation visits, descending; ``M`` and ``spacing`` default to the discovery's.

    Raises:
        ValueError: M outside 1..T, or an unknown spacing.
    """
    settings, diffusion = experiment.discovery, experiment.diffusion
    alpha_bar = alpha_bar_schedule(**diffusion.schedule)
    chosen = settings.M if M is None else M, alpha_bar, spacing or settings.spacing
    return tuple(timesteps(*chosen, steps_offset=diffusion.steps_offset))


@dataclass(frozen=True, eq=False)
class Sampler:
    """A frozen model with a schedule and the timesteps that it visits: made once, then handed down.

    Chains are lists of callables, x_T first, for :func:`hbench.core.chain.backpropagate` and :func:`run_chain`. The
    methods that return chains leave autocast and gradients to the caller; :meth:`generate`, :meth:`generate_pairs` and
    :meth:`invert` take no gradients.
    """

    backbone: Backbone
    """Frozen network, on ``device``."""
    alpha_bar: Tensor
    """Cumulative products of 1 - beta_t: float64 [T], on the CPU."""
    timesteps: tuple[int, ...]
    """Visited timesteps, descending in 0..T-1."""
    image_shape: tuple[int, int, int]
    """Shape (C, H, W) of an image."""
    device: torch.device
    t_shift: int = 0
    """Lower end of the shift interval: h_t is shifted at timesteps t >= t_shift."""
    precision: Precision = "float32"
    """Precision of the network's passes; the nodes of the chain are float32."""
    spacing: str = "trailing"
    """Placement of the timesteps, for other numbers of steps; see :func:`hbench.core.diffusion.timesteps`."""
    steps_offset: int = 0
    """Number that is added to leading timesteps."""
    unit_steps: int | None = None
    """Shifted steps of the chain in which magnitudes have their meaning; None = those of this chain."""
    graphs: Graphs | None = None
    """Recordings that the steps replay where nothing is differentiated, or one step alone; None to run them as they
    are."""

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        backbone: Backbone,
        device: torch.device,
        *,
        M: int | None = None,
        spacing: str | None = None,
        precision: Precision | None = None,
    ) -> "Sampler":
        """Return the sampler of an experiment; ``M``, ``spacing`` and ``precision`` are the discovery's unless given.

        Raises:
            ValueError: M outside 1..T, or an unknown spacing.
        """
        settings = experiment.discovery
        return cls(
            backbone=backbone,
            alpha_bar=alpha_bar_schedule(**experiment.diffusion.schedule),
            timesteps=visited(experiment, M, spacing),
            t_shift=settings.t_shift,
            precision=precision or settings.precision,
            spacing=spacing or settings.spacing,
            steps_offset=experiment.diffusion.steps_offset,
            image_shape=experiment.data.image_shape,
            device=device,
            graphs=graphs_of(device) if settings.capture == "auto" else None,
        )

    def with_steps(self, M: int | None) -> "Sampler":
        """Return the sampler with M generation steps; None keeps their number.

        Each shifted step adds its whole shift to P_t, however short the step. With another M every shift is therefore
        scaled by (shifted steps of this chain) / (shifted steps of the new one), as in Asyrp (Kwon et al. 2023)
        [reconstructed]: magnitudes keep their meaning.

        Raises:
            ValueError: M outside 1..T.
        """
        if M is None or len(self.timesteps) == M:
            return self
        descending = tuple(timesteps(M, self.alpha_bar, self.spacing, steps_offset=self.steps_offset))
        unit = len(self._shifted) if self.unit_steps is None else self.unit_steps
        return replace(self, timesteps=descending, unit_steps=unit)

    @property
    def shift_interval(self) -> tuple[int, ...]:
        """Timesteps t >= t_shift, descending.

        Raises:
            HBenchError: there is none.
        """
        if not self._shifted:
            M = len(self.timesteps)
            raise HBenchError(f"no timestep of {counted(M, 'step')} reaches t_shift = {self.t_shift}: take more steps")
        return self._shifted

    @cached_property
    def transitions(self) -> tuple[Transition, ...]:
        """Steps from x_T to x_0."""
        return transitions(self.alpha_bar, self.timesteps)

    @cached_property
    def _regular_steps(self) -> tuple[GenerationStep, ...]:
        return tuple(self._step(regular, each) for each in self.transitions)

    @cached_property
    def _inversion_steps(self) -> tuple[GenerationStep, ...]:
        return tuple(self._step(regular, each) for each in inverse_transitions(self.alpha_bar, self.timesteps))

    @cached_property
    def _shifted(self) -> tuple[int, ...]:
        return tuple(t for t in self.timesteps if t >= self.t_shift)

    def steps(self, shift: DeltaH | None = None) -> list[GenerationStep]:
        """Return the reverse process x_T -> x_0 as a chain of M callables, one per timestep.

        Without ``shift`` it is the regular process; with it, Eq. (2): asymmetric for t >= t_shift, regular below.

        Raises:
            HBenchError: magnitudes of another number of steps, and one of both chains has no shifted step.
        """
        if shift is None:
            return list(self._regular_steps)
        delta_h = self._rescaled(shift)
        pairs = zip(self.transitions, self._regular_steps, strict=True)
        return [
            self._step(shifted, each, delta_h) if each.t >= self.t_shift else unshifted for each, unshifted in pairs
        ]

    def pair_steps(self, shift: DeltaH) -> list[Step]:
        """Return the regular and the shifted process side by side: M callables that make each pass for both.

        The first callable takes x_T [B, C, H, W] for both; its output, and all later nodes, are raw samples and then
        shifted ones, [2B, C, H, W]. Use it where no gradient is needed: a graph would hold both.
        """
        delta_h = self._rescaled(shift)

        def step(each: Transition, is_first: bool) -> Step:
            if each.t >= self.t_shift:
                return self._step(pair_from_x_T if is_first else pair, each, delta_h)
            unshifted = self._step(regular, each)
            return (lambda x_T: unshifted(x_T).repeat(2, 1, 1, 1)) if is_first else unshifted

        return [step(each, i == 0) for i, each in enumerate(self.transitions)]

    def inversion_steps(self) -> list[GenerationStep]:
        """Return DDIM inversion x_0 -> x_T as a chain of M callables: the same recursion and timesteps, run upwards.

        Each step takes eps at the time of the image it starts from (Song et al. 2021, Eq. 13, as in guided-diffusion's
        ``ddim_reverse_sample``); the clean image itself, which has no timestep, is shown to the model at t = 0.
        """
        return list(self._inversion_steps)

    def autocast(self) -> torch.autocast:
        """Return the context manager in which the chains run."""
        return autocast(self.device, self.precision)

    def noise(self, count: int, *, seed: int = 0, first: int = 0) -> Tensor:
        """Return x_T of images ``first`` .. ``first + count - 1``: [count, C, H, W], on the device."""
        return draw_x_T(seed, first, count, self.image_shape).to(self.device)

    def generate(self, x_T: Tensor, shift: DeltaH | None = None) -> Tensor:
        """Return x_0 of the regular process from x_T [B, C, H, W], or x'_0 of the shifted one; float32, unclamped."""
        return self._end(self.steps(shift), x_T)

    def generate_pairs(self, x_T: Tensor, shift: DeltaH) -> tuple[Tensor, Tensor]:
        """Return x_0 and x'_0 from the same x_T [B, C, H, W], made in the same passes."""
        x_0, x_0_shifted = self._end(self.pair_steps(shift), x_T).chunk(2)
        return x_0, x_0_shifted

    def invert(self, x_0: Tensor) -> Tensor:
        """Return x_T of images x_0 [B, C, H, W] in [-1, 1] by DDIM inversion; nothing is clipped."""
        return self._end(self.inversion_steps(), x_0)

    def _step(self, kind: Kind, each: Transition, shift: DeltaH | None = None) -> GenerationStep:
        return GenerationStep(kind, self.backbone, each, shift, self.graphs)

    @torch.no_grad()
    def _end(self, steps: Sequence[Step], x: Tensor) -> Tensor:
        with self.autocast():
            return run_chain(steps, x)

    def _rescaled(self, shift: DeltaH) -> DeltaH:
        """Return the shift with its magnitudes meant for this number of steps, see :meth:`with_steps`."""
        if self.unit_steps is None:
            return shift
        if not self.unit_steps:
            raise HBenchError(f"no timestep of the original steps reaches t_shift = {self.t_shift}: nothing is shifted")
        return scaled(shift, self.unit_steps / len(self.shift_interval))
