"""What the directions of a run do to images: what a person sees, which attribute moves, and what stays.

RCA says that a network can tell directions apart. Here n samples are shifted along every direction, by magnitudes on a
grid, and their attributes, classes and pixels are measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hbench.core.intervals import Array, mean_of, wilson
from hbench.core.sampler import BATCH
from hbench.errors import check_at_least, check_seed, check_type, counted
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
from hbench.evaluation.attributes.sets import attribute_sets, measure_all
from hbench.evaluation.rca import OTHER_RANKING, RCA, is_of, known_rca, rca
from hbench.evaluation.sampling import batches_of, choose_x_T, sample_model
from hbench.evaluation.traverse import PAIRS
from hbench.evaluation.visible import VISIBLE, oddness, visible_change
from hbench.runtime.distributed import all_gather, turns
from hbench.runtime.progress import progress
from hbench.store.classifier import Classifier, classifier_for, load_classifier
from hbench.store.directions import DirectionSource, direction_source
from hbench.store.files import sha256
from hbench.store.provenance import provenance
from hbench.store.records import Aside, Count, Interval, Nonnegative, Number, Positive, Share, ShareOrNone
from hbench.store.results import Result
from hbench.store.run import Run

if TYPE_CHECKING:
    from pandas import DataFrame

SAMPLES = 100
"""Number of samples that are shifted, by default."""
NATURAL = 1000
"""Number of raw samples that give the natural standard deviations."""
MAGNITUDES = (0.25, 0.5, 0.75, 1.0)
"""Magnitudes on either side of 0, in units of S."""


@dataclass(frozen=True, kw_only=True)
class MeasuredAttribute:
    """An attribute of images."""

    name: str
    """Name in plain words, as in "slant"."""
    more: str
    """Name of a direction that raises it."""
    less: str
    """Name of a direction that lowers it."""
    of: str
    """Name of the set that it belongs to."""
    factor: str
    """Factor of the data whose class it tells; empty if none."""
    natural: Nonnegative
    """Standard deviation over raw samples, the unit of the effects; nan if it is 0 or not defined."""


@dataclass(frozen=True, kw_only=True)
class DirectionEffects:
    """What one direction does to each attribute, a value an attribute; see :class:`Effects`."""

    effect: list[Number]
    low: list[Number]
    high: list[Number]
    even: list[Number]
    sign_share: list[ShareOrNone]
    monotone_share: list[ShareOrNone]
    common: list[Number]
    linear: list[Number]
    passes: list[bool]
    """True for an effect that is large, certain, and the same in nearly all samples."""


@dataclass(frozen=True, kw_only=True)
class MeasuredDirection:
    """What one direction does to images."""

    direction: Count
    name: str
    """Name that someone gave it by eye; empty if nobody did."""
    proposed: str
    """Name by its leading attribute; empty where none leads, or nobody sees the direction."""
    visible: bool
    """True if a person sees it."""
    visible_change: Nonnegative
    """Visible change between -S and S, mean over samples, as a share of the range of pixels."""
    visible_change_interval: Interval
    change: Nonnegative
    """Mean change of all pixels from 0 to -S and to S, as a share of the range."""
    oddness: Number
    """Minus the cosine of the changes at S and at -S: 1 where the signs do opposite things, -1 where the same."""
    oddness_interval: Interval
    leading: Count | None
    """Number of the attribute with the largest effect that passes; None where none does."""
    curve: list[Number]
    """Mean move of the leading attribute at each magnitude, from -S to S, in natural standard deviations; empty where
    none leads."""
    specificity: Number
    """Effect on the leading attribute over the mean effect on the others; nan where none leads."""
    kept: list[ShareOrNone]
    """Share of samples that keep their classes at each magnitude, of both signs; of several factors, the mean over all
    but that of the leading attribute. nan without a classifier."""
    kept_interval: list[Interval]
    accuracy: ShareOrNone
    """Share of its pairs in which the reconstructor recognises it."""
    cluster: Count | None
    """Number of its cluster among the visible directions, by their mean image change; None if it is invisible."""
    effects: DirectionEffects


@dataclass(frozen=True, kw_only=True)
class Attributes(Result):
    """What each direction of a run does to images, and how many of them a person sees, tells apart and names."""

    NAME: ClassVar[str] = "attributes"

    n: Positive
    """Number of samples, each shifted along every direction."""
    magnitudes: list[Nonnegative]
    """Magnitudes on either side of 0, ascending."""
    attributes: list[MeasuredAttribute]
    factors: list[str]
    """Factors whose classes are kept or not; empty without a classifier."""
    directions: list[MeasuredDirection]
    invisible: list[Count]
    """Directions that nobody sees."""
    distinct: Count
    """Clusters of the visible directions."""
    effective_rank: Nonnegative
    """Effective number of independent image changes among the visible directions."""
    pairs: Positive
    """Number of pairs behind the accuracies."""
    accuracy: Share
    """RCA over all directions."""
    accuracy_interval: Interval
    accuracy_visible: ShareOrNone
    """RCA over the pairs of visible directions, chance 1/K as for all; nan if none is visible."""
    accuracy_visible_interval: Interval
    specificity: Number
    """Mean specificity of the visible directions that have one; nan if none has."""
    oddness: Number
    """Mean oddness of the visible directions."""
    oddness_interval: Interval
    kept_half: ShareOrNone
    """Mean share of samples that keep their classes at S/2 along the visible directions."""
    kept_half_interval: Interval
    strips: Aside = field(default=None, compare=False, repr=False)
    """Images of one sample along each direction, uint8-ready float32 [K, 2 * magnitudes + 1, C, H, W]; None in a result
    read back."""

    def __post_init__(self) -> None:
        """Check that all numbers are of the same directions, attributes and magnitudes."""
        J, L = len(self.attributes), len(self.magnitudes)
        for i, each in enumerate(self.directions):
            if each.direction != i:
                raise ValueError("the directions are not 0, 1, 2, ...")
            if any(len(getattr(each.effects, one.name)) != J for one in fields(each.effects)):
                raise ValueError(f"direction {i}: the effects are of another number of attributes")
            if {len(each.kept), len(each.kept_interval)} != {L} or len(each.curve) not in (0, 2 * L):
                raise ValueError(f"direction {i}: the numbers are of another number of magnitudes")
            if each.leading is not None and each.leading >= J:
                raise ValueError(f"direction {i}: no attribute {each.leading}")
        if self.invisible != [each.direction for each in self.directions if not each.visible]:
            raise ValueError("invisible: not the directions that are not visible")

    @property
    def visible(self) -> list[int]:
        """Directions that a person sees."""
        return [each.direction for each in self.directions if each.visible]

    @property
    def signed_magnitudes(self) -> list[float]:
        """Magnitudes from -S to S, without 0."""
        return [-s for s in reversed(self.magnitudes)] + self.magnitudes

    @property
    def proposed_names(self) -> dict[int, str]:
        """Proposed name of each direction that has one."""
        return {each.direction: each.proposed for each in self.directions if each.proposed}

    @property
    def brief(self) -> str:
        """How many directions are visible, distinct and named, in words."""
        seen, all_of_them = len(self.visible), counted(len(self.directions), "direction")
        named, n = len(self.proposed_names), counted(self.n, "sample")
        return f"{seen} of {all_of_them} visible, {self.distinct} distinct, {named} named, n = {n}"

    @property
    def covered(self) -> list[str]:
        """Attributes that lead some visible direction, in the order of the attributes."""
        leading = {each.leading for each in self.directions if each.visible}
        return [each.name for j, each in enumerate(self.attributes) if j in leading]

    def cautions(self) -> list[str]:
        """Return what a reader must know: directions that nobody sees, and what of RCA rests on them."""
        if not self.invisible:
            return []
        K, hidden = len(self.directions), len(self.invisible)
        return [
            f"{hidden} of {counted(K, 'direction')} cannot be seen: {', '.join(map(str, self.invisible))}; RCA is "
            f"{self.accuracy:.3f} over all and {self.accuracy_visible:.3f} over the visible ones"
        ]

    def summary(self) -> str:
        """Return the numbers of the run, and a line for each visible direction, the most visible first."""
        K = len(self.directions)
        lines = [
            f"{self.brief}; effective rank {self.effective_rank:.1f}",
            f"attributes: {', '.join(self.covered) or 'none'}",
            f"RCA {_words(self.accuracy, self.accuracy_interval)} over all, "
            f"{_words(self.accuracy_visible, self.accuracy_visible_interval)} over the visible ones, "
            f"n = {self.pairs:,}, chance {1 / K:.3f}",
            f"specificity {self.specificity:.2f}, oddness {_words(self.oddness, self.oddness_interval)}, "
            f"kept at S/2 {_words(self.kept_half, self.kept_half_interval)}",
        ]
        seen = sorted((each for each in self.directions if each.visible), key=lambda each: -each.visible_change)
        return "\n".join([*lines, *map(self._line, seen)])

    def _line(self, each: MeasuredDirection) -> str:
        name = each.proposed or "no name"
        by_eye = f' ("{each.name}")' if each.name else ""
        effect = "" if each.leading is None else f", {each.effects.effect[each.leading]:+.1f} sd"
        return f"{each.direction:>3}: {name}{by_eye}{effect}, visible change {each.visible_change:.2f}"

    def table(self) -> "DataFrame":
        """Return the numbers of each direction, with its effect on each attribute, a row a direction."""
        import pandas as pd

        return pd.DataFrame([self._row(each) for each in self.directions])

    def _row(self, each: MeasuredDirection) -> dict[str, Any]:
        leading = None if each.leading is None else self.attributes[each.leading].name
        low, high = each.visible_change_interval
        return {
            "direction": each.direction,
            "name": each.name,
            "proposed": each.proposed,
            "visible": each.visible,
            "visible_change": each.visible_change,
            "low": low,
            "high": high,
            "change": each.change,
            "accuracy": each.accuracy,
            "oddness": each.oddness,
            "leading": leading,
            "specificity": each.specificity,
            **{f"kept_{s:g}": share for s, share in zip(self.magnitudes, each.kept, strict=True)},
            "cluster": each.cluster,
            **{f"{one.of}: {one.name}": value for one, value in zip(self.attributes, each.effects.effect, strict=True)},
            "n": self.n,
        }


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
    result = _result(run, sets, classifier, seen, values, classes[:samples], ranking, np.array(s), seed)
    chosen = choose_x_T(run, 1, seed).indices
    strips = run.traverse(examples=chosen, samples=2 * len(MAGNITUDES) + 1, seed=seed, source=source)
    details = {"classifier_sha256": sha256(file)} if file else {}
    return replace(
        result,
        strips=strips.images[:, 0],
        provenance=origin.finished(n=samples, pairs=ranking.n, **details),
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
    s: Array,
    seed: int,
) -> Attributes:
    """Return the numbers from what was seen, each field [n, K, ...], and raw attributes [N, J] and classes."""
    n, K = seen.visible_change.shape
    measured = _measured_attributes(sets, raw)
    unit = np.array([each.natural for each in measured])
    changes = Changes(s, raw[:n] / unit, seen.attributes / unit)
    found = effects(changes, seed)
    specific, leads = specificity(found, raw), leading(found, raw)
    weights = resampled(n, seed)
    is_visible = seen.visible_change.mean(0) >= VISIBLE
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


def _words(value: float, interval: tuple[float, float]) -> str:
    """Return a number with its interval."""
    if np.isnan(value):
        return "not measured"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
