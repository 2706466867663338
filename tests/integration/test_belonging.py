"""Files that do not belong together are named, by every command that reads them."""

import json
import shutil

import pytest
import torch
from command_line import changed, invoke, refused, snapshot, tiny_options, written_again
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hbench
from hbench import load_model
from hbench.errors import HBenchError
from hbench.evaluation.ablations import ablations
from hbench.evaluation.features import Extractor, features
from hbench.evaluation.rca import RCA
from hbench.evaluation.sample_cache import image_folder, pngs, sample_folders
from hbench.reporting.report import collect
from hbench.store.directions import load_directions
from hbench.store.metrics import read_metrics
from hbench.store.names import load_names
from hbench.store.run import load_run
from hbench.store.run_files import ROLES, run_hashes

OTHER = "is not the file that provenance.json beside it was written with: bring it back from a copy, or train again"


def of_another_run(file):
    """Replace a weights file by one of the same names, shapes and settings, as another training writes it."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, metadata)


@pytest.fixture
def run(tmp_path, tiny_run):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture
def measured(tmp_path, results):
    return shutil.copytree(results, tmp_path / "measured")


@pytest.mark.parametrize("role", ROLES)
def test_a_run_with_a_file_of_another_is_refused_by_the_name_of_the_file(run, role):
    of_another_run(run / f"{role}.safetensors")
    for call in (load_run, run_hashes):
        with pytest.raises(HBenchError) as error:
            call(run)
        assert str(error.value) == f"{run / role}.safetensors: {OTHER}"


def test_every_command_of_a_run_refuses_it(run, tmp_path):
    of_another_run(run / "model.safetensors")
    name = f"{run / 'model.safetensors'}: is not the file"
    for words in (
        ["rca", run],
        ["traverse", run],
        ["edit", run, "absent.png", "--shift", "0=1"],
        ["fid", run],
        ["properties", run],
        ["mos", "export", run],
        ["sample", run],
        ["sample", run / "model.safetensors"],
        ["train", "digits16", *tiny_options(), "--model", run],
        ["train", "digits16", *tiny_options(), "--resume", "--out", run],
    ):
        out = [] if "--out" in words else ["--out", tmp_path / "out"]
        assert refused(*words, *out).startswith(f"Error: {name}"), words
        assert not (tmp_path / "out").exists()


def test_a_pretrained_model_and_a_classifier_of_another_training_are_refused(tmp_path, tiny_model, classifier_file):
    model = shutil.copytree(tiny_model, tmp_path / "pretrain")
    of_another_run(model / "model.safetensors")
    for path in (model, model / "model.safetensors"):
        with pytest.raises(HBenchError, match="is not the file that provenance"):
            load_model(path)
    alone = shutil.copy(model / "model.safetensors", tmp_path / "alone.safetensors")
    assert load_model(alone).prediction == "eps"  # nothing beside it says what it should be
    line = refused("pretrain", "digits16", *tiny_options(), "--resume", "--out", model)
    assert "model.safetensors: is not the file" in line
    copy = shutil.copytree(classifier_file.parent, tmp_path / "classifier")
    of_another_run(copy / "classifier.safetensors")
    assert "classifier.safetensors: is not the file" in refused(
        "ablations", "digits16", *tiny_options(), "--model", tiny_model,
        "--classifier", copy / "classifier.safetensors", "--seeds", 0, "--pairs", 130, "--over", "discovery.S=2",
        "--out", tmp_path / "out",
    )  # fmt: skip


def test_the_folder_around_a_run_is_answered_with_the_run(run):
    with pytest.raises(HBenchError, match=r"\(model.safetensors is missing\): the run is .*train$"):
        load_run(shutil.copytree(run, run.parent / "x" / "train").parent)


def test_a_run_without_provenance_is_unfinished(run):
    (run / "provenance.json").unlink()
    with pytest.raises(HBenchError, match=r"no finished discovery there \(provenance.json is missing\): train it, or"):
        load_run(run)


@pytest.mark.parametrize("name", ["provenance.json", "experiment.json"])
def test_a_damaged_or_foreign_description_of_a_run_is_refused(run, measured, name):
    (measured / name).write_text("{}")
    with pytest.raises(HBenchError, match=rf"{name}: is no "):
        collect(measured)
    values = json.loads((run / name).read_text())
    settings = values if name == "experiment.json" else values["experiment"]
    settings["discovery"]["lr"] = 0.5
    (run / name).write_text(json.dumps(values))
    with pytest.raises(HBenchError, match=r"experiment.json: is not the file that provenance.json beside it was"):
        load_run(run)


def test_a_report_refuses_results_of_weights_that_were_replaced(measured):
    before = collect(measured)
    assert [row.ran for row in before.rows].count(True) > 3
    of_another_run(measured / "shift_block.safetensors")
    with pytest.raises(HBenchError, match=r"shift_block.safetensors: is not the file"):
        collect(measured)
    written_again(measured)  # now all files of the run are another's
    with pytest.raises(HBenchError) as error:
        collect(measured)
    assert str(error.value) == (
        f"traverse, rca: of other weights than those in {measured}: remove them, and make them again by "
        '"hbench traverse" and "hbench rca"'
    )
    out = measured.parent / "page"
    assert "of other weights" in refused("report", measured, "--out", out)
    assert not out.exists()


def test_a_report_refuses_curves_of_another_log_and_a_score_of_other_weights(measured, tmp_path):
    assert invoke("train-curves", measured, "--out", measured / "train-curves").exit_code == 0
    collect(measured)
    lines = (measured / "metrics.csv").read_text().splitlines()
    (measured / "metrics.csv").write_text("\n".join([*lines[:-1], lines[-1].replace("0.", "0.1", 1)]) + "\n")
    with pytest.raises(HBenchError, match="train-curves: of other weights"):
        collect(measured)
    assert "metrics.csv: is not the file that provenance.json" in refused("train-curves", measured, "--out", tmp_path)
    shutil.rmtree(measured / "train-curves")
    score = measured / "mos" / "score"
    score.mkdir(parents=True)
    values = json.loads((measured / "rca" / "provenance.json").read_text())
    values["runs"] = {"run": {"weights_sha256": {"model": "0"}}}
    (score / "provenance.json").write_text(json.dumps(values))
    with pytest.raises(HBenchError, match="mos/score: of other weights"):
        collect(measured)


def test_a_result_of_another_measurement_is_refused(measured, tmp_path):
    values = json.loads((measured / "rca" / "rca.json").read_text())
    (measured / "rca" / "rca.json").write_text(json.dumps(values))  # the same numbers, but not the file
    said = r"rca\.json: is not the file that provenance\.json beside it was written with: make it again"
    for call in (collect, lambda folder: RCA.load(folder / "rca")):
        with pytest.raises(HBenchError, match=said):
            call(measured)
    changed(measured / "rca" / "rca.json", values)
    assert RCA.load(RCA.load(measured / "rca").save(tmp_path / "copy")) == RCA.load(measured / "rca")


def test_a_ranking_of_another_run_is_refused(run, measured):
    ranking = RCA.load(measured / "rca")
    of_another_run(run / "shift_block.safetensors")
    written_again(run)
    other = load_run(run, device="cpu")
    with pytest.raises(ValueError, match="ranking was measured on other weights or directions"):
        hbench.evaluate.traverse(other, ranking=ranking, examples=1)
    assert "was measured on other weights" in refused("traverse", run, "--rca", measured / "rca" / "rca.json")
    walk = hbench.evaluate.traverse(load_run(measured, device="cpu"), ranking=ranking, examples=1, samples=3)
    assert walk.pairs == ranking.n


def test_a_stopped_training_goes_on_with_its_own_model_alone(tmp_path, tiny, tiny_model):
    out, model = tmp_path / "train", load_model(tiny_model, tiny, device="cpu")
    assert not hbench.train(tiny, model, out, device="cpu", max_minutes=1e-9)
    other = load_model(tiny_model, tiny, device="cpu")
    next(other.parameters()).data += 1
    before = snapshot(out)
    with pytest.raises(HBenchError, match="was started with another model than the given one"):
        hbench.train(tiny, other, out, device="cpu", resume=True)
    of_another_run(out / "model.safetensors")
    with pytest.raises(HBenchError, match=r"model.safetensors: is not the model that the training was started with"):
        hbench.train(tiny, model, out, device="cpu", resume=True)
    (out / "model.safetensors").write_bytes(before[out / "model.safetensors"])
    assert snapshot(out) == before
    assert hbench.train(tiny, model, out, device="cpu", resume=True)


def test_a_finished_training_is_complete_with_its_own_weights_alone(run, tiny, tiny_model):
    of_another_run(run / "reconstructor.safetensors")
    with pytest.raises(HBenchError, match=r"reconstructor.safetensors: is not the file"):
        hbench.train(tiny, load_model(tiny_model, tiny, device="cpu"), run, device="cpu", resume=True)


def test_variants_of_another_model_are_refused(tmp_path, tiny, tiny_model):
    out, model = tmp_path / "ablations", load_model(tiny_model, tiny, device="cpu")
    options = {"variants": {"a": "discovery.S=5"}, "seeds": 0, "pairs": 4, "device": "cpu"}
    assert ablations(tiny, model, out, **options).variants == ["a"]
    folder = out / "a-seed0"
    file = folder / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_tensors_sha256": "0"}))
    with pytest.raises(HBenchError, match="a-seed0: was trained on another model than"):
        ablations(tiny, model, out, resume=True, **options)
    of_another_run(folder / "reconstructor.safetensors")
    with pytest.raises(HBenchError, match=r"reconstructor.safetensors: is not the file"):
        ablations(tiny, model, out, resume=True, **options)


def test_cached_samples_of_another_run_are_refused(run, tmp_path):
    loaded = load_run(run, device="cpu")
    raw, _ = sample_folders(loaded, 2, tmp_path, seed=0)
    assert sample_folders(loaded, 2, tmp_path, seed=0)[0] == raw
    sample_folders(loaded, 2, tmp_path, seed=1)
    (other,) = (folder for folder in (tmp_path / "samples").iterdir() if folder != raw.parent)
    shutil.rmtree(raw.parent)
    shutil.copytree(other, raw.parent)
    with pytest.raises(HBenchError, match=r"samples.json: is of other samples than its folder: remove it"):
        sample_folders(loaded, 2, tmp_path, seed=0)


@pytest.mark.slow
def test_other_pictures_in_the_cache_are_not_measured(run, classifier_file, tmp_path):
    extractor = ["--feature-extractor", "lenet-digits", "--weights", classifier_file, "--cache", tmp_path / "cache"]
    words = ["fid", run, "--samples", 130, *extractor, "--overwrite", "--out", tmp_path / "fid"]
    assert invoke(*words).exit_code == 0
    numbers = (tmp_path / "fid" / "fid.json").read_bytes()
    (raw,) = (tmp_path / "cache" / "samples").glob("*/raw")
    (real,) = (tmp_path / "cache" / "real").iterdir()
    Image.new("L", (16, 16)).save(real / "999999.png")  # one more changes nothing
    for replaced, other in ((raw, raw.with_name("shifted")), (real, raw)):
        file = replaced / "000003.png"
        own = file.read_bytes()
        for content in (other / "000003.png", replaced / "000004.png"):
            file.write_bytes(content.read_bytes())
            assert f"{file}: is not the image that hbench put there: remove it" in refused(*words)
        file.write_bytes(own)
    assert invoke(*words).exit_code == 0
    assert (tmp_path / "fid" / "fid.json").read_bytes() == numbers


def test_other_features_in_the_cache_are_not_measured(classifier_file, tmp_path):
    paths = pngs(image_folder(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), tmp_path), 2)
    extractor = Extractor("lenet-digits", classifier_file)
    found = features(paths, extractor, tmp_path, torch.device("cpu"))
    (file,) = (tmp_path / "features").iterdir()
    assert torch.equal(features(paths, extractor, tmp_path, torch.device("cpu")), found)
    of_another_run(file)
    with pytest.raises(HBenchError, match="holds other features than were written: remove it"):
        features(paths, extractor, tmp_path, torch.device("cpu"))


@pytest.mark.slow
def test_other_directions_than_were_measured_are_refused(run, tmp_path):
    words = ["properties", run, "--samples", 2, "--pairs", 20, "--examples", 1, "--out", tmp_path / "properties"]
    assert invoke(*words).exit_code == 0
    file, loaded = tmp_path / "properties" / "directions.safetensors", load_run(run, device="cpu")
    assert load_directions(file, loaded).n == 2
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    about = json.loads(metadata["directions"])
    mean, timesteps = tensors["delta_h"], about["timesteps"]
    for delta_h, visited, said in (
        (mean * 2, timesteps, "directions.safetensors: is not the file that provenance.json beside it"),
        (mean[:, :, :2].contiguous(), timesteps, "other shapes or timesteps"),
        (mean, [t + 1000 for t in timesteps], "is not the file that provenance.json beside it"),
        (mean, timesteps[::-1], "damaged .timesteps must descend"),
    ):
        changed = metadata | {"directions": json.dumps(about | {"timesteps": visited})}
        save_file({"delta_h": delta_h}, file, changed)
        with pytest.raises(HBenchError, match=said):
            load_directions(file, loaded)


# Tables -------------------------------------------------------------------------------------------------------------

WHOLE = "step,loss,accuracy\n0,1.5,0.25\n1,1.25,0.5\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WHOLE.removesuffix(",0.5\n"), "line 3: 2 values, need 3"),
        (WHOLE.removesuffix("5\n"), "line 3: is cut"),  # a cut number still is one
        (WHOLE.removesuffix("\n"), "line 3: is cut"),
        (WHOLE.replace("1.25", "nan"), "line 3: loss is 'nan', need a finite number"),
        (WHOLE.replace("1.25", "inf"), "line 3: loss is 'inf', need a finite number"),
        (WHOLE.replace("1.25", ""), "line 3: loss is '', need a finite number"),
        (WHOLE.replace("\n1,", "\n2,"), "line 3: step 2, need 1"),
        (WHOLE + WHOLE.splitlines()[-1] + "\n", "line 4: step 1, need 2"),
        (WHOLE.replace("0.25\n", "0.25,7\n"), "line 2: 4 values, need 3"),
        (WHOLE.replace("0.5\n", "7\n"), "line 3: accuracy is '7', need 0 to 1"),
        (WHOLE.replace("0.25\n", "-0.1\n"), "line 2: accuracy is '-0.1', need 0 to 1"),
        ("step,loss\n", "holds no metrics"),
        ("", "holds no metrics"),
        ("a,b\n1,2\n", "holds no metrics"),
    ],
)
def test_a_log_that_is_not_whole_names_its_line(tmp_path, text, said):
    file = tmp_path / "metrics.csv"
    file.write_text(text)
    with pytest.raises(HBenchError) as error:
        read_metrics(file)
    assert str(error.value).startswith(f"{file}")
    assert said in str(error.value)
    assert "bring it back from a copy, or train again" in str(error.value)


def test_a_whole_log_is_read_and_its_length_compared(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text(WHOLE)
    assert read_metrics(file)["accuracy"].tolist() == [0.25, 0.5]
    assert len(read_metrics(file, 2)) == 2
    with pytest.raises(HBenchError, match="holds 2 steps of a training of 3"):
        read_metrics(file, 3)


def test_curves_of_a_cut_log_are_no_numbers(run, tmp_path):
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "provenance.json").unlink()  # as of a training that was killed
    (run / "metrics.csv").write_text("".join(lines)[:-30])
    assert "metrics.csv, line 5: " in refused("train-curves", run, "--out", tmp_path / "curves")
    assert not (tmp_path / "curves").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0: a\n0: b\n", "line 2: direction 0 has a name already"),
        ("3: a\n", "line 1: no direction 3: the run has 0 to 2"),
    ],
)
def test_names_of_no_direction_or_two_are_refused(run, text, said):
    (run / "names.txt").write_text("\ufeff" + text)
    with pytest.raises(HBenchError, match=said):
        load_run(run)
    (run / "names.txt").write_text("\ufeff0: a\n")
    assert load_names(run) == {0: "a"}
