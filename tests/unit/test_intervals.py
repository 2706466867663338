import math

import numpy as np
import pytest

from hbench.core.intervals import (
    batch_means,
    fieller,
    jackknife,
    student,
    student_of_logarithms,
    student_of_shares,
    wilson,
)


def test_wilson_by_hand():
    low, high = wilson(8, 10)  # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 5)[0] == 0
    assert all(math.isnan(bound) for bound in wilson(0, 0))


def test_student_by_hand():
    low, high = student([1.0, 2.0, 3.0])  # 2 ± 4.303 * 1 / sqrt(3)
    assert (low, high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    low, high = student(np.ones((4, 2)))
    assert low.tolist() == high.tolist() == [1, 1]
    assert np.isnan(student([5.0])).all()


def test_intervals_of_few_positive_numbers_and_shares_stay_in_their_range():
    assert student([0.518, 1.646, 1.672])[0] < 0  # three real FDs of a distance that cannot be negative
    low, high = student_of_logarithms([0.518, 1.646, 1.672])
    assert 0 < low < 0.518
    assert high > 1.672
    assert student_of_logarithms([1, math.e, math.e**2]) == pytest.approx(
        (math.exp(1 - 2.484), math.exp(1 + 2.484)), rel=1e-3
    )
    low, high = student_of_shares([0.9, 0.99, 0.999], 1000)
    assert 0 < low < 0.9
    assert 0.999 < high < 1
    assert student_of_shares([0.0, 0.0], 1000) == (0, pytest.approx(0.0005))
    assert math.isnan(student_of_shares([0.5], 10)[0])


def test_fieller_solves_the_inequality_and_knows_when_there_is_no_bound():
    rng = np.random.default_rng(0)
    bottoms = rng.normal(2, 1, 20)
    tops = 1.5 * bottoms + rng.normal(0, 0.5, 20)
    for ratio in fieller(tops, bottoms):  # at its ends the mean of tops - ratio * bottoms is just told from 0
        low, high = student(tops - ratio * bottoms)
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-12)
    covered = 0
    for _ in range(300):
        bottoms = rng.normal(1, 1.5, 20)
        found = fieller(1.5 * bottoms + rng.normal(0, 1, 20), bottoms)
        covered += found is None or found[0] < 1.5 < found[1]
    assert covered >= 271  # 285 expected; below 271 has a probability of 1 in 1,000
    assert fieller([1, 1, 1], [1, -1, 0.1]) is None
    assert fieller([1], [1]) is None


def test_the_jackknife_of_a_mean_over_single_values_is_students():
    values = np.random.default_rng(0).normal(size=(12, 3))
    without = np.stack([np.delete(values, i, axis=0).mean(0) for i in range(12)])
    np.testing.assert_allclose(jackknife(values.mean(0), without), student(values))


def test_batch_means_cover_the_mean_of_a_dependent_series():
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(200):
        series = np.empty(1000)
        value = rng.normal() / math.sqrt(1 - 0.8**2)
        for i in range(len(series)):
            value = 0.8 * value + rng.normal()
            series[i] = value
        low, high = batch_means(series)
        covered += low < 0 < high
        low, high = student(series)
        naive += low < 0 < high
    assert covered >= 178  # 190 expected; below 178 has a probability of 1 in 1,000
    assert naive < 140  # what independence would have claimed
    assert all(math.isnan(bound) for bound in batch_means(series[:19]))
