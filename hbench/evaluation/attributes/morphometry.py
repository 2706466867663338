"""Morphometry of digits: the shape of light strokes on a dark ground, after Morpho-MNIST.

Source of thickness, length, slant, width and height: D. C. Castro et al., "Morpho-MNIST: Quantitative Assessment and
Diagnostics for Representation Learning", JMLR 20 (2019). As there, a stroke is all that is lighter than half the
lightest pixel, on an upsampled image, so a digit that only fades changes its ink alone.

Images lie one below the other on one sheet with a frame of ground around each, since one call of scikit-image or SciPy
for a sheet is much faster than one call an image.
"""

from itertools import product

import torch
from scipy.ndimage import distance_transform_edt, find_objects, label
from skimage.morphology import skeletonize
from torch import Tensor
from torch.nn import functional as F

from hbench.evaluation.attributes.attribute import Attribute, AttributeSet, centred, unit_range
from hbench.store.classifier import are_digits

FINE = 48
"""Height and width in pixels to which images are upsampled, about: thrice for 16, twice for 28."""
EMPTY = 0.1
"""Lightest pixel, 0 for black and 1 for white, below which an image has no digit."""
ONE_ROW = 0.1
"""Variance of y in square pixels below which a digit is no more than a row, and its slant is anything."""
ATTRIBUTES = (
    Attribute("ink", "more ink", "less ink"),
    Attribute("thickness", "thicker", "thinner"),
    Attribute("stroke length", "longer stroke", "shorter stroke"),
    Attribute("slant", "slants right", "slants left"),
    Attribute("width", "wider", "narrower"),
    Attribute("height", "taller", "shorter"),
    Attribute("centre x", "moves right", "moves left"),
    Attribute("centre y", "moves up", "moves down"),
    Attribute("holes", "more holes", "fewer holes"),
)


def measure_digits(images: Tensor) -> Tensor:
    """Return the :data:`ATTRIBUTES` of digits, float64 [N, 9]; all but the ink are nan where there is no digit.

    Lengths are in pixels of the given images.

    - ink: sum of the grey values, 1 for a white pixel.
    - thickness: width of the stroke, the mean along its skeleton, within about a quarter of a pixel; half a pixel where
      the whole stroke runs along the grid. Ends and corners lower it, so a short thick stroke measures thinner.
    - stroke length: length of the skeleton, which ends about half a thickness before the stroke does.
    - slant: angle of the horizontal shear in degrees, from second moments; above 0 the digit leans to the right. It is
      nan where the digit is no more than a row of pixels.
    - width: extent between two lines that slant as the digit does, so that a slant alone makes nothing wider.
    - height: extent between the highest and the lowest pixel.
    - centre x, centre y: centre of mass, to the right of the image's middle, and above it.
    - holes: number of dark parts that strokes enclose, 1 for a zero and 2 for an eight.

    Cost: 0.2 ms of one core for an image of 16x16, 0.3 ms for one of 28x28.

    Args:
        images: float [N, C, H, W] in about [-1, 1], light on dark; channels are averaged.
    """
    grey = unit_range(images).mean(1)
    lightest = grey.amax((1, 2), keepdim=True)
    scale = max(1, round(FINE / max(grey.shape[1:])))
    fine = F.interpolate(grey[:, None].float(), scale_factor=scale, mode="bicubic")[:, 0]
    strokes = fine > lightest / 2
    ink, x, y, shear = _moments(grey)
    width, height = (size / scale for size in _extents(strokes, shear))
    thickness, length = (size / scale for size in _stroke(strokes))
    shape = [thickness, length, shear.atan().rad2deg(), width, height, x, y, _holes(strokes)]
    shape = [each.where(lightest.flatten() >= EMPTY, torch.nan) for each in shape]
    return torch.stack([ink, *shape], 1)


def _moments(grey: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sum, centre x and y, and shear (covariance of x and y over variance of y) of [N, H, W], as [N] each."""
    ink = grey.sum((1, 2))
    share = grey / ink[:, None, None]
    up, right = -centred(grey.shape[1]), centred(grey.shape[2])
    of_rows, of_columns = share.sum(2), share.sum(1)
    x, y = of_columns @ right, of_rows @ up
    variance = of_rows @ up.square() - y.square()
    shear = (share @ right @ up - x * y) / variance
    return ink, x, y, shear.where(variance >= ONE_ROW, torch.nan)


def _extents(strokes: Tensor, shear: Tensor) -> tuple[Tensor, Tensor]:
    """Return the width along the shear [N], and the height, of bool images [N, H, W], in their pixels."""
    up, right = -centred(strokes.shape[1]).float()[:, None], centred(strokes.shape[2]).float()
    upright = right - shear.nan_to_num().float()[:, None, None] * up
    return _extent(upright, strokes), _extent(up, strokes)


def _extent(values: Tensor, strokes: Tensor) -> Tensor:
    """Return the size of the range of values over the pixels [N, H, W] of strokes, a pixel for one value, [N]."""
    highest = values.where(strokes, -torch.inf).amax((1, 2))
    return highest - values.where(strokes, torch.inf).amin((1, 2)) + 1


def _stroke(strokes: Tensor) -> tuple[Tensor, Tensor]:
    """Return thickness and length of the strokes in bool images [N, H, W], in their pixels, [N] each.

    The distance to the ground, d, is averaged over 3x3 pixels around each pixel of the skeleton. The middle of a
    stroke of w pixels has d = w / 2 if w is even, and (w + 1) / 2 if it is odd: the same for 3 and for 4. The mean over
    three pixels across the stroke is w / 2 - 1/4, less or more by a twelfth only.
    """
    framed = F.pad(strokes, (1, 1, 1, 1))
    sheet = framed.flatten(0, 1).numpy()
    skeleton = torch.from_numpy(skeletonize(sheet)).unflatten(0, framed.shape[:2])
    distance = torch.from_numpy(distance_transform_edt(sheet)).unflatten(0, framed.shape[:2])
    image, row, column = skeleton.nonzero(as_tuple=True)
    near = sum(distance[image, row + i, column + j] for i, j in product((-1, 0, 1), repeat=2)) / 9
    thickness = 2 * image.bincount(near, len(strokes)) / image.bincount(minlength=len(strokes)) + 0.5
    return thickness, _length(skeleton)


def _length(lines: Tensor) -> Tensor:
    """Return the length [N] of lines of one pixel's width in bool images [N, H, W]: 1 a step, 2**0.5 a diagonal one."""
    a, b, c, d = lines[:, :-1, :-1], lines[:, :-1, 1:], lines[:, 1:, :-1], lines[:, 1:, 1:]
    straight = (lines[:, 1:] & lines[:, :-1]).sum((1, 2)) + (lines[:, :, 1:] & lines[:, :, :-1]).sum((1, 2))
    diagonal = (a & d & ~(b | c)) | (b & c & ~(a | d))  # a corner between two pixels is on the way already
    return straight + 2**0.5 * diagonal.sum((1, 2)).double()


def _holes(strokes: Tensor) -> Tensor:
    """Return the number of parts of the ground that strokes enclose in bool images [N, H, W], float64 [N].

    It is the number of strokes less the Euler number, and does not change where a stroke is torn.
    """
    framed = F.pad(strokes, (1, 1, 1, 1))
    parts, _ = label(~framed.flatten(0, 1).numpy())
    inner = find_objects(parts)[1:]  # the first part is what lies around all strokes
    images = torch.tensor([rows.start // framed.shape[1] for rows, _ in inner], dtype=torch.int64)
    return images.bincount(minlength=len(strokes)).double()


MORPHOMETRY = AttributeSet(name="digit", attributes=ATTRIBUTES, measure=measure_digits, suits=are_digits)
"""Shape of a digit."""
