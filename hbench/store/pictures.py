"""Images as PNG files, and the picture of a traversal."""

import io
from collections.abc import Mapping, Sequence
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
FRAME, PAUSE = 90, 500
"""Milliseconds of a frame of an animation, and of those at both ends."""


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

    def animate(self, path: str | Path) -> None:
        """Write an animated WebP picture, in which every direction moves from -S to S and back, for ever.

        A frame has a row of all examples for each direction. It is written without loss.
        """
        last = len(self.magnitudes) - 1
        columns = [*range(last), *range(last, 0, -1)]
        frames = [self._draw_frame(i) for i in columns]
        with replacing(Path(path)) as temporary:
            frames[0].save(
                temporary,
                format="webp",
                save_all=True,
                append_images=frames[1:],
                duration=[FRAME if 0 < i < last else PAUSE for i in columns],
                loop=0,
                lossless=True,
                method=4,
            )

    def _draw_frame(self, column: int) -> Image.Image:
        """Draw a panel a direction: its label, one magnitude, and a row of all examples at it."""
        s, examples = self.magnitudes[column], self.images.shape[1]
        captions = [f"s = {s:+.2f}" if s else "original", *[""] * (examples - 1)]
        rows = self.images[:, None, :, column]
        return _sheet(
            [_panel(row, label, captions, [not s] * examples) for row, label in zip(rows, self.labels, strict=True)]
        )

    def _draw(self) -> Image.Image:
        """Draw a panel a direction: its label, the magnitudes, and a row of images for each example."""
        captions = ["original" if s == 0 else f"{s:+.3g}" for s in self.magnitudes]
        captions[0] = f"s = {self.magnitudes[0]:.3g}"
        originals = [s == 0 for s in self.magnitudes]
        return _sheet(
            [_panel(images, label, captions, originals) for images, label in zip(self.images, self.labels, strict=True)]
        )


def _sheet(panels: Sequence[Image.Image]) -> Image.Image:
    """Return panels side by side, in as many columns as fit."""
    width, height = max(panel.width for panel in panels), panels[0].height
    columns = max(1, min(len(panels), 1600 // (width + MARGIN)))
    rows = -(-len(panels) // columns)
    size = columns * (width + 2 * MARGIN), rows * (height + 2 * MARGIN)
    picture = Image.new("RGB", size, WHITE)
    for i, panel in enumerate(panels):
        left, top = i % columns * (width + 2 * MARGIN), i // columns * (height + 2 * MARGIN)
        picture.paste(panel, (left + MARGIN, top + MARGIN))
    return picture


def _panel(images: Tensor, label: str, captions: Sequence[str], originals: Sequence[bool]) -> Image.Image:
    """Return images [rows, columns, C, H, W] below a label and a caption of each column; originals are framed."""
    columns, width = images.shape[1], images.shape[-1]
    scale = -(-SMALLEST // width)
    enlarged = _enlarged(to_uint8(images.flatten(0, 1)), scale)
    colours = [ORANGE if is_original else GREY for is_original in originals]
    tiles = tile(enlarged, columns, gap=6, edge=3, frames=dict(enumerate(colours)), frame_width=2)
    bold, plain = (ImageFont.load_default(size) for size in (14, 12))
    across = max(tiles.pixels.shape[1], 3 + int(bold.getlength(label)) + 1)
    panel = Image.new("RGB", (across, tiles.pixels.shape[0] + 2 * LINE), WHITE)
    panel.paste(Image.fromarray(tiles.pixels.numpy()), (0, 2 * LINE))
    draw = ImageDraw.Draw(panel)
    draw.text((3, 0), label, "black", bold)
    for left, caption, is_original in zip(tiles.lefts, captions, originals, strict=True):
        middle = left + width * scale // 2, 2 * LINE - 3
        draw.text(middle, caption, ORANGE if is_original else "black", plain, anchor="mb")
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
