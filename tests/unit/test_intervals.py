import math

import numpy as np
import pytest

from hbench.core.intervals import batch_means, jackknife, student, wilson


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
