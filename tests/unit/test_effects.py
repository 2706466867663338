"""Statistics of what directions do to attributes, on moves that are known."""

import numpy as np
import pytest

from hbench.evaluation.attributes.effects import (
    Changes,
    clusters,
    correlations,
    effective_rank,
    effects,
    holm,
    leading,
    percentile_interval,
    resampled,
    specificity,
)

S = np.array([-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0])


def changes(moves, n=60, noise=0.0, seed=0):
    """Return the changes of moves [K][J], functions of (s, random number of the sample) -> move."""
    random = np.random.default_rng(seed)
    raw = random.normal(size=(n, len(moves[0])))
    u = random.uniform(size=n)
    shifted = np.empty((n, len(moves), len(S), raw.shape[1]))
    for k, row in enumerate(moves):
        for j, move in enumerate(row):
            shifted[:, k, :, j] = raw[:, [j]] + np.stack([move(S, one) + 0 * S for one in u])
    of_class = np.zeros(raw.shape[1], dtype=bool)
    return Changes(S, raw, shifted + noise * random.normal(size=shifted.shape), of_class)


def leader(found, raw, general=()):
    """Return the attribute that leads each direction; those of any image are the ``general`` ones."""
    return leading(found, raw, np.isin(np.arange(raw.shape[1]), general)).tolist()


def specificities(known, raw):
    found = effects(known)
    return specificity(found, raw, np.array(leader(found, raw)))


def still(s, u):
    return 0 * s


def test_a_linear_move_has_its_size_its_sign_and_a_perfect_shape():
    known = changes([[lambda s, u: -2 * s, still]])
    found = effects(known)
    assert found.effect[0].tolist() == pytest.approx([-2, 0])
    assert found.sign_share[0, 0] == found.monotone_share[0, 0] == 1
    assert found.common[0, 0] == pytest.approx(1)
    assert found.linear[0, 0] == pytest.approx(1)
    assert found.passes.tolist() == [[True, False]]
    assert leader(found, known.raw) == [0]
    assert found.curve[0, :, 0] == pytest.approx(-2 * S)


def test_what_both_signs_do_alike_is_no_effect():
    known = changes([[lambda s, u: 3 * np.abs(s), still]], noise=0.1)
    found = effects(known)
    assert abs(found.effect[0, 0]) < 0.1
    assert found.even[0, 0] == pytest.approx(3, abs=0.1)
    assert leader(found, known.raw) == [-1]


def test_a_move_whose_sign_differs_between_samples_does_not_lead():
    known = changes([[lambda s, u: (4 if u < 0.7 else -4) * s, still]], n=400)
    found = effects(known)
    assert found.sign_share[0, 0] == pytest.approx(0.7, abs=0.06)
    assert found.effect[0, 0] > 1
    assert leader(found, known.raw) == [-1]


def test_samples_whose_attribute_is_not_defined_are_left_out():
    known = changes([[lambda s, u: 2 * s, lambda s, u: s]])
    known.raw[:10, 0] = np.nan
    known.shifted[10:20, 0, 3, 0] = np.nan
    known.shifted[:, 0, :, 1] = np.nan
    found = effects(known)
    assert found.effect[0, 0] == pytest.approx(2)
    assert found.monotone_share[0, 0] == 1
    assert np.isnan(found.effect[0, 1])
    assert leader(found, known.raw) == [0]


def test_the_interval_covers_the_mean_as_often_as_it_says():
    hits = []
    for seed in range(200):
        found = effects(changes([[lambda s, u: s * (1 + u)]], n=40, noise=0.5, seed=seed), seed)
        hits.append(found.low[0, 0] <= 1.5 <= found.high[0, 0])
    assert 0.88 <= np.mean(hits) <= 0.99


def test_a_jump_is_monotone_but_not_linear():
    found = effects(changes([[lambda s, u: 2 * np.sign(s) * (np.abs(s) > 0.6) + 0.01 * s]]))
    assert found.monotone_share[0, 0] == 1
    assert found.linear[0, 0] < 0.9


def test_of_attributes_that_are_the_same_thing_the_first_leads():
    known = changes([[lambda s, u: 3 * s, lambda s, u: 4 * s, lambda s, u: 5 * s]], n=300)
    twins = known.raw.copy()
    twins[:, 1] = twins[:, 2] + 0.1 * twins[:, 1]
    assert leader(effects(known), known.raw) == [2]
    assert leader(effects(known), twins) == [1]


def test_an_attribute_of_any_image_leads_only_where_no_other_passes():
    known = changes([[lambda s, u: 5 * s, lambda s, u: 2 * s], [lambda s, u: 5 * s, still]], n=300)
    assert leader(effects(known), known.raw) == [0, 0]
    assert leader(effects(known), known.raw, general=[0]) == [1, 0]


def test_a_class_that_samples_have_already_need_not_be_gained_by_all():
    """Half of the samples have it: up they stay, down they lose it; the others gain it up and stay down."""
    known = changes([[lambda s, u: 1.2 * s * ((s > 0) == (u > 0.5))]], n=300)
    found = effects(known)
    assert found.effect[0, 0] == pytest.approx(0.6)
    assert found.common[0, 0] < 0.55
    assert leader(found, known.raw) == [-1]
    assert leader(effects(known._replace(of_class=np.array([True]))), known.raw) == [0]


def test_specificity_leaves_out_what_is_the_same_thing_in_raw_samples():
    known = changes([[lambda s, u: 4 * s, lambda s, u: 4 * s, lambda s, u: s]], n=300)
    assert specificities(known, known.raw)[0] == pytest.approx(4 / 2.5, rel=1e-6)
    twins = known.raw.copy()
    twins[:, 1] = twins[:, 0] + 0.1 * twins[:, 1]
    assert correlations(twins)[0, 1] > 0.9
    assert specificities(known, twins)[0] == pytest.approx(4, rel=1e-6)


def test_specificity_is_undefined_where_nothing_leads_or_nothing_else_moves():
    known = changes([[still, still], [lambda s, u: 2 * s, still]])
    assert np.isnan(specificities(known, known.raw)).all()


def test_directions_that_do_the_same_thing_are_one_cluster_whatever_their_sign():
    a, b = np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0.2, 0])
    assert clusters(np.stack([b, a, -3 * a, b + 0.1 * a])).tolist() == [0, 1, 1, 0]
    assert clusters(a[None]).tolist() == [0]
    assert clusters(np.empty((0, 4))).tolist() == []


def test_the_effective_rank_counts_independent_directions_alike():
    assert effective_rank(np.diag([1.0, 5, 20])) == pytest.approx(3)
    assert effective_rank(np.ones((4, 7))) == pytest.approx(1)
    assert effective_rank(np.empty((0, 7))) == 0


def test_holm_corrects_as_in_the_paper():
    corrected = holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
    assert corrected == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)


def test_pure_noise_is_hardly_ever_certain():
    certain = [effects(changes([[still] * 5] * 8, n=30, noise=1, seed=i), i).certain.any() for i in range(60)]
    assert np.mean(certain) < 0.15


def test_a_percentile_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    low, high = percentile_interval(values, resampled(400, 0))
    assert low == pytest.approx(values.mean() - 1.96 * 0.1, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * 0.1, abs=0.03)
