import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are tiny, and threads that wait cost more than they give

import pytest
import torch
from hypothesis import settings

from hbench.config import Experiment
from hbench.core.diffusion import alpha_bar_schedule, timesteps
from hbench.core.sampler import Sampler
from hbench.experiments import load_experiment

TINY = [
    "model.channel_mult=[1,2]",
    "pretrain.steps=4",
    "pretrain.batch_size=4",
    "pretrain.checkpoint_every=2",
    "pretrain.sample_every=4",
    "discovery.K=3",
    "discovery.M=3",
    "discovery.steps=4",
    "discovery.batch_size=4",
    "discovery.pool=8",
    "discovery.strategy=node",
    "discovery.checkpoint_every=2",
]
"""Overrides that make digits16 a matter of seconds."""


def sampler_of(model, visited, t_shift=0, **fields):
    """A sampler of DDPM's schedule on the CPU; ``visited`` are its timesteps, or how many."""
    visited = timesteps(visited) if isinstance(visited, int) else visited
    shape, device = fields.pop("image_shape", (1, 16, 16)), fields.pop("device", torch.device("cpu"))
    return Sampler(model, alpha_bar_schedule(), tuple(visited), shape, device, t_shift, **fields)


settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")  # the same examples in every run; --hypothesis-profile=default draws new ones


def pytest_configure(config):
    if not any("test_cuda" in argument for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the others test the CPU: only there are results the same bits


def pytest_addoption(parser):
    parser.addoption("--faults", type=int, default=4, metavar="N", help="kills of the fault campaign")
    parser.addoption("--faults-record", metavar="FILE", help="JSON file that keeps the campaign's counts")


def pytest_terminal_summary(terminalreporter):
    counts = getattr(sys.modules.get("test_faults"), "COUNTS", {})  # of the campaign, where it was run
    if counts:
        kills, losses = (sum(count[what] for count in counts.values()) for what in ("kills", "losses"))
        by_command = ", ".join(f"{name} {count['kills']}" for name, count in counts.items())
        terminalreporter.write_line(f"faults: {kills} kills, {losses} losses ({by_command})")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    return load_experiment("digits16", TINY)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny):
    """A folder with a diffusion model of a few steps, made by the command line itself."""
    from click.testing import CliRunner

    from hbench.cli import main

    folder = tmp_path_factory.mktemp("tiny") / "pretrain"
    options = [part for override in TINY for part in ("--set", override)]
    result = CliRunner().invoke(main, ["pretrain", "digits16", *options, "--out", str(folder), "--quiet"])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_model):
    """A run folder of a few steps, made by the command line itself."""
    from click.testing import CliRunner

    from hbench.cli import main

    folder = tmp_path_factory.mktemp("tiny") / "train"
    options = [part for override in TINY for part in ("--set", override)]
    arguments = ["train", "digits16", *options, "--model", str(tiny_model), "--out", str(folder), "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def lenet(tmp_path_factory):
    """The weights of a LeNet that has seen digits16 once, made by the command line itself."""
    from click.testing import CliRunner

    from hbench.cli import main

    folder = tmp_path_factory.mktemp("lenet")
    result = CliRunner().invoke(main, ["lenet", "digits16", "--epochs", "1", "--out", str(folder), "--quiet"])
    assert result.exit_code == 0, result.output
    return folder / "lenet.safetensors"
