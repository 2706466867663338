import io

import numpy as np
import pytest
import torch
from committed import V01
from PIL import Image

from hbench.config import Data
from hbench.errors import HBenchError
from hbench.evaluation.edit import edit
from hbench.evaluation.edited_images import EditedImages
from hbench.evaluation.rca import RCA, rca
from hbench.store.datasets import load_images, read_images
from hbench.store.model import load_model
from hbench.store.pictures import Grid
from hbench.store.run import load_run


@pytest.fixture(scope="module")
def run():
    return load_run(V01, device="cpu")


def test_a_run_says_what_it_is(run):
    assert (run.K, run.S, run.image_shape, run.device) == (32, 5, (1, 16, 16), torch.device("cpu"))
    assert run.names[3] == "thin to bold"
    assert run.sampler is run.sampler
    lines = repr(run).splitlines()
    assert lines[0] == "Run MNIST16-400-10-32-5 on cpu"
    assert len(lines) <= 4


def test_paths_may_be_text_and_the_device_a_name(tiny_run, tiny_model):
    for path in (tiny_run, str(tiny_run)):
        assert load_run(path, device=torch.device("cpu")).device == load_run(path, device="cpu").device
    model = load_model(str(tiny_model), device="cpu")
    assert model.prediction == "eps"
    with pytest.raises(HBenchError, match="no such device"):
        load_run("mnist16", device="tpu")


def test_generation_depends_on_the_seed_and_the_edit_only(run):
    x_T = run.noise(3, seed=1)
    assert torch.equal(run.noise(1, seed=1, first=2), x_T[2:])
    raw = run.generate(x_T)
    assert raw.shape == (3, 1, 16, 16)
    assert raw.dtype == torch.float32
    assert torch.equal(run.generate(x_T, {}), raw)
    edited = run.generate(x_T, {3: 2.5, 7: -1})
    assert not torch.allclose(edited, raw, atol=0.1)
    torch.testing.assert_close(run.generate(x_T, {7: -1, 3: 2.5}), edited, rtol=0.05, atol=0.05)
    torch.testing.assert_close(run.generate(x_T, {3: 0.0}), raw, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_inversion_and_edits_of_images(run):
    images = run.generate(run.noise(2)).clamp(-1, 1)
    x_T = run.invert(images, steps=50)
    assert x_T.shape == images.shape
    again = run.edit(images, {}, steps=50)
    assert (again - images).square().mean() < 0.03
    bold = run.edit(images, {3: 5.0}, steps=50)
    assert bold.mean() > again.mean() + 0.05  # thin to bold


@pytest.mark.slow
def test_a_traversal_is_a_picture(run, tmp_path):
    grid = run.traverse([3, 7], examples=2, samples=3, seed=4)
    assert grid.images.shape == (2, 2, 3, 1, 16, 16)
    assert (grid.directions, grid.magnitudes) == ((3, 7), (-5, 0, 5))
    assert grid.labels == ["3: thin to bold", "direction 7"]
    torch.testing.assert_close(grid.images[1, :, 1], run.generate(run.noise(2, seed=4)))
    assert repr(grid) == "Grid of 2 directions, 2 examples, 3 magnitudes from -5 to 5"
    shown = Image.open(io.BytesIO(grid._repr_png_()))
    grid.save(str(tmp_path / "grid.png"))
    saved = Image.open(tmp_path / "grid.png")
    assert saved.size == shown.size
    assert saved.tobytes() == shown.tobytes()
    assert run.traverse(examples=1, samples=2).images.shape[:3] == (32, 1, 2)


def test_an_animation_goes_from_one_end_to_the_other_and_back(tmp_path):
    levels = torch.tensor([-1.0, 0.0, 1.0])  # black, grey, white
    images = levels[None, None, :, None, None, None].expand(2, 3, 3, 1, 8, 8)
    Grid(images, (0, 4), (-1.0, 0.0, 1.0), {4: "brighter"}).animate(tmp_path / "grid.webp")
    picture = Image.open(tmp_path / "grid.webp")
    assert (picture.format, picture.n_frames, picture.info["loop"]) == ("WEBP", 4, 0)
    shown = []
    for frame in range(4):
        picture.seek(frame)
        pixels = np.array(picture.convert("RGB"))
        counts = [(pixels == level).all(2).sum() for level in (0, 128, 255)]
        shown.append(counts)
    darkest, _, brightest, _ = (counts[0] for counts in shown)
    assert darkest > brightest + 6 * 40 * 40  # two directions, three examples of 48 x 48 pixels
    assert shown[1] == shown[3]
    assert shown[1][1] >= 6 * 48 * 48


def test_the_picture_of_a_grid_has_room_for_its_labels(tmp_path):
    images = torch.zeros(1, 1, 2, 3, 8, 8)
    for name in ("thin", "a name that is far wider than its two images are, and then some"):
        Grid(images, (0,), (-1.0, 1.0), {0: name}).save(tmp_path / "grid.png")
        picture = Image.open(tmp_path / "grid.png").convert("L")
        right = max(x for x in range(picture.width) for y in range(30) if picture.getpixel((x, y)) < 128)
        assert right < picture.width - 5


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda run: run.noise(0), "count must be at least 1, got 0"),
        (lambda run: run.noise(1, seed=-1), "seed must be at least 0"),
        (lambda run: run.generate(run.noise(1), {99: 1.0}), "no direction 99: the run has 0 to 31"),
        (lambda run: run.generate(run.noise(1), {-1: 1.0}), "no direction -1"),
        (lambda run: run.generate(run.noise(1), {3: float("nan")}), "magnitude of direction 3 must be finite, got nan"),
        (lambda run: run.generate(run.noise(1), steps=1001), r"steps must be in 1\.\.1000, got 1001"),
        (lambda run: run.generate(run.noise(1), steps=0), r"steps must be in 1\.\.1000, got 0"),
        (lambda run: run.generate(torch.zeros(1, 3, 16, 16)), r"x_T must be \[B, 1, 16, 16\] .* got \[1, 3, 16, 16\]"),
        (lambda run: run.generate(run.noise(1)[0]), r"x_T must be \[B, 1, 16, 16\]"),
        (lambda run: run.generate(run.noise(1), {3: 1.0}, source="mean"), "source must be a function"),
        (lambda run: run.invert(torch.zeros(1, 1, 32, 32)), r"images must be \[B, 1, 16, 16\]"),
        (lambda run: run.edit(torch.zeros(1, 1, 16, 16), {32: 1.0}), "no direction 32"),
        (lambda run: run.edit(torch.zeros(1, 1, 16, 16), {3: 1.0}, steps=0), r"steps must be in 1\.\.1000"),
        (lambda run: run.traverse([99]), "no direction 99"),
        (lambda run: run.traverse([]), "directions must be at least 1"),
        (lambda run: run.traverse(examples=0), "examples must be at least 1, got 0"),
        (lambda run: run.traverse(samples=1), "samples must be at least 2, got 1"),
        (lambda run: run.traverse(source="global"), "source must be a function"),
    ],
)
def test_wrong_values_are_refused_with_the_range(run, ask, said):
    with pytest.raises(ValueError, match=said):
        ask(run)


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert load_run("mnist16", device="cpu") != load_model("mnist16", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), None, 0])
def test_a_device_that_hbench_cannot_use_is_refused_in_every_form(device):
    with pytest.raises(HBenchError, match="no such device"):
        load_run("mnist16", device=device)


def test_a_run_is_itself_alone(run):
    assert {run: 1}[run] == 1
    assert run != load_run("mnist16", device="cpu")


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (np.zeros((1, 1, 16, 16), np.float32), TypeError, "must be a tensor, got ndarray"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), ValueError, "must be float32, got torch.uint8; pixels of 0 to"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.float64), ValueError, "must be float32"),
        (torch.full((1, 1, 16, 16), 255.0), ValueError, r"in about \[-1, 1\], got values of up to 255"),
        (torch.full((1, 1, 16, 16), torch.nan), ValueError, "must be finite"),
    ],
)
def test_images_of_another_form_are_refused(run, images, error, said):
    with pytest.raises(error, match=said):
        run.invert(images, steps=2)


def test_edits_and_numbers_of_another_type_are_refused(run):
    x_T = run.noise(1)
    for wrong in (True, 3.0, "3"):
        with pytest.raises(ValueError, match="no direction"):
            run.generate(x_T, {wrong: 1.0}, steps=1)
    for wrong in ("1", 1j, [1.0], True, None):
        with pytest.raises(TypeError, match="the magnitude of direction 3 must be a number, got"):
            run.check_edit({3: wrong})
    with pytest.raises(HBenchError, match=r"a generated image is not finite: check x_T, with values of up to .*e\+30"):
        run.generate(run.noise(1) * 1e30, steps=2)
    with pytest.raises(ValueError, match=r"steps must be in 1\.\.1000, got True"):
        run.generate(run.noise(1), steps=True)
    with pytest.raises(TypeError, match="an edit is a dict"):
        run.generate(x_T, [(3, 1.0)], steps=1)
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16, got 'float16'"):
        run.invert(x_T, steps=1, precision="float16")
    with pytest.raises(TypeError, match=r"count must be a whole number of at least 1, got 2\.5"):
        run.noise(2.5)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        rca(run, pairs=2, seed=-1)
    with pytest.raises(ValueError, match="split must be train or test, got 'val'"):
        load_images(Data(dataset="digits", label="Digits", size=16, channels=1), split="val")


def test_numbers_of_numpy_and_torch_are_numbers(run, tmp_path):
    result = rca(run, pairs=np.int64(2))
    assert RCA.load(result.save(tmp_path / "rca")).n == 2
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    images = read_images([tmp_path / "black.png"], run.experiment.data)
    edited = edit(run, images, [{np.int64(3): np.float32(1), torch.tensor(7): torch.tensor(2.0)}], steps=2)
    assert EditedImages.load(edited.save(tmp_path / "edit")).edits == [[(3, 1.0), (7, 2.0)]]
    assert run.traverse(torch.tensor([3]), examples=1, samples=2).labels == ["3: thin to bold"]
