"""The one place where images change form: float [-1, 1] inside hbench, uint8 [0, 255] at its borders."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] as uint8 [0, 255], rounded; values outside are clamped first."""
    return (images.detach().float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Images of uint8 [0, 255] as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def soft_clip(images: Tensor, bound: float) -> Tensor:
    """Images with a tenth of what exceeds +-bound: values that no image has barely count, yet keep a gradient."""
    return images + 0.9 * (images.clamp(-bound, bound) - images)
