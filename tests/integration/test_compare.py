"""``hbench compare``: what it finds, what it does not, and what it refuses."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import invoke, refused, tiny_options

import hbench.evaluation.compare as module
from hbench.config import Paper
from hbench.evaluation.compare import compare, difference_of_means, not_comparable, same_pairs
from hbench.evaluation.run_comparison import RunComparison
from hbench.evaluation.sampling import draw_pairs
from hbench.evaluation.visible import Seen
from hbench.experiments import override
from hbench.reporting.artifacts import plot
from hbench.reporting.rows import comparison_rows
from hbench.store.files import sha256
from hbench.store.run import load_run
from hbench.store.shipped import shipped_runs


@pytest.fixture(scope="module")
def run(tiny_run):
    return load_run(tiny_run, device="cpu")


def with_settings(run, *overrides):
    return replace(run, experiment=override(run.experiment, overrides))


def damaged(run):
    """Return the run with a reconstructor that takes each direction for the next one."""
    reconstructor = copy.deepcopy(run.reconstructor)
    last = reconstructor.direction[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.roll(1, 0))
        last.bias.copy_(last.bias.roll(1, 0))
    return replace(run, reconstructor=reconstructor)


def test_a_run_does_not_differ_from_itself(run, monkeypatch):
    monkeypatch.setattr(module, "resamples_for", lambda tests: 99)
    for seed in range(20):
        result = compare({"a": run, "b": run}, pairs=4, seed=seed)
        assert result.found == []
        compared = [each for each in result.differences if each.verdict != "not comparable"]
        assert all(each.p_corrected == 1 and each.interval == (0, 0) for each in compared if each.paired)
    assert result.directions  # the same shift block
    assert "no difference is certain" in result.summary()


@pytest.mark.parametrize("paired", [True, False])
def test_tests_are_wrong_as_seldom_and_intervals_cover_as_often_as_they_say(paired, monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 399)
    found, covered, trials = 0, 0, 200
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        common = rng.normal(size=60) if paired else 0
        first, other = common + rng.normal(size=60), common + rng.normal(size=60)
        difference, (low, high), p = difference_of_means(first, other, paired, seed)
        assert difference == pytest.approx(other.mean() - first.mean())
        found += p < 0.05
        covered += low <= 0 <= high
    assert 2 <= found <= 20  # 10 expected, 3 standard deviations
    assert 0.90 <= covered / trials <= 0.99


def test_pairs_find_what_independent_values_hide():
    rng = np.random.default_rng(0)
    common = 5 * rng.normal(size=200)
    first, other = common, common + 0.3 + 0.5 * rng.normal(size=200)
    _, (low, high), p = difference_of_means(first, other, True, 0)
    assert p < 0.001
    assert low < 0.3 < high
    assert high - low < 0.2
    assert difference_of_means(first, other, False, 0)[2] > 0.2
    assert difference_of_means(first, first - 100, False, 0)[1][1] < -98


def test_values_without_spread_have_a_difference_all_the_same():
    assert difference_of_means(np.ones(5), np.ones(9), False, 0) == (0.0, (0.0, 0.0), 1.0)
    difference, bounds, p = difference_of_means(np.zeros(40), np.ones(40), True, 0)
    assert (difference, bounds) == (1.0, (1.0, 1.0))
    assert p < 0.001


def test_pairs_of_visible_directions_match_in_no_other_run_even_where_they_are_as_many(run, monkeypatch):
    """Direction 0 alone is seen in one run, direction 1 alone in the other: no pair of one is in the other."""
    changes = iter([(0.9, 0.0, 0.0), (0.0, 0.9, 0.0)])

    def look(run, source, samples, seed):
        return Seen(np.array([next(changes)] * 2), np.zeros((2, 3)))

    monkeypatch.setattr(module, "look", look)
    counts = {seed: draw_pairs(run, seed, 0, 12).k.bincount(minlength=3).tolist() for seed in range(20)}
    seed = next(seed for seed, (zeros, ones, _) in counts.items() if zeros == ones > 1)
    result = compare({"a": run, "b": damaged(run)}, pairs=12, seed=seed)
    assert result.value("a", "RCA over visible directions").n == result.value("b", "RCA over visible directions").n
    paired = {each.metric: each.paired for each in result.differences}
    assert paired["RCA"]
    assert not paired["RCA over visible directions"]


def test_a_share_of_none_has_an_interval(run):
    found = compare({"a": run, "b": run}, pairs=30).value("a", "share of visible directions")
    low, high = found.interval
    assert 0 <= low <= found.value <= high <= 1
    assert high - low > 0.2  # of three directions


def test_one_classifier_measures_all_runs_wherever_it_lies(run, classifier_file, monkeypatch):
    files = iter([None, classifier_file])
    monkeypatch.setattr(module, "classifier_for", lambda experiment, folder: next(files))
    result = compare({"a": run, "b": run}, pairs=4)
    assert result.value("a", "share of classes kept") == replace(result.value("b", "share of classes kept"), run="a")
    assert result.detail("classifier_sha256") == sha256(classifier_file)


def test_a_metric_has_the_n_of_its_units(run, monkeypatch):
    def look(run, source, samples, seed):
        return Seen(np.full((2, 3), 0.9), np.array([[1.0, 0.5, np.nan]] * 2))

    monkeypatch.setattr(module, "look", look)
    result = compare({"a": run, "b": run}, pairs=4)
    assert result.value("a", "visible change").n == 3
    assert result.value("a", "oddness").n == 2  # one of the directions changes nothing
    certain = replace(result.differences[0], metric="oddness", difference=0.5, verdict="better")
    paired = replace(certain, metric="RCA")
    rows = comparison_rows(replace(result, differences=[certain, paired], directions=[]), Paper())
    assert [row.n for row in rows] == ["2 directions", "4 pairs"]


@pytest.mark.parametrize("tests", [1, 42, 124, 125, 1000])
def test_the_smallest_p_survives_the_correction_for_any_number_of_tests(tests):
    n = module.resamples_for(tests)
    assert tests * 2 / (n + 1) < module.ALPHA
    assert n == 4999 or tests > 124


@pytest.mark.slow
def test_a_damaged_reconstructor_is_found_and_named():
    good = load_run(shipped_runs()[0], device="cpu")
    result = compare({"good": good, "bad": damaged(good)}, pairs=300)
    verdicts = {each.metric: each.verdict for each in result.differences}
    assert verdicts.pop("RCA") == "worse"
    assert verdicts.pop("RCA over visible directions") == "worse"
    assert set(verdicts.values()) == {"no difference"}  # the images are the same
    assert result.worse[0].paired
    assert {each.verdict for each in result.directions} <= {"worse", "no difference"}
    assert "bad: worse in RCA" in result.summary()


def test_each_metric_is_that_of_the_runs_own_measurement(run):
    from hbench.evaluation.rca import rca

    result = compare({"a": run, "b": damaged(run)}, pairs=40, seed=3)
    for name, each in (("a", run), ("b", damaged(run))):
        measured = rca(each, pairs=40, seed=3)
        assert result.value(name, "RCA").value == pytest.approx(measured.accuracy)
        assert result.value(name, "share outside the domain").value == pytest.approx(measured.outside)
        assert result.value(name, "error of s_hat / S").value == pytest.approx(measured.magnitude_error / run.S)
        assert result.value(name, "share of visible directions").value == len(measured.visible) / run.K
        assert result.value(name, "RCA").n == 40


def test_what_is_paired_and_what_does_not_compare(run):
    assert same_pairs(run, damaged(run))
    assert not same_pairs(run, with_settings(run, "discovery.S=2"))
    assert not same_pairs(run, with_settings(run, "discovery.K=2"))
    other = copy.deepcopy(run.model)
    next(other.parameters()).data.add_(1e-3)
    assert not same_pairs(run, replace(run, model=other))
    assert not_comparable("oddness", run, with_settings(run, "discovery.S=2")) == ""
    assert "S is" in not_comparable("change of pixels", run, with_settings(run, "discovery.S=2"))


def test_rca_of_another_K_is_shown_and_not_compared(run, tmp_path, tiny_model):
    words = ["--model", tiny_model, "--out", tmp_path / "two", "--quiet", "--set", "discovery.K=2"]
    assert invoke("train", "digits16", *tiny_options(), *words).exit_code == 0
    result = compare({"three": run, "two": load_run(tmp_path / "two", device="cpu")}, pairs=8)
    verdicts = {each.metric: each for each in result.differences}
    assert verdicts["RCA"].verdict == "not comparable"
    assert verdicts["share outside the domain"].verdict != "not comparable"
    assert not verdicts["share outside the domain"].paired
    assert 0 <= result.value("two", "RCA").value <= 1
    (caution,) = [each for each in result.cautions() if "chance differs" in each]
    assert caution == "two: RCA, RCA over visible directions not compared: chance differs: K is 3 and 2"
    assert result.directions == []
    assert "K=2" in result.settings[1]


def test_runs_of_other_images_are_refused(run):
    with pytest.raises(Exception, match="makes other images than a, mnist of 1x16x16 and not digits of 1x16x16"):
        compare({"a": run, "b": with_settings(run, "data.dataset=mnist")})
    with pytest.raises(ValueError, match="runs must be two or more, got 1"):
        compare({"a": run})
    with pytest.raises(TypeError, match="must be of type Run"):
        compare({"a": run, "b": "run"})


def test_a_result_is_read_back_and_drawn(run, tmp_path):
    result = compare({"a": run, "b": damaged(run)}, pairs=6)
    result.save(tmp_path / "compare")
    again = RunComparison.load(tmp_path / "compare")
    assert again == result
    plot(again, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000
    table = again.table()
    assert set(table["run"]) == {"b"}
    assert {"metric", "difference", "low", "high", "p_corrected", "verdict", "reason"} <= set(table.columns)


def test_the_command_ends_with_1_where_a_run_is_worse_and_the_result_is_there(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, "a")
    shutil.copytree(tiny_run, "b")
    command = ["compare", "a", "b", "--pairs", 4, "--quiet"]
    assert invoke(*command, "--fail-if-worse", "--out", "same").exit_code == 0
    original = compare

    def much_worse(runs, **options):
        return original({name: run if name == "a" else damaged(run) for name, run in runs.items()}, **options)

    def every_difference(found, better):
        return [replace(each, verdict="worse" if each.metric == "RCA" else each.verdict) for each in found]

    monkeypatch.setattr(module, "compare", much_worse)
    monkeypatch.setattr(module, "_corrected", every_difference)
    assert refused(*command, "--fail-if-worse", "--out", "worse").endswith("b: worse than a in RCA")
    assert RunComparison.load(tmp_path / "worse").runs == ["a", "b"]
    assert invoke(*command, "--out", "told").exit_code == 0
    assert "need two or more" in refused("compare", "a")
    assert "the same run twice" in refused("compare", "a", "a")
