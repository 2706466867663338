import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny, and threads that wait cost more than they give
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from command_line import TINY, invoke, tiny_options

import hbench.training.pretrain
from hbench.config import Experiment
from hbench.experiments import load_experiment

KINDS = ("browser", "distributed", "faults", "gpu")
"""The folders whose tests carry the folder's name as a marker."""

hbench.training.pretrain.GRID_STEPS = 1  # its sample grids would take most of the time
try:
    from hypothesis import settings
except ModuleNotFoundError:  # the modules that need it are skipped
    pass
else:
    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile("repeatable")  # the same examples in every run; --hypothesis-profile=default draws new ones


def pytest_configure(config):
    if not any("gpu" in Path(argument.partition("::")[0]).parts for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the others test the CPU: only there are results the same bits


def pytest_collection_modifyitems(items):
    for item in items:
        kind = item.path.relative_to(Path(__file__).parent).parts[0]
        if kind in KINDS:
            item.add_marker(kind)


def pytest_addoption(parser):
    parser.addoption("--faults", type=int, default=4, metavar="N", help="kills of the fault campaign")
    parser.addoption("--faults-record", metavar="FILE", help="JSON file that keeps the campaign's counts")


def pytest_terminal_summary(terminalreporter):
    reports = [report for key in ("passed", "failed") for report in terminalreporter.getreports(key)]
    counts = [value for report in reports for name, value in report.user_properties if name == "faults"]
    if counts:
        kills, losses = (sum(count[what] for count in counts) for what in ("kills", "losses"))
        by_command = ", ".join(f"{count['command']} {count['kills']}" for count in counts)
        terminalreporter.write_line(f"faults: {kills} kills, {losses} losses ({by_command})")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    return load_experiment("digits16", TINY)


def made(*arguments):
    """Return the folder that a command writes."""
    result = invoke(*arguments, "--quiet")
    assert result.exit_code == 0, result.output
    return arguments[-1]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a diffusion model of a few steps, made by the command line itself."""
    return made("pretrain", "digits16", *tiny_options(), "--out", tmp_path_factory.mktemp("tiny") / "pretrain")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_model):
    """A run folder of a few steps, made by the command line itself."""
    out = tmp_path_factory.mktemp("tiny") / "train"
    return made("train", "digits16", *tiny_options(), "--model", tiny_model, "--out", out)


@pytest.fixture(autouse=True)
def shared_folders_stay_as_they_are(request):
    """Fail a test that writes into a folder of all tests, where the next one would find it."""
    shared = [request.getfixturevalue(name) for name in ("tiny_model", "tiny_run") if name in request.fixturenames]
    before = [sorted(folder.iterdir()) for folder in shared]
    yield
    for folder, held in zip(shared, before, strict=True):
        assert sorted(folder.iterdir()) == held, "write into a copy, or give --out"


@pytest.fixture(scope="session")
def classifier_file(tmp_path_factory):
    """The weights of a classifier that has seen digits16 once, made by the command line itself."""
    out = tmp_path_factory.mktemp("classifier")
    return made("classifier", "digits16", "--epochs", 1, "--out", out) / "classifier.safetensors"


@pytest.fixture
def few_drawn(monkeypatch, tmp_path):
    """Let the drawn data sets have a few images, kept in a folder of the test."""
    monkeypatch.setattr("hbench.store.drawn.COUNTS", {"train": 24, "test": 12})
    monkeypatch.setattr("hbench.store.datasets.DOWNLOADS", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def chromium():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs a Chromium on the PATH")
    return path


@pytest.fixture(scope="module")
def browser(chromium):
    """A browser, which the tests of a module share."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_run):
    """A run folder with two artifacts."""
    folder = tmp_path_factory.mktemp("results") / "run"
    shutil.copytree(tiny_run, folder)
    for command in (["rca", folder, "--pairs", 8], ["traverse", folder, "--pairs", 8, "--examples", 1]):
        result = invoke(*command, "--quiet")
        assert result.exit_code == 0, result.output
    return folder


class Malicious:
    """What a pickle of it does when it is loaded: a file called "owned" appears."""

    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


@pytest.fixture
def bad(tmp_path):
    """A checkpoint that runs code where it is unpickled."""
    path = tmp_path / "bad.pt"
    torch.save({"x": Malicious()}, path)
    return path
