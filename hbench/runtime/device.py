"""Device and precision of the computations.

float32 means float32: TF32 is off in convolutions too, where PyTorch would have it on. Speed comes from bfloat16, under
autocast; master weights, the nodes of the chain, losses and optimiser states stay float32.
"""

import os
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

from hbench.config import Precision
from hbench.errors import HBenchError
from hbench.runtime.distributed import launched, world_size


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device called ``name``; "auto" is CUDA where there is one, else the CPU.

    Each process on one machine has a GPU to itself by "auto" and "cuda": the one of its local rank. A torch device is
    that of the caller's choice.

    Raises:
        HBenchError: no such device here, or more processes than GPUs.
    """
    device = name if isinstance(name, torch.device) else _named(str(name))
    if device.type not in ("cpu", "cuda"):
        raise HBenchError(f'`device={name}`: no such device: use "auto", "cpu", "cuda" or "cuda:N"')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HBenchError(f"`device={name}`: found {torch.cuda.device_count()} CUDA devices: use `device=cpu`")
    with warnings.catch_warnings():  # torch 2.9 announces other names for this, which its own torch.compile cannot take
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32", UserWarning)
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")  # PyTorch's default, which an environment variable can change
    return device


def _named(name: str) -> torch.device:
    """Return the device called ``name``, or "meta", which hbench refuses, where there is none of that name."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and launched():
        if name != "cuda" and world_size() > 1:
            raise HBenchError(f"`device={name}`: {world_size()} processes need a GPU each: use `device=cuda`")
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise HBenchError(f"{here} processes on this machine, but {gpus} GPUs: start at most one process a GPU")
        if name == "cuda":
            name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return torch.device(name)
    except RuntimeError:
        return torch.device("meta")


def wall_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of ``work`` in seconds, until the device has done all of it."""
    _synchronize(device)
    started = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context manager in which the networks run.

    Trainable weights, and the nodes of the chain, stay float32.

    Casts of weights are not cached: with a cache, the gradients of all steps of a graph would be summed in bfloat16.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def cast_frozen(network: nn.Module, precision: Precision) -> None:
    """Store the weights of a frozen network's convolutions and linear layers as autocast would cast them.

    Autocast keeps no cast of a weight that needs no gradient: it would make one in every call, and every graph would
    hold one. The outputs under autocast are the same bits.
    """
    if precision == "bfloat16":
        for module in network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
