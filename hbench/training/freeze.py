"""The frozen diffusion model, as a discovery runs it."""

import copy
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.errors import HBenchError
from hbench.models.recompute import checkpoint_blocks
from hbench.runtime.device import cast_frozen

Encode = Callable[[Tensor, Tensor], tuple[Tensor, list[Tensor], Tensor]]
"""Function (x, t) -> (h_t, skip connections, embedding) of an encoder."""


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
    if settings.compile:  # on CUDA also captured as CUDA graphs, and replayed for every timestep
        mode = "reduce-overhead" if device.type == "cuda" else None
        # Triton builds its launchers in C, the CPU's kernels are C++
        variable, names = ("CC", ("gcc", "clang")) if mode else ("CXX", ("g++", "clang++"))
        if not any(map(shutil.which, (os.environ.get(variable, ""), *names))):
            raise HBenchError(f"discovery.compile = true needs a compiler: install {names[0]}, or leave it out")
        encode = torch.compile(frozen.encode, dynamic=False, mode=mode)
        frozen.encode = _cloning(encode) if mode else encode  # type: ignore[method-assign,assignment]
        frozen.decode = torch.compile(frozen.decode, dynamic=False, mode=mode)  # type: ignore[method-assign]
    return frozen


def _cloning(encode: Encode) -> Encode:
    """Return an encoder whose outputs may be kept: the next replay of a CUDA graph overwrites the graph's own."""

    def encode_and_clone(x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        h, skips, emb = encode(x, t)
        return h.clone(), [skip.clone() for skip in skips], emb.clone()

    return encode_and_clone
