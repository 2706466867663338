import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_fidelity.fidelity
from committed import V01
from PIL import Image

from hbench.core.directions import own_direction
from hbench.core.images import to_uint8
from hbench.errors import HBenchError
from hbench.evaluation.classifier import classifier as train_on_labels
from hbench.evaluation.features import CLASSIFIER, INCEPTION, LENET, Extractor, choose_extractor, features
from hbench.evaluation.fid import fid, fidelity
from hbench.evaluation.frechet import distance, frechet_distance, real_reference, statistics, stored_reference
from hbench.evaluation.random_features import RANDOM, random_resnet18
from hbench.evaluation.real_images import real_images
from hbench.evaluation.sample_cache import image_folder, model_folders, pngs, sample_folders
from hbench.evaluation.sampling import draw_pairs
from hbench.experiments import load_experiment, override
from hbench.reporting.artifacts import plot
from hbench.store.classifier import shipped_classifier
from hbench.store.datasets import load_images
from hbench.store.picture_folders import find_pictures
from hbench.store.provenance import provenance
from hbench.store.run import load_run

CPU = torch.device("cpu")
LENET_FILE = V01 / "lenet" / "lenet.safetensors"


@pytest.fixture
def run(tiny_run):
    return load_run(tiny_run, device=CPU)


@pytest.fixture(scope="module")
def extractor(classifier_file):
    return Extractor(LENET, classifier_file)


def test_only_inception_features_are_called_fid(extractor):
    assert Extractor(INCEPTION).metric == "FID"
    assert extractor.metric == "FD (LeNet digits)"
    assert Extractor("vgg16").metric == "FD (vgg16)"
    assert Extractor(RANDOM).metric == "FD (random ResNet-18)"


def test_labelled_images_get_a_classifier_and_others_inception(classifier_file, tiny):
    mnist = load_experiment("mnist16").data
    for name in (None, LENET, CLASSIFIER):  # both names mean the same, and results of digits keep the older one
        assert choose_extractor(mnist, name) == Extractor(LENET, shipped_classifier(mnist))
    assert choose_extractor(tiny.data, weights=classifier_file) == Extractor(LENET, classifier_file)
    assert choose_extractor(load_experiment("afhq128").data) == Extractor(INCEPTION)
    with pytest.raises(HBenchError, match="no classifier of such images is shipped: train one"):
        choose_extractor(load_experiment("mnist32").data)  # the shipped one knows images of 16 pixels


def test_random_features_are_the_same_everywhere_and_have_a_readable_size():
    state = torch.get_rng_state()
    first, second = random_resnet18(), random_resnet18()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    generator = torch.Generator().manual_seed(1)
    smooth = torch.rand(64, 3, 8, 8, generator=generator) * 2 - 1
    spread = first(torch.nn.functional.interpolate(smooth, size=64, mode="bilinear")).std(dim=0)
    assert spread.min() > 0.5
    assert spread.max() < 2


def test_a_distance_in_random_features_grows_with_noise(tmp_path, tiny):
    images, halves = load_images(tiny.data)[:400], []
    noise = torch.randn(200, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    for level in (0, 60, 120):
        changed = (images[200:] + level * noise).clamp(0, 255).to(torch.uint8)
        halves.append(features(pngs(image_folder(changed, tmp_path)), Extractor(RANDOM), tmp_path, CPU))
    real = features(pngs(image_folder(images[:200], tmp_path)), Extractor(RANDOM), tmp_path, CPU)
    found = [frechet_distance(statistics(each), statistics(real)) for each in halves]
    assert found[0] < found[1] < found[2]
    with pytest.raises(HBenchError, match="random weights of its own: leave `weights` out"):
        choose_extractor(tiny.data, RANDOM, tmp_path / "x.pt")


def test_classifier_features_do_not_depend_on_neighbours(extractor, tiny, tmp_path):
    images = load_images(tiny.data)[:300]
    paths = pngs(image_folder(images, tmp_path))
    whole = features(paths, extractor, tmp_path, CPU)
    assert whole.shape == (300, 120)
    part = features(paths[:7], extractor, tmp_path, CPU)
    torch.testing.assert_close(whole[:7], part, rtol=1e-4, atol=1e-5)


def test_the_fidelity_command_gives_the_same_numbers(extractor, tiny, tmp_path, monkeypatch, capsys):
    images = load_images(tiny.data)
    folders = [image_folder(half, tmp_path) for half in (images[:200], images[200:450])]
    found, real = (features(pngs(f), extractor, tmp_path / "cache", CPU) for f in folders)
    ours = distance(found, real_reference(real))
    command = ["fidelity", "--cpu", "--fid", "--kid", "--kid-subset-size", "200", "--json", "--silent", "--no-cache"]
    weights = ["--feature-extractor-weights-path", str(extractor.weights)]
    command += ["--feature-extractor", LENET, *weights, "--save-cpu-ram"]
    monkeypatch.setattr(sys, "argv", [*command, "--input1", str(folders[0]), "--input2", str(folders[1])])
    torch_fidelity.fidelity.main()
    theirs = json.loads(capsys.readouterr().out)
    assert ours.fd == pytest.approx(theirs["frechet_inception_distance"], abs=1e-6)
    assert ours.kid == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert ours.kid_std == pytest.approx(theirs["kernel_inception_distance_std"], abs=1e-6)


@pytest.mark.slow
def test_samples_are_made_once_and_resumed(run, classifier_file, extractor, tmp_path, monkeypatch):
    raw, shifted = sample_folders(run, 130, tmp_path, seed=3)
    before = {path: path.read_bytes() for kind in (raw, shifted) for path in pngs(kind)}
    assert len(before) == 260
    for lost in (raw / "000070.png", shifted / "000129.png"):
        lost.unlink()
    monkeypatch.setattr("hbench.evaluation.sample_cache.BATCH", 20)
    assert sample_folders(run, 130, tmp_path, seed=3) == (raw, shifted)
    for path, content in before.items():
        old, new = (np.asarray(Image.open(file)).astype(int) for file in (io.BytesIO(content), path))
        assert abs(old - new).max() <= 1, path  # other batches: rounding, no other images
    assert sample_folders(run, 2, tmp_path, seed=4) != (raw, shifted)

    def fail(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr("hbench.evaluation.sample_cache.draw_pairs", fail)
    sample_folders(run, 130, tmp_path, seed=3)
    found = (features(pngs(kind, 125), extractor, tmp_path, CPU) for kind in (raw, shifted))
    result = fidelity(*found, stored_reference(classifier_file), extractor.metric)
    assert result.metric == "FD (LeNet digits)"
    assert (result.raw.n, result.n_real, result.feature_size) == (125, 179, 120)
    assert result.raw.kid is None
    assert result.raw.interval[0] < result.raw.fd < result.raw.interval[1]
    assert result.ratio == result.shifted.fd / result.raw.fd
    assert result.ratio_interval[0] < result.ratio < result.ratio_interval[1]
    assert result.halves_interval[0] <= result.halves <= result.halves_interval[1]


def test_samples_of_other_settings_of_the_network_never_share_a_cache(tiny_run, tmp_path):
    """The weights are the same: they do not tell the number of heads, or the class of a class-conditional model."""
    run = load_run(tiny_run, device=CPU)
    experiments = [run.experiment, override(run.experiment, "model.num_heads=2")]
    of_runs = [sample_folders(replace(run, experiment=each), 1, tmp_path, 0) for each in experiments]
    of_models = [model_folders(run.sampler, "0", each, [2], 1, tmp_path, 0)[2] for each in experiments]
    assert not {*of_runs[0]} & {*of_runs[1]}
    assert of_models[0] != of_models[1]


def test_the_distance_of_samples_along_some_directions(tiny_run, classifier_file, tmp_path):
    run = load_run(tiny_run, device=CPU)
    keywords = {"samples": 12, "extractor": "classifier", "weights": classifier_file, "cache": tmp_path}
    whole, some = fid(run, **keywords), fid(run, directions=[2, 0, 2], **keywords)
    assert whole.raw == some.raw
    assert some.provenance.details["directions"] == [0, 2]
    assert "shifted along directions 0, 2 alone" in some.summary()
    assert "alone" not in whole.summary()
    assert whole.provenance.details["samples"] != some.provenance.details["samples"]
    for wrong in ([], [3], [-1]):
        with pytest.raises(ValueError, match="direction"):
            fid(run, directions=wrong, **keywords)


@pytest.mark.slow
def test_samples_in_other_numbers_of_steps(tmp_path):
    run = load_run(V01, device=CPU)  # a trained one: what an untrained model makes does not depend on M
    M = run.experiment.discovery.M
    own = sample_folders(run, 2, tmp_path, seed=3)
    assert sample_folders(run, 2, tmp_path, seed=3, M=M) == own
    other = sample_folders(run, 2, tmp_path, seed=3, M=2 * M)
    assert not set(own) & set(other)
    pairs = draw_pairs(run, 3, 0, 2, M=2 * M)
    x_T = run.noise(2, seed=3)
    for folder, images, delta_h in (
        (other[0], pairs.x_0, None),
        (other[1], pairs.x_0_shifted, own_direction(run.shift_block, pairs.k, pairs.s)),
    ):
        assert torch.allclose(
            images, run.sampler.with_steps(2 * M).generate(x_T, delta_h), atol=0.05
        )  # bfloat16, other batches
        assert not torch.allclose(images, run.sampler.generate(x_T, delta_h), atol=0.05)
        found = np.stack([np.asarray(Image.open(file)) for file in pngs(folder)]).astype(int)
        assert abs(found - to_uint8(images).numpy().squeeze(1)).max() <= 1


def other_images(folder):
    """Write files in MNIST's place that hold other images, as those of Fashion-MNIST do; few, so that it is quick."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    shapes = np.zeros((40, 28, 28), dtype=np.uint8)
    shapes[:, 2:26, 7:21] = np.arange(40, dtype=np.uint8)[:, None, None] * 4 + 90
    for kind in ("train", "t10k"):
        header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in shapes.shape)
        (raw / f"{kind}-images-idx3-ubyte").write_bytes(header + shapes.tobytes())
        labels = b"\x00\x00\x08\x01" + (40).to_bytes(4, "big") + bytes(i % 10 for i in range(40))
        (raw / f"{kind}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def test_files_in_the_place_of_mnist_are_warned_of(tmp_path, caplog):
    mnist = load_run(V01, device=CPU)
    shipped = Extractor(LENET, LENET_FILE)
    data_root = other_images(tmp_path / "data")
    reference, read = real_images(mnist.experiment.data, shipped, tmp_path / "cache", CPU, data_root)
    assert "its files are not those published as MNIST" in caplog.text
    assert (reference.n, read["data"]["used"], read["data"]["published"]) == (40, 40, False)
    assert (read["confidence"] < 0.9, read["as_learned"]) == (True, False)
    raw, shifted = torch.randn(2, 40, 120)
    result = fidelity(raw, shifted, reference, shipped.metric)
    assert not any("classifier gives" in said or "published" in said for said in result.cautions())
    said = replace(result, provenance=provenance(None, CPU, 0, **read)).cautions()
    assert said[0].startswith("measured by a classifier on other images than those published")
    assert said[1].startswith("the classifier gives the classes of the real images a probability of only 0.")
    learned = train_on_labels(mnist.experiment, epochs=1, data_root=data_root)
    assert learned.cautions()[-1].startswith("learned on other images than those published")


def test_images_that_the_classifier_knows_are_not_warned_of(run, extractor, tmp_path):
    reference, read = real_images(run.experiment.data, extractor, tmp_path, CPU)
    assert (read["confidence"] < 0.9, read["as_learned"]) == (True, True)  # it learned little, but these very images
    result = fidelity(*torch.randn(2, 40, 120), reference, extractor.metric)
    said = replace(result, provenance=provenance(None, CPU, 0, **read)).cautions()
    assert said == result.cautions()  # of few images, and nothing else


def test_a_cache_is_no_data(tmp_path):
    image_folder(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), tmp_path / "cache")
    Image.new("L", (16, 16)).save(tmp_path / "own.png")
    found = find_pictures(tmp_path)
    assert (found.files, found.left_out) == ([tmp_path / "own.png"], {"of hbench": ["cache/"]})


def test_features_are_found_by_content(extractor, tmp_path):
    def one(value):
        folder = tmp_path / str(value)
        folder.mkdir(exist_ok=True)
        for i in range(3):
            Image.fromarray(np.full((16, 16), value + i, np.uint8)).save(folder / f"{i}.png")
        return features(pngs(folder), extractor, tmp_path / "cache", CPU)

    first = one(10)
    assert not torch.equal(first, one(90))
    assert torch.equal(first, one(10))
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


def test_unknown_extractors_and_foreign_weights_are_refused(classifier_file, tiny, tmp_path):
    with pytest.raises(HBenchError, match="choose one of"):
        choose_extractor(tiny.data, "inception")
    with pytest.raises(HBenchError, match="trained on other images"):
        choose_extractor(tiny.data.model_copy(update={"size": 32}), CLASSIFIER, classifier_file)
    page = tmp_path / "page.pth"
    page.write_text("<html>")
    with pytest.raises(HBenchError, match="not a checkpoint of plain tensors"):
        choose_extractor(tiny.data, INCEPTION, page)


def test_weights_of_something_else_are_named(tmp_path):
    paths = pngs(image_folder(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), tmp_path))
    other = tmp_path / "other.pth"
    torch.save({"x": torch.zeros(2)}, other)
    with pytest.raises(HBenchError, match="holds no weights of inception-v3-compat"):
        features(paths, Extractor(INCEPTION, other), tmp_path, CPU)


def test_missing_weights_name_the_place(tmp_path, tiny, monkeypatch):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("offline")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", offline)
    paths = pngs(image_folder(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), tmp_path))
    with pytest.raises(
        HBenchError, match=r"weights-inception-2015-12-05-6726825d.pth .* as `weights`, .*`extractor=random-resnet18`"
    ):
        features(paths, Extractor(INCEPTION), tmp_path, CPU)


@pytest.mark.slow
def test_fid_is_a_result_like_any_other(run, classifier_file, tmp_path):
    settings = {"weights": classifier_file, "cache": tmp_path / "cache", "seed": 3}
    result = fid(run, samples=70, **settings)
    assert (result.metric, result.raw.n, result.detail("M")) == ("FD (LeNet digits)", 70, run.experiment.discovery.M)
    assert result.provenance.command is None
    assert [images.shape for images in result.images] == [(64, 1, 16, 16)] * 2
    fall, extrapolate, rank, real = result.cautions()
    assert fall.startswith("FDs fall as n grows")
    assert extrapolate == "70 samples are too few to extrapolate distances in 120 features: make more"
    assert rank == "70 samples for 120 features: a rank-deficient covariance"
    assert real.startswith("the 179 real images are few: a part of every FD")
    assert (result.raw.infinity, result.ratio_infinity) == (None, None)
    result.save(tmp_path / "fid")
    back = type(result).load(tmp_path / "fid")
    assert back == result
    assert back.summary() == result.summary()
    plot(result, tmp_path / "fid.png")
    with pytest.raises(HBenchError, match="has nothing to draw: measure it again"):
        plot(back, tmp_path / "other.png")
    other = fid(run, samples=70, steps=5, **settings)
    assert other.detail("M") == 5
    assert other.detail("samples") != result.detail("samples")
    with pytest.raises(ValueError, match="samples must be at least 3, got 1"):
        fid(run, samples=1, **settings)
    with pytest.raises(ValueError, match="1000"):
        fid(run, samples=70, steps=1001, **settings)


@pytest.mark.slow
def test_extractors_include_the_classifier_wherever_they_are_looked_up(tmp_path):
    code = "from hbench.evaluation.features import extractors; assert 'lenet-digits' in extractors(); extractors()"
    subprocess.run([sys.executable, "-c", code], check=True)
