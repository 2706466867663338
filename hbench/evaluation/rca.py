"""What a run's directions are worth: reconstructor accuracy, fidelity, and the pictures of each direction."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hbench.core.directions import Source
from hbench.core.images import soft_clip
from hbench.core.intervals import student, wilson
from hbench.errors import HBenchError
from hbench.evaluation.sampling import BATCH, Pairs, batches_of, draw_pairs
from hbench.models.discriminator import judge
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.files import read_json
from hbench.store.run import Run


@dataclass(frozen=True)
class RCA:
    """Reconstructor classification accuracy on fresh pairs (Sec. 5.5), with what must be read beside it."""

    n: int
    accuracy: float
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy."""
    chance: float
    """1/K."""
    magnitude_error: float
    """Mean absolute error of the predicted magnitude, in units of s."""
    magnitude_error_interval: tuple[float, float]
    per_direction: list[float]
    """Accuracy of each direction, nan where none was drawn."""
    per_direction_interval: list[tuple[float, float]]
    """95 % Wilson intervals."""
    confusion: list[list[int]]
    """Counts: true direction by predicted direction."""
    D_raw: float
    """The discriminator's mean output on raw samples; 0.5 is ideal."""
    D_raw_interval: tuple[float, float]
    D_shifted: float
    D_shifted_interval: tuple[float, float]
    outside: float
    """Share of shifted samples with a pixel beyond +-1.5; leaving the domain makes a high accuracy worthless."""
    outside_interval: tuple[float, float]

    def ranking(self) -> list[int]:
        """Directions, most accurate first."""
        return [int(k) for k in np.argsort(-np.nan_to_num(np.array(self.per_direction)), kind="stable")]


@torch.no_grad()
def rca(
    run_: Run,
    count: int,
    seed: int = 0,
    source: Source | None = None,
    on_pairs: Callable[[Pairs], None] | None = None,
) -> RCA:
    """Reconstructor classification accuracy on ``count`` fresh pairs of :func:`draw_pairs`.

    Cost: two chains a pair; ``on_pairs`` is called with each batch of them, for whoever needs the images too. Several
    processes share the batches, and each gets the result.
    """
    K, bound = run_.experiment.discovery.K, run_.experiment.discovery.soft_clip
    seen_of_each = []  # sample: k, its prediction, |s_hat - s|, D of both images, has the shifted one left the domain
    for batch in progress(turns(batches_of(count, BATCH // 2)), desc="RCA", unit="batch"):
        pairs = draw_pairs(run_, seed, batch[0], len(batch), source)
        if on_pairs:
            on_pairs(pairs)
        x_0, x_0_shifted, k, s = pairs
        seen, seen_shifted = soft_clip(x_0, bound), soft_clip(x_0_shifted, bound)
        logits, s_hat = run_.reconstructor(seen, seen_shifted)
        judged = [judge(run_.discriminator, images).sigmoid() for images in (seen, seen_shifted)]
        outside = x_0_shifted.abs().amax((1, 2, 3)) > 1.5
        seen = torch.stack([k, logits.argmax(1), (s_hat - s).abs(), *judged, outside], dim=1)
        seen_of_each.append(seen.double().cpu().numpy())
    drawn_and_predicted, values = np.split(np.concatenate(all_gather(seen_of_each)), [2], axis=1)
    confusion = np.zeros((K, K), dtype=int)
    np.add.at(confusion, tuple(drawn_and_predicted.astype(int).T), 1)
    magnitude_error, D_raw, D_shifted, share_outside = values.mean(0).tolist()
    bounds = [(float(low), float(high)) for low, high in zip(*student(values), strict=True)]
    right, drawn = confusion.diagonal(), confusion.sum(1)
    return RCA(
        n=count,
        accuracy=float(right.sum() / count),
        interval=wilson(int(right.sum()), count),
        chance=1 / K,
        magnitude_error=magnitude_error,
        magnitude_error_interval=bounds[0],
        per_direction=[float(c / n) if n else float("nan") for c, n in zip(right, drawn, strict=True)],
        per_direction_interval=[wilson(int(c), int(n)) for c, n in zip(right, drawn, strict=True)],
        confusion=confusion.tolist(),
        D_raw=D_raw,
        D_raw_interval=bounds[1],
        D_shifted=D_shifted,
        D_shifted_interval=bounds[2],
        outside=share_outside,
        outside_interval=wilson(int(values[:, 3].sum()), count),
    )


def read_rca(path: Path, run_: Run, direction_source: str = "own") -> RCA:
    """What ``hbench rca`` wrote, with its provenance beside it; HBenchError where it is of another run or source."""
    try:
        values = read_json(path)
        accuracy = [math.nan if each is None else each for each in values["per_direction"]]
        result = RCA(**values | {"per_direction": accuracy})
    except (TypeError, KeyError) as error:
        raise HBenchError(f'{path}: not a result of "hbench rca": give its rca.json') from error
    origin = read_json(path.with_name("provenance.json"))
    if origin.get("weights_sha256") != run_.hashes or origin.get("direction_source", "own") != direction_source:
        raise HBenchError(f"{path}: was measured on other weights or directions: give that of this run")
    return result
