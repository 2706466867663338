"""``hbench benchmark``: methods measured alike, once."""

import json
import math
import re
import shutil
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import copy_of_weights, invoke, refused, snapshot
from committed import RESULTS, V01
from processes import start_command

import hbench
from hbench.errors import HBenchError
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.benchmark.benchmark import _check_images, benchmark
from hbench.evaluation.benchmark.entries import given
from hbench.evaluation.benchmark.measure import Counts, Distances, factors_found, kept
from hbench.evaluation.benchmark.result import Benchmark
from hbench.evaluation.features import Extractor
from hbench.evaluation.fid import Fidelity
from hbench.evaluation.rca import RCA
from hbench.experiments import override
from hbench.reporting.benchmark_page import NUMBERS, cells, write_page
from hbench.store.directions import directions_run
from hbench.store.directions_file import write_directions
from hbench.store.run import load_run

COUNTS = Counts(pairs=12, samples=6, images=0, reconstructor_steps=2)


@pytest.fixture
def mine(tiny_run, tmp_path):
    """Return somebody's file of directions."""
    run = load_run(tiny_run, device="cpu")
    delta_h = np.random.default_rng(0).normal(size=(3, *run.model.h_shape)).astype("float32")
    path = tmp_path / "mine.safetensors"
    write_directions(path, torch.from_numpy(delta_h), None, model_sha256=None, S=run.S, method="mine")
    return path


def test_methods_are_measured_alike_and_once(tiny_run, mine, tmp_path, monkeypatch):
    out = tmp_path / "bench"
    found = benchmark(tiny_run, out, methods=["trained", "random"], counts=COUNTS, device="cpu")
    assert [each.name for each in found.methods] == ["trained", "random"]
    own = load_run(tiny_run, device="cpu")
    assert found.method("trained").directions_sha256 == own.hashes["shift_block"]
    assert len({each.K for each in found.methods}) == 1
    assert {"rca", "attributes"} <= {path.name for path in (out / "random").iterdir()}
    assert (out / "random/find/random.safetensors").is_file()
    assert math.isnan(found.methods[0].fd_ratio)
    assert found.provenance.details["directions_sha256"].keys() == {"trained", "random"}

    def again(*args, **kwargs):
        raise AssertionError("measured twice")

    with monkeypatch.context() as patch:
        for name in ("rca", "attributes"):
            patch.setattr(f"hbench.evaluation.benchmark.measure.{name}", again)
        assert benchmark(tiny_run, out, methods=["trained", "random"], counts=COUNTS, device="cpu") == found

    measured = []
    monkeypatch.setattr(
        "hbench.evaluation.benchmark.measure.rca",
        lambda run, **kwargs: measured.append(run) or hbench.evaluate.rca(run, **kwargs),
    )
    more = benchmark(tiny_run, out, methods=["trained", "random"], add=[mine], counts=COUNTS, device="cpu")
    assert len(measured) == 1
    assert more.to_json()["methods"][:2] == found.to_json()["methods"]
    assert more.methods[2].name == "mine"


@pytest.mark.parametrize(("seen", "among"), [([0, 2], [0, 2]), ([], None), ([0, 1, 2], None)])
def test_distances_are_of_samples_along_visible_directions(
    tiny_run, classifier_file, tmp_path, monkeypatch, seen, among
):
    def effects(*args, **kwargs):
        found = hbench.evaluate.attributes(*args, **kwargs)
        directions = [replace(each, visible=each.direction in seen) for each in found.directions]
        return replace(found, directions=directions, invisible=sorted({0, 1, 2} - {*seen}))

    monkeypatch.setattr("hbench.evaluation.benchmark.measure.attributes", effects)
    counts = replace(COUNTS, images=8)
    places = {"weights": classifier_file, "cache": tmp_path / "cache"}
    out = tmp_path / "bench"
    for _ in range(2):  # the second time of what is there
        found = benchmark(tiny_run, out, methods=["trained"], counts=counts, device="cpu", **places)
        (fidelity,) = out.glob("trained/fid-*")
        distances = Fidelity.load(fidelity)
        assert distances.detail("directions") == among
        assert found.methods[0].fd_ratio == distances.ratio
    assert len(list((tmp_path / "cache/samples").iterdir())) == 1  # those of precision and recall too


def test_more_seeds_of_a_search_give_intervals_over_them(tiny_run, tmp_path):
    out = tmp_path / "bench"
    one = benchmark(tiny_run, out, methods=["trained", "random"], counts=COUNTS, device="cpu")
    assert not one.over_seeds()
    found = benchmark(tiny_run, out, methods=["trained", "random"], counts=COUNTS, search_seeds=[0, 1, 2], device="cpu")
    assert [each.name for each in found.methods] == ["trained", "random", "random-seed1", "random-seed2"]
    assert found.to_json()["methods"][:2] == one.to_json()["methods"]
    assert len({each.directions_sha256 for each in found.methods}) == 4
    assert found.grids.keys() == {"trained", "random"}
    over = {each.number: each for each in found.over_seeds()}
    assert {(each.method, each.seeds) for each in over.values()} == {("random", 3)}
    assert "fd_ratio" not in over  # it was not measured
    counted = [len(each.visible) for each in found.methods[1:]]
    assert over["visible"].mean == pytest.approx(np.mean(counted))
    rcas = [each.rca for each in found.methods[1:]]
    low, high = over["rca"].interval
    assert 0 <= low <= min(rcas) <= over["rca"].mean <= max(rcas) <= high <= 1
    assert "random over 3 seeds: RCA " in found.summary()

    found.save(tmp_path / "saved")
    assert repr(Benchmark.load(tmp_path / "saved").over_seeds()) == repr(found.over_seeds())
    page = write_page(found, tmp_path / "saved").read_text(encoding="utf-8")
    assert "Over seeds" in page
    assert "3 seeds" in page


def test_files_of_one_method_are_no_seeds_of_it(tiny_run, mine, tmp_path, monkeypatch):
    own = load_run(tiny_run, device="cpu")
    other = shutil.copy(mine, tmp_path / "other.safetensors")
    entries = [given(path, own, tiny_run) for path in (mine, other)]
    assert [(each.found_by, each.title) for each in entries] == [("mine", "mine"), ("other", "mine")]
    made = replace(own, shift_block=directions_run(mine, tiny_run, device="cpu").shift_block)
    monkeypatch.setattr(
        "hbench.evaluation.benchmark.entries.load_run", lambda *_, **__: made
    )  # a run of the same settings, but of a file
    entry = given(tiny_run, own, tiny_run)
    assert (entry.found_by, entry.title) == (tiny_run.parent.name, "directions of a file")
    assert math.isnan(entry.seconds)


def test_runs_of_several_seeds_are_of_one_method(tiny_run, tmp_path):
    other = shutil.copytree(tiny_run, tmp_path / "other")
    found = benchmark(tiny_run, tmp_path / "bench", methods=["trained"], add=[other], counts=COUNTS, device="cpu")
    assert [each.found_by for each in found.methods] == ["trained", "trained"]
    assert {(each.method, each.seeds) for each in found.over_seeds()} == {("trained", 2)}


def test_runs_that_are_all_called_train_have_the_names_of_their_experiments(tiny_run, tmp_path):
    own = load_run(tiny_run, device="cpu")
    for name in ("mine", "yours"):
        shutil.copytree(tiny_run, tmp_path / name / "train")
    names = [given(tmp_path / name / "train", own, tiny_run).name for name in ("mine", "yours")]
    assert names == ["mine", "yours"]


def test_discoveries_of_other_settings_are_no_seeds_of_the_run(tiny_run, tmp_path, monkeypatch):
    own = load_run(tiny_run, device="cpu")
    monkeypatch.setattr("hbench.evaluation.benchmark.entries.holds_run", lambda path: True)
    for setting, found_by in {"keep=1": "trained", "lambda_adv=7": "run"}.items():
        experiment = override(own.experiment, ["discovery.strategy=node", f"discovery.{setting}"])
        monkeypatch.setattr(
            "hbench.evaluation.benchmark.entries.load_run",
            lambda *_, found=experiment, **__: replace(own, experiment=found),
        )
        assert given(tmp_path / "run", own, tiny_run).found_by == found_by


def test_counts_over_seeds_stay_within_K_and_other_K_apart(tiny_run, tmp_path):
    one = benchmark(tiny_run, tmp_path / "bench", methods=["random"], counts=COUNTS, device="cpu").methods[0]
    few = [replace(one, name=str(i), visible=[0][:i]) for i in range(2)]
    bench = Benchmark.load(RESULTS / "bench-faces16")
    found = replace(bench, methods=[*few, replace(one, name="many", K=9)], factors=[])
    (visible,) = [each for each in found.over_seeds() if each.number == "visible"]
    assert (visible.seeds, visible.interval) == (2, (0, 3))


def test_another_seed_is_another_bench(tiny_run, tmp_path):
    few = replace(COUNTS, pairs=3)
    benchmark(tiny_run, tmp_path / "bench", methods=["random"], counts=few, device="cpu")
    with pytest.raises(HBenchError, match="holds another search"):
        benchmark(tiny_run, tmp_path / "bench", methods=["random"], counts=few, seed=1, device="cpu")


def test_a_page_that_would_lose_methods_says_so(tiny_run, tmp_path, monkeypatch, caplog):
    out = tmp_path / "bench"
    out.mkdir()
    shutil.copy(RESULTS / "bench-faces16" / "provenance.json", out)
    monkeypatch.setattr("hbench.evaluation.benchmark.benchmark.measure", lambda *_: None)  # as if it was stopped
    benchmark(tiny_run, out, methods=["trained", "trained"], counts=COUNTS, device="cpu")
    earlier = [each.name for each in Benchmark.load(RESULTS / "bench-faces16").methods if each.name != "trained"]
    assert f"{out}: its page has {', '.join(earlier)} too: name them as well, or it loses them" in caplog.text


def test_what_is_kept_is_of_the_same_extractor_and_undamaged(tmp_path):
    result, folder, measured = RCA.load(V01 / "rca"), tmp_path / "rca", []
    run = SimpleNamespace(hashes=result.provenance.measured)

    def found(**asked):
        def measure():
            measured.append(asked)
            return result.with_details(**asked)

        return kept(RCA, folder, run, result.provenance.seed, measure, **asked)

    assert found(extractor_sha256="one") == found(extractor_sha256="one") == found(extractor_sha256="two") == result
    assert measured == [{"extractor_sha256": "one"}, {"extractor_sha256": "two"}]
    (folder / "rca.json").unlink()
    found(extractor_sha256="two")
    assert len(measured) == 3
    (folder / "rca.json").write_text("{")
    with pytest.raises(HBenchError, match="remove it, and it is measured anew"):
        found(extractor_sha256="two")


@pytest.mark.slow
def test_a_bench_that_is_stopped_in_a_training_goes_on_by_the_same_command(tiny_run, tmp_path):
    out, log, done = tmp_path / "bench", tmp_path / "log", [0]
    sizes = ["--pairs", 12, "--samples", 6, "--images", 0, "--reconstructor-steps", 100000, "--device", "cpu"]
    for _ in range(2):
        process = start_command(["benchmark", tiny_run, "--methods", "trained", "--out", out, *sizes, "--quiet"], log)
        before, deadline = checkpoints(out), time.monotonic() + 60
        while checkpoints(out) == before and time.monotonic() < deadline and process.is_alive():
            time.sleep(0.01)
        process.terminate()
        process.join(60)
        said = log.read_text()
        assert process.exitcode == 0, said
        assert f"{out}: stopped at trained: do the same again to go on" in said
        assert "Traceback" not in said
        done.append(int(re.search(r"stopped by SIGTERM after step (\d+) of 100000", said)[1]))
    assert 0 < done[1] < done[2]
    assert not (out / "benchmark.json").exists()


def checkpoints(folder):
    return {path: path.read_text() for path in folder.glob("trained/train-*/checkpoint.json")}


def test_the_command_writes_a_page_with_pictures_and_reads_it_back(tiny_run, mine, tmp_path):
    options = ["--pairs", 12, "--samples", 6, "--images", 0, "--reconstructor-steps", 2, "--device", "cpu"]
    out = tmp_path / "bench"
    result = invoke("benchmark", tiny_run, "--methods", "trained,axes", "--add", mine, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert "RCA visible" in result.output
    page = (out / "benchmark.html").read_text()
    assert page.count("data:image/png") == 2
    assert all(f'<th scope="col">{name}</th>' in page for name in ("trained", "axes", "mine"))
    assert {path.name for path in out.iterdir()} >= {"benchmark.json", "benchmark.csv", "benchmark.png", "methods.png"}
    read = Benchmark.load(out)
    assert [each.name for each in read.methods] == ["trained", "axes", "mine"]
    assert json.loads((out / "provenance.json").read_text())["command"].startswith("hbench benchmark")


def test_mistakes_are_refused(tiny_run, tiny_model, mine, tmp_path):
    with pytest.raises(HBenchError, match="has no directions of its own"):
        benchmark(tiny_model, tmp_path / "bench", counts=COUNTS, device="cpu")
    with pytest.raises(HBenchError, match="two of one name"):
        benchmark(tiny_run, tmp_path / "bench", methods=[], add=[mine, mine], counts=COUNTS, device="cpu")
    with pytest.raises(HBenchError, match="no method"):
        benchmark(tiny_run, tmp_path / "bench", methods=["magic"], counts=COUNTS, device="cpu")
    with pytest.raises(HBenchError, match="none to measure"):
        benchmark(tiny_run, tmp_path / "bench", methods=[], counts=COUNTS, device="cpu")
    said = refused("benchmark", tmp_path / "nothing", "--out", tmp_path / "bench", "--device", "cpu")
    assert "nothing" in said


def test_mistakes_are_refused_before_anything_is_searched(tiny_run, mine, tmp_path, monkeypatch):
    def search(*args, **kwargs):
        raise AssertionError("searched")

    monkeypatch.setattr("hbench.evaluation.benchmark.benchmark.find", search)
    bench = partial(benchmark, tiny_run, tmp_path / "bench", methods=["random"], counts=COUNTS, device="cpu")
    with pytest.raises(HBenchError, match="nothing"):
        bench(add=[tmp_path / "nothing.safetensors"])
    with pytest.raises(HBenchError, match="two of one name among random, random"):
        bench(add=[shutil.copy(mine, tmp_path / "random.safetensors")])
    with pytest.raises(HBenchError, match="no such file"):
        bench(weights=tmp_path / "classifier.safetensors", counts=replace(COUNTS, images=6))
    monkeypatch.delenv("HBENCH_DATA", raising=False)
    own = load_run(tiny_run, device="cpu")
    pictures = own.experiment.model_copy(update={"data": own.experiment.data.model_copy(update={"dataset": "folder"})})
    with pytest.raises(HBenchError, match='data set "folder" needs its folder'):
        _check_images(Distances(Extractor("random-resnet18"), tmp_path, None, False), pictures, [tmp_path])
    with pytest.raises(HBenchError, match="is a run, with a chain and an S of its own: leave `experiment` out"):
        bench(experiment=override(own.experiment, ["discovery.M=4"]))


def test_a_bench_overwrites_nothing_else(tiny_run, tmp_path):
    run = copy_of_weights(tiny_run, tmp_path / "run")
    before = snapshot(run)
    options = ["--methods", "random", "--pairs", 3, "--samples", 6, "--images", 0, "--reconstructor-steps", 2]
    said = refused("benchmark", tiny_run, "--out", run, *options, "--device", "cpu", "--quiet")
    assert said == f"Error: {run}: holds something else than a bench: choose another --out"
    assert snapshot(run) == before


def test_each_factor_has_the_direction_that_moves_it_most_or_none():
    """On numbers of the shipped faces, which have ten factors."""
    effects = hbench.evaluate.Attributes.load(RESULTS / "faces16" / "attributes")
    found = {each.factor: each for each in factors_found("trained", effects)}
    assert list(found) == effects.factors
    for each in found.values():
        columns = [j for j, one in enumerate(effects.attributes) if one.factor == each.factor]
        if each.direction is None:
            assert not any(one.visible and one.effects.passes[j] for one in effects.directions for j in columns)
            continue
        chosen = effects.directions[each.direction]
        assert chosen.visible
        assert abs(each.effect) == max(
            abs(one.effects.effect[j])
            for one in effects.directions
            for j in columns
            if one.visible and one.effects.passes[j]
        )
        assert each.interval[0] <= each.effect <= each.interval[1]
        assert each.factor not in each.also


def committed():
    return Benchmark.load(RESULTS / "bench-faces16")


def test_numbers_that_depend_on_K_have_no_best_one_among_methods_of_other_K():
    first, other, *_ = committed().methods
    for K, is_marked in ((first.K, True), (first.K + 1, False)):
        marked = {
            line.field for line in NUMBERS if any(cell.best for cell in cells(line, [first, replace(other, K=K)]))
        }
        assert ({"rca", "visible", "named"} <= marked) == is_marked
        assert {"fd_ratio", "seconds"} <= marked


def test_directions_that_change_nothing_are_no_error():
    found = committed()
    still = replace(found.methods[0], visible_change=0.0)
    (said,) = replace(found, methods=[still, found.methods[1]], factors=[]).cautions()
    assert said.startswith(f"{found.methods[1].name}: of another visible change than {still.name}")


def test_a_result_of_another_classifier_or_size_is_measured_again(tmp_path):
    folder = shutil.copytree(RESULTS / "faces16" / "attributes", tmp_path / "attributes")
    before = Attributes.load(folder)
    wanted = {name: before.detail(name) for name in ("n", "pairs", "classifier_sha256")}
    run = SimpleNamespace(hashes=before.detail("weights_sha256"))
    asked = []

    def measure():
        asked.append(True)
        return before

    assert kept(Attributes, folder, run, 0, measure, **wanted) == before
    assert not asked
    for seed, changed in ((0, {"classifier_sha256": None}), (0, {"pairs": 7}), (1, {})):
        kept(Attributes, folder, run, seed, measure, **wanted | changed)
        assert asked.pop()


def test_numbers_of_directions_are_whole_ones():
    shown = replace(committed().methods[0], distinct=1, named=0, effective_rank=1.0, seconds=3307.4, memory_mib=0.1)
    words = {line.field: cells(line, [shown])[0].value for line in NUMBERS}
    assert (words["distinct"], words["named"], words["effective_rank"]) == ("1", "0", "1.000")
    assert (words["seconds"], words["memory_mib"]) == ("3,307", "0.100")


def test_the_page_marks_the_best_number_of_each_line(tiny_run, tmp_path):
    found = benchmark(tiny_run, tmp_path / "bench", methods=["trained", "random"], counts=COUNTS, device="cpu")
    better = replace(found.methods[1], rca=1.0, seconds=0.0, visible_change=9.0)
    by_field = {line.field: cells(line, [found.methods[0], better]) for line in NUMBERS}
    assert [cell.best for cell in by_field["rca"]] == [False, True]
    assert [cell.best for cell in by_field["seconds"]] == [False, True]
    assert not any(cell.best for cell in by_field["visible_change"])  # it is made equal
    assert by_field["fd_ratio"][0].value == "–"
