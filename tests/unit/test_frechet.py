import pytest
import torch

from hbench.errors import HBenchError
from hbench.evaluation.fid import fidelity
from hbench.evaluation.frechet import Reference, distance, frechet_distance, real_reference, statistics


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
