"""Comparison of runs: the same measurements of each, and what differs for certain.

Where two runs have the same diffusion model, K and magnitudes, both are measured on the same x_T, k and s, and the
differences are taken pair by pair; else the two sets of pairs are independent. Intervals are bootstrapped and tests are
permutations, both SciPy's; distances have the jackknife of :mod:`hbench.evaluation.frechet`. All tests of one
comparison are corrected together by Holm's method (Holm 1979).
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from hbench.core.intervals import Array, Bounds, holm, jackknife, mean_of, student, wilson
from hbench.core.sampler import BATCH
from hbench.errors import HBenchError, check_at_least, check_seed, check_type
from hbench.evaluation.attributes.heads import predicted_classes
from hbench.evaluation.classifier_distance import pair_distances
from hbench.evaluation.curves import differences as settings_in_words
from hbench.evaluation.frechet import stored_reference
from hbench.evaluation.rca import Answers, answers
from hbench.evaluation.run_comparison import Difference, Measured, RunComparison, Verdict
from hbench.evaluation.sampling import Pairs, batches_of, draw_pairs
from hbench.evaluation.visible import Seen, enough, look
from hbench.models.classifier import ClassifierNetwork
from hbench.runtime.progress import progress
from hbench.store.classifier import classifier_for, load_classifier
from hbench.store.directions import direction_source
from hbench.store.files import sha256
from hbench.store.provenance import provenance
from hbench.store.run import Run

ALPHA = 0.05
"""Share of comparisons of equal runs in which anything is found, at most."""
RESAMPLES = 4999
"""Number of permutations of a test and of resamples of an interval, at least."""


class _Of(NamedTuple):
    """What was measured on one run."""

    answers: Answers
    seen: Seen
    """What is seen of the directions on some samples, [n, K] each."""
    change: Array
    """Mean change of the pixels of each pair, as a share of the range, [n]."""
    kept: Array | None
    """Share of factors whose class each pair keeps, [n]; None without a classifier."""
    ratio: tuple[float, Array] | None
    """FD of shifted over that of raw samples, and its jackknife's replicates; None without a classifier."""


@torch.no_grad()
def compare(runs: Mapping[str, Run], *, pairs: int = 1000, seed: int = 0) -> RunComparison:
    """Measure runs alike and compare each with the first one.

    Cost: for each run two chains a pair, and up to 48 chains a direction.

    Args:
        runs: two or more runs by name.
        pairs: number of fresh pairs of each run, at least 2. With a classifier at hand, distances need more than its
            120 features; fewer leave them out.
        seed: seed of x_T, k and s, and of bootstraps and permutations.

    Raises:
        TypeError: not a run.
        ValueError: fewer than two runs or pairs, or a seed out of range.
        HBenchError: the runs are of different images, on which no number compares.
    """
    for run in runs.values():
        check_type(Run, "as load_run returns it", run=run)
    if len(runs) < 2:
        raise ValueError(f"runs must be two or more, got {len(runs)}")
    check_at_least(2, pairs=pairs)
    check_seed(seed)
    names, loaded = list(runs), list(runs.values())
    first = loaded[0]
    for name, run in runs.items():
        check_comparable(names[0], first, name, run)
    origin = provenance(
        first.experiment,
        first.device,
        seed,
        weights_sha256=first.hashes,
        runs=[{"run": name, "weights_sha256": run.hashes} for name, run in runs.items()],
    )
    # one classifier for all, which may lie beside any of the runs: their images are the same
    files = (classifier_for(run.experiment, run.folder) for run in loaded)
    file = next(filter(None, files), None)
    found = [_measure(run, file, pairs, seed) for run in progress(loaded, desc="compare", unit="run")]
    measured, differences, directions = [], [], []
    tables = [_metrics(run, each) for run, each in zip(loaded, found, strict=True)]
    resamples = resamples_for((len(loaded) - 1) * (len(tables[0]) + first.K))
    for name, table in zip(names, tables, strict=True):
        measured += [metric.measured(name) for metric in table]
    for name, run, each, table in list(zip(names, loaded, found, tables, strict=True))[1:]:
        paired = same_pairs(first, run)
        for one, other in zip(tables[0], table, strict=True):
            reason = not_comparable(one.name, first, run)
            differences.append(
                _undefined(name, one.name, reason) if reason else one.difference(other, name, paired, seed, resamples)
            )
        if paired and _tensors(first.shift_block) == _tensors(run.shift_block):
            directions += _by_direction(name, found[0].answers, each.answers, seed, resamples)
    corrected = _corrected([*differences, *directions], {each.name: each.better for each in tables[0]})
    return RunComparison(
        runs=names,
        settings=settings_in_words([run.experiment for run in loaded]),
        n=pairs,
        measured=measured,
        differences=corrected[: len(differences)],
        directions=corrected[len(differences) :],
        provenance=origin.finished(n=pairs, **({"classifier_sha256": sha256(file)} if file else {})),
    )


# What compares with what --------------------------------------------------------------------------------------------


def check_comparable(first_name: str, first: Run, name: str, run: Run) -> None:
    """Raise an HBenchError where two runs are of different images."""
    ours, theirs = first.experiment.data, run.experiment.data
    if (ours.dataset, ours.image_shape) != (theirs.dataset, theirs.image_shape):
        images = ["{} of {}x{}x{}".format(data.dataset, *data.image_shape) for data in (ours, theirs)]
        raise HBenchError(
            f"{name}: makes other images than {first_name}, {images[1]} and not {images[0]}: no number of both "
            "compares; give runs of the same images"
        )


def same_pairs(first: Run, run: Run) -> bool:
    """Return whether both runs are measured on the same raw samples, directions and magnitudes."""
    settings = [(each.K, each.S, each.min_magnitude) for each in (first.experiment.discovery, run.experiment.discovery)]
    same_chain = first.sampler.timesteps == run.sampler.timesteps
    return settings[0] == settings[1] and same_chain and _tensors(first.model) == _tensors(run.model)


def not_comparable(metric: str, first: Run, run: Run) -> str:
    """Return why a metric of two runs of the same images does not compare; empty where it does."""
    if metric in ("RCA", "RCA over visible directions") and first.K != run.K:
        return f"chance differs: K is {first.K} and {run.K}"
    if metric in ("error of s_hat / S", "change of pixels", "share of classes kept") and first.S != run.S:
        return f"magnitudes differ: S is {first.S:g} and {run.S:g}"
    return ""


def _tensors(network: nn.Module) -> str:
    """Return a SHA-256 of the weights of a network, those that are kept in 16 bits and others alike."""
    found = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        found.update(key.encode() + value.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()


# Measurements of one run --------------------------------------------------------------------------------------------


def _measure(run: Run, file: Path | None, pairs: int, seed: int) -> _Of:
    """Return what is compared, measured on one run, with the classifier in a file if there is one."""
    known = load_classifier(file) if file else None
    batches, change, kept, drawn = [], [], [], []
    for batch in progress(batches_of(pairs, BATCH // 2), desc="pairs", unit="batch"):
        found = draw_pairs(run, seed, batch[0], len(batch))
        batches.append(answers(run, found))
        x_0, x_0_shifted = found.x_0.clamp(-1, 1), found.x_0_shifted.clamp(-1, 1)
        change.append(((x_0_shifted - x_0).abs().mean((1, 2, 3)) / 2).cpu().double().numpy())
        if known:
            same = predicted_classes(known, x_0.cpu()) == predicted_classes(known, x_0_shifted.cpu())
            kept.append(same.double().mean(1).numpy())
        drawn.append(Pairs(*(value.cpu() for value in found)))
    ratio = None
    if file and pairs > ClassifierNetwork.FEATURES:
        raw, shifted = pair_distances(drawn, file, stored_reference(file))
        ratio = shifted.fd / raw.fd, np.array(shifted.replicates) / np.array(raw.replicates)
    return _Of(
        Answers(*(np.concatenate(column) for column in zip(*batches, strict=True))),
        look(run, direction_source(run), enough(pairs, run.K), seed),
        np.concatenate(change),
        np.concatenate(kept) if known else None,
        ratio,
    )


@dataclass(frozen=True)
class _Metric:
    """A metric of one run, as values whose mean it is, or as a number with its jackknife's replicates."""

    name: str
    better: Literal["higher", "lower", ""]
    values: Array
    """Values of the units, [n]; of the jackknife its replicates."""
    pairs: int | None = None
    """Number of pairs behind the jackknife; None for a mean."""
    whole: float | None = None
    """Number that the jackknife belongs to; None for a mean."""
    by_pair: bool = True
    """False if the units are directions, or pairs that depend on what is visible: those of two runs do not match."""

    def measured(self, run: str) -> Measured:
        """Return the metric of a run with its interval."""
        n = max(1, len(self.values)) if self.pairs is None else self.pairs
        return Measured(run=run, metric=self.name, better=self.better, value=self.mean, interval=self._interval(), n=n)

    @property
    def mean(self) -> float:
        """Value of the metric; nan where there is no unit."""
        if self.whole is not None:
            return self.whole
        return float(self.values.mean()) if len(self.values) else float("nan")

    def _interval(self) -> Bounds:
        if self.whole is None and np.isin(self.values, (0, 1)).all():  # a share, also where all or none are
            return wilson(int(self.values.sum()), len(self.values))
        low, high = student(self.values) if self.whole is None else jackknife(self.whole, self.values)
        return float(low), float(high)

    def difference(self, other: "_Metric", run: str, paired: bool, seed: int, resamples: int) -> Difference:
        """Return the other run's metric less this one, and p without correction."""
        paired = paired and self.by_pair and len(self.values) == len(other.values)
        if self.whole is not None and other.whole is not None:
            found = _by_jackknife(self.whole, self.values, other.whole, other.values)
        elif min(len(self.values), len(other.values)) < 2:
            return _undefined(run, self.name, "too few values: one of the runs has no visible direction")
        else:
            found = difference_of_means(self.values, other.values, paired, seed, resamples)
        return _uncorrected(run, self.name, paired, found)


def _metrics(run: Run, found: _Of) -> list[_Metric]:
    """Return the metrics of a run, the same ones for all runs of the same images."""
    given, S = found.answers, run.S
    right = (given.k == given.k_hat).astype(float)
    change, visible = found.seen.visible_change.mean(0), found.seen.visible
    seen = visible[given.k]  # of other pairs in another run, even where they are as many
    odd = mean_of(found.seen.oddness)
    metrics = [
        _Metric("RCA", "higher", right),
        _Metric("RCA over visible directions", "higher", right[seen], by_pair=False),
        _Metric("error of s_hat / S", "lower", given.magnitude_error / S),
        _Metric("share outside the domain", "lower", given.outside.astype(float)),
        _Metric("change of pixels", "", found.change),
        _Metric("share of visible directions", "higher", visible.astype(float), by_pair=False),
        _Metric("visible change", "", change, by_pair=False),
        _Metric("oddness", "higher", odd[np.isfinite(odd)], by_pair=False),
    ]
    if found.kept is not None:
        metrics.append(_Metric("share of classes kept", "higher", found.kept))
    if found.ratio is not None:
        ratio, replicates = found.ratio
        metrics.append(_Metric("FD shifted / raw", "lower", replicates, pairs=len(right), whole=ratio))
    return metrics


# Tests --------------------------------------------------------------------------------------------------------------


def resamples_for(tests: int) -> int:
    """Return the number of permutations of each of several tests, with which the smallest p survives the correction.

    No p of a two-sided test by n permutations is below 2 / (n + 1), and Holm's method multiplies it by ``tests``.
    """
    return max(RESAMPLES, math.ceil(2 / ALPHA * tests))


def difference_of_means(
    first: Array, other: Array, paired: bool, seed: int, resamples: int | None = None
) -> tuple[float, Bounds, float]:
    """Return the difference of two means, other less first, its 95 % interval, and p that there is none.

    Args:
        first: values of one run, [n], n of at least 2.
        other: values of the other one, of the same length where they are paired.
        paired: whether values of the same index belong together.
        seed: seed of bootstrap and permutations.
        resamples: number of resamples, and of permutations; RESAMPLES by default.
    """
    from scipy.stats import bootstrap, permutation_test

    difference = float(other.mean() - first.mean())
    if (paired and np.array_equal(first, other)) or (np.ptp(first) == np.ptp(other) == 0 and difference == 0):
        return 0.0, (0.0, 0.0), 1.0

    def less(other: Array, first: Array, axis: int = -1) -> Array:
        found: Array = other.mean(axis=axis) - first.mean(axis=axis)
        return found

    size = max(1, 2_000_000 // (len(first) + len(other)))  # resamples at once, of 16 MB
    drawn = {"vectorized": True, "n_resamples": resamples or RESAMPLES, "batch": size}
    bounds = bootstrap(
        (other, first), less, paired=paired, method="percentile", rng=np.random.default_rng(seed), **drawn
    ).confidence_interval
    p = permutation_test(
        (other, first),
        less,
        permutation_type="samples" if paired else "independent",
        rng=np.random.default_rng(seed),
        **drawn,
    ).pvalue
    return difference, (float(bounds.low), float(bounds.high)), float(p)


def _by_jackknife(first: float, without: Array, other: float, other_without: Array) -> tuple[float, Bounds, float]:
    """Return the same of two statistics with jackknife replicates: left out are the same pairs, or independent ones."""
    from scipy.stats import t

    difference = other - first
    low, high = (float(end) for end in jackknife(difference, other_without - without))
    groups = len(without)
    error = (high - low) / 2 / t.ppf(0.975, groups - 1)
    p = float(2 * t.sf(abs(difference) / error, groups - 1)) if error else float(difference == 0)
    return difference, (low, high), p


def _by_direction(run: str, first: Answers, other: Answers, seed: int, resamples: int) -> list[Difference]:
    """Return the differences in the accuracy of single directions of the same shift block on the same pairs."""
    found = []
    for k in np.unique(first.k):
        ours, theirs = ((each.k_hat[each.k == k] == k).astype(float) for each in (first, other))
        if len(ours) < 2:
            continue
        tested = difference_of_means(ours, theirs, True, seed, resamples)
        found.append(_uncorrected(run, f"RCA of direction {k}", True, tested))
    return found


def _uncorrected(run: str, metric: str, paired: bool, found: tuple[float, Bounds, float]) -> Difference:
    difference, interval, p = found
    return Difference(
        run=run,
        metric=metric,
        paired=paired,
        difference=difference,
        interval=interval,
        p=p,
        p_corrected=p,
        verdict="no difference",
        reason="",
    )


def _undefined(run: str, metric: str, reason: str) -> Difference:
    nothing = float("nan")
    return Difference(
        run=run,
        metric=metric,
        paired=False,
        difference=nothing,
        interval=(nothing, nothing),
        p=nothing,
        p_corrected=nothing,
        verdict="not comparable",
        reason=reason,
    )


def _corrected(found: list[Difference], better: Mapping[str, str]) -> list[Difference]:
    """Return differences with p corrected over all of them, and with the verdict that follows."""
    indices = [i for i, each in enumerate(found) if not each.reason]
    result = list(found)
    for i, p in zip(indices, holm(np.array([found[i].p for i in indices])), strict=True):
        each = found[i]
        result[i] = replace(each, p_corrected=float(p), verdict=_verdict(each, p, better.get(each.metric, "higher")))
    return result


def _verdict(found: Difference, p: float, better: str) -> Verdict:
    """Return what a corrected p says, by the end at which a run is better."""
    if p >= ALPHA:
        return "no difference"
    if not better:
        return "differs"
    return "better" if (found.difference > 0) == (better == "higher") else "worse"
