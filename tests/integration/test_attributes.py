"""``hbench attributes``: what directions do to images, on runs whose directions are known."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import copy_of_weights, invoke, refused
from committed import RESULTS, V01
from PIL import Image

import hbench
from hbench.config import Paper
from hbench.errors import HBenchError
from hbench.evaluation import evaluate
from hbench.evaluation.attributes.attributes import attributes
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.traverse import direction_label
from hbench.evaluation.visible import VISIBLE, Seen, in_most, jpeg, oddness, random_change, visible_change
from hbench.reporting.artifacts import artifact_of
from hbench.reporting.grids import draw_strip, name_of
from hbench.reporting.rows import rca_rows
from hbench.store.directions import DirectionSource
from hbench.store.run import load_run


@pytest.fixture
def run(tiny_run):
    return load_run(tiny_run, device="cpu")


def painted(run, monkeypatch, paint):
    """Let the run's sampler make plain images, and shifts paint on them: ``paint(image, k, s)``."""

    def generate(sampler, x_T, shift=None):
        images = torch.full((len(x_T), *run.image_shape), -1.0)
        images[:, :, 4:12, 6:10] = 0.6 + 0.2 * x_T[:, :, :1, :1].tanh()
        images = torch.stack(
            [each.roll(round(float(x[0, 0, 1].tanh())), -1) for each, x in zip(images, x_T, strict=True)]
        )
        if shift is not None:
            for image, k, s in zip(images, shift.k, shift.s, strict=True):
                paint(image, int(k), float(s))
        return images

    monkeypatch.setattr(type(run.sampler), "generate", generate)
    return DirectionSource("own", run.own)


def known(image, k, s):
    """Direction 0 moves the bar to the right and to the left, 1 darkens on both sides alike, 2 does next to nothing."""
    if k == 0:
        image[:] = image.roll(round(s * 0.8), dims=-1)
    if k == 1:
        image[:] = image - 0.1 * abs(s) * (image > 0)
    if k == 2:
        image[0, 0, 0] += 0.01 * s


def test_known_directions_are_found_and_an_invisible_one_is_set_apart(run, monkeypatch):
    source = painted(run, monkeypatch, known)
    ranking = evaluate.rca(run, pairs=40, source=source)
    assert ranking.invisible == [1, 2]
    assert ranking.visible == [0]
    assert ranking.ranking()[0] == 0
    assert ranking.oddness[1] == pytest.approx(-1)
    assert "2 of 3 directions cannot be seen: 1, 2" in " ".join(ranking.cautions())
    found = attributes(run, samples=12, source=source, ranking=ranking)
    assert found.invisible == [1, 2]  # what both signs do alike gives a slider nothing to move
    assert found.visible == [0]
    first, second, third = found.directions
    assert first.proposed == found.attributes[first.leading].more
    assert "centre" in found.attributes[first.leading].name
    assert first.effects.sign_share[first.leading] == 1
    assert found.visible_from == ranking.visible_from == VISIBLE
    assert first.visible_in_most > found.visible_from > third.visible_in_most
    assert 0 < found.eight_bits_change < 0.005
    assert found.eight_bits_change < found.jpeg_change < found.random_change
    assert second.oddness == pytest.approx(-1)
    assert second.change > 0.01
    assert [second.proposed, third.proposed] == ["", ""]
    assert found.distinct == 1
    assert "2 of 3 directions cannot be seen: 1, 2" in found.cautions()[0]


def test_rca_over_visible_directions_counts_their_pairs_alone(run, monkeypatch):
    source = painted(run, monkeypatch, known)
    ranking = evaluate.rca(run, pairs=60, source=source)
    found = attributes(run, samples=6, source=source, ranking=ranking)
    counts = np.array(ranking.confusion)
    assert found.accuracy == ranking.accuracy
    assert found.accuracy_visible == pytest.approx(counts[0, 0] / counts[0].sum())
    assert ranking.accuracy_visible == found.accuracy_visible
    assert "visible directions 1 of 3: RCA" in ranking.summary()


def test_a_traversal_shows_invisible_directions_last_and_says_so(run, monkeypatch, tmp_path):
    source = painted(run, monkeypatch, known)
    found = evaluate.traverse(run, examples=1, samples=3, pairs=40, source=source)
    assert [each.visible for each in found.directions] == [True, False, False]
    assert [each.label.endswith(", invisible") for each in found.directions] == [False, True, True]
    hbench.plot(found, tmp_path / "directions.png")
    assert (tmp_path / "directions.png").is_file()


def with_nothing_to_see(found):
    """Return a committed measurement as it would be if nobody saw any of its directions."""
    unknown = {"accuracy_visible": math.nan, "accuracy_visible_interval": (math.nan, math.nan)}
    if isinstance(found, evaluate.RCA):
        return replace(found, visible_in_most=[0.0] * len(found.confusion), **unknown)
    hidden = [replace(each, visible=False, proposed="", cluster=None) for each in found.directions]
    unknown |= {"oddness": math.nan, "oddness_interval": (math.nan, math.nan), "specificity": math.nan}
    unknown |= {"kept_half": math.nan, "kept_half_interval": (math.nan, math.nan)}
    numbers = [each.direction for each in hidden]
    return replace(found, directions=hidden, invisible=numbers, distinct=0, effective_rank=0.0, **unknown)


@pytest.mark.parametrize("kind", [Attributes, evaluate.RCA])
def test_where_nobody_sees_a_direction_no_number_stands_for_those_that_are_seen(kind):
    found = with_nothing_to_see(kind.load(RESULTS / "faces16" / kind.NAME))
    artifact = artifact_of(found)
    rows = artifact.rows(found, Paper())
    said = [found.summary(), *found.cautions(), *(row.ours for row in rows)]
    said += [f"{each.value} {each.detail}" for each in artifact.highlights(found, Paper())]
    assert not any(re.search(r"\bnan\b|  of|RCA over these", words) for words in said)
    assert all(row.ours for row in rows)
    assert found.cautions()[0].startswith("16 of 16 directions cannot be seen")


def test_a_direction_that_was_never_drawn_has_no_accuracy_in_its_label():
    assert direction_label(3, math.nan, "slant") == "3: slant (not drawn)"
    assert direction_label(3, 0.5) == "3 (0.50)"


def test_rca_over_visible_directions_has_the_n_of_their_pairs():
    found = evaluate.RCA.load(RESULTS / "faces16" / "rca")
    pairs = sum(sum(row) for k, row in enumerate(found.confusion) if k not in found.invisible)
    assert 0 < pairs < found.n
    (row,) = [row for row in rca_rows(found, Paper()) if row.artifact.startswith("RCA over visible")]
    assert row.n == f"{pairs:,} pairs"
    assert f"n {pairs}" in found.summary()


def test_an_older_rule_of_what_is_visible_is_named():
    assert "a mean change beyond 0.25 of the range" in Attributes.load(V01 / "attributes").cautions()[-1]
    newer = evaluate.RCA.load(RESULTS / "faces16" / "rca")
    assert not any("older version" in said for said in newer.cautions())
    older = replace(newer, visible_in_most=None, visible_from=0.3)
    assert "a mean change beyond 0.3 of the range" in older.cautions()[-1]


def test_rca_of_an_older_version_knows_nothing_of_what_is_seen():
    found = evaluate.RCA.load(V01 / "rca")
    assert found.n_visible is None
    assert found.invisible == []
    assert len(found.visible) == 32
    assert "visible" not in found.summary()


def test_the_same_seed_gives_the_same_numbers_and_they_are_read_back(run, tmp_path):
    one, other = (attributes(run, samples=6, seed=3) for _ in range(2))
    assert one == other
    one.save(tmp_path / "attributes")
    assert Attributes.load(tmp_path / "attributes") == one
    assert len(one.table()) == run.K
    assert one.strips.shape == (run.K, 4, 9, *run.image_shape)
    assert one.detail("x_T") == [0, 1, 2, 3]


def test_the_best_directions_are_of_different_clusters_and_shown_where_classes_stay(tmp_path):
    found = Attributes.load(RESULTS / "faces16" / "attributes")
    best = [found.directions[k] for k in found.best]
    assert len({each.cluster for each in best}) == len(best) == len({each.cluster for each in named(found)})
    assert [each.specificity for each in best] == sorted((each.specificity for each in best), reverse=True)
    kept = {0.9: 5.0, 0.51: 5.0, 0.5: 1.25, 0.1: 1.25, math.nan: 2.5}
    for share, s in kept.items():
        first = replace(found.directions[0], kept=[share] * 4)
        assert replace(found, directions=[first, *found.directions[1:]]).good_magnitude(0) == s
    falling = replace(found.directions[0], kept=[0.9, 0.7, 0.6, 0.4])
    found = replace(found, directions=[falling, *found.directions[1:]])
    assert found.good_magnitude(0) == 3.75

    strips = torch.rand(16, 4, 9, 3, 16, 16) * 2 - 1
    draw_strip(replace(found, strips=strips), tmp_path / "strip.png")
    hidden = [replace(each, visible=False) for each in found.directions]
    nothing = replace(found, strips=strips, directions=hidden, invisible=list(range(16)))
    draw_strip(nothing, tmp_path / "nothing.png")
    with Image.open(tmp_path / "strip.png") as strip, Image.open(tmp_path / "nothing.png") as empty:
        assert strip.width > 2 * empty.width


def test_a_strip_says_from_what_to_what_a_direction_goes():
    found = Attributes.load(RESULTS / "faces16" / "attributes")
    assert name_of(found, 11) == "long dark hair → bald, lighter skin"
    for name, said in {"bolder": "bolder", "": found.directions[0].proposed}.items():
        renamed = [replace(found.directions[0], name=name), *found.directions[1:]]
        assert name_of(replace(found, directions=renamed), 0) == said


def named(found):
    return [each for each in found.directions if each.visible and each.leading is not None]


def test_random_images_and_their_storage_bound_what_is_visible():
    images = torch.stack([torch.full((3, 10, 10), value) for value in (-1.0, 0.0, 1.0)])
    assert random_change(images) == pytest.approx((0.5 + 0.5 + 1) / 3)
    noise = torch.randint(0, 256, (3, 12, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for image in (noise, noise[:1]):
        kept = jpeg(image)
        assert kept.shape == image.shape
        assert 0 < (kept.float() - image.float()).abs().mean() < (128 if len(image) == 3 else 10)
    flat = torch.full((3, 16, 16), 200, dtype=torch.uint8)
    assert torch.equal(jpeg(flat), flat)


def test_a_direction_is_visible_by_what_happens_to_most_samples_and_not_by_the_mean():
    faint_on_all, strong_on_few = np.full(20, 0.24), np.where(np.arange(20) < 4, 0.9, 0.1)
    seen = Seen(np.stack([faint_on_all, strong_on_few], 1), np.ones((20, 2)))
    assert seen.visible_change.mean(0)[1] > seen.visible_change.mean(0)[0]
    assert seen.visible.tolist() == [True, False]
    assert in_most(seen.visible_change).tolist() == pytest.approx([0.24, 0.1])


def test_visible_change_is_that_of_the_patch_that_changes_most():
    up = torch.zeros(2, 3, 16, 16)
    down = up.clone()
    up[0, :, 2:5, 2:5] = 1  # a patch of 3 x 3 goes from grey to white: half the range
    up[1, :, 0, 0] = 1
    assert visible_change(up, down).tolist() == pytest.approx([0.5, 0.5 / 9])
    assert visible_change(3 * up, up).tolist() == [0, 0]  # nobody sees what lies beyond white


def test_oddness_is_1_for_opposite_changes_and_minus_1_for_the_same():
    up = torch.tensor([[1.0, 2, 0], [1, 2, 0], [1, 0, 0], [0, 0, 0]]).view(4, 1, 1, 3)
    down = torch.tensor([[-2.0, -4, 0], [1, 2, 0], [0, 1, 0], [1, 0, 0]]).view(4, 1, 1, 3)
    assert oddness(up, down) == pytest.approx([1, -1, 0, np.nan], nan_ok=True)


def test_a_result_whose_parts_do_not_fit_is_refused(run, tmp_path):
    folder = attributes(run, samples=6).save(tmp_path / "attributes")
    values = json.loads((folder / "attributes.json").read_text())
    values["directions"][0]["effects"]["effect"].pop()
    (folder / "provenance.json").unlink()
    (folder / "attributes.json").write_text(json.dumps(values))
    with pytest.raises(HBenchError, match="effects are of another number of attributes"):
        Attributes.load(folder)


def test_the_command_writes_numbers_table_and_pictures(tiny_run, tmp_path):
    out = tmp_path / "attributes"
    result = invoke("attributes", tiny_run, "--samples", 6, "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    assert {each.name for each in out.iterdir()} >= {
        "attributes.json",
        "attributes.csv",
        "attributes.png",
        "curves.png",
        "provenance.json",
    }
    assert "of 3 directions visible" in result.output
    assert "--samples" in refused("attributes", tiny_run, "--samples", 5)


def test_mistakes_are_refused(run):
    with pytest.raises(TypeError):
        attributes("mnist16")
    with pytest.raises(ValueError, match="samples"):
        attributes(run, samples=5)
    with pytest.raises(ValueError, match="seed"):
        attributes(run, seed=-1)


def test_proposed_names_never_replace_those_of_a_person(tiny_run, tmp_path, monkeypatch):
    run = copy_of_weights(tiny_run, tmp_path / "run")
    (run / "names.txt").write_text("1: a person's\n2:")
    monkeypatch.setattr(Attributes, "proposed_names", {0: "thicker", 1: "wider", 2: "taller"})
    arguments = ("attributes", run, "--samples", 6, "--out", tmp_path / "out", "--quiet", "--propose-names")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert (run / "names.txt").read_text() == "1: a person's\n2:\n0: thicker\n"
    assert "names of 1 direction added" in result.output
    assert load_run(run, device="cpu").names[0] == "thicker"


def test_a_run_takes_no_names_of_a_file_s_directions(tiny_run, tmp_path):
    line = refused("attributes", tiny_run, "--propose-names", "--directions", tmp_path / "pca.safetensors")
    assert line == "Error: --propose-names names the directions of RUN: leave --directions out"
    assert not (tiny_run / "names.txt").exists()


def test_a_shipped_run_takes_no_names():
    line = refused("attributes", "mnist16", "--propose-names")
    assert "is shipped with hbench, and keeps its names: copy its folder, and name that" in line
