import numpy as np
import pytest
import torch

from hbench.errors import HBenchError
from hbench.evaluation.fid import Fidelity, fidelity
from hbench.evaluation.frechet import (
    Reference,
    distance,
    extrapolated,
    frechet_distance,
    ratio_at_infinity,
    real_reference,
    statistics,
)


def test_frechet_distance_in_closed_form():
    found = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    a, b = statistics(found), statistics(found + 5)
    assert frechet_distance(a, b) == pytest.approx(8 * 25, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, statistics(2 * found)) == pytest.approx(
        float(found.mean(0).square().sum() + found.var(0).sum()), rel=1e-5
    )
    with pytest.raises(HBenchError, match="use more samples"):
        statistics(found[:1])


def test_the_interval_covers_the_distance_of_other_samples():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(4000, 4, generator=generator)
    stats = statistics(real)
    reference = Reference(stats, len(real), 0.0, None)  # no features: no KID
    truth = frechet_distance(statistics(torch.randn(200_000, 4, generator=generator) + 1), stats)
    covered = 0
    for _ in range(60):
        low, high = distance(torch.randn(800, 4, generator=generator) + 1, reference).interval
        covered += low < truth < high
    assert covered >= 50  # 57 expected; below 50 has a probability of 1 in 1,000


def test_the_floor_is_that_of_halves_and_its_interval_is_about_their_size():
    found = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    reference = real_reference(found)
    low, high = reference.halves_interval
    assert low < reference.halves < high < 0.1
    assert reference.features is found
    with pytest.raises(HBenchError, match="at least 6"):
        real_reference(found[:5])


def test_the_jackknife_leaves_groups_out_as_torch_fidelity_would():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator)
    for count in (7, 45, 400):  # the first with a covariance that is not of full rank
        found, real = (torch.randn(n, 12, generator=generator) @ mixing for n in (count, 600))
        reference = Reference(statistics(real), len(real), 0.0, None)
        group = torch.arange(count) % 20
        expected = [
            frechet_distance(statistics(found[group != g]), reference.statistics) for g in range(min(20, count))
        ]
        assert distance(found, reference).replicates == pytest.approx(expected, rel=1e-5)
    with pytest.raises(HBenchError, match="use more samples"):
        distance(torch.randn(2, 3), Reference(statistics(torch.randn(9, 3)), 9, 0.0, None))


def test_the_interval_of_the_ratio_covers_it():
    generator = torch.Generator().manual_seed(0)
    stats = statistics(torch.randn(4000, 4, generator=generator))
    reference = Reference(stats, 4000, 0.0, None)

    def pair(n):
        raw = torch.randn(n, 4, generator=generator) + 1
        return raw, 0.9 * raw + 0.3 * torch.randn(n, 4, generator=generator) + 0.5

    fds = [frechet_distance(statistics(part), stats) for part in pair(200_000)]
    covered = 0
    for _ in range(60):
        low, high = fidelity(*pair(800), reference, "FD").ratio_interval
        covered += low < fds[1] / fds[0] < high
    assert covered >= 50  # 57 expected; below 50 has a probability of 1 in 1,000


SIZE = 30


def gaussians(seed=0):
    """Return a reference with known moments, a generator of samples with others, and their distance in closed form."""
    generator = torch.Generator().manual_seed(seed)
    variances = 1 / torch.arange(1, SIZE + 1).double()
    scales = torch.rand(SIZE, generator=generator).double() + 0.5
    shift = 0.3 * variances.sqrt() * torch.randn(SIZE, generator=generator).double()
    reference = Reference({"mu": np.zeros(SIZE), "sigma": np.diag(variances.numpy())}, 10_000, 0.0, None)
    truth = float(shift.square().sum() + (variances * (1 - scales.sqrt()).square()).sum())

    def draw(n):
        return shift + (variances * scales).sqrt() * torch.randn(n, SIZE, generator=generator).double()

    return reference, draw, truth


@pytest.mark.slow
@pytest.mark.parametrize("n", [40, 150, 400, 1000])
def test_the_interval_at_infinity_covers_the_distance_of_infinitely_many_samples(n):
    reference, draw, truth = gaussians()
    found = [distance(draw(n), reference) for _ in range(150)]
    covered = sum(each.infinity_interval[0] < truth < each.infinity_interval[1] for each in found)
    assert covered >= 132  # 142 expected; below 132 has a probability of 1 in 1,000
    assert np.mean([each.infinity for each in found]) == pytest.approx(truth, abs=0.1 * (found[0].fd - truth) + 0.01)
    if n <= 150:
        assert not any(each.interval[0] < truth < each.interval[1] for each in found)  # n samples are another question


@pytest.mark.slow
def test_the_interval_of_the_ratio_at_infinity_covers_it():
    reference, draw, truth = gaussians()
    further = torch.zeros(SIZE).double()
    further[0] = 0.6
    shift = draw(1_000_000).mean(0)
    ratio = (truth + float((shift + further).square().sum() - shift.square().sum())) / truth
    results = [fidelity(raw, raw + further, reference, "FD") for raw in (draw(150) for _ in range(150))]
    known = [each.ratio_infinity_interval for each in results if each.ratio_infinity_interval]
    assert len(known) >= 140
    covered = sum(low < ratio < high for low, high in known)
    assert covered >= 0.88 * len(known)  # 95 % expected; below that has a probability of 1 in 1,000
    assert np.mean([each.ratio for each in results]) < 0.8 * ratio  # few samples pull the other one to 1


def test_extrapolation_is_the_line_over_1_by_m_where_samples_are_many():
    fd = {n: 0.2 + 90 / n for n in (10_000, 9_500)}
    spread = 0.001 * np.array([1, -1] * 10)
    values = extrapolated(fd[10_000], fd[9_500] + spread, 10_000, 120)
    assert values.mean() == pytest.approx(0.2, rel=1e-4)
    assert values.std() == pytest.approx(0.019, rel=1e-6)
    assert extrapolated(fd[10_000], [fd[9_500]] * 20, 126, 120) is None  # 126 - 126 / 20 < 120
    assert ratio_at_infinity(None, None) == (None, None)


def test_no_distance_lies_below_0():
    real = torch.randn(1500, 8, generator=torch.Generator().manual_seed(0)).double()
    reference = real_reference(real)
    found = [distance(part, reference) for part in real.split(150)]
    assert all(each.infinity >= 0 and each.infinity_interval[0] >= 0 and each.interval[0] >= 0 for each in found)
    assert any(each.infinity_interval[0] == 0 for each in found)
    assert min(reference.halves_interval) >= 0


def test_cautions_say_which_distances_compare():
    reference, draw, _ = gaussians()
    few, many = (fidelity(draw(n), draw(n), reference, "FD (LeNet digits)") for n in (150, 6000))
    assert "compare only with others of n = 150, not of n = 10,000" in few.cautions()[0]
    assert "or KID (LeNet digits)" in few.cautions()[0]
    assert many.cautions() == []
    assert "not known at infinity" in fidelity(draw(30), draw(30), reference, "FD").summary()
    assert [line for line in few.summary().splitlines() if "at n = 150," in line and "at infinity" in line]
    small = Reference(reference.statistics, 400, 0.4, None)
    assert "about 0.100 of every FD" in fidelity(draw(6000), draw(6000), small, "FD").cautions()[-1]
    assert (few.kid_metric, fidelity(draw(150), draw(150), reference, "FID").kid_metric) == (
        "KID (LeNet digits)",
        "KID",
    )


def test_files_without_an_extrapolation_get_that_of_their_replicates():
    reference, draw, _ = gaussians()
    raw = draw(200)
    for shifted in (raw + 0.1, raw):
        result = fidelity(raw, shifted, reference, "FD")
        old = {key: value for key, value in result.to_json().items() if not key.startswith("ratio_infinity")}
        for kind in ("raw", "shifted"):
            old[kind] = {key: value for key, value in old[kind].items() if not key.startswith("infinity")}
        assert Fidelity.from_json(old | {"schema": 1}, "fid.json") == result
