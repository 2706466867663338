"""Parts of all charts: figures written as PNG, titles, and text from outside."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hbench.errors import HBenchError
from hbench.store.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from hbench.store.results import Result

T = TypeVar("T")


def save_figure(figure: "Figure", path: Path, *, crop: bool = False) -> None:
    """Write a figure as PNG in one move, cropped if asked. Characters that the font lacks become boxes."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight" if crop else None)


def show_pixels(axis: "Axes", pixels: "Tensor", grey: bool) -> None:
    """Show RGB pixels, uint8 [height, width, 3], in a panel; ``grey`` ones are drawn as one channel."""
    picture = pixels[..., 0] if grey else pixels
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def plain(text: str) -> str:
    """Return text from outside so that matplotlib reads no mathematics in it; undecodable bytes become "?"."""
    return text.encode(errors="replace").decode().replace("$", r"\$")


def title_of(result: "Result") -> str:
    """Return the experiment's title, with generation steps and kind of direction if they are not the default ones."""
    title, M, source = result.title, result.detail("M"), result.detail("direction_source", "own")
    if M is not None and result.provenance.experiment["discovery"]["M"] != M:
        title += f"-{M}-steps"
    return title if source == "own" else f"{title}, {source} directions"


def at_hand(result: "Result", images: T | None) -> T:
    """Return the images that a picture is drawn of.

    Raises:
        HBenchError: there are none, since the result was read from its folder.
    """
    if images is None:
        raise HBenchError(f"a {result.NAME} result that was read from its folder has nothing to draw: measure it again")
    return images
