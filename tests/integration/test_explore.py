"""The explorer: its pictures are those of the run, it stays small, and what strangers wrote stays text."""

import base64
import io
import json
import logging
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from command_line import changed, copy_of_weights, invoke, refused
from committed import V01
from PIL import Image

import hbench
from hbench.core.images import to_uint8
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.explore import EditTable, facts_of, known_attributes, read_attributes, visible_directions
from hbench.reporting import explore as page
from hbench.store.datasets import read_images
from hbench.store.directions import direction_source
from hbench.store.provenance import Provenance

HOSTILE = "</script><img src=x onerror=\"alert(1)\"> & 'quotes'"


VISIBLE = [12, 3, 7]
"""Some directions of the committed run."""


@pytest.fixture(scope="module")
def run():
    """A run whose directions move every image, as those of a few steps do not."""
    return hbench.load_run(V01, device="cpu")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'me "<i>".png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    return path


def data_of(path):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(text)


def unpacked(data, sample):
    """Return the images of a sprite, RGB uint8 [N, H, W, 3], as many as it has room for."""
    sprite = data["samples"][sample]["sprite"].removeprefix("data:image/webp;base64,")
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(sprite))).convert("RGB"))
    H, W = data["height"], data["width"]
    return pixels.reshape(-1, H, data["columns"], W, 3).swapaxes(1, 2).reshape(-1, H, W, 3)


class Fields(HTMLParser):
    """What a browser reads of a page: the values of its fields, and the names of its elements."""

    def __init__(self, text):
        super().__init__()
        self.values, self.alts, self.tags = {}, [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        assert not any(name.startswith("on") for name in found)
        if tag == "img":
            self.alts.append(found["alt"])
        if "name" in found.get("class", "").split():
            self.values[found["id"]] = found["value"], found["placeholder"]


def test_the_table_has_each_direction_alone_and_each_two_at_once():
    table = EditTable((4, 1, 7), (-2.0, -1.0, 0.0, 1.0, 2.0))
    assert table.pair_magnitudes == (-2.0, 0.0, 2.0)
    assert len(table.edits) == 1 + 3 * 4 + 3 * 4
    assert table.edits[0] == {}
    assert table.edits[1:5] == [{4: -2.0}, {4: -1.0}, {4: 1.0}, {4: 2.0}]
    assert table.edits[13:17] == [{4: -2.0, 1: -2.0}, {4: -2.0, 1: 2.0}, {4: 2.0, 1: -2.0}, {4: 2.0, 1: 2.0}]
    assert len({tuple(sorted(edit.items())) for edit in table.edits}) == 25


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sprite_loses_nothing(channels):
    images = torch.randint(256, (11, channels, 5, 7), dtype=torch.uint8)
    data = {"samples": [{"sprite": page.sprite(images)}], "height": 5, "width": 7, "columns": page.sprite_columns(11)}
    found = unpacked(data, 0)[:11]
    assert np.array_equal(found, images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


@pytest.mark.slow
def test_the_pictures_are_those_of_the_run(run, tmp_path):
    path = hbench.explore(run, tmp_path / "out", samples=2, magnitudes=5, directions=VISIBLE, seed=3)
    data = data_of(path)
    table = EditTable(tuple(VISIBLE), tuple(data["magnitudes"]))
    assert data["magnitudes"] == [-run.S, -run.S / 2, 0, run.S / 2, run.S]
    chosen = Provenance.read(path.parent / "provenance.json").details["x_T"]
    for sample, i in enumerate(chosen):
        x_T = run.noise(1, seed=3, first=i)
        expected = torch.cat([to_uint8(run.generate(x_T, edit)) for edit in table.edits])[:, 0].numpy().astype(int)
        found = unpacked(data, sample)[: len(expected), :, :, 0].astype(int)
        difference = np.abs(found[:, None] - expected).mean((2, 3))
        assert difference.diagonal().max() < 0.5  # of 255: another batch rounds otherwise
        assert (difference + 1000 * np.eye(len(expected))).min() > 0.5
    assert len(chosen) == len(data["samples"]) == 2
    assert "at 5 magnitudes s of one direction" in path.read_text()


def test_names_and_file_names_stay_text(run, picture, tmp_path):
    run = replace(run, names={3: HOSTILE, 8: "ü; \u2028 long"}, folder=None)
    images = read_images(picture, run.experiment.data)
    path = hbench.explore(run, tmp_path / "out", samples=1, magnitudes=5, directions=[3, 7], images=images, steps=5)
    found, data = Fields(path.read_text()), data_of(path)
    assert found.values == {"name-3": (HOSTILE, "direction 3"), "name-7": ("", "direction 7")}
    assert data["names"] == {"3": HOSTILE, "8": "ü; \u2028 long"}
    assert [each["name"] for each in data["samples"]] == [picture.name, "sample 1"]
    assert found.alts[1:] == [picture.name, "sample 1"]
    assert "i" not in found.tags


def test_names_of_a_file_s_directions_are_not_for_the_folder_of_the_run(run, tmp_path):
    few = {"directions": VISIBLE[:1], "samples": 1, "magnitudes": 5}
    own, of_file = (
        page.explore(each, tmp_path / name, **few).read_text()
        for each, name in ((run, "own"), (replace(run, folder=None), "file"))
    )
    assert "Put the file into the folder of the run" in own
    assert "put it into no run's folder" in of_file
    assert "Put the file into the folder of the run" not in of_file


def test_a_real_image_is_beside_its_reconstruction(run, picture, tmp_path):
    images = read_images(picture, run.experiment.data)
    path = hbench.explore(run, tmp_path / "out", samples=0, magnitudes=5, directions=[3], images=images, steps=5)
    data = data_of(path)
    assert re.fullmatch(r", reconstructed at -?\d+\.\d dB", data["samples"][0]["note"])
    x_0 = images[0].pixels[None].float() / 127.5 - 1
    expected = to_uint8(run.edit(x_0, {3: run.S}, steps=5))[0, 0].int()
    assert np.abs(unpacked(data, 0)[4, :, :, 0].astype(int) - expected.numpy()).max() <= 1
    origin = Provenance.read(path.parent / "provenance.json").details
    assert origin["images_sha256"] == {str(picture): images[0].sha256}
    assert origin["inversion_steps"] == 5


@pytest.mark.slow
def test_a_page_that_would_be_too_large_has_fewer_samples_or_is_refused(run, tmp_path, monkeypatch, caplog):
    few = {"magnitudes": 5, "directions": VISIBLE}
    size = hbench.explore(run, tmp_path / "one", samples=1, **few).stat().st_size
    sprite = len(data_of(tmp_path / "one" / "explore.html")["samples"][0]["sprite"])
    monkeypatch.setattr(page, "TEXT", size - sprite)
    monkeypatch.setattr(page, "LARGEST", size + int(1.6 * sprite))
    with caplog.at_level(logging.WARNING, "hbench"):
        path = hbench.explore(run, tmp_path / "fewer", samples=5, **few)
    assert len(data_of(path)["samples"]) == 2
    assert "only 2 of 5 samples and images fit" in caplog.text
    monkeypatch.setattr(page, "LARGEST", size - sprite // 2)
    with pytest.raises(hbench.HBenchError, match=r"exceed .* take fewer `magnitudes`, or fewer directions"):
        hbench.explore(run, tmp_path / "none", samples=1, magnitudes=9, directions=VISIBLE)
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(page, "LARGEST", size - 1)
    monkeypatch.setattr(page, "TEXT", 0)  # its words are longer than was thought
    with pytest.raises(hbench.HBenchError, match=r"the page has .* take fewer directions"):
        hbench.explore(run, tmp_path / "none", samples=1, **few)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_many_directions_have_fewer_samples_by_default(run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ENOUGH", 30)
    path = hbench.explore(run, tmp_path / "two", magnitudes=5, directions=[2, 0, 2])
    assert data_of(path)["directions"] == [2, 0]
    assert len(data_of(path)["samples"]) == 2  # of 13 pictures each
    monkeypatch.setattr(page, "ENOUGH", 1)
    assert len(data_of(hbench.explore(run, tmp_path / "one", magnitudes=5, directions=[0]))["samples"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"magnitudes": 7}, "magnitudes must be 5, 9, 13"),
        ({"magnitudes": 1}, "magnitudes must be 5, 9, 13"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"directions": [32]}, "no direction 32"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(run, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        hbench.explore(run, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_what_was_measured_of_a_direction_is_told(run):
    source = direction_source(run)
    found = read_attributes(V01 / "attributes", run, source)
    assert known_attributes(run, source, [V01 / "attributes"]) == found
    seen = visible_directions(run, source, found)
    assert sorted(seen) == found.visible
    changes = [found.directions[k].visible_change for k in seen]
    assert changes == sorted(changes, reverse=True)
    k = next(each.direction for each in found.directions if each.leading is not None)
    each, facts = found.directions[k], facts_of(run, k, found)
    name, effect = found.attributes[each.leading].name, each.effects.effect[each.leading]
    assert facts.effect.startswith(f"{name} {effect:+.2f} sd [".replace("-", "−"))
    passing = [j for j, passes in enumerate(each.effects.passes) if passes and j != each.leading]
    assert facts.also.count(" sd") == min(4, len(passing))
    assert facts.kept.startswith(f"{each.kept[-1]:.0%} [")
    assert facts.proposed == each.proposed
    hidden = next(each for each in found.directions if each.leading is None)
    assert facts_of(run, hidden.direction, found).effect == "no attribute passes"
    assert facts_of(run, k, None).effect == ""


def test_of_other_weights_nothing_is_told(tiny_run, tmp_path):
    run = hbench.load_run(tiny_run, device="cpu")
    source = direction_source(run)
    assert known_attributes(run, source, [V01 / "attributes"]) is None
    with pytest.raises(hbench.HBenchError, match="on other weights or directions: give that of this run"):
        read_attributes(V01 / "attributes" / "attributes.json", run, source)
    with pytest.raises(ValueError, match="on other weights or directions"):
        hbench.explore(run, tmp_path / "out", attributes=Attributes.load(V01 / "attributes"))


@pytest.fixture
def measured(results, tmp_path):
    """A run folder with its RCA, by which direction 1 alone is visible."""
    folder = copy_of_weights(results, tmp_path / "run")
    (folder / "rca").mkdir()
    for name in ("rca.json", "provenance.json"):
        (folder / "rca" / name).write_bytes((results / "rca" / name).read_bytes())
    values = json.loads((folder / "rca" / "rca.json").read_text())
    changed(folder / "rca" / "rca.json", values | {"visible_in_most": [0.1, 0.9, 0.15]})
    return folder


@pytest.mark.slow
def test_the_command_writes_a_page_of_what_can_be_seen(measured):
    (measured / "names.txt").write_text("0: hidden\n1: seen\n")
    command = ("explore", measured, "--samples", 1, "--magnitudes", 5)
    result = invoke(*command, "--quiet")
    assert result.exit_code == 0, result.output
    path = measured / "explore" / "explore.html"
    assert result.output.strip().splitlines()[-1] == str(path)
    data, text = data_of(path), path.read_text()
    assert data["directions"] == [1]
    assert data["names"] == {"0": "hidden", "1": "seen"}  # a name of what is left out is saved again
    assert "Left out, since nobody sees them: directions 0, 2" in text
    assert "No effects were measured" in text
    assert refused(*command).endswith("already holds results: choose another --out, or add --overwrite")
    result = invoke(*command, "--direction", "hid", "--direction", 2)
    assert result.exit_code == 0, result.output
    assert re.search(r"13 pictures: about \d+ s and 0\.\d MB", result.output)  # 1 + 2 * 4 + 4
    assert data_of(measured / "explore-2" / "explore.html")["directions"] == [0, 2]
    assert "The most visible first." in text
    assert "most visible first" not in (measured / "explore-2" / "explore.html").read_text()  # in the order asked for


def test_where_nobody_sees_a_direction_the_command_says_so(measured):
    file = measured / "rca" / "rca.json"
    changed(file, json.loads(file.read_text()) | {"visible_in_most": [0.1, 0.1, 0.15]})
    assert "none of the 3 directions can be seen, as was measured: name those to show" in refused("explore", measured)
    assert not (measured / "explore").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--magnitudes", 7], "need 5, 9, 13"),
        (["--samples", 0], "at least 1 without --images"),
        (["--direction", 9], "no direction 9: the run has 0 to 2"),
        (["--images", "missing.png"], "missing.png: no such image or folder"),
        (["--steps", 5000], "at most 1000, the number of timesteps"),
        (["--attributes", V01 / "attributes"], "give that of this run"),
        (["--attributes", "missing/attributes.json"], "no attributes.json there"),
    ],
)
def test_the_command_refuses_in_a_line(tiny_run, tmp_path, options, message):
    assert message in refused("explore", tiny_run, *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
