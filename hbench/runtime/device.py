"""Device and precision of the computations.

float32 means float32: TF32 is off in convolutions too, where PyTorch would have it on. Speed comes from bfloat16, under
autocast; master weights, the nodes of the chain, losses and optimiser states stay float32. On a Mac's GPU (mps) all is
float32, and what needs float64 is done on the CPU; it has been tested without such a GPU alone.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from hbench.config import Precision
from hbench.errors import HBenchError
from hbench.runtime.distributed import launched, world_size

log = logging.getLogger(__name__)

WITHOUT_BFLOAT16 = {"mps"}
"""Kinds of device on which all is computed in float32."""
WITHOUT_FLOAT64 = {"mps"}
"""Kinds of device that have no float64."""


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device called ``name``; "auto" is CUDA where there is one, else a Mac's GPU (mps), else the CPU.

    Each process on one machine has a GPU to itself by "auto" and "cuda": the one of its local rank. A torch device is
    that of the caller's choice.

    Raises:
        HBenchError: no such device here, or more processes than GPUs.
    """
    device = name if isinstance(name, torch.device) else _named(str(name))
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and device.index):
        raise HBenchError(f'`device={name}`: no such device: use "auto", "cpu", "cuda", "cuda:N" or "mps"')
    if device.type == "mps":
        _check_mps(name)
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
        mps = torch.backends.mps.is_available() and world_size() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
        if name == "cpu" and sys.platform == "darwin":
            _say_once("computes on the CPU: PyTorch finds no GPU of this Mac that it can use")
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


def _check_mps(name: str | torch.device) -> None:
    """Raise an HBenchError where a Mac's GPU cannot be used, and say once how it is used."""
    if not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        reason = "this Mac has none, or too old a macOS" if built else "this PyTorch is built without it"
        raise HBenchError(f"`device={name}`: no GPU of a Mac can be used here ({reason}): use `device=cpu`")
    if world_size() > 1:
        raise HBenchError(f"`device={name}`: processes cannot share a Mac's GPU: use `device=cpu`")
    _say_once("computes on the GPU of this Mac (mps), in float32")


@cache
def _say_once(message: str) -> None:
    log.warning(message)


def float64_device(device: torch.device) -> torch.device:
    """Return the device for sums in float64: the device itself, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


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
    elif device.type == "mps":
        torch.mps.synchronize()


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context manager in which the networks run.

    Trainable weights, and the nodes of the chain, stay float32, and on a Mac's GPU everything.

    Casts of weights are not cached: with a cache, the gradients of all steps of a graph would be summed in bfloat16.
    """
    if device.type in WITHOUT_BFLOAT16:
        return torch.autocast("cpu", enabled=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def cast_frozen(network: nn.Module, precision: Precision) -> None:
    """Store the weights of a frozen network's convolutions and linear layers as autocast would cast them.

    Autocast keeps no cast of a weight that needs no gradient: it would make one in every call, and every graph would
    hold one. The outputs under autocast are the same bits.
    """
    on = {parameter.device.type for parameter in network.parameters()}
    if precision == "bfloat16" and on.isdisjoint(WITHOUT_BFLOAT16):
        for module in network.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
