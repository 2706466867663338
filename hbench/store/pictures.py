"""Images written as PNG files."""

from pathlib import Path

from torch import Tensor

from hbench.core.images import to_uint8
from hbench.store.files import replacing


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
