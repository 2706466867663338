"""Where the numbers are computed, and in which precision."""

import torch

from hbench.config import Precision
from hbench.errors import HBenchError


def pick_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is CUDA where there is one, else the CPU.

    Raises:
        HBenchError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HBenchError(f'--device {name}: no such device: use "auto", "cpu", "cuda" or "cuda:N"') from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HBenchError(f"--device {name}: found {torch.cuda.device_count()} CUDA devices: use --device cpu")
    return device


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which the networks run; their weights, and the nodes of the chain, stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
