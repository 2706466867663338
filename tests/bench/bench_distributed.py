"""Two processes of one thread against one process of two threads: ``make bench``. Ratios count, not seconds.

Both take turns at whole training steps of mnist16 (new raw pairs, chain, reconstructor, discriminator) in one run. What
they send to each other is counted where it is sent. The result and its provenance are kept in results/bench/.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from hbench.core.sampler import Sampler, visited
from hbench.experiments import load_experiment
from hbench.models import build_discriminator, build_model, build_reconstructor, build_shift_block
from hbench.models.batch_norm import GlobalBatchNorm
from hbench.runtime import distributed
from hbench.store.files import write_json
from hbench.store.model import load_model
from hbench.store.provenance import FILE, provenance
from hbench.training.step import initial, raw_pairs, train_step

SETTINGS = ["discovery.pool=0"]  # as in the paper: new raw pairs in every step
TURNS, STEPS, WARM_UP = 12, 3, 2
GROUPS = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}


def worker(folder):
    """Takes steps whenever the folder asks for a turn, and writes the seconds of one step."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    distributed.start(torch.device("cpu"))
    experiment = load_experiment("mnist16", SETTINGS)
    model = load_model(Path("mnist16"), experiment).requires_grad_(False)
    sampler = Sampler.of(experiment, model, torch.device("cpu"))
    trained = initial(experiment, sampler, 0)
    draw_raw = raw_pairs(experiment, sampler, 0)

    sent, waited = [], []
    send = distributed.all_reduce

    def counted(tensor):
        started = time.perf_counter()
        send(tensor)
        waited.append(time.perf_counter() - started)
        sent.append(tensor.numel() * tensor.element_size())

    distributed.all_reduce = counted
    for module in trained.reconstructor.modules():
        if isinstance(module, GlobalBatchNorm):
            module.all_reduce = counted
    for turn in range(-WARM_UP, TURNS):
        while not (folder / f"{turn}.begin").exists():
            time.sleep(0.005)
        sent.clear()
        waited.clear()
        started = time.perf_counter()
        for step in range(STEPS):
            train_step(experiment, sampler, trained, draw_raw, 0, (WARM_UP + turn) * STEPS + step)
        seconds = (time.perf_counter() - started) / STEPS
        if distributed.rank() == 0:
            result = {
                "seconds": seconds,
                "reductions": len(sent) / STEPS,
                "bytes": sum(sent) / STEPS,
                "seconds_in_reductions": sum(waited) / STEPS,
            }
            write_json(folder / f"{turn}.json", result)


def measure(folder):
    """The results of both groups, turn by turn in alternation."""
    processes = {}
    for name, (count, threads) in GROUPS.items():
        (folder / name).mkdir(parents=True)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        processes[name] = subprocess.Popen(
            [sys.executable, *torchrun, __file__, "worker", str(folder / name)], env=environment
        )
    results = {name: [] for name in GROUPS}
    for turn in range(-WARM_UP, TURNS):
        for name, process in processes.items():
            (folder / name / f"{turn}.begin").touch()
            while not (folder / name / f"{turn}.json").exists():
                assert process.poll() is None, name
                time.sleep(0.005)
            if turn >= 0:
                results[name].append(json.loads((folder / name / f"{turn}.json").read_text()))
    for process in processes.values():
        assert process.wait() == 0
    return results


def on_paper(name):
    """What one training step of an experiment sends and computes, from its modules on the meta device."""
    experiment = load_experiment(name)
    settings, data = experiment.discovery, experiment.data
    with torch.device("meta"):
        model = build_model(experiment)
        shift_block = build_shift_block(experiment, model)
        reconstructor = build_reconstructor(experiment)
        discriminator = build_discriminator(experiment)
        image, t = torch.empty(1, data.channels, data.size, data.size), torch.empty(1)
    parameters = {
        role: sum(p.numel() for p in module.parameters())
        for role, module in (
            ("shift_block", shift_block),
            ("reconstructor", reconstructor),
            ("discriminator", discriminator),
        )
    }
    norms = [m for m in reconstructor.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]

    def flops(call):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops()

    unet = flops(lambda: model(image, t))
    encoded = model.encode(image, t)
    decoder = flops(lambda: model.decode(*encoded))
    critic = flops(lambda: discriminator(image, t))
    # A shifted step decodes twice. Forwards: raw chain, shifted chain, its replay; backwards: that of the replay, only
    # to activations since the weights are frozen, so as much as its forward. D: 1 + 1 to judge, (1 + 2) * 2 to learn.
    shifted_steps = sum(t >= settings.t_shift for t in visited(experiment))
    chain = settings.M * unet + shifted_steps * decoder
    return {
        "parameters": parameters,
        "gradient_bytes": 4 * sum(parameters.values()),
        "batch_norm_bytes": sum(2 * 2 * 8 * m.num_features for m in norms),
        "flops_per_image": settings.M * unet + 3 * chain + 8 * critic,
        "batch_size": settings.batch_size,
    }


def test_throughput_of_two_processes(benchmark, tmp_path):
    origin = provenance(load_experiment("mnist16", SETTINGS), torch.device("cpu"), 0)
    origin = replace(origin, command=shlex.join(["pytest", *sys.argv[1:]]))
    results = benchmark.pedantic(measure, args=(tmp_path,), rounds=1)
    seconds = {name: [turn["seconds"] for turn in turns] for name, turns in results.items()}
    one, two = seconds.values()
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    last = results["two processes, one thread each"][-1]
    record = {
        "seconds_per_step": seconds,
        "throughput_ratio": median(ratios),
        "throughput_ratio_of_each_turn": ratios,
        "reductions_per_step": last["reductions"],
        "bytes_per_step": last["bytes"],
        "seconds_in_reductions": median(t["seconds_in_reductions"] for t in results["two processes, one thread each"]),
        "on_paper": {name: on_paper(name) for name in ("mnist16", "celebahq128")},
    }
    print(json.dumps({key: value for key, value in record.items() if not isinstance(value, dict | list)}))
    folder = Path(__file__).parents[2] / "results" / "bench" / "distributed"
    write_json(folder / "distributed.json", record)
    origin.finished(turns=TURNS, steps_a_turn=STEPS).write(folder / FILE)
    paper = record["on_paper"]["mnist16"]
    rest = record["bytes_per_step"] - paper["gradient_bytes"] - paper["batch_norm_bytes"]
    assert 0 < rest < 200  # the metrics
    assert record["throughput_ratio"] >= 0.9


if __name__ == "__main__":
    worker(Path(sys.argv[2]))
