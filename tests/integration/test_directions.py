import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from samplers import sampler_of
from torch import nn

import hbench
from hbench.config import Paper
from hbench.core import seeds
from hbench.core.directions import Directions, global_direction, mean_direction, own_direction, scaled, together
from hbench.core.seeds import draw_x_T
from hbench.errors import HBenchError
from hbench.evaluation import evaluate
from hbench.evaluation import untrained as untrained_blocks
from hbench.evaluation.edit import (
    caption,
    edit_each,
    grid,
    mean_square_error,
    psnr,
    singly_and_together,
    sweep,
)
from hbench.evaluation.edited_images import label
from hbench.evaluation.estimates import Measured, Numbers, _summarise, jackknife_of
from hbench.evaluation.mean_directions import compare, mean_directions
from hbench.evaluation.properties import Properties, properties
from hbench.evaluation.rca import rca
from hbench.experiments import parse_experiment
from hbench.reporting.grids import _edit_labels, draw_edits
from hbench.reporting.rows import edit_rows, property_rows
from hbench.store.datasets import read_images
from hbench.store.directions import direction_source, load_directions, save_directions
from hbench.store.run import load_run

CPU = torch.device("cpu")


@pytest.fixture
def run(tiny_run):
    """The tiny run in float32, with directions of a visible size."""
    loaded = load_run(tiny_run, device=CPU)
    values = loaded.experiment.model_dump()
    values["discovery"]["precision"] = "float32"
    torch.manual_seed(0)
    nn.init.normal_(loaded.shift_block.out_weight, std=0.05)
    nn.init.normal_(loaded.shift_block.out_bias, std=0.05)
    return dataclasses.replace(loaded, experiment=parse_experiment(values, "test"))


@pytest.fixture
def constant(run):
    """Directions that depend neither on the sample nor on time."""
    nn.init.zeros_(run.shift_block.out_weight)
    return run


@pytest.fixture
def sampleless(run):
    """Directions that depend on time, and not on the sample."""
    for parameter in run.shift_block.in_layers[-1].parameters():
        nn.init.zeros_(parameter)
    return run


def vectors(*values):
    return [torch.tensor(v) for v in values]


def test_the_mean_direction_is_the_mean_over_samples_of_f_k(run):
    found = mean_directions(run, 5, seed=3)
    assert found.timesteps == (999, 665)  # of 999, 665, 332 those from t_shift = 400 on
    assert found.mean.shape == (3, 2, *run.model.encode(torch.zeros(1, 1, 16, 16), torch.zeros(1))[0].shape[1:])
    seen = {}

    def look(h, emb, t):
        seen[t] = [run.shift_block(h, emb, torch.full((len(h),), k)) for k in range(3)]
        return torch.zeros_like(h)

    run.sampler.generate(run.noise(5, seed=seeds.mean_samples(3, 5)), look)
    for i, t in enumerate(found.timesteps):
        expected = torch.stack([f_k.mean(0) for f_k in seen[t]])
        torch.testing.assert_close(found.mean[:, i], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_constant_directions_are_homogeneous_and_consistent_and_all_edits_agree(constant):
    result = properties(constant, samples=6, pairs=20)
    found = result.directions
    for t in range(2):
        torch.testing.assert_close(
            found.mean[:, t], constant.shift_block.out_bias[..., None, None].expand(-1, -1, 8, 8)
        )
    for estimate in (result.homogeneity, result.consistency):
        assert estimate.value == pytest.approx([1] * 4, abs=1e-5)
        assert estimate.low == pytest.approx([1] * 4, abs=1e-5)
    for estimate in (result.distance_mean, result.distance_global, result.s_difference_mean):
        assert estimate.value == pytest.approx([0] * 4, abs=1e-3)
    assert result.same_k_mean.value == result.same_k_global.value == [1] * 4
    assert result.accuracy_own == result.accuracy_mean == result.accuracy_global


@pytest.mark.slow
def test_directions_without_the_sample_are_homogeneous_but_not_consistent(sampleless):
    result = properties(sampleless, samples=4, pairs=20)
    assert result.homogeneity.value == pytest.approx([1] * 4, abs=1e-5)
    assert result.distance_mean.value == pytest.approx([0] * 4, abs=1e-3)
    assert result.consistency.value[-1] < 0.99999
    assert result.distance_global.value[-1] > 10 * result.distance_mean.value[-1]


@pytest.mark.slow
def test_properties_of_any_run_lie_in_their_ranges_and_intervals(run):
    result = properties(run, samples=10, pairs=20, seed=2)
    assert len(result.timesteps) == len(result.homogeneity_at) == len(result.consistency_between) == 2
    assert max(result.homogeneity.value) < 1
    table = result.table()
    assert list(table["direction"]) == [0, 1, 2, "all"]
    for column in (c for c in table if f"{c}_low" in table):
        assert (table[f"{column}_low"] <= table[column] + 1e-9).all(), column
        assert (table[column] <= table[f"{column}_high"] + 1e-9).all(), column
    assert table["homogeneity"][3] == pytest.approx(table["homogeneity"][:3].mean())
    assert len(result.timestep_table()) == 2 * 4
    assert result == properties(run, samples=10, pairs=20, seed=2)


@pytest.mark.slow
def test_an_untrained_block_has_the_homogeneity_that_a_run_made_of_it_has(run, monkeypatch):
    monkeypatch.setattr(untrained_blocks, "BLOCKS", 2)
    outputs, fresh = untrained_blocks.untrained(run, 6, 20, seed=3)
    for found, make in ((outputs, untrained_blocks._random_outputs), (fresh, untrained_blocks._fresh)):
        made = [dataclasses.replace(run, shift_block=block) for block in make(run, 3)]
        results = [properties(each, samples=6, pairs=20, seed=3) for each in made]
        means = {
            name: [getattr(result, name).value[-1] for result in results] for name in ("homogeneity", "consistency")
        }
        assert found.blocks == 2
        assert found.homogeneity == pytest.approx(np.mean(means["homogeneity"]), abs=1e-5)
        assert found.consistency == pytest.approx(np.mean(means["consistency"]), abs=1e-5)
        assert np.mean(found.homogeneity_at) == pytest.approx(found.homogeneity)
        low, high = found.homogeneity_interval  # Student, 1 degree of freedom: half the difference times 12.706
        assert (high - low) / 2 == pytest.approx(12.706 * np.ptp(means["homogeneity"]) / 2, rel=1e-2, abs=1e-4)
    assert outputs != fresh
    assert (run.shift_block.out_bias != 0).any()  # the run itself stays


@pytest.mark.slow
def test_the_floor_stands_beside_the_numbers_and_older_results_do_without(run, tmp_path):
    result = properties(run, samples=4, pairs=20)
    lines = result.summary().splitlines()
    assert sum("n 10 blocks" in line for line in lines) == 4
    assert lines[2].startswith("  random outputs on the same features")
    assert lines[3].startswith("  untrained blocks")
    names = [row.item and row.artifact for row in property_rows(result, Paper())]
    assert [name.rpartition(", ")[2] for name in names[:3]] == [
        "cosine of own and mean direction (homogeneity)",
        "with random outputs on the same features",
        "of wholly untrained blocks",
    ]
    assert not any("floor" in name for name in names)  # that two directions differ is no floor of these
    old = result.to_json() | {"schema": 1}
    del old["random_outputs"], old["untrained"]
    read = Properties.from_json(old, "properties.json")
    assert read == dataclasses.replace(result, random_outputs=None, untrained=None)
    assert "blocks" not in read.summary()
    assert len(property_rows(read, Paper())) == len(names) - 4


def test_the_mean_can_be_recorded_on_another_grid(run):
    assert mean_directions(run, 2, M=6).timesteps == (999, 832, 665, 499)
    values = run.experiment.model_dump()
    values["discovery"]["spacing"] = "leading"
    only_0 = dataclasses.replace(run, experiment=parse_experiment(values, "test"))
    with pytest.raises(HBenchError, match="take more steps"):
        mean_directions(only_0, 2, M=1)


def linear(slope, offset, n=20, K=2):
    s = np.resize([-5.0, -2.0, 2.0, 5.0], n)
    s_hat = np.broadcast_to((slope * s + offset)[:, None, None], (n, K, 3)).copy()
    s_hat[..., 1] += 0.25
    k_hat = np.zeros((n, K, 3), dtype=int)
    k_hat[: n // 4, 0, 2] = 1
    return Measured(
        s=s,
        cosine=np.ones((n, K, 2)),
        edit=np.full((n, K), 2.0),
        distance=np.full((n, K, 2), 0.5),
        k_hat=k_hat,
        s_hat=s_hat,
    )


def test_numbers_of_a_linear_reconstructor_are_exact():
    numbers = _summarise(linear(slope=0.5, offset=1.0), np.arange(20))
    assert numbers.slope == pytest.approx([0.5, 0.5])
    assert numbers.correlation == pytest.approx([1, 1])
    assert numbers.distance_mean == pytest.approx([0.25, 0.25])
    assert numbers.s_difference_mean == pytest.approx([0.25, 0.25])
    assert numbers.s_difference_global == pytest.approx([0, 0])
    assert numbers.accuracy_own.tolist() == [1, 0]
    assert numbers.accuracy_global.tolist() == [0.75, 0]
    assert numbers.same_k_global.tolist() == [0.75, 1]
    assert numbers.homogeneity.tolist() == [1, 1]
    assert [each.tolist() for each in numbers.homogeneity_at] == [[1, 1], [1, 1]]
    flat = numbers.flat()
    assert len(flat) == 12 + 2
    assert Numbers.of(flat) == numbers


def test_the_jackknife_of_a_mean_is_students_interval(run, monkeypatch):
    from scipy.stats import t

    from hbench.evaluation import estimates as module

    monkeypatch.setattr(module, "directions_of", lambda run, hidden: hidden)
    values = torch.randn(12, 1, dtype=torch.float64)
    found = jackknife_of(run, values, torch.ones(12), lambda mean: mean)
    error = t.ppf(0.975, 11) * float(values.std()) / math.sqrt(12)
    assert found.value[0] == pytest.approx(float(values.mean()))
    assert found.high[0] - found.value[0] == pytest.approx(error)


def test_sources_of_constant_directions_make_the_same_images(constant):
    found = mean_directions(constant, 2)
    x_T, generate = constant.noise(3), constant.sampler.generate
    k, s = vectors([0, 2, 1], [1.0, -2.0, 3.0])
    expected = generate(x_T, own_direction(constant.shift_block, k, s))
    assert not torch.allclose(expected, generate(x_T))
    for source in (mean_direction, global_direction):
        torch.testing.assert_close(generate(x_T, source(found, k, s)), expected, rtol=1e-3, atol=1e-4)


def test_mean_takes_the_nearest_timestep_and_global_their_mean():
    values = torch.arange(2.0).reshape(1, 2, 1, 1, 1)
    found = Directions((900, 500), values, n=1, seed=0)
    k, s = vectors([0], [4.0])
    h = torch.zeros(1, 1, 1, 1)
    assert [mean_direction(found, k, s)(h, h, t).item() for t in (999, 701, 699, 400)] == [0, 0, 4, 4]
    assert global_direction(found, k, s)(h, h, 999).item() == 2


def test_together_is_the_sum_and_scaled_a_multiple(run):
    x_T, t = run.noise(2), torch.full((2,), 999)
    h, _, emb = run.model.encode(x_T, t)
    first, second = (own_direction(run.shift_block, *vectors([k, k], [s, s])) for k, s in ((0, 1.5), (2, -3.0)))
    expected = 1.5 * run.shift_block(h, emb, torch.tensor([0, 0])) - 3 * run.shift_block(h, emb, torch.tensor([2, 2]))
    torch.testing.assert_close(together(first, second)(h, emb, 999), expected)
    torch.testing.assert_close(scaled(first, 2)(h, emb, 999), 2 * first(h, emb, 999))


def test_with_other_steps_the_shift_is_shared_out_among_them(run):
    x_T = run.noise(2)
    delta_h = own_direction(run.shift_block, *vectors([0, 1], [4.0, -4.0]))
    expected = sampler_of(run.model, 6, t_shift=400).generate(
        x_T, scaled(delta_h, 2 / 4)
    )  # 2 shifted steps of 3, 4 of 6
    torch.testing.assert_close(run.sampler.with_steps(6).generate(x_T, delta_h), expected)
    assert torch.equal(run.sampler.with_steps(3).generate(x_T, delta_h), run.sampler.generate(x_T, delta_h))


def test_directions_come_back_as_they_were_saved(run, tmp_path):
    path = tmp_path / "directions.safetensors"
    saved = mean_directions(run, 4, seed=7)
    save_directions(path, saved, run.experiment, run.hashes["shift_block"])
    loaded = load_directions(path, run)
    assert torch.equal(loaded.mean, saved.mean)
    assert (loaded.timesteps, loaded.n, loaded.seed) == (saved.timesteps, 4, 7)
    other = dataclasses.replace(run, hashes=run.hashes | {"shift_block": "0" * 64})
    with pytest.raises(HBenchError, match="another run than this one: measure the properties of this one"):
        load_directions(path, other)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(HBenchError, match="not a safetensors file, or damaged"):
        load_directions(path, run)


def test_rca_and_traverse_take_another_source(run, tmp_path):
    path = tmp_path / "d.safetensors"
    save_directions(path, mean_directions(run, 4), run.experiment, run.hashes["shift_block"])
    source = direction_source(run, "global", path)
    assert rca(run, pairs=20, source=source).n == 20
    plain, other = (run.traverse([0], examples=2, samples=3, source=chosen).images for chosen in (None, source))
    assert torch.equal(plain[:, :, 1], other[:, :, 1])
    assert not torch.equal(plain[:, :, 0], other[:, :, 0])


def test_the_comparison_starts_with_the_original(run):
    found = mean_directions(run, 4)
    x_T, generate = run.noise(3, seed=4), run.sampler.generate
    images = compare(run, found, [2, 0], [-1.0, 5.0], x_T)
    assert images.shape == (2, 3, 7, 1, 16, 16)
    torch.testing.assert_close(images[1, :, 0], generate(x_T))
    k, s = torch.zeros(3, dtype=torch.long), torch.full((3,), 5.0)
    torch.testing.assert_close(images[1, :, 6], generate(x_T, global_direction(found, k, s)))


# Edits --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_inversion_and_generation_reconstruct_better_with_more_steps(run):
    x_0 = 0.5 * draw_x_T(0, 0, 3, (1, 16, 16)).clamp(-1, 1)
    errors = []
    for M in (5, 20, 80):
        errors.append(mean_square_error(run.edit(x_0, {}, steps=M), x_0).max().item())
    assert errors[0] > errors[1] > errors[2]
    assert psnr(errors[2]) > 30


def test_edits_add_up_and_none_is_the_reconstruction(run):
    x_T = run.noise(2)
    images = edit_each(run, x_T, [{}, {1: 0.0}, {0: 2.0, 2: -1.0}], run.own, 6)
    assert images.shape == (2, 3, 1, 16, 16)
    torch.testing.assert_close(images[:, 0], run.generate(x_T, steps=6))
    assert torch.equal(images[:, 0], images[:, 1])
    both = together(
        own_direction(run.shift_block, *vectors([0, 0], [2.0, 2.0])),
        own_direction(run.shift_block, *vectors([2, 2], [-1.0, -1.0])),
    )
    torch.testing.assert_close(images[:, 2], run.sampler.with_steps(6).generate(x_T, both))
    torch.testing.assert_close(images[:, 2], run.generate(x_T, {0: 2, 2: -1}, steps=6))


def test_what_is_asked_for_in_words_and_numbers():
    assert singly_and_together({3: 1.0}) == [{3: 1.0}]
    assert singly_and_together({3: 1.0, 7: -2.0}) == [{3: 1.0}, {7: -2.0}, {3: 1.0, 7: -2.0}]
    assert sweep(3, 5, 3) == [{3: -5}, {3: 0}, {3: 5}]
    assert grid(3, 7, 5, 2) == [{3: -5, 7: 5}, {3: 5, 7: 5}, {3: -5, 7: -5}, {3: 5, 7: -5}]
    assert label({3: 2.5, 7: -1.0}) == "3=2.5 7=-1"
    assert caption({3: 10 / 3}) == "3, s = 3.33"
    assert caption({3: 2.5}, {3: "upright to slanted"}) == "3, s = 2.5\nupright to slanted"
    assert caption({3: 2.5, 7: -1.0}, {3: "thin"}) == "3, s = 2.5\n7, s = -1"


@pytest.fixture
def edited_images(run, tmp_path):
    """Two images of the tiny run, edited in every way, and their folder."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    run = dataclasses.replace(run, names={1: "thickness"})
    return evaluate.edit(run, read_images([tmp_path], run.experiment.data), [{0: 2.0}, {0: 2.0, 1: -1.0}], steps=4)


def test_edits_of_real_images_are_a_result(edited_images, run, tmp_path):
    assert edited_images.pictures.shape == (2, 2 + 2, 1, 16, 16)
    assert edited_images.edits == [[(0, 2.0)], [(0, 2.0), (1, -1.0)]]
    alone = run.edit(edited_images.pictures[:1, 0], {0: 2.0, 1: -1.0}, steps=4)
    torch.testing.assert_close(edited_images.pictures[:1, 3], alone, rtol=1e-3, atol=1e-3)
    lines = edited_images.summary().splitlines()
    assert len(lines) == 7
    assert lines[-1].startswith("edit 0=2 1=-1: change 0.")
    assert lines[2].startswith("n 2  MSE mean ")
    assert lines[3].endswith("(1 expected)  n 2")
    assert lines[4].endswith("n 16")
    folder = edited_images.save(tmp_path / "out")
    assert len(list((folder / "images").glob("*.png"))) == 2 * 4
    assert evaluate.EditedImages.load(folder) == edited_images
    assert hbench.plot(edited_images, tmp_path / "edits.png").stat().st_size > 1000


def test_a_perfect_reconstruction_is_null_in_json(edited_images, tmp_path):
    (first, *_) = edited_images.images
    exact = dataclasses.replace(first, mse=0.0, psnr=math.inf)
    perfect = dataclasses.replace(edited_images, images=[exact], costs=None)
    perfect.write(tmp_path / "edit.json")
    assert json.loads((tmp_path / "edit.json").read_text())["images"][0]["psnr"] is None
    assert evaluate.EditedImages.load(tmp_path) == perfect


def test_x_T_of_an_inversion_is_measured(edited_images, run):
    x_T = run.invert(edited_images.pictures[:, 0], steps=4)
    for image, found in zip(edited_images.images, x_T, strict=True):
        assert (image.x_T_mean, image.x_T_std) == pytest.approx((found.mean().item(), found.std().item()), abs=1e-4)
    recovery = edited_images.recovery
    true = run.noise(16)
    sampler = run.sampler.with_steps(4)
    again = sampler.invert(sampler.generate(true))
    pairs = zip(true.flatten(1), again.flatten(1), strict=True)
    values = [np.corrcoef(a.numpy(), b.numpy())[0, 1] for a, b in pairs]
    assert recovery.n == 16
    assert recovery.correlation == pytest.approx(np.mean(values), abs=1e-3)
    assert recovery.interval[0] < recovery.correlation < recovery.interval[1]
    assert recovery.x_T_std == pytest.approx(again.flatten(1).std(1).mean().item(), rel=1e-2)


def test_a_poor_inversion_is_said_and_a_good_one_passes(edited_images):
    (first, *_) = edited_images.images

    def cautions(psnr, std, correlation):
        image = dataclasses.replace(first, psnr=psnr, x_T_std=std)
        recovery = dataclasses.replace(edited_images.recovery, correlation=correlation)
        return dataclasses.replace(edited_images, images=[image], recovery=recovery, costs=None).cautions()

    assert cautions(42.0, 1.0, 0.95) == []
    (poor,) = cautions(9.7, 1.0, 0.95)
    assert "1 of 1 image reconstructed at less than 30 dB, the worst at 9.7 dB (a.png)" in poor
    (flat,) = cautions(42.0, 0.64, 0.95)
    assert "standard deviation of 0.64 instead of 1" in flat
    (lost,) = cautions(42.0, 1.0, 0.48)
    assert "correlation 0.48" in lost
    assert "n = 16" in lost
    (undefined,) = cautions(42.0, 1.0, math.nan)
    assert "correlation nan" in undefined


def test_older_edits_load_without_what_they_do_not_know(edited_images):
    old = edited_images.to_json() | {"schema": 1}
    del old["recovery"], old["costs"]
    for image in old["images"]:
        del image["x_T_mean"], image["x_T_std"]
    read = evaluate.EditedImages.from_json(old, "edit.json")
    assert [image.psnr for image in read.images] == edited_images.psnrs
    assert math.isnan(read.images[0].x_T_std)
    assert "x_T" not in read.summary()
    assert [row.n for row in edit_rows(read, Paper())] == ["2 images"]
    assert [row.n for row in edit_rows(edited_images, Paper())] == [
        *["2 images", "2 images", "16 images", "16 images"],
        *[f"{len(edited_images.edits)} edits of 2 images"] * 2,
    ]


def test_a_traversal_may_be_of_some_directions(run, tmp_path):
    some = evaluate.traverse(run, examples=1, samples=3, pairs=8, directions=[2, 0, 2])
    assert [each.direction for each in some.directions] == list(some.grid.directions) == [2, 0]
    whole = evaluate.traverse(run, examples=1, samples=3, pairs=8)
    at = list(whole.grid.directions).index(2)
    assert torch.allclose(some.grid.images[0], whole.grid.images[at], atol=1e-5)
    with pytest.raises(ValueError, match="no direction 3: the run has 0 to 2"):
        evaluate.traverse(run, directions=[3])


def test_images_are_there_to_draw_or_missed(run, tmp_path):
    numbers = {"pairs": 8, "examples": 1, "samples": 3}
    traversal = evaluate.traverse(dataclasses.replace(run, names={1: "thickness"}), **numbers)
    assert traversal.grid.images.shape == (3, 1, 3, 1, 16, 16)
    assert [each.direction for each in traversal.directions] == list(traversal.grid.directions)
    assert {each.label.split(" ")[0] for each in traversal.directions} == {"0", "1:", "2"}
    ranking = rca(run, pairs=8)
    assert evaluate.traverse(run, examples=1, samples=3, ranking=ranking).table()["accuracy"].tolist() == [
        ranking.per_direction[k] for k in ranking.ranking()
    ]
    hbench.plot(traversal, tmp_path / "directions.png")
    read = evaluate.Traversal.load(traversal.save(tmp_path / "traverse"))
    assert read == traversal
    with pytest.raises(HBenchError, match="a traverse result that was read from its folder has nothing to draw"):
        hbench.plot(read, tmp_path / "again.png")
    assert not (tmp_path / "again.png").exists()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: evaluate.traverse(run, examples=0), "examples must be at least 1"),
        (lambda run: evaluate.traverse(run, samples=1), "samples must be at least 2"),
        (lambda run: evaluate.properties(run, samples=1), "samples must be at least 2"),
        (lambda run: evaluate.properties(run, pairs=19), "pairs must be at least 20"),
        (lambda run: evaluate.properties(run, directions=[3]), "no direction 3: the run has 0 to 2"),
        (lambda run: evaluate.properties(run, samples=2, pairs=20, steps=1001), "must be in 1..1000"),
        (lambda run: evaluate.edit(run, [], [{0: 1.0}]), "images must be at least 1"),
        (lambda run: evaluate.edit(run, [None], []), "edits must be at least 1"),
        (lambda run: evaluate.edit(run, [None], [{3: 1.0}]), "no direction 3: the run has 0 to 2"),
        (lambda run: evaluate.edit(run, [None], [{1: math.inf}]), "must be finite"),
    ],
)
def test_measurements_refuse_wrong_values(run, call, said):
    with pytest.raises(ValueError, match=said):
        call(run)


def test_the_picture_of_edits_is_laid_out_by_what_the_edits_have_in_common():
    names = {3: "thickness"}
    shifts = _edit_labels(singly_and_together({3: 1.0, 7: -2.0}), names)
    assert shifts == (["3, s = 1\nthickness", "7, s = -2", "3, s = 1\n7, s = -2"], ("",), "")
    assert _edit_labels(sweep(3, 5, 3), names) == (["s = -5", "s = 0", "s = 5"], ("",), "\ndirection 3: thickness")
    assert _edit_labels(grid(3, 7, 5, 2), names) == (["3, s = -5", "3, s = 5"], ["7, s = 5", "7, s = -5"], "")
    assert _edit_labels([{3: 1.0}], names).heading == ""
    pairs = [{3: 1.0, 7: 2.0}, {3: 2.0, 7: 1.0}]  # two directions, not every combination
    assert _edit_labels(pairs, names).columns == ["3, s = 1\n7, s = 2", "3, s = 2\n7, s = 1"]


def test_a_long_picture_of_edits_says_that_it_is_cut(edited_images, tmp_path):
    from PIL import Image

    many = dataclasses.replace(
        edited_images,
        images=edited_images.images * 25,
        pictures=edited_images.pictures.repeat(25, 1, 1, 1, 1),
        costs=None,
    )
    draw_edits(many, tmp_path / "edits.png")
    with Image.open(tmp_path / "edits.png") as picture:
        assert picture.height == pytest.approx(120 * (0.92 * 40 + 1.5), abs=20)  # 40 of 50 rows


def test_huge_names_of_directions_are_cut_in_pictures(run, edited_images, tmp_path):
    from PIL import Image

    sizes = []
    for name in ("thickness", "thin to bold and happy " * 20):
        named = dataclasses.replace(run, names=dict.fromkeys(range(run.K), name))
        hbench.plot(evaluate.traverse(named, pairs=8, examples=1, samples=3), tmp_path / "directions.png")
        draw_edits(dataclasses.replace(edited_images, names=named.names), tmp_path / "edits.png")
        for file in ("directions.png", "edits.png"):
            with Image.open(tmp_path / file) as picture:
                sizes.append(picture.size)
    for before, after in zip(sizes[:2], sizes[2:], strict=True):
        assert all(new < 1.3 * old for old, new in zip(before, after, strict=True))


def test_psnr_by_hand():
    a = torch.zeros(2, 1, 4, 4)
    b = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 7.0)])
    assert mean_square_error(a, b).tolist() == pytest.approx([0.04, 1])  # 7 is shown as 1
    assert psnr(0.04) == pytest.approx(20)
    assert psnr(0.0) == math.inf


def test_images_of_16_bits_are_scaled_and_photos_turned_upright(tmp_path, tiny):
    from PIL import Image

    Image.fromarray(np.full((16, 16), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    (deep,) = read_images([tmp_path / "deep.png"], tiny.data)
    assert deep.pixels.unique().tolist() == [128]
    assert deep.done == "16x16 I;16 -> 16x16 L"
    photo = Image.new("RGB", (16, 32))
    photo.paste((255, 255, 255), (0, 8, 16, 16))
    exif = Image.Exif()
    exif[274] = 3  # upside down
    photo.save(tmp_path / "photo.png", exif=exif)
    (upright,) = read_images([tmp_path / "photo.png"], tiny.data)
    assert upright.pixels[0, :8].max() == 0
    assert upright.pixels[0, 8:].min() == 255
    assert upright.done == "16x32 RGB -> 16x16 L, centre crop"
