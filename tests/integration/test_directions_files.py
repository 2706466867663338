"""Directions as files: written by anybody, measured by every command."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import copy_of_weights, invoke, refused, tiny_options
from PIL import Image
from safetensors.numpy import save_file

import hbench
from hbench.core.directions import global_direction, mean_direction
from hbench.errors import HBenchError
from hbench.evaluation.find import jacobian
from hbench.evaluation.mean_directions import mean_directions
from hbench.evaluation.rca import RCA
from hbench.evaluation.sample_cache import pngs, read_pngs, sample_folders
from hbench.experiments import experiments_folder
from hbench.models.shift import FixedDirections, randomise_outputs
from hbench.store.directions import direction_source, directions_run
from hbench.store.directions_file import model_sha256, read_directions, write_directions
from hbench.store.run import load_run

PAGE = (Path(__file__).parents[2] / "docs" / "directions.md").read_text(encoding="utf-8")
H_SHAPE = [64, 8, 8]


def write(path, delta_h, **about):
    save_file({"delta_h": delta_h.astype(np.float32)}, path, {"directions": json.dumps({"h_shape": H_SHAPE} | about)})
    return path


@pytest.fixture
def file(tmp_path):
    """A file of three directions at two timesteps, for the tiny model, written with numpy."""
    delta_h = np.random.default_rng(0).normal(size=(3, 2, *H_SHAPE)) / 5
    return write(tmp_path / "mine.safetensors", delta_h, timesteps=[999, 665], names=["", "up", ""])


@pytest.fixture
def run(tiny_run, tmp_path):
    return copy_of_weights(tiny_run, tmp_path / "run")


def done(*words):
    result = invoke(*words, "--quiet")
    assert result.exit_code == 0, result.output
    return result.output


def test_the_lines_of_the_page_write_a_file_for_the_model_that_they_name(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    stored = read_directions("mine.safetensors")
    assert stored.delta_h.shape == (4, 4, 64, 4, 4)
    assert stored.names == {3: "up"}
    made = directions_run("mine.safetensors", "mnist16", device="cpu")
    assert (made.K, made.S, made.names) == (4, 5, {3: "up"})
    x_T = made.noise(2)
    assert not torch.equal(made.generate(x_T, {0: 2.0}), made.generate(x_T))


def test_a_file_is_for_all_timesteps_or_for_the_nearest_one(file, tiny_run, tmp_path):
    stored, made = read_directions(file), directions_run(file, tiny_run, device="cpu")
    block, k = made.shift_block, torch.tensor([0, 2])
    assert isinstance(block, FixedDirections)
    for t, i in ((999, 0), (850, 0), (800, 1), (0, 1)):
        assert torch.equal(block(None, None, k, t), stored.delta_h[k, i])
        hidden = block.hidden(torch.zeros(2, 1), None, t)
        assert torch.equal(block.direction(hidden, 1), stored.delta_h[1, i].expand(2, *H_SHAPE))
    one = write(tmp_path / "one.safetensors", np.ones((2, *H_SHAPE)), S=2)
    made = directions_run(one, tiny_run, device="cpu")
    assert torch.equal(made.shift_block(None, None, k[:1], 17), torch.ones(1, *H_SHAPE))
    settings = made.experiment.discovery
    assert (settings.K, settings.S, settings.min_magnitude) == (2, 2, 0.2)


@pytest.mark.parametrize("kind", ["mean", "global"])
def test_own_directions_leave_and_come_back_bit_by_bit(kind, run, tmp_path):
    loaded = load_run(run, device="cpu")
    torch.manual_seed(0)
    torch.nn.init.normal_(loaded.shift_block.out_weight, std=0.3)
    done("export", run, "--direction-source", kind, "--samples", 4)
    file = run / "export" / f"{kind}.safetensors"
    assert hbench.export(loaded, tmp_path / "again", kind=kind, samples=4).method == kind
    again = tmp_path / "again" / f"{kind}.safetensors"
    means = mean_directions(loaded, 4)
    made = directions_run(again, run, device="cpu")
    x_T, k, s = loaded.noise(3), torch.tensor([0, 1, 2]), torch.tensor([5.0, -2.0, 1.5])
    source = mean_direction if kind == "mean" else global_direction
    expected = loaded.sampler.generate(x_T, source(means, k, s))
    assert torch.equal(made.sampler.generate(x_T, made.own(k, s)), expected)
    assert not torch.equal(expected, loaded.generate(x_T))
    # and what came from a file leaves it again as it came, and the run's own reconstructor takes it back
    twice = hbench.export(made, tmp_path / "twice", kind=kind)
    assert torch.equal(twice.delta_h, made.shift_block.delta_h)
    assert read_directions(file).about.details["n"] == 4
    back = direction_source(load_run(run, device="cpu"), kind, file)
    assert back.name == kind
    with pytest.raises(HBenchError, match='`directions` goes with the source "mean" or "global"'):
        direction_source(loaded, "own", file)
    done("rca", run, "--direction-source", kind, "--directions", file, "--pairs", 6)
    assert RCA.load(run / f"rca-{kind}").detail("direction_source") == kind


@pytest.mark.slow
def test_every_command_measures_a_file(file, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (16, 16), 90).save("digit.png")
    with_file = ["--directions", file]
    told_apart = [*with_file, "--reconstructor-steps", 2]
    made = run / f"mine-{read_directions(file).sha256[:8]}"
    done("edit", run, "digit.png", *with_file, "--shift", "up=1", "--steps", 3)
    done("fid", run, *with_file, "--samples", 8, "--feature-extractor", "random-resnet18", "--cache", "cache")
    assert not (made / "train-2").exists()
    done("rca", run, *told_apart, "--pairs", 12)
    trained = (made / "train-2" / "reconstructor.safetensors").read_bytes()
    done("traverse", run, *told_apart, "--examples", 1)
    done("attributes", run, *told_apart, "--samples", 6)
    done("properties", run, *told_apart, "--samples", 2, "--pairs", 20, "--examples", 1)
    done("explore", run, *with_file, "--samples", 1, "--magnitudes", 5, "--direction", "up")
    assert "Effects at s = 5" in (made / "explore" / "explore.html").read_text(encoding="utf-8")  # as was measured
    done("compare", run, *told_apart, "--pairs", 12)
    done("mos", "export", run, *with_file, "--assessors", 1, "--examples", 1, "--controls", 1)
    assert (made / "train-2" / "reconstructor.safetensors").read_bytes() == trained
    measured = {"edit", "rca", "traverse", "attributes", "properties", "train-2"}
    assert measured <= {each.name for each in made.iterdir() if each.is_dir()}
    found = RCA.load(made / "rca")
    assert len(found.confusion) == 3
    # the training is a run as any other
    loaded = load_run(made / "train-2", device="cpu")
    assert loaded.names == {1: "up"}
    assert torch.equal(loaded.shift_block.delta_h, read_directions(file).delta_h)
    done("rca", made / "train-2", "--pairs", 12, "--out", "again")
    assert RCA.load("again") == found
    result = invoke("report", made)
    assert result.exit_code == 0, result.output
    assert "RCA" in (made / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_train_takes_directions_that_stay(file, tiny_model, tmp_path):
    words = ["train", "digits16", *tiny_options("discovery.weights=float16"), "--model", tiny_model]
    out = tmp_path / "out"
    done(*words, "--directions", file, "--out", out)
    found = load_run(out, device="cpu")
    assert torch.equal(found.shift_block.delta_h, read_directions(file).delta_h)
    assert found.names == {1: "up"}
    other = write(tmp_path / "other.safetensors", np.ones((3, 2, *H_SHAPE)), timesteps=[999, 665])
    more = ["--set", "discovery.steps=6", "--resume", "--out", out]
    fewer = write(tmp_path / "fewer.safetensors", np.ones((3, 1, *H_SHAPE)), timesteps=[999])
    for given in (["--directions", other], ["--directions", fewer], []):
        line = f"Error: {out}: was started with other directions: give those, or choose another --out"
        assert refused(*words, *given, *more) == line
        assert refused(*words, *given, "--resume", "--out", out) == line  # though it is complete
    done(*words, "--directions", file, *more)


@pytest.mark.slow
def test_a_fresh_reconstructor_is_trained_for_any_run(tiny_run, tmp_path):
    run = load_run(tiny_run, device="cpu")
    first, other = (hbench.reconstruct(run, tmp_path / name, steps=2) for name in ("a", "b"))
    for name, value in run.shift_block.state_dict().items():
        assert torch.equal(first.shift_block.state_dict()[name], value)
    for network in ("reconstructor", "discriminator"):
        ours, theirs, before = (getattr(each, network).state_dict() for each in (first, other, run))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not all(torch.equal(ours[name], before[name]) for name in ours)
    assert hbench.reconstruct(run, tmp_path / "a", steps=2).hashes == first.hashes
    moved = replace(run, shift_block=randomise_outputs(copy.deepcopy(run.shift_block)))
    with pytest.raises(HBenchError, match="was started with other directions"):
        hbench.reconstruct(moved, tmp_path / "a", steps=2)


def test_what_does_not_fit_is_refused_in_one_line(file, tiny_run, tmp_path):
    good, times = np.ones((3, 2, *H_SHAPE)), {"timesteps": [999, 665]}
    nan = good.copy()
    nan[0, 0, 0, 0, 0] = np.nan
    cases = [
        ("nan", nan, times, "delta_h holds NaN or infinity"),
        ("shape", good[:, :, :32], times, "need [K, 2, 64, 8, 8]"),
        ("times", good[:, :1], times, "need [K, 2, 64, 8, 8]"),
        ("flat", good[:, 0], times, "need floats [K, timesteps, C, H, W]"),
        ("untimed", good, {}, "need floats [K, C, H, W]"),
        ("order", good, {"timesteps": [665, 999]}, "timesteps must descend"),
        ("one", good[:1], times, "has 1 direction, need at least 2"),
        ("names", good, times | {"names": ["a"]}, "has 1 name of 3 directions"),
        ("key", good, times | {"colour": 1}, "unexpected keyword argument"),
        ("S", good, times | {"S": -1}, "S: input should be greater than 0"),
        ("model", good, times | {"model_sha256": "0" * 64}, "has directions of another model (000"),
        ("newer", good, times | {"schema": 9}, "was written by a newer hbench"),
    ]
    for name, delta_h, about, said in cases:
        path = write(tmp_path / f"{name}.safetensors", delta_h, **about)
        line = refused("edit", tiny_run, path, "--directions", path, "--sweep", 0, "--out", tmp_path / "out")
        assert said in line, (name, line)
    smaller = write(tmp_path / "h.safetensors", np.ones((3, 64, 4, 4)), h_shape=[64, 4, 4])
    line = refused("rca", tiny_run, "--directions", smaller, "--out", tmp_path / "out")
    assert "has directions of shape [64, 4, 4], and h_t of the model is [64, 8, 8]" in line
    save_file({"x": good}, tmp_path / "foreign.safetensors")
    line = refused("rca", tiny_run, "--directions", tmp_path / "foreign.safetensors", "--out", tmp_path / "out")
    assert "holds foreign weights, need directions" in line
    assert "no such file" in refused("fid", tiny_run, "--directions", tmp_path / "none", "--out", tmp_path / "out")
    with pytest.raises(HBenchError, match="have no reconstructor, which tells them apart: train one"):
        hbench.evaluate.rca(directions_run(file, tiny_run, device="cpu"), pairs=4)


def test_the_hash_of_a_model_is_that_of_its_copy_in_a_run(tiny_model, tiny_run):
    run = load_run(tiny_run, device="cpu")
    assert model_sha256(hbench.load_model(tiny_model, device="cpu")) == model_sha256(run.model)


def test_directions_are_not_written_with_nan(tmp_path):
    with pytest.raises(HBenchError, match="holds NaN"):
        write_directions(
            tmp_path / "x.safetensors", torch.full((2, 3, 1, 1), torch.nan), None, model_sha256=None, S=1, method="mine"
        )


@pytest.mark.slow
def test_find_writes_a_file_that_commands_take(run, tmp_path):
    said = done("find", run, "--method", "pca", "--k", 2, "--samples", 6)
    file = run / "find-pca" / "pca.safetensors"
    assert str(file) in said
    details = read_directions(file).about.details
    assert {"seconds", "memory_mib", "visible_change", "explained_variance"} <= details.keys()
    assert json.loads((file.parent / "provenance.json").read_text())["method"] == "pca"
    done("rca", run, "--directions", file, "--reconstructor-steps", 2, "--pairs", 6)
    assert 'no method "nothing"' in refused("find", run, "--method", "nothing")
    assert "already holds results" in refused("find", run, "--method", "pca", "--k", 2, "--samples", 6)
    done("find", run, "--method", "pca", "--k", 3, "--samples", 6)
    assert (run / "find-pca-2" / "pca.safetensors").is_file()
    assert "finds 2 directions: take a smaller --k" in refused("find", run, "--method", "pca", "--k", 3, "--samples", 3)
    shutil.copyfile(run / "find-pca-2" / "pca.safetensors", file)
    line = refused("rca", run, "--directions", file, "--out", tmp_path / "out")
    assert "is not the file that provenance.json beside it was written with" in line


@pytest.mark.slow
def test_find_tells_whether_it_has_converged(tiny_run, tmp_path, monkeypatch):
    words = ["find", tiny_run, "--method", "jacobian", "--k", 2, "--samples", 1, "--visible-change", 0.05]
    said = done(*words, "--out", tmp_path / "done")
    assert re.search(r"median visible change [\d.]+, converged\n", said)
    assert "caution: not" not in said
    monkeypatch.setattr(jacobian, "MOST_ITERATIONS", 1)
    said = done(*words, "--out", tmp_path / "stopped")
    assert "caution: not converged after 1 iterations, with a residual of" in said
    assert "take a smaller --k" in said
    assert said.rstrip().endswith(", not converged")
    assert not hbench.read_directions(tmp_path / "stopped" / "jacobian.safetensors").about.details["converged"]


def test_an_experiment_in_the_place_of_a_model_is_told_which_model_it_has(tmp_path, tiny_model):
    text = (experiments_folder() / "digits16.toml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    said = refused("find", mine, "--method", "random")
    assert said.endswith(
        "mine.toml: is an experiment, not a model: pretrain it, and give its model, runs/mine/pretrain"
    )
    mine.write_text(text.replace("[model]\n", f'[model]\npath = "{tiny_model}"\n'))
    said = refused("find", mine, "--method", "random")
    assert said.endswith(f"not a model: give its model, {tiny_model}, or give that with the file as --experiment")


def test_samples_of_two_files_never_share_a_cache(tiny_run, tmp_path):
    """Of one K, S, shape and timesteps: the files differ in nothing but their directions."""
    rng = np.random.default_rng(0)
    one, two = (
        write(tmp_path / f"{name}.safetensors", rng.normal(size=(3, 2, *H_SHAPE), scale=100), timesteps=[999, 665])
        for name in ("one", "two")
    )
    again = shutil.copyfile(one, tmp_path / "again.safetensors")
    folders = [
        sample_folders(directions_run(file, tiny_run, device="cpu"), 2, tmp_path / "cache", 0)
        for file in (one, two, again)
    ]
    raw, shifted = ([read_pngs(pngs(pair[i], 2)) for pair in folders] for i in (0, 1))
    assert folders[0] == folders[2]
    assert folders[0] != folders[1]
    assert torch.equal(raw[0], raw[1])
    assert not torch.equal(shifted[0], shifted[1])
