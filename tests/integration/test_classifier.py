"""Classifiers: what they learn, what their files keep, and files of hbench 0.1."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import invoke, refused
from committed import V01
from safetensors.torch import load_file, save_file

from hbench.errors import HBenchError
from hbench.evaluation.classifier import (
    TrainedClassifier,
    classifier,
    heads,
    heads_of,
    train_classifier,
    with_real_images,
)
from hbench.evaluation.features import CLASSIFIER, LENET, Extractor, choose_extractor, classifier_features
from hbench.evaluation.frechet import frechet_distance, real_reference, statistics, stored_reference
from hbench.experiments import load_experiment
from hbench.reporting.artifacts import plot
from hbench.store.classifier import (
    classifier_for,
    fits,
    load_classifier,
    save_classifier,
    shipped_classifier,
)
from hbench.store.datasets import load_set
from hbench.store.files import sha256
from hbench.store.labels import Factor, Labels
from hbench.store.shipped import SHIPPED
from hbench.store.weights import read_metadata

OLD = V01 / "lenet" / "lenet.safetensors"
"""The file that hbench shipped at version 0.1, of MNIST."""
FACTORS = (Factor("colour", ("red", "green", "blue")), Factor("place", ("left", "right")))


@pytest.fixture(scope="module")
def faces():
    return load_experiment("faces16")


def squares(n, seed=0):
    """Images of a noisy square, red, green or blue, on the left or on the right, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack([torch.randint(len(f.classes), (n,), generator=generator) for f in FACTORS], 1)
    images = torch.randint(0, 100, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    for image, (colour, place) in zip(images, values.tolist(), strict=True):
        image[colour, 4:12, 8 * place : 8 * place + 8] += 120
    return images, Labels(FACTORS, values)


@pytest.fixture(scope="module")
def trained(faces):
    """A classifier of squares, which knows its real test images."""
    images, labels = squares(1200)
    test, test_labels = squares(300, seed=1)
    found = train_classifier(faces, images, labels, epochs=3)
    return with_real_images(found, labels, test, test_labels)


@pytest.fixture
def file(trained, faces, tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, trained, faces, "float16")
    return path


def test_it_learns_the_digits():
    result = classifier(load_experiment("digits16"))
    (head,) = result.heads
    assert head.factor == "digit"
    assert head.accuracy > 0.9
    assert head.interval[0] < head.accuracy < head.interval[1]
    assert head.majority == max(map(sum, head.confusion)) / result.n_test
    assert result.cautions() == []
    test = load_set(load_experiment("digits16").data, split="test")
    (log_probabilities,) = heads(result.trained, test.images)
    right = (log_probabilities.argmax(1) == test.labels.values[:, 0]).float().mean()
    assert float(right) == pytest.approx(head.accuracy)


def test_two_factors_are_learned_each_by_a_head(trained):
    images, labels = squares(300, seed=1)
    found = heads_of(trained, images, labels)
    assert [head.factor for head in found] == ["colour", "place"]
    assert all(head.accuracy > 0.95 and head.is_learned for head in found)
    assert [len(head.confusion) for head in found] == [3, 2]
    log_probabilities = heads(trained, images, batch=7)
    assert [each.shape for each in log_probabilities] == [(300, 3), (300, 2)]
    assert all(torch.allclose(each.exp().sum(1), torch.ones(300)) for each in log_probabilities)
    floats = images.float() / 127.5 - 1
    for whole, parts in zip(heads(trained, floats), log_probabilities, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
    outside = floats.clone()
    outside[floats > 0.5] += 3  # samples may leave the range
    clamped = outside.clamp(-1, 1)
    assert torch.equal(heads(trained, outside)[0], heads(trained, clamped)[0])


def test_a_head_that_learned_nothing_is_said(faces, trained):
    images, labels = squares(300, seed=1)
    random = torch.randint(2, (300,), generator=torch.Generator().manual_seed(2))
    guessed = Labels(FACTORS, torch.stack([labels.values[:, 0], random], 1))
    found = heads_of(trained, images, guessed)
    result = TrainedClassifier(n_train=9, n_test=300, heads=found, metric="FD", halves=0.1, halves_interval=(0.05, 0.2))
    (said,) = result.cautions()
    assert said.startswith("place: the accuracy 0.")
    assert "the share of the most frequent class: this head has learned nothing" in said


def test_a_file_gives_the_network_and_what_is_known_of_the_real_images(trained, file):
    back = load_classifier(file)
    assert back.factors == FACTORS
    images, labels = squares(300, seed=1)
    for here, there in zip(heads(trained, images), heads(back, images), strict=True):
        assert torch.equal(here, there)  # in half precision from the start, so that the statistics are of the file
    made, stored = real_reference(classifier_features(back, images)), stored_reference(file)
    assert stored.n == made.n == 300
    assert stored.halves == pytest.approx(made.halves, rel=1e-5)
    assert stored.halves_interval == pytest.approx(made.halves_interval, rel=1e-5)
    other = statistics(classifier_features(back, squares(200, seed=3)[0]))
    distances = [frechet_distance(other, each.statistics) for each in (made, stored)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-4, abs=1e-4)
    counts = [labels.values[:, i].bincount() for i in range(2)]
    assert all(torch.equal(*each) for each in zip(back.real.test_counts, counts, strict=True))
    assert [int(each.sum()) for each in back.real.train_counts] == [1200, 1200]
    found = classifier_features(back, images)
    assert back.real.features.shape == (300, 120)
    assert torch.equal(back.real.features, trained.real.features)
    between = torch.cdist(back.real.features, found)
    assert torch.equal(between.argmin(1), torch.arange(300))  # 8 bits are enough to tell each image's features


def test_files_of_hbench_0_1_are_read_with_the_same_numbers():
    mnist = load_experiment("mnist16")
    shipped = shipped_classifier(mnist.data)
    assert shipped == classifier_for(mnist)
    assert shipped.parent == SHIPPED / "mnist16"
    assert shipped_classifier(load_experiment("mnist32").data) is None
    old = load_classifier(OLD)
    tensors = load_file(OLD)
    assert ([f.name for f in old.factors], old.metric) == (["digit"], "FD (LeNet digits)")
    reference = stored_reference(OLD)
    assert np.array_equal(reference.statistics["mu"], tensors["real_mu"].numpy())
    assert np.array_equal(reference.statistics["sigma"], tensors["real_sigma"].double().numpy())
    assert (reference.n, reference.halves_interval) == (10_000, None)
    assert reference.halves == float(tensors["real_halves"].double())
    assert (old.real.train_counts, old.real.features) == (None, None)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 1, 16, 16), generator=generator, dtype=torch.uint8)
    found = frechet_distance(statistics(classifier_features(old, images)), reference.statistics)
    assert found == pytest.approx(21.953554836119096, rel=1e-6)


def test_a_result_of_a_lenet_is_read_as_one_of_a_single_head(tmp_path):
    old = {"n_train": 10, "n_test": 4, "accuracy": 0.75, "interval": [0.3, 0.95], "halves": 0.1}
    values = {"schema": 1, **old, "confusion": [[2, 0], [1, 1]]}
    (tmp_path / "lenet.json").write_text(json.dumps(values))
    result = TrainedClassifier.load(tmp_path)
    (head,) = result.heads
    assert (head.factor, head.classes, head.majority, head.accuracy) == ("digit", ["0", "1"], 0.5, 0.75)
    assert (result.metric, result.halves) == ("FD (LeNet digits)", 0.1)
    plot(result, tmp_path / "x.png")
    with pytest.raises(HBenchError, match=r"no classifier\.json there"):
        TrainedClassifier.load(tmp_path / "absent")


@pytest.mark.parametrize("what", ["role", "factors", "one class", "statistics", "shape", "weights", "nan"])
def test_a_wrong_file_is_refused_in_one_line(what, file, tiny_run):
    tensors, metadata = load_file(file), read_metadata(file)
    if what == "role":
        file = tiny_run / "model.safetensors"
    elif what == "factors":
        del metadata["factors"]
    elif what == "one class":
        metadata["factors"] = json.dumps([{"name": "colour", "classes": ["red"]}])
    elif what == "statistics":
        del tensors["real_mu"]
    elif what == "shape":
        tensors["real_rows"] = tensors["real_rows"][:, :3].contiguous()
    elif what == "weights":
        tensors["head.3.bias"] = tensors["head.3.bias"][:2].clone()
    elif what == "nan":
        tensors["real_sigma"][0] = float("nan")
    if what != "role":
        save_file(tensors, file, metadata)
    expected = {
        "role": "holds model, need a classifier: train one and give its file",
        "factors": "names no factors, so it is damaged",
        "one class": "a factor of fewer than two classes",
        "statistics": r"its statistics are damaged \(mu\)",
        "shape": r"its statistics are damaged \(rows\)",
        "weights": "1 of its parameters do not fit",
        "nan": "sigma holds NaN or infinity",
    }
    with pytest.raises(HBenchError, match=expected[what]) as caught:
        load_classifier(file)
    assert "\n" not in str(caught.value)


def test_faces_have_distances_in_the_name_of_their_classifier(file, faces, tmp_path, monkeypatch):
    chosen = choose_extractor(faces.data, weights=file)
    assert chosen == choose_extractor(faces.data, LENET, file) == Extractor(CLASSIFIER, file)
    assert chosen.metric == "FD (Faces classifier)"
    assert fits(file, faces.data)
    with pytest.raises(HBenchError, match="trained on other images than the run: train a classifier on these"):
        choose_extractor(load_experiment("mnist16").data, weights=file)
    monkeypatch.chdir(tmp_path)
    own = Path("runs/faces16/classifier/classifier.safetensors")
    own.parent.mkdir(parents=True)
    shutil.copy(file, own)
    assert classifier_for(faces) in (own, SHIPPED / "faces16" / "classifier.safetensors")


def test_a_lenet_in_the_folder_of_an_experiment_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = load_experiment("mnist16", ["data.channels=3"])  # such as no shipped one knows
    own = Path("runs/mnist16/lenet/lenet.safetensors")
    own.parent.mkdir(parents=True)
    metadata = read_metadata(OLD)
    metadata["experiment"] = digits.model_dump_json(exclude={"paper"})
    save_file(load_file(OLD), own, metadata)
    assert classifier_for(digits) == own


@pytest.mark.parametrize("command", ["classifier", "lenet"])
def test_the_command_writes_a_result_and_its_weights(command, tmp_path):
    out = tmp_path / "out"
    done = invoke(command, "digits16", "--epochs", 1, "--out", out, "--quiet")
    assert done.exit_code == 0, done.output
    files = {"classifier.json", "classifier.csv", "classes.csv", "classifier.png", "classifier.safetensors"}
    assert {path.name for path in out.iterdir()} == {*files, "provenance.json"}
    result = TrainedClassifier.load(out)
    (head,) = result.heads
    confusion = np.array(head.confusion)
    assert (confusion.sum(), result.n_train) == (result.n_test, 1618)
    assert confusion.trace() / result.n_test == pytest.approx(head.accuracy)
    assert result.detail("weights_sha256") == sha256(out / "classifier.safetensors")
    assert (result.detail("accuracy"), result.detail("halves")) == ({"digit": head.accuracy}, result.halves)
    by_class = result.class_table()
    assert (by_class["accuracy"] * by_class["n"]).sum() == pytest.approx(confusion.trace())
    assert result.table()["majority"].tolist() == [head.majority]
    assert stored_reference(out / "classifier.safetensors").halves == pytest.approx(result.halves)
    assert classifier_for(load_experiment("digits16"), out) is None
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        classifier(load_experiment("digits16"), epochs=0)
    unlabelled = refused(command, "afhq128", "--data-root", tmp_path, "--out", tmp_path / "x")
    assert "its images carry no labels" in unlabelled
    small = refused(command, "digits16", "--set", "data.size=8", "--out", tmp_path / "x")
    assert "too small" in small
