"""Batch norm over the batch of all processes; PyTorch's SyncBatchNorm does not run on the CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AllReduce = Callable[[Tensor], None]
"""Function that replaces a contiguous tensor by its sum over the processes."""


def share_batch_norm(module: nn.Module, all_reduce: AllReduce, world_size: int) -> None:
    """Replace every batch norm of a new module by one over the global batch; do nothing for a single process.

    Args:
        module: module with initial weights and running statistics, which the new ones start with as well.
        all_reduce: sum over the processes, in place.
        world_size: number of processes.
    """
    if world_size == 1:
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, GlobalBatchNorm(child, all_reduce, world_size))


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose statistics in training are those of the global batch, of which each process has an equal part.

    It is PyTorch's in eval mode and in the names of its state. Cost: one all_reduce of 2 C numbers in each direction.

    Args:
        local: batch norm whose number of channels, eps and momentum it takes over.
        all_reduce: sum over the processes, in place.
        world_size: number of processes.
    """

    def __init__(self, local: nn.modules.batchnorm._BatchNorm, all_reduce: AllReduce, world_size: int) -> None:
        super().__init__(local.num_features, local.eps, local.momentum)
        self.all_reduce = all_reduce
        self.world_size = world_size

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, [B, C, ...]."""
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        x = input if input.dtype == torch.float64 else input.float()
        var, mean = (v.double() for v in torch.var_mean(x, [0, *range(2, x.dim())], correction=0))
        # The mean of squares, unlike the variance, is a mean over processes; float64 stands the difference below.
        squares = var + mean.square()
        moments: Tensor = _AllReduce.apply(torch.stack([mean, squares]), self.all_reduce) / self.world_size
        mean, var = moments[0], moments[1] - moments[0].square()
        self._update_running(mean.detach(), var.detach(), n=self.world_size * x.numel() // x.shape[1])
        scale = self.weight * (var + self.eps).rsqrt()
        offset = self.bias - mean * scale
        shape = [1, -1] + [1] * (x.dim() - 2)
        return torch.addcmul(offset.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape)).to(input.dtype)

    def _update_running(self, mean: Tensor, var: Tensor, n: int) -> None:
        """Move the running statistics as PyTorch does, where the variance is the unbiased one of n values."""
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * n / (n - 1)).to(self.running_var.dtype), self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any number of dimensions."""


class _AllReduce(torch.autograd.Function):
    """Sum over the processes. Each process's loss depends on it, so its gradient is such a sum too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, all_reduce: AllReduce) -> Tensor:
        ctx.all_reduce = all_reduce
        tensor = tensor.clone()
        all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        ctx.all_reduce(gradient)
        return gradient, None
