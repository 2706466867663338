"""Files from strangers: no code in them is run, no link in them is followed, no name in them becomes part of a page."""

import ast
import json
import os
import shutil
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from command_line import invoke, refused, tiny_options, written_again
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hbench
from hbench.config import Data
from hbench.errors import HBenchError
from hbench.evaluation.features import INCEPTION, Extractor, choose_extractor, features
from hbench.evaluation.sample_cache import image_folder, pngs
from hbench.experiments import load_experiment
from hbench.reporting.report import REASONS, collect, write_pages
from hbench.store.datasets import load_images
from hbench.store.files import sha256
from hbench.store.folders import claimed_folder
from hbench.store.run import load_run
from hbench.store.weights import read_experiment
from hbench.training.checkpoint import CHECKPOINT

CPU = torch.device("cpu")
OPTIONS = tiny_options()
PACKAGE = Path(hbench.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


# Pickles ------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def not_owned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "owned").exists()


def test_the_pickle_is_malicious(bad, tmp_path):
    torch.load(bad, weights_only=False)
    (tmp_path / "owned").unlink()  # it was there


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_can_run_what_it_reads(path):
    tree = ast.parse(path.read_text())
    for name, options in calls(tree):
        last = name.rpartition(".")[2]
        if name in ("torch.load", "load"):
            assert options.get("weights_only") == "True", f"{path}: {name}"
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False"
        assert last not in ("read_pickle", "Unpickler", "loads") or name in ("json.loads", "tomllib.loads"), name
        assert name not in ("eval", "exec", "os.system", "torch.jit.load", "compile", "__import__")
        assert options.get("shell", "False") == "False"
    modules = {alias.name: node for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not modules.keys() & {"pickle", "dill", "joblib", "marshal", "shelve", "yaml"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            assert [alias.name for alias in node.names] == ["UnpicklingError"]


def test_the_scan_sees_what_it_looks_for(tmp_path):
    path = tmp_path / "bad.py"
    for line in ("torch.load(p)", "torch.load(p, weights_only=False)", "pickle.loads(b)", "import pickle", "eval(x)"):
        path.write_text(line)
        with pytest.raises(AssertionError):
            test_no_module_can_run_what_it_reads(path)


def test_no_code_in_a_model(bad, tmp_path):
    line = refused("train", "digits16", *OPTIONS, "--model", bad, "--out", tmp_path / "out")
    assert "not a checkpoint of plain tensors" in line
    assert "not a checkpoint of plain tensors" in refused("sample", bad, "--experiment", "digits16")


def test_no_code_in_a_checkpoint(bad, tmp_path, tiny_model):
    folder = tmp_path / "run"
    shutil.copytree(tiny_model, folder)
    about = json.loads((folder / CHECKPOINT).read_text())
    shutil.copy(bad, folder / about["file"])
    words = ["pretrain", "digits16", *OPTIONS, "--out", folder, "--resume"]
    assert "damaged" in refused(*words)
    (folder / CHECKPOINT).write_text(json.dumps(about | {"sha256": sha256(bad)}))  # a stranger can do that too
    assert "not a checkpoint of plain tensors" in refused(*words)


def test_no_code_in_the_weights_of_an_extractor(bad, tmp_path, tiny, monkeypatch):
    with pytest.raises(HBenchError, match="not a checkpoint of plain tensors"):
        choose_extractor(tiny.data, INCEPTION, bad)
    images = pngs(image_folder(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), tmp_path))
    for extractor in ("inception-v3-compat", "vgg16"):  # torch-fidelity itself would run it
        with pytest.raises(HBenchError, match=f"holds no weights of {extractor}"):
            features(images, Extractor(extractor, bad), tmp_path, CPU)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    (tmp_path / "hub" / "hub" / "checkpoints").mkdir(parents=True)
    shutil.copy(bad, tmp_path / "hub" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
    with pytest.raises(HBenchError, match="holds no weights of inception-v3-compat"):
        features(images, Extractor(INCEPTION), tmp_path, CPU)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_no_code_in_files_called_safetensors(bad, tmp_path, tiny_run):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.copy(bad, run / "shift_block.safetensors")
    assert "not a safetensors file, or damaged" in refused("rca", run)
    shutil.copy(bad, tmp_path / "directions.safetensors")
    words = ["--direction-source", "mean", "--directions", tmp_path / "directions.safetensors"]
    assert "not a safetensors file, or damaged" in refused("rca", tiny_run, *words)
    assert "not a safetensors file, or damaged" in refused(
        "fid", tiny_run, "--feature-extractor", "lenet-digits", "--weights", tmp_path / "directions.safetensors"
    )


# Links --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_run):
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("measured") / "run")
    assert invoke("rca", folder, "--pairs", 8, "--quiet").exit_code == 0
    return folder


@pytest.fixture
def run(tmp_path, measured):
    """A run from a stranger, with one result."""
    return shutil.copytree(measured, tmp_path / "run")


@pytest.fixture
def secret(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "secret.png").write_text("my secret")
    (folder / "names.txt").write_text("0: my secret")
    return folder


@pytest.mark.parametrize(
    ("link", "target"),
    [("names.txt", "names.txt"), ("rca/secret.png", "secret.png"), ("rca/more", "."), ("metrics.csv", "secret.png")],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_out_of_a_run_is_not_read(run, secret, link, target, absolute):
    place = run / link
    place.unlink(missing_ok=True)
    to = secret / target
    place.symlink_to(to if absolute else os.path.relpath(to, place.parent))
    for words in (
        ["report", run],
        ["rca", run, "--overwrite"],
        ["traverse", run],
        ["edit", run, secret / "secret.png", "--shift", "0=1"],
        ["train-curves", run, "--out", run.parent / "curves"],
        ["sample", run],
        ["mos", "export", run, "--out", run.parent / "mos"],
        ["train", "digits16", *OPTIONS, "--resume", "--out", run],
    ):
        assert f"{place}: is a link out of its folder: put what it leads to in its place" in refused(*words), words
    assert not (run / "report.html").exists()


def test_a_link_out_of_a_result_is_not_written_through(run, secret):
    before = {path: path.read_bytes() for path in secret.iterdir()}
    (run / "edit").symlink_to(secret, target_is_directory=True)
    image = run.parent / "x.png"
    Image.new("L", (16, 16)).save(image)
    assert "is a link out of its folder" in refused("edit", run, image, "--shift", "0=1", "--overwrite")
    (run / "edit").unlink()
    out = run.parent / "out"
    out.mkdir()
    (out / "images").symlink_to(secret, target_is_directory=True)
    assert "is a link out of its folder" in refused("edit", run, image, "--shift", "0=1", "--out", out, "--overwrite")
    (out / "images").unlink()
    (out / "edit.csv").symlink_to(secret / "names.txt")
    with pytest.raises(HBenchError, match="is a link out"), claimed_folder(out, overwrite=True):
        raise AssertionError("claimed")
    assert {path: path.read_bytes() for path in secret.iterdir()} == before


def test_links_inside_a_run_and_to_a_run_are_fine(run):
    (run / "best.safetensors").symlink_to("shift_block.safetensors")
    (run / "loop").symlink_to("loop")
    (run.parent / "shortcut").symlink_to(run, target_is_directory=True)
    assert load_run(run.parent / "shortcut", device=CPU).experiment.discovery.K == 3
    assert invoke("report", run.parent / "shortcut").exit_code == 0


# Images -------------------------------------------------------------------------------------------------------------


def bomb(path, width, height):
    """A PNG of a few kilobytes that says to have many pixels, all of them black."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = zlib.compress(bytes(min(width * height, 10**7)), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, tiny_run, side):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    bomb(pictures / "bomb.png", side, side)
    assert (pictures / "bomb.png").stat().st_size < 20_000
    with pytest.raises(HBenchError, match=r"bomb.png: more than 89,478,485 pixels, .*: make it smaller or remove it"):
        load_images(Data(dataset="folder", label="x", size=16), pictures)
    line = refused("edit", tiny_run, pictures / "bomb.png", "--shift", "0=1", "--out", tmp_path / "out")
    assert "bomb.png: more than 89,478,485 pixels" in line


def test_a_text_that_unpacks_without_end_is_refused(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "x" * (80 * 2**20), zip=True)
    for i in range(2):
        Image.new("L", (16, 16)).save(tmp_path / f"{i}.png", pnginfo=info if i else None)
    assert (tmp_path / "1.png").stat().st_size < 200_000
    with pytest.raises(HBenchError, match=r"1\.png: not a readable image"):
        load_images(Data(dataset="folder", label="x", size=16), tmp_path)


def test_a_weights_file_chooses_no_folder_to_read(tmp_path, tiny, tiny_model):
    values = tiny.model_dump(mode="json")
    values["data"]["root"] = "//stranger/share"
    tensors = load_file(tiny_model / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", {"role": "model", "experiment": json.dumps(values)})
    assert read_experiment(tmp_path / "model.safetensors").data.root is None


# Pages --------------------------------------------------------------------------------------------------------------

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>]]>{{ 7*7 }}`|"


class Elements(HTMLParser):
    """Counts the elements of a page, and keeps the names of their attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, sorted(name for name, _ in attrs)))


def elements(text):
    parser = Elements()
    parser.feed(text)
    return parser.found


def test_names_become_no_part_of_a_report(run, tmp_path):
    plain, evil = tmp_path / "plain", tmp_path / "evil"
    for folder, text in ((plain, "harmless"), (evil, EVIL)):
        shutil.copytree(run, folder)
        file = folder / "rca" / "provenance.json"
        origin = json.loads(file.read_text())
        origin["experiment"]["name"] = text
        origin |= {"command": f"hbench rca {text}", "device": text, "title": text, text: text, "driver": text}
        origin["git"] = {"commit": text, "dirty": True}
        origin["versions"] = {text: text}
        file.write_text(json.dumps(origin))
        (folder / REASONS).write_text(json.dumps({"edit": text}))
        (folder / "rca" / "rca.png").rename(folder / "rca" / f"{text.replace('/', '')}.png")
        write_pages([collect(folder)], folder)
    assert elements((evil / "report.html").read_text()) == elements((plain / "report.html").read_text())
    assert "49" not in (evil / "report.html").read_text().split("<details>")[1].split("</summary>")[0]
    inline = [part for i, part in enumerate((evil / "report.md").read_text().split("`")) if i % 2 == 0]  # not code
    assert elements("".join(inline)) == []
    assert (evil / "report.md").read_text().count("\n|") == (plain / "report.md").read_text().count("\n|")


@pytest.mark.parametrize("label", ["", "<b>", "$x^$", "a|b", "`", "=1+1", "a\nb", "../x"])
def test_labels_are_words(label):
    with pytest.raises(HBenchError, match=r"data\.label"):
        load_experiment("digits16", [f"data.label={json.dumps(label)}"])


def test_names_become_no_part_of_a_sheet(tiny_run, tmp_path):
    pages = {}
    for name, text in (("plain", "harmless"), ("evil", EVIL.replace("/", ""))):
        folder = tmp_path / name / text
        shutil.copytree(tiny_run, folder)
        (folder / "names.txt").write_text(f"0: {text}\n")
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata()
            experiment = json.loads(metadata["experiment"])
            experiment["name"] = text
            save_file(load_file(file), file, metadata | {"experiment": json.dumps(experiment)})
        written_again(folder)
        (folder / "experiment.json").unlink()
        out = tmp_path / f"mos-{name}"
        options = ["--assessors", 1, "--examples", 1, "--label-studio", "--out", out, "--quiet"]
        result = invoke("mos", "export", folder, *options)
        assert result.exit_code == 0, result.output
        pages[name] = (out / "sheet_1.html").read_text()
        assert "alert(1)" not in pages[name]  # nothing of the run's names is on a blind sheet
        assert "alert(1)" not in (out / "label_studio" / "config.xml").read_text()
    assert elements(pages["evil"]) == elements(pages["plain"])


@pytest.mark.parametrize("extractor", ["clip-vit-b-32", "dinov2-vit-s-14"])
def test_extractors_that_come_as_code_are_refused(tiny_run, tmp_path, extractor):
    line = refused("fid", tiny_run, "--feature-extractor", extractor, "--out", tmp_path / "out")
    assert f"{extractor}: comes as code that would be run" in line
