"""Generation steps: callables from a node to the next, which run as they are or are replayed from a recording.

A recording serves all timesteps, batches, directions and magnitudes: whatever differs between two steps of a kind is an
input. The gradient of a step that is recomputed is recorded too, forward and backward in one. A step whose graph is
kept runs as it is, for the next replay would overwrite the graph.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hbench.core import chain
from hbench.core.backbone import Backbone
from hbench.core.diffusion import DeltaH, Transition, pair_step, regular_step, shifted_step
from hbench.core.directions import OwnDirection
from hbench.runtime.capture import Graphs, Outputs

Kind = Callable[[Backbone, Transition, DeltaH | None, Tensor], Tensor]
"""Kind of generation step: a function (backbone, transition, shift of h_t, node) -> next node."""


def regular(backbone: Backbone, step: Transition, shift: DeltaH | None, x_t: Tensor) -> Tensor:
    """Return x at ``t_prev`` of the regular process, see :func:`hbench.core.diffusion.regular_step`."""
    return regular_step(backbone, step, x_t)


def shifted(backbone: Backbone, step: Transition, shift: DeltaH | None, x_t: Tensor) -> Tensor:
    """Return x' at ``t_prev`` of the shifted process, see :func:`hbench.core.diffusion.shifted_step`."""
    assert shift is not None
    return shifted_step(backbone, step, shift, x_t)[0]


def pair(backbone: Backbone, step: Transition, shift: DeltaH | None, x_t: Tensor) -> Tensor:
    """Return raw and shifted samples at ``t_prev`` from both, see :func:`hbench.core.diffusion.pair_step`."""
    assert shift is not None
    return pair_step(backbone, step, shift, x_t, len(x_t) // 2)


def pair_from_x_T(backbone: Backbone, step: Transition, shift: DeltaH | None, x_T: Tensor) -> Tensor:
    """Return raw and shifted samples at ``t_prev`` from the x_T of both: [B, C, H, W] -> [2B, C, H, W]."""
    assert shift is not None
    return pair_step(backbone, step, shift, x_T, len(x_T))


@dataclass(frozen=True, eq=False)
class GenerationStep:
    """One generation step of a chain: a callable from a node to the next."""

    kind: Kind
    backbone: Backbone
    """Frozen network."""
    transition: Transition
    shift: DeltaH | None = None
    graphs: Graphs | None = None
    """Recordings to replay, of this and other steps; None to run the step as it is."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the next node; with gradients enabled the step runs as it is."""
        if torch.is_grad_enabled() or not self._is_recordable():
            return self.kind(self.backbone, self.transition, self.shift, x)

        def forward(x: Tensor, *constants: Tensor) -> Outputs:
            return (self._with(*constants)(x),)

        (found,) = self._replayed("forward", forward, (x,))
        assert found is not None
        return found.clone()

    def pull_back(self, node: Tensor, g: Tensor, wanted: bool) -> Tensor | None:
        """Accumulate gradients and return the node's, see :func:`hbench.core.chain.pull_back`.

        Raises:
            ValueError: the backbone is trained, and the step would be replayed, which gives its weights no gradient.
        """
        shift = self.shift
        if not self._is_recordable() or (isinstance(shift, OwnDirection) and shift.s.requires_grad):
            return chain.pull_back(self, node, g, wanted)
        parameters = self._trained()

        def both_ways(node: Tensor, g: Tensor, *constants: Tensor) -> Outputs:
            # only a recording comes here: to ask in each step would take as long as a replay
            if isinstance(self.backbone, nn.Module) and any(p.requires_grad for p in self.backbone.parameters()):
                raise ValueError("a sampler with graphs is for a frozen backbone: freeze it, or take graphs=None")
            leaf = node.detach().requires_grad_(wanted)
            with torch.enable_grad():
                x = self._with(*constants)(leaf)
            return torch.autograd.grad(x, [leaf, *parameters] if wanted else parameters, g, allow_unused=True)

        found = list(self._replayed(("both ways", wanted, len(parameters)), both_ways, (node, g)))
        node_gradient = found.pop(0) if wanted else None
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        return None if node_gradient is None else node_gradient.clone()

    def _is_recordable(self) -> bool:
        """Return whether there are recordings to replay, and a shift whose values are tensors alone."""
        own = isinstance(self.shift, OwnDirection) and not getattr(self.shift.f, "reads_t", True)
        return self.graphs is not None and (self.shift is None or own)

    def _trained(self) -> list[nn.Parameter]:
        """Return the parameters that the gradient of the step reaches: those of the shift."""
        f = self.shift.f if isinstance(self.shift, OwnDirection) else None
        return [each for each in f.parameters() if each.requires_grad] if isinstance(f, nn.Module) else []

    def _with(self, times: Tensor, shares: Tensor, *k_and_s: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the step as it runs with other constants than its own, those of :meth:`_replayed`."""
        transition, shift = self.transition.reading(times, shares), self.shift
        if isinstance(shift, OwnDirection):
            shift = OwnDirection(shift.f, *k_and_s)
        return lambda x: self.kind(self.backbone, transition, shift, x)

    def _replayed(self, what: Hashable, function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> Outputs:
        """Return ``function(*inputs, *constants)`` from a recording of all steps of this kind."""
        assert self.graphs is not None
        x, transition = inputs[0], self.transition
        constants = [transition.times(x), transition.shares(x.device)]
        f = None
        if isinstance(self.shift, OwnDirection):
            f = self.shift.f
            constants += [self.shift.k, self.shift.s]
        autocast = torch.is_autocast_enabled(x.device.type)
        key = (what, self.kind, self.backbone, f, transition.t < 0, autocast)
        return self.graphs.run(key, function, [*inputs, *constants])
