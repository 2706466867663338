"""What training will need, before it starts: memory and time of each strategy over M, from a probe of one short step.

The probe takes training steps as ``hbench train`` does, of a few generation steps with ``strategy = "node"``, and
measures three things:

- what the graph of a regular and of a shifted generation step holds: exact bytes, from autograd's own hooks;
- the peak memory of the whole step, as the system or the driver sees it; what of it no graph explains (work space of
  the kernels, gradients, optimiser states, the allocator's slack) is taken to be the same for all M and strategies;
- the seconds of each kind of pass, and of what comes once a step: reconstructor, discriminator, optimisers.

Everything else is arithmetic: a step with M, of which the last r graphs are kept, holds these graphs at once.
``offload`` and ``torch-checkpoint`` keep things that autograd's hooks do not show: their lines go through two short
cells of a sweep.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from hbench.config import Experiment
from hbench.core import seeds
from hbench.core.directions import draw_shifts, own
from hbench.core.sampler import Sampler, visited
from hbench.errors import HBenchError, is_out_of_memory
from hbench.experiments import parse_experiment
from hbench.models import build_model
from hbench.runtime.device import pick_device
from hbench.runtime.distributed import shard
from hbench.runtime.fresh_process import die_first, reason_of, run_apart, was_killed
from hbench.runtime.memory import MIB, free_mib, gpu_memory, saved_tensors_peak, watch_resident
from hbench.training.cost import DoesNotFitError, Pass, Probe, predict
from hbench.training.freeze import freeze
from hbench.training.step import Trained, initial, losses, raw_pairs, train_discriminator, train_step

STEPS, REPEATS = 2, 5
"""Whole steps of the probe, which allocate Adam's state and let libraries choose their kernels, and timed passes."""


# The probe ----------------------------------------------------------------------------------------------------------


def measure(experiment: Experiment, sampler: Sampler, seed: int, repeats: int = REPEATS, idle: int = 0) -> Probe:
    """Probes training with this sampler, with networks of its own; see the module.

    Cost: two short steps and some passes, and ten passes more for every repeat; all seconds are nan without repeats.
    On the GPU, ``idle`` is what the device holds in bytes without this process, in case its driver cannot tell.

    Raises:
        UnknownMemoryError: NVML does not say how much memory is used.
    """
    short = shortened(experiment)
    sampler = Sampler.of(short, sampler.backbone, sampler.device)
    trained = initial(short, sampler, seed)
    device = sampler.device
    step = partial(train_step, short, sampler, trained, raw_pairs(short, sampler, seed), seed)
    free = free_mib(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = gpu_memory(device, idle)[0]
        take_steps(step, device)
        peak = gpu_memory(device, idle)[0] - before  # the allocator keeps its peak; kernels loaded on the way count too
    else:
        before = 0.0
        with watch_resident() as (baseline, peak_of, _):
            take_steps(step, device)
            peak = peak_of() - baseline
    return replace(take_apart(short, sampler, trained, peak, repeats), free_mib=free, before_mib=before)


def shortened(experiment: Experiment) -> Experiment:
    """The experiment with the fewest generation steps that still have every kind of its own, and "node"."""
    settings = experiment.discovery

    def kinds(M: int) -> set[bool]:
        return {t >= settings.t_shift for t in visited(experiment, M)}

    M = next(M for M in range(1, settings.M + 1) if kinds(M) == kinds(settings.M))
    values = {"M": M, "strategy": "node", "keep": 0, "memory_budget": None, "pool": 0}
    return experiment.model_copy(update={"discovery": settings.model_copy(update=values)})


def take_steps(step: Callable[[int], object], device: torch.device) -> None:
    """The whole steps of the probe; done when the device has done them."""
    for i in range(STEPS):
        step(i)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time of ``run``, after a first time that does not count; nan without repeats."""
    if not repeats:
        return math.nan
    run()
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def take_apart(short: Experiment, sampler: Sampler, trained: Trained, peak_mib: float, repeats: int) -> Probe:
    """The parts of a step of the shortened experiment, whose peak memory over that before it is known."""
    settings, device = short.discovery, sampler.device
    two_steps = Sampler.of(short, sampler.backbone, device, M=2)
    shifts = draw_shifts(settings.batch_size, settings.K, settings.S, settings.min_magnitude)
    k, s = (shard(v).to(device) for v in shifts)
    delta_h = own(trained.shift_block, k, s)
    x = torch.randn(len(k), *sampler.image_shape, device=device)
    assert isinstance(sampler.backbone, nn.Module)
    networks = (sampler.backbone, trained.shift_block, trained.reconstructor, trained.discriminator)
    resident = [parameter for network in networks for parameter in network.parameters()]

    def held_mib(run: Callable[[], object]) -> float:
        return saved_tensors_peak(run, resident) / MIB

    def measured_pass(i: int, t_shift: int) -> Pass:
        """Of step i, 0 or 1, of a chain of two steps that are both shifted or both regular."""
        process = replace(two_steps, t_shift=t_shift)
        step, pair_step = process.steps(delta_h)[i], process.pair_steps(delta_h)[i]
        pair = torch.cat([x, x]) if i else x

        def forward(step: Callable[[Tensor], Tensor], x: Tensor) -> None:
            with torch.no_grad(), sampler.autocast():
                step(x)

        def both_ways(count: int) -> None:
            leaves = [x.clone().requires_grad_(i > 0) for _ in range(count)]
            with sampler.autocast():
                torch.stack([step(leaf).sum() for leaf in leaves]).sum().backward()

        return Pass(
            forward=median_seconds(lambda: forward(step, x), device, repeats),
            beside=median_seconds(lambda: forward(pair_step, pair), device, repeats),
            both_ways=median_seconds(lambda: both_ways(1), device, repeats),
            graph_mib=held_mib(lambda: both_ways(2)) - held_mib(lambda: both_ways(1)),
        )

    def objective() -> None:
        trained.discriminator.requires_grad_(False)
        with sampler.autocast():
            seen = x.clone().requires_grad_()
            losses(settings, trained.reconstructor, trained.discriminator, x, seen, k, s)["loss"].backward()
        trained.discriminator.requires_grad_(True)

    T = len(sampler.alpha_bar)
    first, shifted, regular = measured_pass(0, 0), measured_pass(1, 0), measured_pass(1, T)
    objective_mib = held_mib(objective)
    discriminator_mib = held_mib(lambda: train_discriminator(settings, trained, x, x))

    def once() -> None:
        objective()
        trained.optimizer.step()
        train_discriminator(settings, trained, x, x)

    other_seconds = median_seconds(once, device, repeats)
    node_mib = x.nbytes / MIB
    probe = Probe(first, shifted, regular, objective_mib, discriminator_mib, node_mib, 0.0, 0.0, 0.0, other_seconds)
    return replace(probe, other_mib=peak_mib - predict(probe, short, settings.M, 0, "node").memory_mib)


def measure_apart(experiment: Experiment, device: str, seed: int, repeats: int = REPEATS) -> Probe:
    """What :func:`measure` finds in a fresh process, of which nothing else has used the memory.

    Raises:
        DoesNotFitError: it died of too little memory.
        HBenchError: of something else.
    """
    given = {"experiment": experiment.model_dump(mode="json"), "device": device, "seed": seed, "repeats": repeats}
    done = run_apart("hbench.training.probe", given)
    if done.returncode:
        killed = was_killed(done)
        reason = "killed by the system, as it does when memory runs out" if killed else reason_of(done)
        kind = DoesNotFitError if killed or is_out_of_memory(RuntimeError(reason)) else HBenchError
        raise kind(f"the probe of one step failed ({reason}): lower discovery.batch_size")
    values = json.loads(done.stdout.splitlines()[-1])
    first, shifted, regular = (Pass(**values.pop(name)) for name in ("first", "shifted", "regular"))
    return Probe(first, shifted, regular, **values)


if __name__ == "__main__":
    die_first()
    given = json.load(sys.stdin)
    wanted = parse_experiment(given["experiment"], "probe")
    place = pick_device(given["device"])
    idle = torch.cuda.device_memory_used(place) if place.type == "cuda" else 0  # before the process has a CUDA context
    torch.manual_seed(seeds.probe(given["seed"]))
    sampler = Sampler.of(wanted, freeze(wanted, build_model(wanted), place), place)
    print(json.dumps(asdict(measure(wanted, sampler, given["seed"], given["repeats"], idle))))
