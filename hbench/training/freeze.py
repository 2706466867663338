"""The frozen diffusion model, as a discovery runs it."""

import copy
import os
import shutil

import torch

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.errors import HBenchError
from hbench.models.recompute import checkpoint_blocks
from hbench.runtime.device import cast_frozen


def freeze(experiment: Experiment, model: DiffusionModel, device: torch.device) -> DiffusionModel:
    """Return a frozen copy of the diffusion model, on a device, as a discovery runs it there.

    Its weights have the precision of the networks; it is compiled, or its blocks are checkpointed, if the experiment
    says so.

    Raises:
        HBenchError: the copy is to be compiled, and there is no compiler, or to be checkpointed, and has no blocks.
    """
    settings = experiment.discovery
    frozen = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    cast_frozen(frozen, settings.precision)
    checkpoint_blocks(frozen, settings.checkpoint_blocks)
    if settings.compile and device.type == "mps":
        raise HBenchError("discovery.compile = true is for CUDA and the CPU: leave it out, or use `device=cpu`")
    if settings.compile:
        # Triton builds its launchers in C, the CPU's kernels are C++
        variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
        if not any(map(shutil.which, (os.environ.get(variable, ""), *names))):
            raise HBenchError(f"discovery.compile = true needs a compiler: install {names[0]}, or leave it out")
        frozen.encode = torch.compile(frozen.encode, dynamic=False)  # type: ignore[method-assign]
        frozen.decode = torch.compile(frozen.decode, dynamic=False)  # type: ignore[method-assign]
    return frozen
