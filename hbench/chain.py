"""Back-propagation through a chain of steps, node by node (Algorithm 1, Sec. 4.4).

A chain is x_T -> … -> x_0: nodes are tensors, steps are callables from one node to the next. Nothing here knows about
diffusion; any differentiable objective of the last node, and anything trainable inside the steps, will do.

| strategy | memory | extra passes of the chain | when |
|---|---|---|---|
| ``node`` | graph of one step + M nodes | 1 | the default: flat in M |
| ``vanilla`` | graphs of all M steps | 0 | the graph of the whole chain fits |
| ``torch-checkpoint`` | graph of one step + M nodes | 1 | what torch.utils.checkpoint gives, to compare with |

A step is run twice by the last two, so it must be deterministic: no dropout, no sampling (eta = 0).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Step = Callable[[Tensor], Tensor]
Strategy = Literal["node", "vanilla", "torch-checkpoint"]


def backpropagate(
    steps: Sequence[Step], x_T: Tensor, objective: Step, strategy: Strategy = "node"
) -> tuple[Tensor, Tensor]:
    """The loss ``objective(x_0)`` and x_0, after accumulating the loss's gradients as ``.backward()`` would.

    Gradients reach every parameter that requires them inside the steps and the objective, and x_T if it requires one.
    All strategies give the same gradients, up to the rounding of their sums.

    Args:
        steps: the chain, first step first; each maps a node to the next, of any shape.
        x_T: the first node.
        objective: x_0 -> scalar loss. It is run once.
        strategy: see the table above.

    Returns:
        loss (scalar) and x_0, both detached.

    Raises:
        ValueError: unknown strategy, a loss that is not a scalar, or one that requires no gradient.
    """
    if strategy == "node":
        return _node_by_node(steps, x_T, objective)
    x = x_T
    if strategy == "vanilla":
        for step in steps:
            x = step(x)
    elif strategy == "torch-checkpoint":
        for step in steps:
            x = checkpoint(step, x, use_reentrant=False, preserve_rng_state=False)
    else:
        raise ValueError(f'strategy must be "node", "vanilla" or "torch-checkpoint", got {strategy!r}')
    loss = _checked(objective(x))
    loss.backward()
    return loss.detach(), x.detach()


def _node_by_node(steps: Sequence[Step], x_T: Tensor, objective: Step) -> tuple[Tensor, Tensor]:
    # 1. Forward without gradients, recording every node. Until the first trainable step is found, gradients stay
    #    enabled, only to see whether a step's output requires one: nothing before that step needs a gradient.
    nodes = [x_T.detach()]
    first = 0 if x_T.requires_grad else len(steps)
    for i, step in enumerate(steps):
        with torch.set_grad_enabled(first == len(steps)):
            x = step(nodes[-1])
        if x.requires_grad:
            first = min(first, i)
        nodes.append(x.detach())
        del x  # and its graph

    # 2. The loss on the last node, and g = dloss/dx_0.
    x_0 = nodes.pop().requires_grad_(first < len(steps))
    loss = _checked(objective(x_0))
    loss.backward()
    g = x_0.grad

    # 3. Each step in reverse order: recompute it from its recorded node, pull g through it.
    for i in reversed(range(first, len(steps))):
        if g is None:  # the objective does not depend on x_0
            break
        leaf = nodes.pop()
        leaf.requires_grad_(i > first or x_T.requires_grad)
        with torch.enable_grad():
            x = steps[i](leaf)
        x.backward(g)
        g = leaf.grad
        del x, leaf

    if x_T.requires_grad and g is not None:
        x_T.backward(g)
    return loss.detach(), x_0.detach()


def _checked(loss: Tensor) -> Tensor:
    if loss.numel() != 1:
        raise ValueError(f"the objective must return a scalar, got shape {list(loss.shape)}")
    if not loss.requires_grad:
        raise ValueError("nothing to train: neither a step nor the objective depends on a parameter that requires_grad")
    return loss
