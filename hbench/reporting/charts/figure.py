"""Parts of all charts: figures written as PNG, titles, and text from outside."""

import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hbench.errors import HBenchError
from hbench.store.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from hbench.store.results import Result

T = TypeVar("T")
P = ParamSpec("P")

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5539", "#000000")
"""Colours of Okabe and Ito, which colour-blind readers tell apart; yellow, too light on white, is brown."""
STYLE: dict[str, Any] = {
    "axes.facecolor": "white",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "figure.facecolor": "white",
    "figure.titlesize": 13,
    "font.size": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}
"""Settings of matplotlib for all charts: dark ink on white, words that stay legible on a page of half the width."""


class NothingToDrawError(HBenchError):
    """A picture of images, which only a result that was just measured has."""


def styled(chart: Callable[P, T]) -> Callable[P, T]:
    """Return a function that draws with hbench's style, whatever the caller's settings of matplotlib are."""

    @wraps(chart)
    def drawn(*arguments: P.args, **options: P.kwargs) -> T:
        from cycler import cycler
        from matplotlib import style

        with style.context(["default", STYLE | {"axes.prop_cycle": cycler(color=COLORS)}]):
            return chart(*arguments, **options)

    return drawn


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG in one move, cut to its ink. Characters that the font lacks become boxes."""
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight", pad_inches=0.1)


def legend_below(axis: "Axes", columns: int = 4) -> None:
    """Put the legend of a panel below it, where it covers no curve."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=columns, columnspacing=1.2, handlelength=1.6)


def show_pixels(
    axis: "Axes", pixels: "Tensor", grey: bool, extent: tuple[float, float, float, float] | None = None
) -> None:
    """Show RGB pixels, uint8 [height, width, 3], in a panel; ``grey`` ones are drawn as one channel.

    ``extent`` is the place of the left, right, lower and upper edge in the panel's units; pixels by default.
    """
    picture = pixels[..., 0] if grey else pixels
    axis.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)


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
        NothingToDrawError: there are none, since the result was read from its folder.
    """
    if images is None:
        raise NothingToDrawError(
            f"a {result.NAME} result that was read from its folder has nothing to draw: measure it again"
        )
    return images
