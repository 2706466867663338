"""Images in their two forms, float [-1, 1] inside hbench and uint8 [0, 255] at its borders, and side by side."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Colour = tuple[int, int, int]
"""Red, green and blue, 0..255 each."""
WHITE, GREY, ORANGE = (255, 255, 255), (144, 144, 144), (230, 126, 0)
"""Background, frame of an image, and frame of an original among edits."""


def to_uint8(images: Tensor) -> Tensor:
    """Return float images in [-1, 1] as uint8 [0, 255], rounded; values outside are clamped first."""
    return (images.detach().float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Return images of uint8 [0, 255] as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def soft_clip(images: Tensor, bound: float) -> Tensor:
    """Return images with a tenth of their excess over +-bound: values beyond it barely count, yet keep a gradient."""
    return images + 0.9 * (images.clamp(-bound, bound) - images)


class Tiles(NamedTuple):
    """Images side by side."""

    pixels: Tensor
    """Pixels in RGB, uint8 [height, width, 3]."""
    lefts: list[int]
    """First pixel of each column of images."""
    tops: list[int]
    """First pixel of each row of images."""


def tile(
    images: Tensor,
    columns: int,
    *,
    rows: int | None = None,
    gap: int = 1,
    edge: int = 0,
    background: Colour = WHITE,
    frames: Mapping[int, Colour] | None = None,
    frame_width: int = 0,
    breaks: Sequence[int] = (),
    break_width: int = 0,
    shown: Tensor | None = None,
) -> Tiles:
    """Return images side by side, row by row.

    Args:
        images: uint8 [N, C, H, W], grey or RGB.
        columns: images in a row.
        rows: rows, by default as many as the images fill; the rest stays empty.
        gap: pixels between two images.
        edge: pixels before the first image and after the last.
        background: colour of everything else.
        frames: colour of the frame around each image of a column, by column.
        frame_width: pixels of the frames, at most ``edge`` and ``gap``.
        breaks: columns with a wider gap before them.
        break_width: extra pixels of that gap.
        shown: bool [N], the images to show; the cells of the others stay empty. Default: all.
    """
    height, width = images.shape[-2:]
    rows = rows or -(-len(images) // columns)
    lefts = [edge + x * (width + gap) + break_width * sum(b <= x for b in breaks) for x in range(columns)]
    tops = [edge + y * (height + gap) for y in range(rows)]
    pixels = torch.tensor(background, dtype=torch.uint8).repeat(tops[-1] + height + edge, lefts[-1] + width + edge, 1)
    for i, image in enumerate(images):
        if shown is not None and not shown[i]:
            continue
        top, left = tops[i // columns], lefts[i % columns]
        if frames and (colour := frames.get(i % columns)):
            rectangle = pixels[top - frame_width : top + height + frame_width, left - frame_width :]
            rectangle[:, : width + 2 * frame_width] = torch.tensor(colour, dtype=torch.uint8)
        pixels[top : top + height, left : left + width] = image.permute(1, 2, 0)  # grey is repeated
    return Tiles(pixels, lefts, tops)
