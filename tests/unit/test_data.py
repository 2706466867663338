import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hbench.config import Data
from hbench.core.images import soft_clip, to_float, to_uint8
from hbench.errors import HBenchError
from hbench.store import datasets
from hbench.store.datasets import at_hand, load_images, load_set
from hbench.store.pictures import save_grid

FOLDER = Data(dataset="folder", label="Mine", size=16, channels=3)


def write(path, width=20, height=30, mode="RGB", color=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), color).save(path)


def test_digits_need_nothing():
    data = Data(dataset="digits", label="Digits", size=16, channels=1)
    train, test = load_set(data), load_set(data, split="test")
    images, labels, test_images, test_labels = train.images, train.labels, test.images, test.labels
    assert images.dtype == torch.uint8
    assert images.shape[1:] == (1, 16, 16)
    assert len(images) + len(test_images) == 1797
    assert len(images) == len(labels)
    assert set(test_labels.values[:, 0].tolist()) == set(range(10))
    assert images.min() == 0
    assert images.max() > 240


def test_folder_resizes_crops_and_converts(tmp_path):
    write(tmp_path / "a" / "tall.png")
    write(tmp_path / "wide.jpg", 64, 16)
    write(tmp_path / "grey.png", 9, 9, "L", 255)
    (tmp_path / "notes.txt").write_text("not an image")
    images = load_images(FOLDER, tmp_path)
    assert images.shape == (3, 3, 16, 16)
    assert (images[0, :, 8, 8] == torch.tensor([255, 0, 0])).all()  # a/tall.png sorts first
    grey = load_images(Data(dataset="folder", label="Mine", size=16, channels=1), tmp_path)
    assert grey.shape == (3, 1, 16, 16)


def test_folder_errors_name_the_file(tmp_path):
    with pytest.raises(HBenchError, match="no such folder"):
        load_images(FOLDER, tmp_path / "absent")
    with pytest.raises(HBenchError, match="no images there"):
        load_images(FOLDER, tmp_path)
    write(tmp_path / "one.png")
    with pytest.raises(HBenchError, match="found 1 train image, need at least 2"):
        load_images(FOLDER, tmp_path)
    write(tmp_path / "thin.png", 3, 300)
    with pytest.raises(HBenchError, match=r"thin\.png: 3x300 pixels are too few"):
        load_images(FOLDER, tmp_path)
    (tmp_path / "thin.png").unlink()
    raw = tmp_path / "html" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_text("<html>")
    with pytest.raises(HBenchError, match="cannot read MNIST"):
        load_images(Data(dataset="mnist", label="M", size=16, channels=1), tmp_path / "html")
    shutil.rmtree(tmp_path / "html")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    with pytest.raises(HBenchError, match=r"broken\.png: not a readable image"):
        load_images(FOLDER, tmp_path)


def test_mnist_is_never_downloaded_unasked(tmp_path, monkeypatch):
    data = Data(dataset="mnist", label="MNIST", size=16, channels=1)
    monkeypatch.delenv("HBENCH_DATA", raising=False)
    monkeypatch.setattr("hbench.store.datasets.DOWNLOADS", tmp_path / "downloads")
    (tmp_path / "downloads" / "MNIST" / "raw").mkdir(parents=True)  # what a download leaves that failed at once
    with pytest.raises(HBenchError, match=r"`data_root=FOLDER`, set HBENCH_DATA, .*, or add `download=True`"):
        load_images(data)
    assert not at_hand(data)
    with pytest.raises(HBenchError, match="cannot read MNIST"):
        load_images(data, tmp_path)
    with pytest.raises(HBenchError, match=r"absent: no such folder: .* `data_root`, or add `download=True`"):
        load_images(data, tmp_path / "absent")
    with pytest.raises(HBenchError, match='~nobody-here/digits: there is no home folder for its "~"'):
        load_images(data, "~nobody-here/digits")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_user_without_a_home_has_the_one_that_docker_gives(monkeypatch):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert runpy.run_path(datasets.__file__)["DOWNLOADS"] == Path("/.cache/hbench")


def test_mnist_reads_torchvisions_layout(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for kind, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = np.zeros((count, 28, 28), dtype=np.uint8)
        pixels[:, 10:18, 10:18] = 255
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        (raw / f"{kind}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = b"\x00\x00\x08\x01" + count.to_bytes(4, "big") + bytes(i % 10 for i in range(count))
        (raw / f"{kind}-labels-idx1-ubyte").write_bytes(labels)
    data = Data(dataset="mnist", label="MNIST", size=16, channels=1)
    test = load_set(data, tmp_path, "test")
    assert test.images.shape == (10_000, 1, 16, 16)
    assert test.images[0, 0, 8, 8] == 255
    assert test.labels.table()["digit"][7] == "7"


def test_uint8_round_trip_and_borders():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values).min() == -1
    assert to_float(values).max() == 1
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]  # clamped, never wrapped around


def test_soft_clip_keeps_a_gradient():
    x = torch.tensor([-2.1, 0.5, 3.1], requires_grad=True)
    y = soft_clip(x, 1.1)
    torch.testing.assert_close(y, torch.tensor([-1.2, 0.5, 1.3]))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.1, 1.0, 0.1]))


def test_grid_has_the_images_in_rows(tmp_path):
    save_grid(torch.stack([torch.full((1, 8, 8), v) for v in (-1.0, 0.0, 1.0)]), tmp_path / "g.png", columns=3, scale=2)
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.size == (3 * 18 + 2, 20)
        assert picture.convert("L").getpixel((45, 10)) == 255
