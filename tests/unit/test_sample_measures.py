"""The measures of a model's samples, on sets of images and features that are known."""

import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from hbench.core.images import to_float
from hbench.errors import HBenchError
from hbench.evaluation import nearest
from hbench.evaluation.balance import balances
from hbench.evaluation.nearest import SAME, find_nearest, summarised, threshold_of
from hbench.evaluation.precision_recall import precision_recall
from hbench.store.labels import Factor, Labels

CPU = torch.device("cpu")
FACTORS = (Factor("colour", ("red", "green", "blue")), Factor("hat", ("no", "yes")))


def normal(n, size=6, seed=0):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def test_precision_and_recall_are_those_of_torch_fidelity():
    samples, real = 1.2 * normal(150), normal(200, seed=1)
    found = precision_recall(samples, real)
    theirs = prc_features_to_metric(
        samples, real, prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False
    )
    assert (found.precision, found.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert (found.n, found.n_real) == (150, 200)
    for value, (low, high) in ((found.precision, found.precision_interval), (found.recall, found.recall_interval)):
        assert 0 <= low < value < high <= 1


def test_precision_falls_with_strange_samples_and_recall_with_few_kinds():
    real = normal(300)
    like, strange = precision_recall(normal(300, seed=1), real), precision_recall(3 * normal(300, seed=1), real)
    few_kinds = precision_recall(0.2 * normal(300, seed=1), real)
    assert min(like.precision, like.recall) > 0.8
    assert strange.precision < 0.2
    assert (few_kinds.precision > 0.95, few_kinds.recall < 0.2) == (True, True)


def test_the_interval_of_the_recall_is_about_as_wide_as_the_recall_varies():
    real = normal(200)
    found = [precision_recall(normal(150, seed=seed), real) for seed in range(1, 31)]
    spread = torch.tensor([each.recall for each in found]).std() * 2.09  # Student's t of 19 degrees
    half = torch.tensor([(high - low) / 2 for each in found for low, high in [each.recall_interval]]).mean()
    assert 0.8 < half / spread < 2


def test_too_few_images_have_no_third_neighbour():
    with pytest.raises(HBenchError, match="too few images for a neighbour 3 of each"):
        precision_recall(normal(4), normal(20))
    with pytest.raises(HBenchError, match="too few images"):
        precision_recall(normal(20), normal(3))
    assert precision_recall(normal(6), normal(6)).precision == 1


def labels(*columns):
    return Labels(FACTORS, torch.stack([torch.as_tensor(column) for column in columns], dim=1))


def drawn(n, shares, seed):
    return torch.multinomial(torch.tensor(shares), n, replacement=True, generator=torch.Generator().manual_seed(seed))


def test_classes_that_are_too_frequent_are_found_and_chance_is_not():
    real = labels(drawn(3000, [0.5, 0.3, 0.2], 0), drawn(3000, [0.8, 0.2], 1))
    samples = labels(drawn(1000, [0.2, 0.3, 0.5], 2), drawn(1000, [0.8, 0.2], 3))
    counts = real.counts()
    assert ([len(each) for each in counts], [int(each.sum()) for each in counts]) == ([3, 2], [3000, 3000])
    colour, hat = balances(samples, counts, seed=0)
    assert (colour.factor, colour.classes[colour.most], colour.classes[colour.least]) == ("colour", "blue", "red")
    assert colour.distance == pytest.approx(0.3, abs=0.05)
    assert colour.distance_interval[0] < 0.3 < colour.distance_interval[1]
    assert (colour.is_off, hat.is_off) == (True, False)
    assert 0 < hat.floor < hat.floor_high < 0.05
    assert [low < share < high for share, (low, high) in zip(hat.shares, hat.intervals, strict=True)] == [True, True]
    assert balances(samples, counts, seed=0) == [colour, hat]
    assert sum(colour.real) == pytest.approx(1)


def test_few_samples_are_far_off_by_chance_alone():
    real = labels(drawn(3000, [0.5, 0.3, 0.2], 0), drawn(3000, [0.8, 0.2], 1))
    (few, _), (many, _) = (balances(real.of(torch.arange(n)), real.counts(), seed=0) for n in (20, 2000))
    assert few.floor > 5 * many.floor
    assert not few.is_off


def pictures(n, seed=0):
    return torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_nearest_training_images_are_the_nearest(monkeypatch):
    monkeypatch.setattr(nearest, "CHUNK", 7)
    images, training = pictures(9), pictures(30, seed=1)
    found = find_nearest(images, training, CPU)
    every = torch.cdist(to_float(images).flatten(1).double(), to_float(training).flatten(1).double()) / 4
    assert torch.equal(found.number, every.argmin(1))
    assert torch.allclose(found.distance.double(), every.amin(1), atol=1e-6)
    assert torch.equal(found.images(training), training[found.number])


def test_copies_are_found_mirrored_ones_where_the_model_saw_them():
    training = pictures(30)
    copies = torch.cat([training[3:5], training[8:9].flip(-1)])
    seen = find_nearest(copies, training, CPU, mirror=True)
    assert (seen.number.tolist(), seen.mirrored.tolist()) == ([3, 4, 8], [False, False, True])
    assert seen.distance.tolist() == [0, 0, 0]
    assert torch.equal(seen.images(training), copies)
    assert find_nearest(copies, training, CPU).distance.tolist()[2] > 0.1


def test_very_near_is_what_hardly_any_test_image_is():
    distances = torch.linspace(0.1, 1.1, 1001)
    near = threshold_of(distances)
    assert near == pytest.approx(0.11)
    tested = summarised(distances, near)
    assert tested.near == pytest.approx(0.01, abs=0.002)
    assert (tested.lower, tested.median, tested.upper) == pytest.approx((0.35, 0.6, 0.85))
    assert summarised(torch.full((50,), 0.05), near).near_interval[0] > 0.9


def test_drawn_images_that_repeat_hide_no_copies():
    """Where test images are copies themselves, the first percentile is 0, and a copy with a little noise above it."""
    distances = torch.cat([torch.zeros(30), torch.linspace(0.2, 0.5, 970)])
    near = threshold_of(distances)
    assert near == SAME
    assert summarised(distances, near).near == pytest.approx(0.03)
    training = pictures(30)
    noisy = (training.int() + torch.randint(-5, 6, training.shape)).clamp(0, 255).to(torch.uint8)
    assert summarised(find_nearest(noisy, training, CPU).distance, near).near == 1
