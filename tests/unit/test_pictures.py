"""What a folder of pictures is read as: each row of the table in docs/guide.md, and the account of it."""

import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from hbench.config import Data
from hbench.errors import HBenchError
from hbench.store.account import content_sha256
from hbench.store.datasets import load_images, load_set, read_images

DATA = Data(dataset="folder", label="Mine", size=16, channels=1)
RGB = Data(dataset="folder", label="Mine", size=16, channels=3)


@pytest.fixture
def folder(tmp_path):
    """A folder of twelve different pictures."""
    for i in range(12):
        save(tmp_path / "pictures" / f"{i:02d}.png", seed=i)
    return tmp_path / "pictures"


def save(path, mode="RGB", seed=0, width=20, height=24):
    """Write a picture of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def read(path, data=RGB):
    """Return the account of all pictures of a folder."""
    return load_set(data, path, "reference").account


def test_the_account_says_what_was_found_and_done(folder, caplog):
    for i in range(12, 20):
        save(folder / f"{i}.png", seed=i)
    save(folder / "deeper" / "wide.jpg", "L", 5, 40, 12)
    (folder / "notes.txt").write_text("no picture")
    with caplog.at_level(logging.INFO, "hbench"):
        train = load_set(RGB, folder).account
    assert caplog.messages == [
        f"pictures in {folder}: 21 found, 19 used to train on (each tenth is kept for tests)",
        f"RGB 20, L 1; 20x12 to 40x24 pixels -> 16x16 RGB, 21 cropped to the middle, 1 enlarged; values "
        f"{train.values[0]}..{train.values[1]} of 0..255",
    ]
    assert load_set(RGB, folder, "test").account.used == 2
    values = train.to_json()
    assert (values["found"], values["used"], values["modes"]) == (21, 19, {"RGB": 20, "L": 1})
    assert str(folder) not in str(values)  # it says what was read, not where


def test_the_hash_is_of_the_pixels_and_of_no_path(folder):
    before = load_set(RGB, folder)
    assert before.account.sha256 == content_sha256(before.images)
    moved = folder.rename(folder.parent / "moved")
    assert load_set(RGB, moved).account.sha256 == before.account.sha256
    save(moved / "03.png", seed=77)
    assert load_set(RGB, moved).account.sha256 != before.account.sha256
    assert content_sha256(before.images.reshape(-1, 1, 16, 48)) != before.account.sha256


def test_hidden_files_and_folders_are_left_out(folder):
    for name in (".one.png", "._two.JPG", ".cache/three.png", "__MACOSX/four.png", "@eaDir/five.png", "Thumbs/six.png"):
        save(folder / name)
    (folder / ".DS_Store").touch()
    found = read(folder)
    assert (found.found, found.used) == (14, 12)
    assert found.left_out == {
        "hidden": ["._two.JPG", ".cache/", ".one.png", "@eaDir/", "Thumbs/", "__MACOSX/"],
    }
    assert "; left out: 6 hidden (._two.JPG, .cache/, .one.png, ...)" in found.lines()[0]


OWN = {
    "experiment.json": '{"name": "x", "data": {}, "model": {}, "discovery": {}, "schema": 1}',
    "provenance.json": '{"command": null, "versions": {}}',
    "checkpoint.json": '{"step": 1, "sha256": ""}',
    "reproduced.json": '{"weights_sha256": {}}',
    "samples.json": '{"M": 20}',
    "key.json": '{"sheets": []}',
    "CACHEDIR.TAG": "",
    "shift_block.safetensors": "",
    "model.safetensors": "",
    "lenet.safetensors": "",
    "classifier.safetensors": "",
}


@pytest.mark.parametrize("name", OWN)
def test_folders_of_hbench_are_left_out_and_named(folder, name):
    save(folder / "runs" / "x" / "samples" / "0.png")
    (folder / "runs" / "x" / name).write_text(OWN[name])
    found = read(folder)
    assert (found.found, found.used, found.left_out) == (12, 12, {"of hbench": ["runs/x/"]})
    with pytest.raises(
        HBenchError, match=rf"x: is a folder of hbench's own, with {name} in it: give the folder of your"
    ):
        load_images(RGB, folder / "runs" / "x")
    if name.endswith(".json"):  # which another program may write too
        (folder / "runs" / "x" / name).write_text('{"another": "program"}')
        assert read(folder).used == 13


def test_links_are_followed_and_each_file_is_used_once(folder, tmp_path):
    for i in range(5):
        save(tmp_path / "elsewhere" / f"{i}.png", seed=100 + i)
    save(tmp_path / "single.png", seed=200)
    (tmp_path / "single.png").rename(tmp_path / "single")  # the link's name says what it is
    (folder / "class").symlink_to(tmp_path / "elsewhere")
    (folder / "class-again").symlink_to(tmp_path / "elsewhere")
    (folder / "copy.png").symlink_to(folder / "03.png")
    (folder / "a-link.png").symlink_to(tmp_path / "single")
    (folder / "round").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "gone.png").symlink_to("nothing.png")
    (folder / "lost").symlink_to("nowhere")
    found = read(folder)
    assert found.used == found.distinct == 12 + 5 + 1
    assert found.left_out == {
        "reached twice": ["class-again/", "class/back/", "copy.png", "round/", "up/"],
        "linked to nothing": ["gone.png", "lost"],
    }
    whole = tmp_path / "whole"
    whole.symlink_to(folder)
    assert read(whole).used == 18


def save_as_gif(path):
    """Write a picture as a GIF, which is not read."""
    Image.new("P", (16, 16)).save(path, format="gif")


def test_other_formats_and_no_regular_files_are_named(folder):
    save_as_gif(folder / "moving.gif")
    (folder / "phone.HEIC").touch()
    os.mkfifo(folder / "pipe.png")
    found = read(folder)
    assert found.left_out == {"in other formats": ["moving.gif", "phone.HEIC"], "neither file nor folder": ["pipe.png"]}
    (folder.parent / "gifs").mkdir()
    save_as_gif(folder.parent / "gifs" / "a.gif")
    with pytest.raises(HBenchError, match=r"no images there \(looked for .*; in other formats: 1\)"):
        load_images(RGB, folder.parent / "gifs")


def test_all_unreadable_files_are_listed_at_once(folder):
    for i in range(7):
        (folder / f"broken-{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    save(folder / "a-thin.png", width=3)
    with pytest.raises(HBenchError) as caught:
        load_images(RGB, folder)
    said = str(caught.value)
    assert said.startswith("8 of 20 pictures cannot be used: ")
    assert said.endswith("; and 3 more: repair or remove them")
    assert "a-thin.png: 3x24 pixels are too few, need at least 8x8; " in said
    assert said.count("not a readable image") == 4
    assert len(said.splitlines()) == 1
    with pytest.raises(HBenchError, match=r"^8 of 20 pictures cannot be used: "):
        read_images([folder], RGB)


def test_a_folder_that_cannot_be_opened_is_no_empty_one(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    (folder / "locked").mkdir()
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(
        HBenchError, match=r"locked: cannot be opened \(Permission denied\): make it readable or remove"
    ):
        load_images(RGB, folder)


# Pixels -------------------------------------------------------------------------------------------------------------


def drawing(mode, path):
    """Write a black square on transparent ground."""
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (4, 4, 12, 12))
    if mode == "P":
        picture = picture.convert("P")
        picture.save(path, transparency=picture.getpixel((0, 0)))
    else:
        picture.convert(mode).save(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_the_background(tmp_path, mode):
    drawing(mode, tmp_path / "a.png")
    (image,) = read_images([tmp_path / "a.png"], RGB)
    assert image.done == f"16x16 {mode} -> 16x16 RGB, on white"
    assert image.pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert image.pixels[:, 8, 8].tolist() == [0, 0, 0]
    (image,) = read_images([tmp_path / "a.png"], RGB.model_copy(update={"background": "#ff8000"}))
    assert image.pixels[:, 0, 0].tolist() == [255, 128, 0]
    assert image.done.endswith(", on #ff8000")


def test_opaque_alpha_changes_no_pixel(tmp_path):
    save(tmp_path / "a.png", "RGBA")
    save(tmp_path / "b.png", "RGB")
    with_alpha, without = read_images([tmp_path / "a.png", tmp_path / "b.png"], RGB)
    assert torch.equal(with_alpha.pixels, without.pixels)
    assert with_alpha.done == "20x24 RGBA -> 16x16 RGB, centre crop"


def test_a_background_that_hides_the_drawing_is_warned_of(tmp_path):
    for i in range(3):
        drawing("RGBA", tmp_path / f"{i}.png")
    assert not any("colour" in line for line in read(tmp_path).warnings())
    assert "3 transparent, put on white" in read(tmp_path).lines()[1]
    hidden = read(tmp_path, RGB.model_copy(update={"background": "black"}))
    assert hidden.warnings()[0] == (
        "3 of 3 images are of a single colour: if they are drawn on transparent ground, set another data.background"
    )


def deep(path, values):
    """Write a picture of 16 bits, or of 32 if the values are int32."""
    Image.fromarray(values).save(path)


def test_twelve_bits_in_sixteen_are_warned_of(tmp_path):
    ramp = np.arange(256).reshape(16, 16)
    for i in range(3):
        deep(tmp_path / f"{i}.png", np.uint16(ramp * 16))
    found = read(tmp_path, DATA)
    assert found.stored == (0, 4080)
    assert found.values == (0, 16)
    assert found.lines()[1].startswith("I;16 3 (values 0..4080); 16x16 pixels -> 16x16 L; ")
    assert found.warnings()[0] == (
        "the pictures of 16 bits hold values of at most 4080, as 12 bits do, and are nearly black: multiply their "
        "values by 16 and save them again"
    )
    for i in range(3):
        deep(tmp_path / f"{i}.png", np.uint16(ramp * 257 - i))
    found = read(tmp_path, DATA)
    assert (found.values, found.warnings()) == ((0, 255), [])


def test_values_beyond_16_bits_are_warned_of(tmp_path):
    for i in range(2):
        deep(tmp_path / f"{i}.tif", np.arange(256, dtype=np.int32).reshape(16, 16) * 1000 + i)
    assert read(tmp_path, DATA).warnings()[0].startswith("pictures hold values 0..255001, and all beyond 0..65535")


def test_dark_plain_and_equal_pictures_are_warned_of(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((16, 16), 30 * i, np.uint8)).save(tmp_path / f"{i}.png")
    assert read(tmp_path, DATA).warnings() == [
        "4 of 4 images are of a single colour: raise their contrast, or remove them"
    ]
    for i in range(4):
        Image.fromarray(np.uint8(np.arange(256).reshape(16, 16) // 8 + i)).save(tmp_path / f"{i}.png")
    assert read(tmp_path, DATA).warnings() == [
        "4 of 4 images span less than a quarter of 0..255: raise their contrast, or remove them"
    ]
    for i in range(4):
        save(tmp_path / f"{i}.png", seed=i % 2)
    assert read(tmp_path, DATA).warnings() == ["4 images are only 2 different ones: remove the copies"]


def test_further_frames_are_counted(tmp_path):
    frames = [Image.new("L", (16, 16), 90 * i) for i in range(3)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:])
    save(tmp_path / "c.png")
    assert "2 by their first frame alone" in read(tmp_path).lines()[1]


# Where a data set lies ----------------------------------------------------------------------------------------------


def test_an_empty_variable_is_an_unset_one(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for empty in ("", " "):
        monkeypatch.setenv("HBENCH_DATA", empty)
        with pytest.raises(HBenchError, match="needs its folder: give it with `data_root=FOLDER`, set HBENCH_DATA, or"):
            load_images(RGB)
    monkeypatch.setenv("HBENCH_DATA", str(folder))
    assert len(load_images(RGB)) == 11


def test_an_archive_is_no_folder_and_is_named(folder, tmp_path):
    (folder / "more.zip").write_bytes(b"PK")
    (folder / "scan.exr").write_bytes(b"v/1")
    account = load_set(RGB, folder).account
    assert (account.left_out["packed"], account.left_out["in other formats"]) == (["more.zip"], ["scan.exr"])
    assert account.found == sum(account.modes.values()) + 1  # an archive is no picture
    with pytest.raises(HBenchError, match=r"more.zip: is a file, not a folder; an archive must be unpacked: give"):
        load_images(RGB, folder / "more.zip")


def test_the_root_of_the_experiment_comes_before_the_variable(folder, tmp_path, monkeypatch):
    save(tmp_path / "other" / "a.png")
    save(tmp_path / "other" / "b.png", seed=1)
    monkeypatch.setenv("HBENCH_DATA", str(tmp_path / "other"))
    rooted = RGB.model_copy(update={"root": str(folder)})
    assert len(load_images(rooted)) == 11
    assert len(load_images(rooted, tmp_path / "other")) == 2
    assert len(load_images(RGB)) == 2
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_images(RGB, "~/other")) == 2
