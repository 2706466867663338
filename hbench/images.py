"""The one place where images change form: float [-1, 1] inside hbench, uint8 [0, 255] at its borders."""

from pathlib import Path

import torch
from torch import Tensor

from hbench.files import replacing


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] as uint8 [0, 255], rounded; values outside are clamped first."""
    return (images.detach().float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Images of uint8 [0, 255] as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def soft_clip(images: Tensor, bound: float) -> Tensor:
    """Images with a tenth of what exceeds +-bound: values that no image has barely count, yet keep a gradient."""
    return images + 0.9 * (images.clamp(-bound, bound) - images)


def save_grid(images: Tensor, path: Path, columns: int, scale: int = 1) -> None:
    """Writes float images [B, C, H, W] as one PNG, row by row; each pixel becomes scale x scale."""
    from torchvision.utils import make_grid, save_image

    enlarged = to_uint8(images).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(enlarged.float() / 255, nrow=columns, padding=2, pad_value=0.5)
    with replacing(path) as temporary:
        save_image(grid, temporary, format="png")


def save_image(image: Tensor, path: Path) -> None:
    """Writes one float image [C, H, W] as PNG in its own size, grey or RGB."""
    from torchvision.transforms.v2.functional import to_pil_image

    with replacing(path) as temporary:
        to_pil_image(to_uint8(image)).save(temporary, format="png")
