"""Two processes of one thread against one.

Where the starting and the ending matter, torchrun starts them; elsewhere they are forked, which takes no time.
"""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import torch
from command_line import TINY, invoke, tiny_options
from processes import start, start_ranks
from safetensors.torch import load_file

from hbench.cli import main
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError
from hbench.evaluation.attributes import attributes
from hbench.experiments import load_experiment
from hbench.models import build_model
from hbench.runtime import distributed
from hbench.runtime.device import pick_device
from hbench.training.step import initial, raw_pairs, train_step

FLOAT = [
    "pretrain.precision=float32",
    "pretrain.weights=float32",
    "pretrain.ema=0.5",
    "discovery.precision=float32",
    "discovery.weights=float32",
    "discovery.checkpoint_every=4",
]
RUNS = {"chain": [], "per-step": ["discovery.gradient=per-step"]}
ROLES = ("shift_block", "reconstructor", "discriminator")


def run_commands(commands):
    for words in commands:
        main([str(word) for word in words], prog_name="hbench", standalone_mode=False)


def run_in_float64(commands):
    """Run commands with float64 in place of float32, so that two trainings can be compared.

    In float32, Adam turns gradients that are zero but for rounding, such as those of a discriminator that still sees
    x'_0 equal to x_0, or of a bias in front of a batch norm, into steps of the full learning rate in a random
    direction; in float64 their rounding stays far below Adam's eps.
    """
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    run_commands(commands)


def run_benches(commands):
    """Run commands with few raw samples behind the natural standard deviations."""
    attributes.NATURAL = 40  # a thousand would take most of the time
    run_commands(commands)


def printed(processes, logs, seconds=100):
    """Return what processes printed once all have ended well, which they do within the time."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
    texts = [log.read_text() for log in logs]
    assert [process.exitcode for process in processes] == [0] * len(processes), texts
    return texts


def torchrun(*arguments):
    """Return a torchrun of two processes, just started."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += map(str, arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def finish(process, seconds=100):
    """Its output and error output, within the time."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for each in (*ranks(process), process):
            each.kill()
        raise


def ranks(process):
    """The processes that a torchrun started, in the order of their ranks."""
    return sorted(psutil.Process(process.pid).children(), key=lambda child: int(child.environ()["RANK"]))


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    assert path.exists(), finish(process, seconds=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    """Folders of the same trainings, in float64: by one process, and by two."""

    def commands(folder):
        yield ["pretrain", "digits16", *tiny_options(*FLOAT), "--out", folder / "pretrain", "--quiet"]
        for name, overrides in RUNS.items():
            options = tiny_options(*FLOAT, *overrides)
            yield ["train", "digits16", *options, "--model", tiny_model, "--out", folder / name, "--quiet"]

    folder = tmp_path_factory.mktemp("trained")
    one, two, *logs = (folder / name for name in ("by1", "by2", "log", "log0", "log1"))
    alone = start(run_in_float64, [*commands(one)], log=logs[0])
    both = start_ranks(2, run_in_float64, [*commands(two)], logs=logs[1:])
    by_1, by_2, others = printed([alone, *both], logs)
    found, done, *_ = by_1.splitlines()
    assert found.startswith("digits (")  # the account of the images
    assert done.startswith("L 1")
    assert by_2.startswith("2 processes, gloo, cpu\n")
    for text, out in ((by_1, one), (by_2, two)):
        paths = [line for line in text.splitlines() if line.startswith(str(out))]
        assert paths == [str(path) for path in (out / "pretrain" / "model.safetensors", *(out / n for n in RUNS))]
        assert sum(line.startswith("RCA ") for line in text.splitlines()) == len(RUNS)
    assert others == ""  # one process prints
    return one, two


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return [[float(value) for value in row.values()] for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", *RUNS])
def test_two_processes_train_as_one_does(name, trained):
    one, two = (folder / name for folder in trained)
    for role in ["model"] if name == "pretrain" else ROLES:
        expected, found = load_file(one / f"{role}.safetensors"), load_file(two / f"{role}.safetensors")
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    torch.testing.assert_close(torch.tensor(metrics(two)), torch.tensor(metrics(one)), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_provenance_tells_how_many_took_part(trained):
    records = [json.loads((folder / "chain" / "provenance.json").read_text()) for folder in trained]
    assert [(r["processes"], r["backend"]) for r in records] == [(1, None), (2, "gloo")]


def networks(overrides, reconstructor, steps):
    """Return the shift block, reconstructor and discriminator after so many steps."""
    experiment = load_experiment("digits16", [*overrides, f"discovery.reconstructor={reconstructor}"])
    torch.manual_seed(0)
    model = build_model(experiment).eval().requires_grad_(False)
    torch.nn.init.normal_(model.out[2].weight, std=0.05)  # its and the shift block's zeros would hide the rest
    sampler = Sampler.of(experiment, model, torch.device("cpu"))
    trained = initial(experiment, sampler, 0)
    torch.nn.init.normal_(trained.shift_block.out_weight, std=0.05)
    torch.nn.init.normal_(trained.discriminator.out[3].weight, std=0.05)
    draw_raw = raw_pairs(experiment, sampler, 0)
    for step in range(steps):
        train_step(experiment, sampler, trained, draw_raw, 0, step)
    return trained.shift_block, trained.reconstructor, trained.discriminator


def compare_with_the_whole_batch(overrides):
    distributed.start(torch.device("cpu"))
    launched = os.environ["TORCHELASTIC_RUN_ID"]
    for reconstructor in ("lenet", "resnet18"):
        found = networks(overrides, reconstructor, 1)
        del os.environ["TORCHELASTIC_RUN_ID"]  # on its own
        expected = networks(overrides, reconstructor, 1)
        os.environ["TORCHELASTIC_RUN_ID"] = launched
        for ours, whole in zip(found, expected, strict=True):
            assert ours.state_dict().keys() == whole.state_dict().keys()
            ours, whole = (torch.cat([p.grad.flatten() for p in network.parameters()]) for network in (ours, whole))
            difference = float((ours - whole).norm() / whole.norm())
            bound = 1e-5 if reconstructor == "lenet" else 5e-5  # twenty batch norms amplify the rounding
            assert difference < bound, (reconstructor, difference)
        for name, statistic in found[1].named_buffers():
            torch.testing.assert_close(statistic, expected[1].get_buffer(name), rtol=1e-5, atol=1e-6)
        values = [value for part in networks(overrides, reconstructor, 3) for value in part.state_dict().values()]
        digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()
        assert len(set(distributed.all_gather([digest]))) == 1


@pytest.mark.slow
def test_gradients_are_those_of_the_whole_batch_and_weights_the_same_everywhere(tmp_path):
    """In float32: gradients within 1e-5, after the first step; weights bit by bit, after the third."""
    logs = [tmp_path / "log0", tmp_path / "log1"]
    overrides = [*TINY, *FLOAT, "discovery.pool=0", "discovery.batch_size=8"]
    printed(start_ranks(2, compare_with_the_whole_batch, overrides, logs=logs), logs)


@pytest.mark.slow
def test_images_and_results_do_not_depend_on_the_number_of_processes(tmp_path, tiny_run, tiny_model, classifier_file):
    distance = ["--feature-extractor", "lenet-digits", "--weights", classifier_file, "--samples", 70]

    def commands(folder):
        kept = ["--cache", folder / "cache"]
        return [
            ["rca", tiny_run, "--pairs", 150, "--out", folder / "rca", "--quiet"],
            ["sample", tiny_model, "--count", 70, "--steps", 3, "--out", folder / "samples", "--quiet"],
            ["fid", tiny_run, *distance, *kept, "--out", folder / "fid", "--quiet"],
            ["quality", tiny_model, *distance, "--steps", "2,3", *kept, "--out", folder / "quality", "--quiet"],
        ]

    folders = [tmp_path / "by1", tmp_path / "by2"]
    for arguments in commands(folders[0]):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
    logs = [tmp_path / "log0", tmp_path / "log1"]
    printed(start_ranks(2, run_commands, commands(folders[1]), logs=logs), logs)
    one, two = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
    assert one.keys() == two.keys()
    made = [
        path
        for path in one
        if path.suffix == ".png" or path.name in ("rca.json", "fid.json", "quality.json", "rca.csv")
    ]
    assert len(made) > 4 * 70
    assert all(one[path] == two[path] for path in made)


@pytest.mark.slow
def test_two_processes_find_and_reconstruct_what_one_does(tmp_path, tiny_run, tiny_model):
    def commands(folder):
        file = folder / "pca" / "pca.safetensors"
        return [
            ["find", tiny_model, "--method", "pca", "--k", 2, "--samples", 70, "--out", folder / "pca", "--quiet"],
            ["find", tiny_model, "--method", "jacobian", "--k", 2, "--samples", 3, "--out", folder / "j", "--quiet"],
            ["rca", tiny_run, "--directions", file, "--reconstructor-steps", 2, "--pairs", 40, "--out", folder / "rca"],
        ]

    folders = [tmp_path / "by1", tmp_path / "by2"]
    for folder in folders:
        folder.mkdir()
    # nothing may be written beside a run that is shared
    runs = [shutil.copytree(tiny_run, folder / "run") for folder in folders]
    for arguments in commands(folders[0]):
        result = invoke(*[runs[0] if each == tiny_run else each for each in arguments])
        assert result.exit_code == 0, result.output
    logs = [tmp_path / "log0", tmp_path / "log1"]
    by_two = [[runs[1] if each == tiny_run else each for each in arguments] for arguments in commands(folders[1])]
    printed(start_ranks(2, run_commands, by_two, logs=logs), logs)
    for name in ("pca/pca.safetensors", "j/jacobian.safetensors"):
        one, two = (load_file(folder / name)["delta_h"] for folder in folders)
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    assert json.loads((folders[1] / "j" / "provenance.json").read_text())["processes"] == 2
    one, two = (json.loads((folder / "rca" / "rca.json").read_text()) for folder in folders)
    assert one["n"] == two["n"] == 40


@pytest.mark.slow
def test_two_processes_measure_the_methods_of_a_bench_as_one_does(tmp_path, tiny_run, classifier_file):
    """Bit by bit, but for RCA: a training rounds differently, see :func:`run_in_float64`."""
    sizes = ["--pairs", 40, "--samples", 6, "--images", 40, "--reconstructor-steps", 2, "--k", 3]
    distance = ["--feature-extractor", "lenet-digits", "--weights", classifier_file]

    def command(folder):
        kept = ["--cache", folder / "cache", "--out", folder / "bench", "--quiet"]
        return ["benchmark", tiny_run, "--methods", "trained,random", *sizes, *distance, *kept]

    one, two, *logs = (tmp_path / name for name in ("by1", "by2", "log", "log0", "log1"))
    alone = start(run_benches, [command(one)], log=logs[0])
    both = start_ranks(2, run_benches, [command(two)], logs=logs[1:])
    assert printed([alone, *both], logs, seconds=300)[2] == ""  # one process prints
    tables = [pd.read_csv(folder / "bench" / "benchmark.csv") for folder in (one, two)]
    assert tables[1]["rca"].between(0, 1).all()
    assert tables[1]["fd_ratio"].notna().all()
    differing = [name for name in tables[0] if name.startswith("rca") or name in ("seconds", "memory_mib")]
    pd.testing.assert_frame_equal(*(table.drop(columns=differing) for table in tables), check_exact=True)
    found = [load_file(folder / "bench" / "random" / "find" / "random.safetensors") for folder in (one, two)]
    assert torch.equal(found[0]["delta_h"], found[1]["delta_h"])
    trained = [json.loads(path.read_text()) for path in two.glob("bench/*/train-*/provenance.json")]
    assert [each["processes"] for each in trained] == [2, 2]
    assert json.loads((two / "bench" / "provenance.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_all_stop_after_the_same_step_and_one_goes_on(tmp_path, tiny_model):
    """SIGTERM reaches one process only; the checkpoint is resumed by another number of processes."""
    arguments = ["train", "digits16", *tiny_options("discovery.steps=100000"), "--model", tiny_model]
    process = torchrun("-m", "hbench", *arguments, "--out", tmp_path / "run", "--quiet")
    wait_for(tmp_path / "run" / "checkpoint.json", process)
    second = ranks(process)[1]
    for _ in range(2):  # torchrun repeats what Slurm sends
        second.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    out, err = finish(process)
    assert process.returncode == 0, err
    assert out == ""
    assert err.count("stopped by SIGTERM after step") == 1
    done = int(err.partition("after step ")[2].split()[0])
    assert len(metrics(tmp_path / "run")) == done

    resumed = [
        *map(str, arguments[:-2]),
        "--out",
        str(tmp_path / "run"),
        "--resume",
        "--max-minutes",
        "1e-6",
        "--quiet",
    ]
    result = invoke(*resumed)
    assert result.exit_code == 0, result.output
    assert f"stopped by --max-minutes 1e-06 after step {done + 1} of" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim, tmp_path, tiny_model):
    arguments = ["train", "digits16", *tiny_options("discovery.steps=100000"), "--model", tiny_model, "--quiet"]
    process = torchrun("-m", "hbench", *arguments, "--out", tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoint.json", process)
    both = ranks(process)
    both[victim].kill()
    started = time.monotonic()
    _, err = finish(process, seconds=60)
    assert time.monotonic() - started < 30
    assert not psutil.wait_procs(both, timeout=1)[1]
    assert process.returncode
    assert "SIGKILL" in err
    assert "Traceback" not in err.partition("ChildFailedError")[0].rpartition("Traceback")[0]  # only torchrun's own


@pytest.mark.slow
def test_the_error_of_one_process_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "import click, torch\n"
        "from hbench.cli import main\n"
        "from hbench.runtime.distributed import all_reduce_mean, rank, start\n"
        "from hbench.errors import HBenchError\n"
        "@main.command('fail')\n"
        "@click.option('--processes')\n"
        "def fail(processes):\n"
        "    start(torch.device('cpu'))\n"
        "    if rank() == 1:\n"
        "        raise HBenchError('no space left on this node')\n"
        "    all_reduce_mean({'loss': 0.0})\n"
        "main(['fail'])\n"
    )
    process = torchrun(script)
    started = time.monotonic()
    _, err = finish(process, seconds=60)
    assert time.monotonic() - started < 30
    assert process.returncode
    assert err.count("Error: no space left on this node") == 1


@pytest.mark.slow
def test_a_process_that_waits_in_vain_ends_after_a_sigterm(tmp_path):
    """The Python handler of the signal cannot run while it waits."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, time, torch\n"
        "from hbench.runtime import distributed\n"
        "from hbench.training.loop import stop_requests\n"
        "distributed.STUCK_SECONDS = 1\n"
        "distributed.start(torch.device('cpu'))\n"
        "with stop_requests(None):\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'ready{{distributed.rank()}}').touch()\n"
        "    if distributed.rank() == 1:\n"
        "        time.sleep(1000)\n"
        "    distributed.all_reduce_mean({'loss': 0.0})\n"
    )
    process = torchrun(script)
    for each in (0, 1):
        wait_for(tmp_path / f"ready{each}", process)
    started = time.monotonic()
    ranks(process)[0].send_signal(signal.SIGTERM)
    finish(process, seconds=30)
    assert time.monotonic() - started < 15
    assert process.returncode


def listen(number):
    """End as a process of several does, once it has got a signal that it handles."""
    distributed.STUCK_SECONDS = 0
    distributed._end_when_stuck()
    signal.signal(number, lambda *_: None)
    os.kill(os.getpid(), number)
    time.sleep(1)


@pytest.mark.slow
def test_only_a_request_to_stop_ends_a_process_that_is_stuck(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGUSR1)  # the latter is what Slurm is often asked to send
    processes = [start(listen, number, log=tmp_path / number.name) for number in numbers]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [1, 0]


@pytest.mark.slow
def test_commands_that_cannot_share_their_work_refuse_torchrun():
    process = torchrun("-m", "hbench", "vram-sweep", "digits16")
    out, err = finish(process)
    assert process.returncode
    assert out == ""
    assert err.count("Error: 2 processes cannot share hbench vram-sweep: start it without torchrun") == 1


def test_more_processes_than_there_are_is_refused():
    result = invoke("rca", "mnist16", "--processes", "4")
    assert result.exit_code == 1
    assert "--processes 4, but 1 is running: start them all by" in result.output
    assert "torchrun --standalone --nproc_per_node 4 -m hbench" in result.output


@pytest.fixture
def second_of_two(monkeypatch):
    """This process believes to be the second of two."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_slices_and_turns(second_of_two):
    assert distributed.shard(torch.arange(6)).tolist() == [3, 4, 5]
    assert distributed.turns(range(5)) == range(1, 5, 2)
    with pytest.raises(HBenchError, match=r"batch_size = 5 cannot be shared evenly by 2 processes"):
        distributed.check_batch_size("discovery.batch_size", 5)
    with pytest.raises(HBenchError, match=r"batch_size = 6 cannot be shared evenly .* make it a multiple of 4"):
        distributed.check_batch_size("discovery.batch_size", 6, together=2)


def test_results_are_gathered_in_the_order_of_the_tasks(second_of_two, monkeypatch):
    shares = [[0, 2, 4], [1, 3]]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: shares)
    assert distributed.all_gather(shares[1]) == [0, 1, 2, 3, 4]


def test_each_process_needs_a_gpu_of_its_own(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda:1")
    with pytest.raises(HBenchError, match="need a GPU each: use `device=cuda`"):
        pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(HBenchError, match="2 processes on this machine, but 1 GPUs"):
        pick_device("auto")


@pytest.mark.slow
def test_one_process_imports_no_accelerate_and_makes_no_process_group(tiny_run, tmp_path):
    code = (
        "import sys, torch\n"
        "from hbench.cli import main\n"
        f"main(['rca', {str(tiny_run)!r}, '--pairs', '4', '--out', {str(tmp_path / 'rca')!r}], standalone_mode=False)\n"
        "assert not torch.distributed.is_initialized()\n"
        "assert 'accelerate' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
