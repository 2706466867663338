"""The registry of data sets, those of other packages, and those that are drawn."""

import gzip
import hashlib
import json
import logging
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import dicebear_styles
import numpy as np
import pytest
import torch
import torchvision.datasets
from command_line import invoke, refused, tiny_options
from packages import PLUGIN, package

import hbench
from hbench.config import Data
from hbench.errors import HBenchError
from hbench.experiments import known_experiments, load_experiment
from hbench.reporting.report import collect, origins
from hbench.store import drawn
from hbench.store.account import content_sha256
from hbench.store.datasets import at_hand, load_set
from hbench.store.faces import CLOTHES, EYES, FACES, HAIR, SKIN
from hbench.store.peeps import PEEPS
from hbench.store.registry import DATASETS, GROUP, check_data, data_set, factors_of

STRIPES = ("--set", "data.dataset=stripes", "--set", "data.label=Stripes")


def data(name, **settings):
    return Data(**{"dataset": name, "label": "Mine", "size": 16, "channels": 3} | settings)


# The registry -------------------------------------------------------------------------------------------------------


def test_every_experiment_has_a_known_data_set():
    for name in known_experiments():
        check_data(load_experiment(name).data)


@pytest.mark.parametrize("command", [["pretrain", "digits16"], ["train", "digits16"], ["plan", "digits16"]])
def test_an_unknown_name_is_refused_before_work_begins(command, tmp_path):
    line = refused(*command, "--set", "data.dataset=mnsit", "--out", tmp_path / "out")
    assert 'no data set "mnsit": choose one of digits, faces, fashion, folder, mnist, peeps' in line
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_is_refused_by_commands_that_take_a_file(tmp_path, tiny_run):
    text = (Path(hbench.__file__).parent.parent / "experiments" / "digits16.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace('"digits"', '"mnsit"'))
    for command in ("reproduce", tmp_path / "mine.toml"), ("sample", tiny_run, "--experiment", tmp_path / "mine.toml"):
        assert 'no data set "mnsit": choose one of digits' in refused(*command)


def test_a_name_that_is_no_name_is_refused_by_the_settings():
    with pytest.raises(HBenchError, match=r"data\.dataset = '\.\./x'"):
        load_experiment("digits16", "data.dataset=../x")


def test_labels_are_known_without_reading():
    assert [factor.name for factor in factors_of(data("digits"))] == ["digit"]
    assert len(factors_of(data("fashion"))[0].classes) == 10
    assert len(factors_of(data("faces"))) == 10
    assert factors_of(data("folder")) == factors_of(data("not-installed")) == ()


def test_mirrored_digits_are_refused():
    line = refused("pretrain", "digits16", "--set", "data.flip=true")
    assert "digits holds no mirrored images: leave it out" in line
    check_data(data("faces", flip=True))
    check_data(data("folder", flip=True))


def test_the_guide_has_a_row_for_each_data_set():
    guide = (Path(hbench.__file__).parent.parent / "docs" / "guide.md").read_text()
    text = guide.partition("### The data sets")[2].partition("\n### ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith('| `"')]
    told = {row[0].strip('`"'): row for row in rows}
    assert set(told) == set(DATASETS)
    for name, known in DATASETS.items():
        _, images, labels, flip, licence, needs = told[name]
        assert known.size is None or f"{known.size}x{known.size}" in images
        assert ("grey" in images) == (known.channels == 1)
        assert labels == (", ".join(factor.name for factor in known.factors) or "none")
        assert flip == ("yes" if known.mirrors else "no")
        assert licence == (known.licence or "yours")
        assert ("folder" in needs) == known.needs_root
        assert (f"`{known.downloads_to}`" in needs) or not known.downloads_to


def test_the_page_says_whose_the_images_are():
    told = origins([collect("results/mnist16-v0.1")])["images"]
    assert told == ["MNIST (Y. LeCun, C. Cortes and C. Burges, CC BY-SA 3.0)"]


# Data sets of other packages ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_data_set_of_another_package_is_trained_on(tmp_path, monkeypatch):
    options = [*tiny_options("pretrain.steps=2", "pretrain.sample_every=2"), *STRIPES, "--out", tmp_path / "out"]
    assert 'no data set "stripes"' in refused("pretrain", "digits16", *options)
    monkeypatch.syspath_prepend(PLUGIN)
    result = invoke("pretrain", "digits16", *options)
    assert result.exit_code == 0, result.output
    assert "stripes (the tests of hbench, MIT): 40 found, 36 used to train on" in result.output
    origin = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (origin["data"]["found"], origin["data"]["used"]) == (40, 36)
    assert origin["experiment"]["data"]["dataset"] == "stripes"


def test_a_data_set_of_another_package_has_labels(monkeypatch):
    monkeypatch.syspath_prepend(PLUGIN)
    stripes = data("stripes", channels=1)
    test = load_set(stripes, split="test")
    assert test.images.shape == (4, 1, 16, 16)
    assert test.labels.table().columns.tolist() == ["direction", "width"]
    assert test.labels.table()["direction"].tolist() == ["level"] * 4  # each tenth has an odd number
    assert at_hand(stripes)
    assert [factor.name for factor in factors_of(stripes)] == ["direction", "width"]


def test_a_broken_package_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "worn", GROUP, "rags = no_such_module:RAGS")
    with pytest.raises(HBenchError, match=r'^data set "rags": package worn is broken \(No module named .*\): update'):
        data_set("rags")
    package(tmp_path, "odd", GROUP, "socks = math:pi")
    with pytest.raises(HBenchError, match="package odd has a float in place of a DataSet"):
        data_set("socks")
    package(tmp_path, "more", GROUP, "socks = math:pi")
    with pytest.raises(HBenchError, match=r"is in the packages (odd and more|more and odd): uninstall all but one"):
        data_set("socks")
    with pytest.raises(HBenchError, match=r"choose one of digits, .*, rags, socks, or install its package"):
        data_set("mnsit")


def test_a_data_set_that_reads_something_else_than_it_says_is_refused(monkeypatch):
    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], factors=()))
    with pytest.raises(ValueError, match="digits: the labels have other factors than the DataSet"):
        load_set(data("digits"))


# Drawn data sets ----------------------------------------------------------------------------------------------------


def definition(style):
    return json.loads((Path(next(iter(dicebear_styles.__path__))) / style.file).read_text())


@pytest.mark.parametrize(
    ("style", "sha256"),
    [
        (FACES, "67ad71236bdb806c905a9af317f4af7a8edd7ddb43adda566ce07334ef4cfee9"),
        (PEEPS, "ff971e1764af5585456d05e0d317e93e0909ae875c4e7d8b2d271a019b02f7e8"),
    ],
)
def test_the_same_seed_draws_the_same_bytes(style, sha256):
    images, labels = drawn.draw(style, 0, "test", 20)
    assert images.shape == (20, 3, style.size, style.size)
    assert len(labels) == 20
    assert content_sha256(images) == sha256


@pytest.mark.slow
def test_the_test_faces_are_the_published_ones():
    images, _ = drawn.draw(FACES, 0, "test", drawn.COUNTS["test"])
    assert content_sha256(images) == FACES.published["test"]


def test_the_labels_of_faces_are_what_is_drawn():
    images, labels = drawn.draw(FACES, 0, "train", 40)
    for image, row in zip(images, labels.table().to_dict("records"), strict=True):
        colours = {bytes(pixel).hex() for pixel in image.flatten(1).T.numpy()}
        assert set(CLOTHES[row["clothes colour"]]) & colours
        assert set(SKIN[row["skin"]]) & colours


@pytest.mark.parametrize("groups", [SKIN, HAIR, CLOTHES, EYES])
def test_colours_share_a_class_exactly_if_a_person_cannot_tell_them_apart(groups):
    def apart(one, other):
        return max(abs(a - b) for a, b in zip(bytes.fromhex(one), bytes.fromhex(other), strict=True))

    for name, colours in groups.items():
        others = [each for group in groups if group != name for each in groups[group]]
        assert all(apart(colour, other) >= 20 for colour in colours for other in others)
        linked = {colours[0]}
        for _ in colours:
            linked |= {each for each in colours if any(apart(each, known) < 20 for known in linked)}
        assert linked == set(colours)


@pytest.mark.parametrize("style", [FACES, PEEPS])
def test_factors_are_drawn_evenly_and_by_the_names_of_the_style(style):
    known = definition(style)["components"]
    drawn_classes, names = [], {name: set(part["variants"]) for name, part in known.items()}
    for index in range(600):
        options, classes = style.draw_options(drawn.Draws(f"even {index}"))
        drawn_classes.append(classes)
        for key, value in options.items():
            if key.endswith("Variant"):
                assert value[0] in names[key.removesuffix("Variant")]
    for factor, column in zip(style.factors, np.array(drawn_classes).T, strict=True):
        counts = np.bincount(column, minlength=len(factor.classes))
        assert counts.min() >= 600 * 0.05, f"{factor.name}: {counts}"


def test_drawn_images_are_kept_and_read_without_the_extra(few_drawn, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "hbench")
    first = load_set(data("faces"))
    assert first.images.shape == (24, 3, 16, 16)
    assert first.labels.table().shape == (24, 10)
    assert "faces (Pixel Art by DiceBear, drawn by dicebear-core (MIT), CC0 1.0): 24 found, 24 used" in caplog.text
    (file,) = few_drawn.iterdir()
    assert "styles10.6.0" in file.name

    def missing(package):
        raise PackageNotFoundError(package)

    assert at_hand(data("faces"))
    monkeypatch.setattr(drawn, "version", missing)
    assert not at_hand(data("faces"))  # the test images are not kept
    again = load_set(data("faces"))
    assert torch.equal(again.images, first.images)
    assert torch.equal(again.labels.values, first.labels.values)
    assert again.account.sha256 == first.account.sha256
    with pytest.raises(HBenchError, match=r'^data set "faces": .* are missing: pip install "hbench\[faces\]"$'):
        load_set(data("faces"), split="test")


def test_a_damaged_file_of_drawn_images_is_drawn_again(few_drawn, caplog):
    caplog.set_level(logging.INFO, "hbench")
    first = load_set(data("faces"))
    (file,) = few_drawn.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], whole[:1000], b""):
        file.write_bytes(damaged)
        caplog.clear()
        assert torch.equal(load_set(data("faces")).images, first.images)
        assert "is damaged, and the images are drawn again" in caplog.text
        caplog.clear()
        assert torch.equal(load_set(data("faces")).images, first.images)
        assert "damaged" not in caplog.text


def test_drawn_images_need_no_folder_for_what_they_keep(few_drawn, caplog):
    caplog.set_level(logging.INFO, "hbench")
    few_drawn.write_text("a file in the folder's place")
    assert len(load_set(data("faces"), split="test").images) == 12
    assert "cannot be written, so the images are drawn again next time" in caplog.text


def test_images_of_another_version_of_the_styles_are_warned_of(few_drawn, monkeypatch):
    style = replace(FACES, published={"train": content_sha256(drawn.draw(FACES, 0, "train", 24)[0])})
    faces = replace(DATASETS["faces"], read=partial(drawn.read_drawn, style))
    monkeypatch.setitem(DATASETS, "faces", faces)
    as_published = load_set(data("faces")).account
    assert as_published.published
    assert not [line for line in as_published.warnings() if "dicebear-styles" in line]
    other = replace(style, published={"train": "0" * 64})
    monkeypatch.setitem(DATASETS, "faces", replace(faces, read=partial(drawn.read_drawn, other)))
    account = load_set(data("faces")).account
    assert not account.published
    assert "drawn by dicebear-styles 10.6.0 and differ from those of 10.6.0" in account.warnings()[-1]
    assert account.to_json()["published"] is False
    assert "unlike" not in account.to_json()


def test_people_are_resized_to_what_is_wanted(few_drawn):
    assert load_set(data("peeps", size=32), split="test").images.shape == (12, 3, 32, 32)
    assert load_set(data("peeps", size=64, channels=1), split="test").images.shape == (12, 1, 64, 64)


# Fashion-MNIST ------------------------------------------------------------------------------------------------------


def fashion(folder, count=30):
    """Write small files in Fashion-MNIST's form, and their archives; return the MD5 of each archive."""
    raw, sums = folder / "FashionMNIST" / "raw", []
    raw.mkdir(parents=True)
    for kind in ("train", "t10k"):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape) + pixels.tobytes()
        labels = b"\x00\x00\x08\x01" + count.to_bytes(4, "big") + bytes(i % 10 for i in range(count))
        for name, content in ((f"{kind}-images-idx3-ubyte", images), (f"{kind}-labels-idx1-ubyte", labels)):
            (raw / name).write_bytes(content)
            archive = gzip.compress(content)
            (raw / f"{name}.gz").write_bytes(archive)
            sums.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    return sums


def test_fashion_is_read_from_torchvisions_layout(tmp_path, monkeypatch):
    wanted = data("fashion", channels=1)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", fashion(tmp_path))
    test = load_set(wanted, tmp_path, "test")
    assert test.images.shape == (30, 1, 16, 16)
    assert test.labels.table()["garment"][:3].tolist() == ["T-shirt/top", "Trouser", "Pullover"]
    assert test.account.published
    raw = tmp_path / "FashionMNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    damaged = load_set(wanted, tmp_path, "test").account
    assert "its files are not those published as Fashion-MNIST" in damaged.warnings()[-1]
    for archive in raw.glob("*.gz"):
        archive.unlink()
    assert load_set(wanted, tmp_path, "test").account.published  # nothing is known against it
    mnist = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in raw.iterdir()}
    monkeypatch.setattr("hbench.store.idx.MNIST_SHA256", mnist)
    assert not load_set(wanted, tmp_path, "test").account.published


def test_fashion_is_never_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.delenv("HBENCH_DATA", raising=False)
    monkeypatch.setattr("hbench.store.datasets.DOWNLOADS", tmp_path / "cache")
    assert not at_hand(data("fashion"))
    with pytest.raises(HBenchError, match=r'"fashion" needs its folder.*, or add `download=True`'):
        load_set(data("fashion"))
    with pytest.raises(HBenchError, match=r"cannot read FashionMNIST .* that holds FashionMNIST/raw with `data_root`"):
        load_set(data("fashion"), tmp_path)
    fashion(tmp_path / "cache")
    assert at_hand(data("fashion"))
    assert len(load_set(data("fashion")).images) == 30
