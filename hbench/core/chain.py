"""Back-propagation through a chain of steps, node by node (Algorithm 1, Sec. 4.4).

A chain is x_T -> … -> x_0: nodes are tensors, steps are callables from one node to the next. Nothing here knows about
diffusion; any differentiable objective of the last node, and anything trainable inside the steps, will do.

| strategy | memory | steps run twice | when |
|---|---|---|---|
| ``node`` | graph of one step + M nodes | all | the default: flat in M |
| ``node``, ``keep=r`` | graphs of r steps + M nodes | all but the last r | memory for r graphs is there |
| ``vanilla`` | graphs of all M steps | none | the graph of the whole chain fits: the other end, r = M |
| ``offload`` | graph of one layer; those of all M steps in CPU memory | none | a GPU with a fast bus |
| ``torch-checkpoint`` | graph of one step + M nodes | all | for comparison: PyTorch's own checkpointing |

A step that is run twice must be deterministic: no dropout, no sampling (eta = 0).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

Step = Callable[[Tensor], Tensor]
Strategy = Literal["node", "vanilla", "offload", "torch-checkpoint"]


def backpropagate(
    steps: Sequence[Step],
    x_T: Tensor,
    objective: Step,
    strategy: Strategy = "node",
    keep: int = 0,
    nodes: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradients of ``objective(x_0)`` as ``.backward()`` would, and return the loss and x_0.

    Gradients reach every parameter that requires them inside the steps and the objective, and x_T if it requires one.
    All strategies give the same gradients, up to the rounding of their sums.

    Args:
        steps: steps of the chain, first one first; each maps a node to the next, of any shape.
        x_T: the first node.
        objective: x_0 -> scalar loss; it is called once.
        strategy: see the table above.
        keep: with ``node``, number of steps, the last ones, whose graphs are kept instead of recomputed: 0..M.
        nodes: with ``node``, x_T and the node after each recomputed step, from a caller that has them already; the
            first step must then depend on something trainable.

    Returns:
        loss (scalar) and x_0, both detached.

    Raises:
        ValueError: unknown strategy, ``keep`` or ``nodes`` out of range, a loss that is not a scalar, or one that
            requires no gradient.
    """
    if strategy == "node":
        if not 0 <= keep <= len(steps):
            raise ValueError(f"keep must be in 0..{len(steps)}, the number of steps, got {keep}")
        recomputed, kept = steps[: len(steps) - keep], steps[len(steps) - keep :]
        if nodes is not None and len(nodes) != len(recomputed) + 1:
            raise ValueError(f"nodes must be {len(recomputed) + 1}, x_T included, got {len(nodes)}")
        return _node_by_node(recomputed, kept, x_T, objective, nodes)
    if keep or nodes:
        raise ValueError(f'keep and nodes go with strategy "node", not with {strategy!r}')
    if strategy == "vanilla":
        return _node_by_node([], steps, x_T, objective)
    if strategy == "offload":
        with _activations_on_cpu(pin_memory=x_T.is_cuda):
            return _node_by_node([], steps, x_T, objective)
    if strategy == "torch-checkpoint":
        checkpointed = [partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False) for step in steps]
        return _node_by_node([], checkpointed, x_T, objective)
    raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")


def _activations_on_cpu(pin_memory: bool) -> saved_tensors_hooks:
    """Return a context manager that puts graphs into CPU memory, except for parameters, which every step would copy."""
    hooks = save_on_cpu(pin_memory=pin_memory)

    def pack(saved: Tensor) -> Any:
        owner = saved if saved._base is None else saved._base  # a linear layer saves a transposed view of its weight
        return saved if isinstance(owner, nn.Parameter) else hooks.pack_hook(saved)

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else hooks.unpack_hook(packed)

    return saved_tensors_hooks(pack, unpack)


def _node_by_node(
    recomputed: Sequence[Step],
    kept: Sequence[Step],
    x_T: Tensor,
    objective: Step,
    known_nodes: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    # 1. Forward without gradients, recording every node. Until the first trainable step is found, gradients stay
    #    enabled, only to see whether a step's output requires one: nothing before that step needs a gradient.
    if known_nodes is not None:
        nodes, first = [node.detach() for node in known_nodes], 0
    else:
        nodes = [x_T.detach()]
        first = 0 if x_T.requires_grad else len(recomputed)
        for i, step in enumerate(recomputed):
            with torch.set_grad_enabled(first == len(recomputed)):
                x = step(nodes[-1])
            if x.requires_grad:
                first = min(first, i)
            nodes.append(x.detach())
            del x  # and its graph

    # 2. The kept steps and the loss, as usual, from the last recorded node; g is the loss's gradient there.
    leaf = nodes.pop()
    leaf.requires_grad_(first < len(recomputed) or x_T.requires_grad)
    x_0 = leaf
    for step in kept:
        x_0 = step(x_0)
    loss = _checked(objective(x_0))
    loss.backward()
    g = leaf.grad
    loss, x_0 = loss.detach(), x_0.detach()  # the graph ends here

    # 3. Each other step in reverse order: recompute it from its recorded node, pull g through it.
    for i in reversed(range(first, len(recomputed))):
        if g is None:  # the objective does not depend on x_0
            break
        leaf = nodes.pop()
        leaf.requires_grad_(i > first or x_T.requires_grad)
        with torch.enable_grad():
            x = recomputed[i](leaf)
        x.backward(g)
        g = leaf.grad
        del x

    if x_T.requires_grad and g is not None:
        x_T.backward(g)
    return loss, x_0


def run_chain(steps: Sequence[Step], x: Tensor) -> Tensor:
    """Return the last node of a chain that starts at the node x."""
    for step in steps:
        x = step(x)
    return x


def _checked(loss: Tensor) -> Tensor:
    if loss.numel() != 1:
        raise ValueError(f"the objective must return a scalar, got shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError("nothing to train: neither a step nor the objective depends on a parameter that requires_grad")
    return loss
