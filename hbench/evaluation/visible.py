"""What a person sees of a direction: the change of the image between both ends of the magnitudes."""

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from hbench.core.directions import Source
from hbench.core.intervals import Array
from hbench.core.sampler import BATCH
from hbench.evaluation.sampling import batches_of
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.run import Run

VISIBLE = 0.2
"""Visible change beyond which in most samples a person sees a direction. It agrees with the eye on two worlds. The ten
directions of the digits of hbench 0.1 that nobody sees have at most 0.09, and the next one 0.31. The three of faces16
in which fresh looks (by five vision models) found "nothing clear" have at most 0.16, and the next one 0.38. The mean
over samples parts them less well: pale glasses that come to every face have the same one, 0.24, as a direction that
changes few faces much and that nobody sees."""
OLD_VISIBLE = 0.25
"""Mean visible change beyond which a direction was called visible, in results that do not tell."""
MOST_SAMPLES = 0.75
"""Share of samples that are most."""
RANDOM = 100
"""Raw samples that tell the visible change between random images."""
PATCH = 5
"""Size of an image over that of a patch in which a change is looked for: an eye or a mouth fills one."""
FEWEST, MOST = 12, 24
"""Samples that a direction is looked at on, at least and at most."""
NEAR_ENOUGH = 0.02
"""Relative error of a visible change that directions are scaled to."""
MOST_DOUBLINGS, MOST_HALVINGS = 12, 8
"""Steps of the search for the scale: of the factor itself, and then of the interval that it lies in."""

LOOKS = 10
"""Looks of the search for the scale that are expected; some searches take fewer or more."""

log = logging.getLogger(__name__)


def in_most(change: Array) -> Array:
    """Return the visible change that most samples exceed, of changes [n, K], [K]: the lower quartile."""
    quartile: Array = np.quantile(change, 1 - MOST_SAMPLES, axis=0)
    return quartile


def older_rule(visible_from: float) -> str:
    """Return the caution about directions that were called visible by their mean change, as older versions did."""
    return (
        f"visible by the rule of an older version, a mean change beyond {visible_from:g} of the range, and not beyond "
        f"{VISIBLE:g} in {MOST_SAMPLES:.0%} of the samples: measure again to compare with newer results"
    )


class Seen(NamedTuple):
    """What is seen of K directions on n samples, [n, K] each."""

    visible_change: Array
    """Visible change between -S and S, as a share of the range."""
    oddness: Array
    """Oddness of the change; nan where nothing changes."""

    @property
    def visible(self) -> NDArray[np.bool_]:
        """True for a direction that a person sees, [K]."""
        seen: NDArray[np.bool_] = in_most(self.visible_change) > VISIBLE
        return seen


def look(run: Run, source: Source, samples: int, seed: int) -> Seen:
    """Return what is seen of each direction on the samples of a seed.

    Several processes share the work, and each gets the result. Cost: two shifted chains for each sample and direction,
    and a regular one for each sample.

    Args:
        run: run with the directions.
        source: kind of direction.
        samples: number of samples.
        seed: seed of x_T.
    """
    with progress(total=_own_edits(samples, run.K), desc="visible", unit="edit") as bar:
        return _look(run, source, samples, seed, bar)


def _own_edits(samples: int, K: int) -> int:
    """Return the number of edits that this process looks at."""
    return sum(map(len, turns(batches_of(samples * K, BATCH // 2))))


def _look(run: Run, source: Source, samples: int, seed: int, bar: tqdm) -> Seen:
    """Return what :func:`look` does, and move a bar on by this process's edits."""
    parts = []
    edits = batches_of(samples * run.K, BATCH // 2)  # edit i: sample i // K along direction i % K
    for batch in turns(edits):
        index = torch.tensor(batch)
        rows = (index // run.K).unique()
        x_T = torch.cat([run.noise(1, seed=seed, first=i) for i in rows.tolist()])
        which = torch.searchsorted(rows, index // run.K).to(run.device)
        k = (index % run.K).to(run.device)
        s = torch.full((len(batch),), run.S, device=run.device)
        x_0 = run.sampler.generate(x_T)[which]
        both = run.sampler.generate(x_T[which].repeat(2, 1, 1, 1), source(k.repeat(2), torch.cat([s, -s])))
        up, down = both.chunk(2)
        parts.append((visible_change(up, down).cpu().double().numpy(), oddness(up - x_0, down - x_0)))
        bar.update(len(batch))
    columns = (np.concatenate(column) for column in zip(*all_gather(parts), strict=True))
    return Seen(*(column.reshape(samples, run.K) for column in columns))


def random_change(images: Tensor) -> float:
    """Return the mean visible change between each of the images [n, C, H, W] and the next one, of n random ones."""
    return float(visible_change(images, images.roll(1, 0)).double().mean())


def scaled_to(run: Run, source: Source, wanted: float, samples: int, seed: int) -> tuple[float, float]:
    """Return the factor of directions by which the median of their visible changes is the wanted one, and that median.

    The factor is searched on a logarithmic scale, from 1. Where no factor makes so much change, or so little, a warning
    says it. A bar shows the time that :data:`LOOKS` looks take. Cost: that of :func:`look`, some ten times.

    Args:
        run: run that has as many directions as the source.
        source: kind of direction.
        wanted: median over directions of the visible change between -S and S, mean over samples.
        samples: number of samples to look at.
        seed: seed of x_T.
    """
    edits = _own_edits(samples, run.K)
    with progress(total=LOOKS * edits, desc="scale", unit="edit") as bar:

        def median(factor: float) -> float:
            bar.total = max(bar.total, bar.n + edits)
            seen = _look(run, lambda k, s: source(k, factor * s), samples, seed, bar).visible_change.mean(0)
            return float(np.median(np.nan_to_num(seen, nan=np.inf)))

        found = searched(median, wanted)
        bar.total = bar.n
    return found


def searched(median: Callable[[float], float], wanted: float) -> tuple[float, float]:
    """Return the factor whose median change is the wanted one, and that median; see :func:`scaled_to`.

    Args:
        median: function of a factor that returns the median change.
        wanted: median that is wanted.
    """
    changes = {1.0: median(1.0)}
    step = 2.0 if changes[1.0] < wanted else 0.5
    while len(changes) <= MOST_DOUBLINGS and (changes[last := [*changes][-1]] < wanted) == (step > 1):
        changes[last * step] = median(last * step)
    if max(changes.values()) < wanted:  # it is saturated: more would only destroy
        log.warning("caution: the directions change images by %.2f at most, not by %.2f", max(changes.values()), wanted)
        return next((f, c) for f, c in changes.items() if c >= (1 - NEAR_ENOUGH) * max(changes.values()))
    low, high = sorted([*changes][-2:]) if len(changes) > 1 else (1.0, 1.0)
    for _ in range(MOST_HALVINGS):
        if abs(changes[high] / wanted - 1) <= NEAR_ENOUGH:
            break
        middle = math.sqrt(low * high)
        changes[middle] = median(middle)
        low, high = (low, middle) if changes[middle] >= wanted else (middle, high)
    return high, changes[high]


def visible_change(up: Tensor, down: Tensor) -> Tensor:
    """Return how much a person sees change between two images [..., C, H, W], as a share of the range, [...].

    It is the mean change of the patch that changes most, a fifth of the image high and wide, so that a mouth counts as
    much as a face. What both images share against a third one does not count: a slider that does the same on either
    side moves nothing that one could choose.
    """
    changed = (up.clamp(-1, 1) - down.clamp(-1, 1)).abs().mean(-3, keepdim=True) / 2
    flat = changed.flatten(0, -4)
    patch = max(1, round(min(flat.shape[-2:]) / PATCH))
    return F.avg_pool2d(flat, patch, 1).flatten(1).amax(1).reshape(changed.shape[:-3])


def jpeg(image: Tensor, quality: int = 90) -> Tensor:
    """Return an image, uint8 [1 or 3, H, W], as JPEG keeps it: colour at half the resolution."""
    from io import BytesIO

    from PIL import Image

    file, last = BytesIO(), image.permute(1, 2, 0)
    Image.fromarray((last if len(image) == 3 else last[..., 0]).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).reshape(last.shape).permute(2, 0, 1)


def oddness(up: Tensor, down: Tensor) -> Array:
    """Return minus the cosine of the changes [B, C, H, W] at S and at -S, float64 [B].

    It is 1 where both are opposite and -1 where they are the same. An image that does not change has none: nan.
    """
    ahead, back = (each.flatten(1).cpu().double().numpy() for each in (up, down))
    sizes = np.linalg.norm(ahead, axis=1) * np.linalg.norm(back, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        odd: Array = -(ahead * back).sum(1) / sizes
    return odd


def enough(pairs: int, K: int) -> int:
    """Return the number of samples to look at K directions on, beside a measurement of so many pairs."""
    return min(MOST, max(FEWEST, pairs // K))
