"""The front door: what ``import hbench`` offers, its documents, and the errors of wrong values."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from committed import V01
from PIL import Image

import hbench
from hbench.errors import HBenchError

ROOT = Path(__file__).parents[2]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(code, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_importing_hbench_imports_nothing_heavy(tmp_path):
    heavy = "{'torch', 'pandas', 'matplotlib', 'numpy', 'scipy', 'pydantic', 'click'}"
    python(f"import hbench, sys; dir(hbench); assert not {heavy} & set(sys.modules)", tmp_path)


@pytest.mark.slow
def test_back_propagation_needs_neither_pandas_nor_matplotlib(tmp_path):
    unwanted = "{'pandas', 'matplotlib', 'sklearn', 'scipy', 'torchvision', 'torch_fidelity'}"
    python(f"import hbench, sys; hbench.backpropagate; assert not {unwanted} & set(sys.modules)", tmp_path)


@pytest.mark.slow
def test_every_public_name_is_there_and_documented():
    for module in (hbench, hbench.evaluate):
        assert module.__all__
        for name in module.__all__:
            assert name in dir(module)
            assert getattr(module, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hbench.nothing  # noqa: B018


@pytest.mark.slow
def test_the_example_of_the_readme_runs_in_an_empty_folder(tmp_path):
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
        if "import hbench" in block
    )
    said = python(example, tmp_path)
    assert said.stdout.startswith("RCA 0.")
    assert said.stderr == ""  # no progress unless it is asked for
    assert (tmp_path / "grid.png").stat().st_size > 1000
    origin = json.loads((tmp_path / "rca" / "provenance.json").read_text())
    assert origin["command"] is None
    assert origin["n"] == 200


@pytest.fixture(scope="module")
def run():
    return hbench.load_run(V01, device="cpu")


def test_a_run_says_what_it_is_in_a_few_lines(run):
    lines = repr(run).splitlines()
    assert lines[0] == "Run MNIST16-400-10-32-5 on cpu"
    assert len(lines) < 8
    assert max(map(len, lines)) < 130


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run: run.noise(0), "count must be at least 1"),
        (lambda run: run.noise(2, seed=-1), "seed must be at least 0"),
        (lambda run: run.generate(run.noise(1), {99: 1.0}), "no direction 99: the run has 0 to 31"),
        (lambda run: run.generate(run.noise(1), {3: float("nan")}), "must be finite"),
        (lambda run: run.generate(run.noise(1), steps=0), "1..1000"),
        (lambda run: run.generate(run.noise(1), steps=1001), "1..1000"),
        (lambda run: run.generate(torch.zeros(1, 3, 16, 16)), "1, 16, 16"),
        (lambda run: run.traverse([32]), "0 to 31"),
        (lambda run: run.traverse([0], samples=1), "samples must be at least 2"),
        (lambda run: run.traverse([]), "at least 1"),
        (lambda run: hbench.evaluate.rca(run, pairs=0), "pairs must be at least 1"),
        (lambda run: hbench.direction_source(run, "other"), '"own", "mean" or "global"'),
        (lambda run: hbench.load_run("nothing"), "mnist16"),
        (lambda run: hbench.load_run("mnist16", device="tpu"), '"auto", "cpu", "cuda"'),
        (lambda run: hbench.load_experiment("mnist16", **{"discovery.k": 3}), 'did you mean "K"'),
        (lambda run: hbench.load_experiment("mnist16", **{"discovery.K": 1}), "greater than or equal to 2"),
    ],
)
def test_a_wrong_value_gets_the_valid_range(run, call, said):
    with pytest.raises((ValueError, HBenchError)) as refused:
        call(run)
    assert said in str(refused.value)
    assert "--" not in str(refused.value)


def test_an_experiment_takes_settings_as_values():
    assert hbench.load_experiment("mnist16", **{"discovery.K": 16, "data.size": 32}).discovery.K == 16
    assert hbench.load_experiment(ROOT / "experiments" / "mnist16.toml").name == "mnist16"


def test_generated_documents_are_up_to_date():
    generator = load_script("generate")
    pages = generator.generated()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python docs/generate.py"
    assert {path for path in pages if path.suffix == ".json"} == set((ROOT / "docs" / "schema").glob("*.json"))


def test_the_gallery_shows_what_was_measured():
    gallery = load_script("gallery")
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert text == gallery.page(), "run python docs/gallery.py"
    shown = re.findall(r"\]\((gallery/.*\.webp)\)", text)
    assert {ROOT / "docs" / each for each in shown} == set((ROOT / "docs" / "gallery").iterdir())
    for each in shown:
        with Image.open(ROOT / "docs" / each) as picture:
            assert picture.n_frames == 2 * gallery.MAGNITUDES - 2


@pytest.mark.slow
def test_committed_results_are_as_their_schemas_say():
    jsonschema = pytest.importorskip("jsonschema")
    generator = load_script("generate")
    of_file = {
        **{f"{record.NAME}.json": record for record in generator.records() if hasattr(record, "NAME")},
        "provenance.json": next(each for each in generator.records() if each.__name__ == "Provenance"),
        "experiment.json": next(each for each in generator.records() if each.__name__ == "WrittenExperiment"),
        "not-run.json": next(each for each in generator.records() if each.__name__ == "NotRun"),
        "report.json": next(each for each in generator.records() if each.__name__ == "ReportTable"),
    }
    checked = 0
    for path in sorted((ROOT / "results").rglob("*.json")):
        if path.name in of_file:
            jsonschema.validate(json.loads(path.read_text()), of_file[path.name].json_schema())
            of_file[path.name].read(path)
            checked += 1
    assert checked > 60


@pytest.mark.slow
def test_the_notebook_runs_from_load_to_an_edited_picture(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "docs" / "first-steps.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert (tmp_path / "rca" / "rca.png").is_file()
