"""Standard streams that are closed or cannot be written to, and packages that are not installed."""

import subprocess
import sys

import pytest
from command_line import invoke, tiny_options

from hbench.runtime.streams import open_missing_streams


def shell(command, tmp_path):
    words = f"exec '{sys.executable}' -m hbench {command}"
    return subprocess.run(["sh", "-c", words], capture_output=True, text=True, cwd=tmp_path, check=False)


@pytest.mark.parametrize("closed", ["2>&-", "2</dev/null", "2>&- <&-"])
def test_without_stderr_the_numbers_still_come(closed, tmp_path):
    result = shell(f"train digits16 --dry-run {closed}", tmp_path)
    assert result.returncode == 0
    assert '"name": "digits16"' in result.stdout
    assert shell(f"train nothing {closed}", tmp_path).returncode == 1


def test_without_stdout_errors_still_come(tmp_path):
    assert shell("train digits16 --dry-run >&-", tmp_path).returncode == 0
    result = shell("train nothing >&-", tmp_path)
    assert result.returncode == 1
    assert 'no experiment "nothing"' in result.stderr


@pytest.mark.slow
def test_a_computation_without_any_stream(tiny_model, tmp_path):
    """The next files get the numbers of the streams, unless something holds these."""
    result = shell(f"sample '{tiny_model}' --samples 1 --steps 1 --out out <&- >&- 2>&-", tmp_path)
    assert result.returncode == 0
    assert (tmp_path / "out" / "provenance.json").is_file()


def test_a_stream_without_a_number_is_left_alone(capsys):
    """Notebooks and tests have such streams."""
    before = sys.stdout, sys.stderr
    open_missing_streams()
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(
    "command",
    [
        ["vram-sweep", "digits16", "--m", "1"],
        ["plan", "digits16", "--m", "1"],
        ["fid", "RUN", "--steps", "1", "--feature-extractor", "inception-v3-compat"],
        ["properties", "RUN", "--steps", "1"],
        ["edit", "RUN", "none.png", "--shift", "0=1", "--steps", "1"],
    ],
)
def test_generation_steps_that_shift_nothing_are_refused_before_any_work(command, tmp_path, monkeypatch, leading_run):
    monkeypatch.chdir(tmp_path)
    settings = [*tiny_options("discovery.spacing=leading", "discovery.t_shift=600")] if command[1] != "RUN" else []
    result = invoke(*[leading_run if word == "RUN" else word for word in command], *settings)
    assert result.exit_code == 2, result.output
    assert "discovery.t_shift = 600 shifts no timestep of M = 1: need at most 0, or more M" in result.stderr
    assert not any(tmp_path.iterdir())


def test_a_variant_that_shifts_nothing_is_refused_before_any_is_trained(tiny_model, tmp_path):
    options = tiny_options("discovery.spacing=leading", "discovery.t_shift=600")
    over = ["--over", "discovery.M=1", "--pairs", 200, "--seeds", 0, "--out", tmp_path / "out"]
    result = invoke("ablations", "digits16", "--model", tiny_model, *options, *over)
    assert result.exit_code == 1
    assert "shifts no timestep" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def leading_run(tmp_path_factory, tiny_model):
    """A run whose timesteps lie so that one alone is not shifted."""
    options = tiny_options("discovery.spacing=leading", "discovery.t_shift=600", "discovery.steps=1")
    out = tmp_path_factory.mktemp("leading") / "train"
    assert invoke("train", "digits16", *options, "--model", tiny_model, "--out", out, "--quiet").exit_code == 0
    return out


@pytest.mark.slow
def test_tests_are_collected_without_the_packages_that_few_of_them_need():
    """Blocked here, as if they were not installed."""
    absent = [
        "hypothesis",
        "playwright",
        "jsonschema",
        "nbclient",
        "nbformat",
        "ipykernel",
        "pytest_benchmark",
        "xdist",
    ]
    code = (
        "import sys\n"
        f"for name in {absent}: sys.modules[name] = None\n"
        "import os, pytest\n"
        "os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
