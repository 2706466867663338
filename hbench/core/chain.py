"""Back-propagation through a chain of steps, node by node (Algorithm 1, Sec. 4.4).

A chain is x_T -> … -> x_0: nodes are tensors, steps are callables from one node to the next. Nothing here knows about
diffusion; any differentiable objective of the last node, and anything trainable inside the steps, will do.

| strategy | memory | steps run twice | when |
|---|---|---|---|
| ``node`` | graph of one step + M nodes | all | the default: flat in M |
| ``node``, ``keep=r`` | graphs of r steps + M nodes | all but the last r | memory for r graphs is there |
| ``node``, ``nodes="cpu"`` | graph of one step + 2 nodes; M nodes in CPU memory | all | M is large, or a node is |
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
Nodes = Literal["device", "cpu"]
"""Place where nodes wait for the backward pass: the device of the chain, or CPU memory."""


def backpropagate(
    steps: Sequence[Step],
    x_T: Tensor,
    objective: Step,
    strategy: Strategy = "node",
    keep: int = 0,
    nodes: Nodes = "device",
    known_nodes: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradients of ``objective(x_0)`` as ``.backward()`` would, and return the loss and x_0.

    Gradients reach every parameter that requires them inside the steps and the objective, and x_T if it requires one.
    All strategies give the same gradients, up to the rounding of their sums.

    Args:
        steps: steps of the chain, first one first; each maps a node to the next, of any shape.
        x_T: the first node.
        objective: x_0 -> scalar loss; it is called once.
        strategy: way to trade time for memory; docs/chain.md says when to take which, with three examples.
        keep: with ``node``, number of steps, the last ones, whose graphs are kept instead of recomputed: 0..M.
        nodes: with ``node``, place of the recorded nodes: "device", or "cpu", with which memory on the device is the
            same for every M. The gradients are the same bits. Cost: two copies of each node, none where the chain is on
            the CPU anyway. All nodes must be on the device of x_T.
        known_nodes: with ``node``, x_T and the node after each recomputed step, from a caller that has them already, in
            the place that ``nodes`` names; the first step must then depend on something trainable.

    Returns:
        loss (scalar) and x_0, both detached.

    Raises:
        TypeError: ``nodes`` is no word.
        ValueError: unknown strategy or place of nodes, ``keep`` or ``known_nodes`` out of range, a loss that is not a
            scalar, or one that requires no gradient.
    """
    if not isinstance(nodes, str):
        raise TypeError(f"nodes is their place; nodes that are known go by known_nodes, got {type(nodes).__name__}")
    if nodes not in get_args(Nodes):
        raise ValueError(f"nodes must be {' or '.join(get_args(Nodes))}, got {nodes!r}")
    if strategy == "node":
        if not 0 <= keep <= len(steps):
            raise ValueError(f"keep must be in 0..{len(steps)}, the number of steps, got {keep}")
        recomputed, kept = steps[: len(steps) - keep], steps[len(steps) - keep :]
        if known_nodes is not None and len(known_nodes) != len(recomputed) + 1:
            raise ValueError(f"known_nodes must be {len(recomputed) + 1}, x_T included, got {len(known_nodes)}")
        return _node_by_node(recomputed, kept, x_T, objective, nodes, known_nodes)
    if keep or nodes != "device" or known_nodes:
        raise ValueError(f'keep, nodes and known_nodes go with strategy "node", not with {strategy!r}')
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
    place: Nodes = "device",
    known_nodes: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    # 1. Forward without gradients, recording the node before every step. Until the first trainable step is found,
    #    gradients stay enabled, only to see whether a step's output requires one: nothing before that step needs one.
    if known_nodes is not None:
        (*nodes, x), first = [node.detach() for node in known_nodes], 0
        x = returned(x, place, x_T.device)
    else:
        nodes, x = [], x_T.detach()
        first = 0 if x_T.requires_grad else len(recomputed)
        for i, step in enumerate(recomputed):
            nodes.append(recorded(x, place) if i else x)  # the caller holds x_T anyway
            with torch.set_grad_enabled(first == len(recomputed)):
                x = step(x)
            if x.requires_grad:
                first = min(first, i)
            x = x.detach()  # its graph ends here

    # 2. The kept steps and the loss, as usual, from the last node; g is the loss's gradient there.
    leaf = x.requires_grad_(first < len(recomputed) or x_T.requires_grad)
    del x
    x_0 = leaf
    for step in kept:
        x_0 = step(x_0)
    loss = _checked(objective(x_0))
    loss.backward()
    g = leaf.grad
    del leaf
    loss, x_0 = loss.detach(), x_0.detach()  # the graph ends here

    # 3. Each other step in reverse order: recompute it from its recorded node, pull g through it.
    for i in reversed(range(first, len(recomputed))):
        if g is None:  # the objective does not depend on x_0, or a step not on its node
            break
        pull = getattr(recomputed[i], "pull_back", partial(pull_back, recomputed[i]))  # a replayed step has its own
        g = pull(returned(nodes.pop(), place, x_T.device), g, i > first or x_T.requires_grad)

    if x_T.requires_grad and g is not None:
        x_T.backward(g)
    return loss, x_0


def recorded(node: Tensor, place: Nodes) -> Tensor:
    """Return a node in the place where it waits for the backward pass.

    The copy from CUDA is asynchronous, into pinned memory, and so is the copy back. Both stand in the order of the
    current stream: nothing writes into the node's memory, and no step reads the node, before its copy is done.
    """
    return node.to("cpu", non_blocking=node.is_cuda) if place == "cpu" else node


def returned(node: Tensor, place: Nodes, device: torch.device) -> Tensor:
    """Return a node on the device of the chain, from the place where it waited."""
    return node.to(device, non_blocking=device.type == "cuda") if place == "cpu" else node


def pull_back(step: Step, node: Tensor, g: Tensor, wanted: bool) -> Tensor | None:
    """Recompute a step from its detached node, accumulate parameters' gradients, and return the node's.

    Args:
        step: step of a chain.
        node: node that the step starts from.
        g: gradient of the loss in the step's output.
        wanted: True if the node's gradient is needed; else it is None.
    """
    node.requires_grad_(wanted)
    with torch.enable_grad():
        x = step(node)
    if x.requires_grad:
        x.backward(g)
    return node.grad


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
