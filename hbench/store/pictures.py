"""Images as PNG files, and the picture of a traversal."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hbench.core.images import GREY, ORANGE, WHITE, tile, to_uint8
from hbench.errors import counted
from hbench.store.files import replacing

SMALLEST = 48
"""Smallest width of an image in a grid, in pixels."""
MARGIN, LINE = 12, 18
"""Pixels around each direction of a grid, and height of a line of text."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Images along directions; a notebook shows it as a picture."""

    images: Tensor
    """Images in about [-1, 1], on the CPU: float32 [directions, examples, samples, C, H, W]."""
    directions: tuple[int, ...]
    """Index of each direction."""
    magnitudes: tuple[float, ...]
    """Magnitude s of each sample; 0 is the original."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Names of directions, where somebody gave them."""

    def __repr__(self) -> str:
        directions, examples, samples, *_ = self.images.shape
        low, high = self.magnitudes[0], self.magnitudes[-1]
        return (
            f"Grid of {counted(directions, 'direction')}, {counted(examples, 'example')}, "
            f"{counted(samples, 'magnitude')} from {low:g} to {high:g}"
        )

    @property
    def labels(self) -> list[str]:
        """Line above each direction: its index, and its name where it has one."""
        return [f"{k}: {self.names[k]}" if k in self.names else f"direction {k}" for k in self.directions]

    def save(self, path: str | Path) -> None:
        """Write the picture as PNG."""
        with replacing(Path(path)) as temporary:
            self._draw().save(temporary, format="png", optimize=True)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self._draw().save(file, format="png", optimize=True)
        return file.getvalue()

    def _draw(self) -> Image.Image:
        """Draw a panel a direction: its label, the magnitudes, and a row of images for each example."""
        panels = [self._draw_panel(images, label) for images, label in zip(self.images, self.labels, strict=True)]
        width, height = max(panel.width for panel in panels), panels[0].height
        columns = max(1, min(len(panels), 1600 // (width + MARGIN)))
        rows = -(-len(panels) // columns)
        size = columns * (width + 2 * MARGIN), rows * (height + 2 * MARGIN)
        picture = Image.new("RGB", size, WHITE)
        for i, panel in enumerate(panels):
            left, top = i % columns * (width + 2 * MARGIN), i // columns * (height + 2 * MARGIN)
            picture.paste(panel, (left + MARGIN, top + MARGIN))
        return picture

    def _draw_panel(self, images: Tensor, label: str) -> Image.Image:
        samples, width = images.shape[1], images.shape[-1]
        scale = -(-SMALLEST // width)
        enlarged = _enlarged(to_uint8(images.flatten(0, 1)), scale)
        frames = {i: ORANGE if s == 0 else GREY for i, s in enumerate(self.magnitudes)}
        tiles = tile(enlarged, samples, gap=6, edge=3, frames=frames, frame_width=2)
        bold, plain = (ImageFont.load_default(size) for size in (14, 12))
        across = max(tiles.pixels.shape[1], int(bold.getlength(label)) + 1)
        panel = Image.new("RGB", (across, tiles.pixels.shape[0] + 2 * LINE), WHITE)
        panel.paste(Image.fromarray(tiles.pixels.numpy()), (0, 2 * LINE))
        draw = ImageDraw.Draw(panel)
        draw.text((3, 0), label, "black", bold)
        captions = ["original" if s == 0 else f"{s:+.3g}" for s in self.magnitudes]
        captions[0] = f"s = {self.magnitudes[0]:.3g}"
        for left, caption, s in zip(tiles.lefts, captions, self.magnitudes, strict=True):
            middle = left + width * scale // 2, 2 * LINE - 3
            draw.text(middle, caption, "black" if s else ORANGE, plain, anchor="mb")
        return panel


def save_grid(images: Tensor, path: Path, columns: int, scale: int = 1) -> None:
    """Write float images [B, C, H, W] as one PNG, row by row; each pixel becomes scale x scale."""
    gap = 2 if len(images) > 1 else 0
    enlarged = _enlarged(to_uint8(images), scale)
    pixels = tile(enlarged, min(columns, len(images)), gap=gap, edge=gap, background=(128, 128, 128)).pixels
    with replacing(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary, format="png")


def save_image(image: Tensor, path: Path) -> None:
    """Write one float image [C, H, W] as PNG in its own size, grey or RGB."""
    pixels = to_uint8(image).permute(1, 2, 0).squeeze(-1)
    with replacing(path) as temporary:
        Image.fromarray(pixels.cpu().numpy()).save(temporary, format="png")


def _enlarged(images: Tensor, scale: int) -> Tensor:
    return images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
