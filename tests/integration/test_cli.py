import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import invoke, refused, snapshot, tiny_options
from PIL import Image
from safetensors.torch import load_file

from hbench.cli import demo, main
from hbench.store.shipped import SHIPPED, shipped, shipped_runs

README = Path(__file__).parents[2] / "README.md"


def test_an_option_that_is_a_setting_is_answered_with_the_setting():
    assert "changed by --set discovery.lr=VALUE" in refused("train", "mnist16", "--lr", "1e-3")
    assert "changed by --set discovery.K=VALUE" in refused("train", "mnist16", "--k=3")
    assert "changed by --set pretrain.batch_size=VALUE" in refused("pretrain", "mnist16", "--batch-size", 3)
    assert "changed by --set data.size=VALUE" in refused("plan", "mnist16", "--size", 8)
    meant = refused("vram-sweep", "mnist16", "--strategy", "node")  # its own option sets what the setting would not
    assert "Did you mean '--strategies'?" in meant
    assert "--set" not in refused("train", "mnist16", "--nonsense")
    assert "--set" not in refused("rca", "mnist16", "--lr", 3)


def test_a_model_of_other_settings_is_refused_with_the_difference():
    other = ["train", "mnist16", "--model", "mnist16"]
    assert "images of 16x16 with 1 channel, not 32x32" in refused(*other, "--set", "data.size=32")
    assert "model.model_channels = 32, not 64" in refused(*other, "--set", "model.model_channels=64")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example_and_is_in_the_readme(name):
    result = invoke(name, "-h")
    assert result.exit_code == 0
    assert f"hbench {name}" in result.output.split("Example:")[1]
    assert f"hbench {name}" in README.read_text()


def test_help_imports_no_torch():
    code = "import sys; from hbench.cli import main\ntry: main(['-h'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("False")


def test_dry_run_prints_the_resolved_configuration(tmp_path):
    result = invoke("train", "mnist32", "--set", "discovery.K=7", "--dry-run", "--out", tmp_path / "x")
    assert result.exit_code == 0
    assert "MNIST32-400-20-7-5" in result.output
    assert '"K": 7' in result.output
    assert not (tmp_path / "x").exists()
    rooted = invoke("pretrain", "afhq128", "--set", "data.root=dogs", "--dry-run")
    assert "data.root = dogs" in rooted.output


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_runs())
def test_rca_traverse_and_fid_of_a_shipped_run(tmp_path, name):
    result = invoke("rca", name, "--pairs", 32, "--out", tmp_path / "rca", "--quiet")
    assert result.exit_code == 0, result.output
    assert re.search(r"RCA 0\.\d+  95% \[0\.\d+, 0\.\d+\]  n 32", result.output)
    assert {p.name for p in (tmp_path / "rca").iterdir()} == {"rca.json", "rca.csv", "rca.png", "provenance.json"}
    result = invoke("traverse", name, "--examples", 1, "--pairs", 16, "--out", tmp_path / "traverse", "--quiet")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "traverse" / "directions.png").stat().st_size > 1000
    result = invoke(
        "fid",
        name,
        "--samples",
        128,
        "--out",
        tmp_path / "fid",
        "--cache",
        tmp_path / "cache",
        "--quiet",
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"FD \(.+\)", result.output)
    assert "shifted / raw" in result.output


def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, tiny_run):
    monkeypatch.chdir(tmp_path)
    for command in (["pretrain", "afhq128", "--data-root", ""], ["rca", tiny_run, "--out", ""], ["rca", ""]):
        assert "an empty path: is a variable of the shell unset?" in refused(*command)
    assert not list(tmp_path.iterdir())


def test_sample_draws_a_grid(tmp_path, tiny_model):
    result = invoke("sample", tiny_model, "--count", 4, "--steps", 2, "--out", tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "samples.png").is_file()
    assert "4 samples in 2 steps, outside the domain 100.00%, correlation of neighbouring pixels" in result.stdout
    assert "caution: 100% of the raw samples leave the image domain" in result.stderr


def test_names_label_the_directions(tmp_path, tiny_run):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    (folder / "names.txt").write_text("1: thickness\n2: $\\foo$ and $\n")
    result = invoke("traverse", folder, "--examples", 1, "--pairs", 8, "--quiet")
    assert result.exit_code == 0, result.output
    assert "thickness" in (folder / "traverse" / "traverse.csv").read_text()
    (folder / "names.txt").write_text("thickness\n")
    line = refused("traverse", folder, "--overwrite", "--pairs", 8)
    assert 'names.txt, line 1: write "index: name"' in line


def test_wrong_input_is_one_line_that_names_the_fix(tmp_path, tiny_run, tiny_model):
    assert "choose one of" in refused("train", "mnist64")
    assert 'did you mean "K"?' in refused("train", "mnist16", "--set", "discovery.k=3")
    assert "greater than or equal to 2" in refused("train", "mnist16", "--set", "discovery.K=0")
    assert "greater than 0" in refused("train", "mnist16", "--set", "discovery.S=0")
    assert "no such folder" in refused("pretrain", "anime64", "--data-root", tmp_path / "absent")
    assert "pretrain it, or give another one" in refused("train", "digits16", "--model", tmp_path / "absent")
    assert f"or {shipped()}" in refused("rca", tmp_path / "absent")
    assert "of which directions are to be trained first" in refused("rca", tiny_model)
    assert "is not in the range" in refused("rca", tiny_run, "--pairs", 0)
    for name in ("abacus", "meta", "mps:1"):
        assert "no such device" in refused("rca", tiny_run, "--device", name)
    if not torch.backends.mps.is_available():
        assert "no GPU of a Mac can be used here" in refused("rca", tiny_run, "--device", "mps")
    assert "at most 1000" in refused("sample", tiny_model, "--steps", 1001)
    if not torch.cuda.is_available():
        assert "found 0 CUDA devices" in refused("rca", tiny_run, "--device", "cuda")


def test_output_in_use_is_never_written_over(tmp_path, tiny_run, tiny_model):
    before = snapshot(tiny_run)
    line = refused("train", "digits16", *tiny_options(), "--model", tiny_model, "--out", tiny_run)
    assert "already holds results: choose another --out" in line
    assert snapshot(tiny_run) == before
    assert invoke("rca", tiny_run, "--pairs", 8, "--out", tmp_path, "--quiet").exit_code == 0
    before = snapshot(tmp_path)
    assert "add --overwrite" in refused("rca", tiny_run, "--pairs", 8, "--out", tmp_path)
    assert snapshot(tmp_path) == before
    file = tmp_path / "file"
    file.write_text("mine")
    assert "choose another --out" in refused("pretrain", "digits16", "--out", file)
    assert file.read_text() == "mine"


def test_foreign_and_damaged_weights_are_refused(tmp_path, tiny_model, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)

    def train_on(path):
        return refused("train", "digits16", *tiny_options(), "--model", path, "--out", tmp_path / "out")

    assert "not a checkpoint of plain tensors" in train_on(bad)
    assert not (tmp_path / "owned").exists()
    (tmp_path / "page.pt").write_text("<html>404</html>")
    assert "is a web page" in train_on(tmp_path / "page.pt")
    torch.save({"time_embed.0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    assert "parameters do not fit the model" in train_on(tmp_path / "other.pt")
    weights = load_file(tiny_model / "model.safetensors")
    torch.save({"model": weights, "teacher": weights}, tmp_path / "two.pt")
    assert 'holds 2 models, "model", "teacher"' in train_on(tmp_path / "two.pt")
    torch.save({**weights, "label_emb.weight": torch.zeros(10, 128)}, tmp_path / "classes.pth")
    assert "class-conditional" in train_on(tmp_path / "classes.pth")
    twice = {name: torch.cat([weights[name]] * 2) for name in ("out.2.weight", "out.2.bias")}
    torch.save({**weights, **twice}, tmp_path / "learned.ckpt")
    assert "set model.learn_sigma = true" in train_on(tmp_path / "learned.ckpt")
    whole = (tiny_model / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "not a safetensors file, or damaged" in train_on(tmp_path / "cut.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    assert "holds no model known here (x)" in train_on(tmp_path / "foreign.safetensors")
    assert "is an address" in train_on("https://example.org/ema.pt")
    assert "the Hugging Face Hub cannot be reached" in train_on("google/ddpm-celebahq-256")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_runs())
def test_demo_runs_through(tmp_path, monkeypatch, name):
    for setting, value in {
        "PAIRS": 16,
        "EXAMPLES": 1,
        "LOOK_PAIRS": 16,
        "ATTRIBUTE_SAMPLES": 6,
        "INVERSION": 3,
    }.items():
        monkeypatch.setattr(demo, setting, value)
    monkeypatch.setattr(demo, "FRESH", demo.FRESH | {"K": 3, "M": 3, "batch_size": 4, "pool": 16})
    chosen = [] if name == demo.FIRST else [name]
    result = invoke("demo", *chosen, "--out", tmp_path, "--training-steps", 4, "--quiet")
    assert result.exit_code == 0, result.output
    named = [Path(line.split()[0]) for line in result.stdout.split("Open:")[1].splitlines() if line.strip()]
    pictures = (SHIPPED / name / demo.PICTURES).is_dir()
    assert len(named) == 5 + pictures
    assert (tmp_path / f"shipped-{name}" / "edit" / "edits.png").is_file() == pictures
    assert f"1. The shipped run {name}, " in result.stdout
    assert all(path.exists() for path in named)
    assert len(list((tmp_path / "train" / "growth").glob("*.png"))) == 4
    page = (tmp_path / "report.html").read_text()
    assert page.count('<h2 id="run-') == 2  # the shipped run and the fresh one
    assert page.count("data:image/png;base64,") == 9 + pictures


def test_samples_lie_beside_their_model(tiny_model, tmp_path):
    file = shutil.copy(tiny_model / "model.safetensors", tmp_path)
    result = invoke("sample", file, "--count", 4, "--steps", 2, "--quiet")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "sample" / "samples.png").is_file()


def test_resume_takes_the_model_of_the_run(tiny_run, tiny_model, tmp_path):
    same = invoke("train", "digits16", *tiny_options(), "--model", tiny_model, "--out", tiny_run, "--resume", "--quiet")
    assert same.exit_code == 0, same.output
    weights = load_file(tiny_model / "model.safetensors")
    torch.save({name: value.float() + 1 for name, value in weights.items()}, tmp_path / "other.pt")
    line = refused(
        "train", "digits16", *tiny_options(), "--model", tmp_path / "other.pt", "--out", tiny_run, "--resume"
    )
    assert "was started with another model" in line


def test_traverse_writes_an_animation_of_the_best_directions_it_shows(tmp_path, tiny_run):
    command = ("traverse", tiny_run, "--pairs", 8, "--examples", 1, "--samples", 2, "--direction", 2, "--animate")
    result = invoke(*command, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    assert f"see {tmp_path / 'out' / 'directions.webp'}" in result.output
    with Image.open(tmp_path / "out" / "directions.webp") as picture:
        assert picture.n_frames == 40  # of 21 magnitudes, there and back
        assert picture.width < 150  # one direction, one example
    result = invoke(*command[:-1], "--out", tmp_path / "still", "--quiet")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "still" / "directions.webp").exists()


def test_traverse_ranks_by_a_measured_rca_of_the_same_run(tmp_path, tiny_run):
    assert invoke("rca", tiny_run, "--pairs", 8, "--out", tmp_path / "rca", "--quiet").exit_code == 0
    measured = tmp_path / "rca" / "rca.json"
    result = invoke("traverse", tiny_run, "--rca", measured, "--examples", 1, "--out", tmp_path / "own", "--quiet")
    assert result.exit_code == 0, result.output
    assert '"pairs": 8' in (tmp_path / "own" / "traverse.json").read_text()
    assert "was measured on other weights" in refused("traverse", "mnist16", "--rca", measured)
    (tmp_path / "rca" / "other.json").write_text("{}")
    assert "give its rca.json" in refused("traverse", tiny_run, "--rca", tmp_path / "rca" / "other.json")
