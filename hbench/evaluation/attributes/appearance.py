"""Appearance of any image: light, colour, and what stands out from the background."""

import torch
from torch import Tensor

from hbench.config import Data
from hbench.evaluation.attributes.attribute import Attribute, AttributeSet, centred, unit_range

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness, ITU-R BT.601, as where pictures are made grey."""
OUTSTANDING = 0.1
"""Difference from the background, of 1 between black and white, above which a pixel is foreground."""
FLAT = 1e-3
"""Standard deviation of the brightness below which an image is of one colour, about a quarter of a level of 255."""
FOR_ALL = (
    Attribute("brightness", "brighter", "darker"),
    Attribute("contrast", "more contrast", "less contrast"),
    Attribute("sharpness", "sharper", "softer"),
    Attribute("upper brightness", "brighter above", "darker above"),
    Attribute("lower brightness", "brighter below", "darker below"),
    Attribute("symmetry", "more symmetric", "less symmetric"),
    Attribute("foreground", "more foreground", "less foreground"),
    Attribute("foreground x", "foreground moves right", "foreground moves left"),
    Attribute("foreground y", "foreground moves up", "foreground moves down"),
)
"""Attributes of all images."""
FOR_COLOUR = (
    Attribute("saturation", "more colourful", "greyer"),
    Attribute("warmth", "redder", "bluer"),
    Attribute("greenness", "greener", "more magenta"),
)
"""Attributes of images in colour, after those of all."""


def appearance(data: Data) -> AttributeSet:
    """Return the appearance of images of this kind, which is without colour for grey ones."""
    attributes = FOR_ALL + FOR_COLOUR if data.channels == 3 else FOR_ALL
    return AttributeSet(name="appearance", attributes=attributes, measure=measure_appearance, general=True)


def measure_appearance(images: Tensor) -> Tensor:
    """Return the attributes :data:`FOR_ALL`, for RGB also :data:`FOR_COLOUR`, of images, float64 [N, 9 or 12].

    Values of pixels are 0 for black and 1 for white, and the brightness of a pixel is its luma (BT.601).

    - brightness: mean brightness, 0..1; upper and lower brightness are those of the two halves, without the middle row
      where the height is odd.
    - contrast: standard deviation of the brightness, 0..0.5 (RMS contrast: E. Peli, "Contrast in complex images",
      JOSA A 7, 1990).
    - sharpness: mean size of the gradient of the brightness, a pixel, from differences of neighbours. More contrast
      raises it too.
    - symmetry: correlation of the brightness with that of the mirrored image, left to right, -1..1; nan for an image
      of one colour.
    - foreground: share of the pixels that differ from the background by more than a tenth in some channel. The
      background is the median of the border in each channel.
    - foreground x, foreground y: centre of the foreground, weighted by the difference, to the right of the image's
      middle, and above it, in pixels; nan where there is none.
    - saturation: mean difference between the largest and the smallest channel, 0..1 (chroma, the saturation of HSV
      times its value: dark pixels, whose colour is not seen, have little).
    - warmth: mean of red less blue, -1..1.
    - greenness: mean of green less the mean of red and blue, -1..1.

    Cost: about 0.02 ms of one core for an image of 16x16 in colour.

    Args:
        images: float [N, 1 or 3, H, W] in about [-1, 1].
    """
    pixels = unit_range(images)
    light = _brightness(pixels)
    half = light.shape[1] // 2
    mean, contrast = light.mean((1, 2)), light.std((1, 2), correction=0)
    found = [mean, contrast, _sharpness(light)]
    found += [light[:, :half].mean((1, 2)), light[:, -half:].mean((1, 2))]
    found += [_symmetry(light), *_foreground(pixels)]
    if pixels.shape[1] == 3:
        red, green, blue = pixels.mean((2, 3)).T
        found += [(pixels.amax(1) - pixels.amin(1)).mean((1, 2)), red - blue, green - (red + blue) / 2]
    return torch.stack(found, 1)


def _brightness(pixels: Tensor) -> Tensor:
    """Return the luma [N, H, W] of pixels [N, 1 or 3, H, W]."""
    if pixels.shape[1] == 1:
        return pixels[:, 0]
    return torch.einsum("nchw,c->nhw", pixels, pixels.new_tensor(LUMA))


def _sharpness(light: Tensor) -> Tensor:
    """Return the mean size of the gradient of [N, H, W], in the middle of each four pixels, [N]."""
    right, down = light.diff(dim=2), light.diff(dim=1)
    return torch.hypot((right[:, 1:] + right[:, :-1]) / 2, (down[:, :, 1:] + down[:, :, :-1]) / 2).mean((1, 2))


def _symmetry(light: Tensor) -> Tensor:
    """Return the correlation of [N, H, W] with its mirror image, [N], nan where all values are the same."""
    deviation = light - light.mean((1, 2), keepdim=True)
    variance = deviation.square().mean((1, 2))
    return ((deviation * deviation.flip(2)).mean((1, 2)) / variance).where(variance > FLAT**2, torch.nan)


def _foreground(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the share of the foreground of [N, C, H, W], and its centre x and y, [N] each."""
    rows, columns = pixels[:, :, [0, -1]].flatten(2), pixels[:, :, 1:-1, [0, -1]].flatten(2)
    background = torch.cat([rows, columns], 2).median(2).values
    difference = (pixels - background[:, :, None, None]).abs().amax(1)
    outstanding = difference > OUTSTANDING
    weight = difference * outstanding
    weight = weight / weight.sum((1, 2), keepdim=True)
    up, right = -centred(weight.shape[1]), centred(weight.shape[2])
    return outstanding.double().mean((1, 2)), weight.sum(1) @ right, weight.sum(2) @ up
