"""What the directions of a run do to images: what a person sees, which attribute moves, and what stays.

RCA says that a network can tell directions apart. Here n samples are shifted along every direction, by magnitudes on a
grid, and their attributes, classes and pixels are measured.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hbench.core.images import to_float, to_uint8
from hbench.core.intervals import Array, mean_of, wilson
from hbench.core.sampler import BATCH
from hbench.errors import check_at_least, check_seed, check_type
from hbench.evaluation.attributes.attribute import AttributeSet
from hbench.evaluation.attributes.effects import (
    Changes,
    Effects,
    clusters,
    effective_rank,
    effects,
    leading,
    percentile_interval,
    resampled,
    specificity,
)
from hbench.evaluation.attributes.heads import predicted_classes
from hbench.evaluation.attributes.result import Attributes, DirectionEffects, MeasuredAttribute, MeasuredDirection
from hbench.evaluation.attributes.sets import attribute_sets, measure_all
from hbench.evaluation.rca import OTHER_RANKING, RCA, is_of, known_rca, rca
from hbench.evaluation.sampling import batches_of, choose_x_T, sample_model
from hbench.evaluation.traverse import PAIRS
from hbench.evaluation.visible import RANDOM, VISIBLE, in_most, jpeg, oddness, random_change, visible_change
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.classifier import Classifier, classifier_for, load_classifier
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.files import sha256
from hbench.store.provenance import provenance
from hbench.store.run import Run

SAMPLES = 100
"""Number of samples that are shifted, by default."""
NATURAL = 1000
"""Number of raw samples that give the natural standard deviations."""
MAGNITUDES = (0.25, 0.5, 0.75, 1.0)
"""Magnitudes on either side of 0, in units of S."""
SHOWN = 4
"""Number of samples in the pictures."""


class _Seen(NamedTuple):
    """What E edits are like: one sample along one direction each, by L magnitudes from -S to S."""

    attributes: Array
    """Values of the attributes, [E, L, J]."""
    classes: NDArray[np.int64]
    """Classes by the classifier, [E, L, F]."""
    visible_change: Array
    """Visible change between both ends, [E]."""
    change: Array
    """Mean change of all pixels to either end, as a share of the range, [E]."""
    oddness: Array
    """Oddness of the change, [E]."""
    odd: Array
    """Half the way between both ends, flat, [E, C H W]."""


def attributes(
    run: Run,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    source: DirectionSource | None = None,
    ranking: RCA | None = None,
) -> Attributes:
    """Measure what each direction of a run does to images.

    Several processes share the work, and each gets the result. Cost: eight shifted chains for each sample and
    direction, and 1,000 regular ones.

    Args:
        run: run with the directions.
        samples: number of samples, at least 6, each shifted along every direction; x_T are those of ``seed``.
        seed: seed of x_T and of the bootstrap.
        source: kind of direction; each sample's own by default.
        ranking: measurement of RCA of this run and source; by default the run's own ``rca.json``, and 1,000 fresh
            pairs where there is none.

    Raises:
        TypeError: not a run.
        ValueError: a number out of range, or a ranking of another run or source.
        HBenchError: a set of attributes of another package is broken.
    """
    check_type(Run, "as load_run returns it", run=run)
    check_at_least(6, samples=samples)
    check_seed(seed)
    source = source or direction_source(run)
    if ranking is not None and not is_of(ranking, run, source):
        raise ValueError(OTHER_RANKING)
    file = classifier_for(run.experiment, run.folder)
    classifier = load_classifier(file) if file else None
    sets = attribute_sets(run.experiment.data, classifier)
    origin = provenance(run.experiment, run.device, seed, weights_sha256=run.hashes, **source.details)
    ranking = ranking or known_rca(run, source) or rca(run, pairs=PAIRS, seed=seed, source=source)

    raw = sample_model(run.sampler, max(NATURAL, samples), seed)
    shares = [-share for share in reversed(MAGNITUDES)] + list(MAGNITUDES)
    s = [run.S * share for share in shares]
    parts = []
    edits = batches_of(samples * run.K, max(1, BATCH // len(s)))  # edit i: sample i // K along direction i % K
    with progress(total=samples * run.K, desc="attributes", unit="edit") as bar:
        for batch in turns(edits):
            images = _shifted(run, source, batch, s, seed)
            parts.append(_look(images, raw[torch.tensor(batch) // run.K], sets, classifier))
            bar.update(len(batch))
    columns = (np.concatenate(column) for column in zip(*all_gather(parts), strict=True))
    seen = _Seen(*(column.reshape(samples, run.K, *column.shape[1:]) for column in columns))
    values, classes = measure_all(sets, raw).numpy(), _classes(classifier, raw)
    floors = _floors(raw[:RANDOM])
    result = _result(run, sets, classifier, seen, values, classes[:samples], ranking, floors, np.array(s), seed)
    chosen = choose_x_T(run, SHOWN, seed)
    strips = run.traverse(examples=chosen.indices, samples=2 * len(MAGNITUDES) + 1, seed=seed, source=source)
    details = {"classifier_sha256": sha256(file)} if file else {}
    return replace(
        result,
        strips=strips.images,
        provenance=origin.finished(n=samples, pairs=ranking.n, **chosen.details, **details),
    )


@torch.no_grad()
def _shifted(run: Run, source: DirectionSource, edits: range, s: Sequence[float], seed: int) -> Tensor:
    """Return the images of some edits at all magnitudes, float32 [len(edits), L, C, H, W], on the CPU."""
    index = torch.tensor(edits)
    k = (index % run.K).repeat_interleave(len(s)).to(run.device)
    magnitude = torch.tensor(s).repeat(len(edits)).to(run.device)
    x_T = torch.cat([run.noise(1, seed=seed, first=i // run.K) for i in edits]).repeat_interleave(len(s), dim=0)
    images = run.sampler.generate(x_T, source(k, magnitude)).cpu()
    return images.reshape(len(edits), len(s), *run.image_shape)


def _look(images: Tensor, x_0: Tensor, sets: Sequence[AttributeSet], classifier: Classifier | None) -> _Seen:
    """Return what edits are like: images [E, L, C, H, W], beside the raw samples x_0 [E, C, H, W]."""
    E, L = images.shape[:2]
    up, down, original = (each.clamp(-1, 1).double() for each in (images[:, -1], images[:, 0], x_0))
    return _Seen(
        attributes=measure_all(sets, images.flatten(0, 1)).numpy().reshape(E, L, -1),
        classes=_classes(classifier, images.flatten(0, 1)).reshape(E, L, -1),
        visible_change=visible_change(up, down).numpy(),
        change=((up - original).abs() + (down - original).abs()).flatten(1).mean(1).numpy() / 4,
        oddness=oddness(up - original, down - original),
        odd=((up - down) / 2).flatten(1).numpy(),
    )


def _classes(classifier: Classifier | None, images: Tensor) -> NDArray[np.int64]:
    """Return the classes of images [N, C, H, W], [N, F]; F is 0 without a classifier."""
    if classifier is None:
        return np.zeros((len(images), 0), dtype=np.int64)
    return predicted_classes(classifier, images).numpy()


def _result(
    run: Run,
    sets: Sequence[AttributeSet],
    classifier: Classifier | None,
    seen: _Seen,
    raw: Array,
    classes: NDArray[np.int64],
    ranking: RCA,
    floors: dict[str, Any],
    s: Array,
    seed: int,
) -> Attributes:
    """Return the numbers from what was seen, each field [n, K, ...], and raw attributes [N, J] and classes."""
    n, K = seen.visible_change.shape
    measured = _measured_attributes(sets, raw)
    unit = np.array([each.natural for each in measured])
    of_class = np.array([bool(each.factor) for each in measured])
    changes = Changes(s, raw[:n] / unit, seen.attributes / unit, of_class)
    found = effects(changes, seed)
    leads = leading(found, raw, np.array([each.general for each in sets for _ in each.attributes]))
    specific = specificity(found, raw, leads)
    weights = resampled(n, seed)
    most = in_most(seen.visible_change)
    is_visible = most > VISIBLE
    visible = np.flatnonzero(is_visible)
    odd = seen.odd.mean(0)
    cluster = dict(zip(visible.tolist(), clusters(odd[visible]).tolist(), strict=True))
    factors = [factor.name for factor in classifier.factors] if classifier else []
    kept = _kept(seen.classes, classes, factors, measured, leads)  # [n, K, L / 2]
    directions = []
    for k in range(K):
        lead = int(leads[k])
        words = ""
        if is_visible[k] and lead >= 0:
            words = measured[lead].more if found.effect[k, lead] > 0 else measured[lead].less
        directions.append(
            MeasuredDirection(
                direction=k,
                name=run.names.get(k, ""),
                proposed=words,
                visible=bool(is_visible[k]),
                visible_change=float(seen.visible_change[:, k].mean()),
                visible_change_interval=percentile_interval(seen.visible_change[:, k], weights),
                visible_in_most=float(most[k]),
                change=float(seen.change[:, k].mean()),
                oddness=float(mean_of(seen.oddness[:, k])),
                oddness_interval=percentile_interval(seen.oddness[:, k], weights),
                leading=lead if lead >= 0 else None,
                curve=found.curve[k, :, lead].tolist() if lead >= 0 else [],
                specificity=float(specific[k]),
                kept=kept[:, k].mean(0).tolist(),
                kept_interval=[percentile_interval(column, weights) for column in kept[:, k].T],
                accuracy=ranking.per_direction[k],
                cluster=cluster.get(k),
                effects=_of_direction(found, k),
            )
        )
    counts = np.array(ranking.confusion)
    right, pairs = int(counts.diagonal()[visible].sum()), int(counts[visible].sum())
    half = MAGNITUDES.index(0.5)
    return Attributes(
        n=n,
        magnitudes=[run.S * share for share in MAGNITUDES],
        attributes=measured,
        factors=factors,
        directions=directions,
        visible_from=VISIBLE,
        **floors,
        invisible=[k for k in range(K) if not is_visible[k]],
        distinct=len(set(cluster.values())),
        effective_rank=effective_rank(odd[visible]),
        pairs=ranking.n,
        accuracy=ranking.accuracy,
        accuracy_interval=ranking.interval,
        accuracy_visible=right / pairs if pairs else float("nan"),
        accuracy_visible_interval=wilson(right, pairs),
        specificity=float(mean_of(specific[visible])),
        **_estimated("oddness", seen.oddness[:, visible], weights),
        **_estimated("kept_half", kept[:, visible, half], weights),
    )


def _floors(raw: Tensor) -> dict[str, Any]:
    """Return the visible change between random images [n, C, H, W], and by their storage, under the result's names."""
    stored = to_uint8(raw)
    compressed = torch.stack([jpeg(each) for each in stored])
    return {
        "random_change": random_change(raw),
        "eight_bits_change": float(visible_change(raw, to_float(stored)).double().mean()),
        "jpeg_change": float(visible_change(raw, to_float(compressed)).double().mean()),
    }


def _measured_attributes(sets: Sequence[AttributeSet], raw: Array) -> list[MeasuredAttribute]:
    """Return the attributes with their natural standard deviations over raw samples [N, J]."""
    with np.errstate(invalid="ignore"):
        natural = np.ma.masked_invalid(raw).std(0, ddof=1).filled(np.nan)
    spread = np.where(natural > 0, natural, np.nan).tolist()
    known = [(each, one) for each in sets for one in each.attributes]
    return [
        MeasuredAttribute(name=one.name, more=one.more, less=one.less, of=each.name, factor=one.factor, natural=sd)
        for (each, one), sd in zip(known, spread, strict=True)
    ]


def _kept(
    shifted: NDArray[np.int64],
    raw: NDArray[np.int64],
    factors: Sequence[str],
    measured: Sequence[MeasuredAttribute],
    leads: NDArray[np.int64],
) -> Array:
    """Return the share of classes that samples keep, of both signs, [n, K, L / 2]; nan without a classifier.

    Args:
        shifted: classes of shifted samples, [n, K, L, F].
        raw: classes of raw samples, [n, F].
        factors: names of the F factors.
        measured: the J attributes.
        leads: attribute that leads each direction, whose factor is meant to change, [K].
    """
    n, K, L, F = shifted.shape
    same = (shifted == raw[:, None, None, :]).astype(float)
    both = (same[:, :, L // 2 :] + same[:, :, L // 2 - 1 :: -1]) / 2  # [n, K, L / 2, F]
    kept = np.full((n, K, L // 2), np.nan)
    for k in range(K):
        meant = measured[leads[k]].factor if leads[k] >= 0 else ""
        others = [f for f in range(F) if factors[f] != meant or F == 1]
        if others:
            kept[:, k] = both[:, k][:, :, others].mean(-1)
    return kept


def _of_direction(found: Effects, k: int) -> DirectionEffects:
    names = [one.name for one in fields(DirectionEffects)]
    return DirectionEffects(**{name: getattr(found, name)[k].tolist() for name in names})


def _estimated(name: str, values: Array, weights: Array) -> dict[str, Any]:
    """Return the mean of values [n, visible] and its interval over samples, under the names of two fields."""
    of_samples = mean_of(values.T)
    return {name: float(mean_of(of_samples)), f"{name}_interval": percentile_interval(of_samples, weights)}
