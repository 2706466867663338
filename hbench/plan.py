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
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hbench.apart import die_first, reason_of, run_apart
from hbench.config import Experiment, parse_experiment
from hbench.device import autocast, pick_device
from hbench.diffusion import alpha_bar_schedule, generation_steps, pair_steps, timesteps
from hbench.directions import own
from hbench.distributed import gathered, local_world_size, rank, shard, world_size
from hbench.errors import HBenchError, is_out_of_memory
from hbench.files import read_json, write_json
from hbench.memory import MIB, UnknownMemoryError, free_mib, gpu_memory, saved_tensors_peak, watch_resident
from hbench.models import build_model
from hbench.models.adm import UNetModel
from hbench.models.shift import draw_shifts
from hbench.training_step import Trained, freeze, initial, losses, raw_pairs, train_discriminator, train_step


class DoesNotFitError(HBenchError):
    """Not even one training step fits into the memory budget."""


SHARE_OF_FREE = {"cuda": 0.9, "cpu": 0.5}
"""The default memory budget; a CPU's memory is not training's alone."""
STEPS, REPEATS = 2, 5
"""Whole steps of the probe, which allocate Adam's state and let libraries choose their kernels, and timed passes."""


@dataclass(frozen=True)
class Pass:
    """Seconds of one generation step of a batch, and MiB of its graph."""

    forward: float
    """Without a graph."""
    beside: float
    """Without a graph, for raw and shifted samples at once."""
    both_ways: float
    """With a graph, and backward through it."""
    graph_mib: float


@dataclass(frozen=True)
class Probe:
    """What a training step is made of, measured."""

    first: Pass
    """The first shifted step, from x_T, which needs no gradient and is common to raw and shifted samples."""
    shifted: Pass
    regular: Pass
    objective_mib: float
    """Graph of reconstructor and discriminator in the objective."""
    discriminator_mib: float
    """Graph of the discriminator's own step."""
    node_mib: float
    """One node of the chain."""
    free_mib: float
    """What the process could take of the device's memory before its first step."""
    before_mib: float
    """What it had on the GPU then; 0 on the CPU, where only what comes on top is counted."""
    other_mib: float
    """Of the measured peak on top of that, what no graph and no node explains."""
    other_seconds: float
    """Of a whole step, all but the generation steps: reconstructor, discriminator, optimisers."""


@dataclass(frozen=True)
class Prediction:
    """One line of the plan."""

    strategy: str
    M: int
    keep: int
    """Steps of which the graph is kept."""
    memory_mib: float
    """As in ``hbench vram-sweep``: over the memory before the first step on the CPU, of the whole process on CUDA."""
    images_per_second: float


def predict(probe: Probe, experiment: Experiment, M: int, keep: int, strategy: str) -> Prediction:
    """Memory and speed of training with M steps of which the last ``keep`` graphs are kept."""
    settings = experiment.discovery
    shifted = [t >= settings.t_shift for t in timesteps(M, experiment.diffusion.T, settings.spacing)]
    steps = [probe.first, *(probe.shifted if each else probe.regular for each in shifted[1:])]
    recomputed, kept = steps[: M - keep], steps[M - keep :]
    graphs = max(
        sum(step.graph_mib for step in kept) + probe.objective_mib,
        max((step.graph_mib for step in recomputed), default=0.0),
        probe.discriminator_mib,
    )
    seconds = probe.other_seconds + sum(step.both_ways for step in steps)
    if settings.pool:
        seconds += sum(step.forward for step in recomputed)
    else:
        seconds += sum(step.beside for step in recomputed) + keep * probe.regular.forward
    memory = probe.before_mib + probe.other_mib + graphs + len(recomputed) * probe.node_mib
    return Prediction(strategy, M, keep, memory, settings.batch_size / seconds)


def predictions(probe: Probe, experiment: Experiment, Ms: Sequence[int], budget_mib: float) -> list[Prediction]:
    """The plan over M: ``node``, ``vanilla``, and what ``auto`` takes where anything fits."""
    rows = [predict(probe, experiment, M, 0, "node") for M in Ms]
    rows += [predict(probe, experiment, M, M, "vanilla") for M in Ms]
    auto = [(M, largest_keep(probe, experiment, M, budget_mib)) for M in Ms]
    return rows + [predict(probe, experiment, M, keep, "auto") for M, keep in auto if keep is not None]


def largest_keep(probe: Probe, experiment: Experiment, M: int, budget_mib: float) -> int | None:
    """The most graphs that fit into the budget, 0..M; None where not even one step does."""
    fits = [r for r in range(M + 1) if predict(probe, experiment, M, r, "auto").memory_mib <= budget_mib]
    return max(fits, default=None)


def budget_of(experiment: Experiment, device: torch.device, probe: Probe) -> float:
    """MiB that training may use: the experiment's ``memory_budget``, or a share of what is free.

    To the latter comes what the process has on the GPU already.
    """
    if experiment.discovery.memory_budget is not None:
        return experiment.discovery.memory_budget * 1024
    sharing = local_world_size() if device.type == "cpu" else 1  # each process has a GPU of its own
    return probe.before_mib + SHARE_OF_FREE[device.type] * probe.free_mib / sharing


def resolve(experiment: Experiment, model: UNetModel, seed: int) -> Experiment:
    """The experiment with "auto" replaced by what fits into its memory budget, for training on this frozen model.

    Where the system does not tell its memory, that is "node". Cost: with "auto", two short training steps of throw-away
    networks and some passes; else nothing.

    Raises:
        DoesNotFitError: not even one step fits, on any of the processes.
        HBenchError: "offload" without a GPU.
    """
    settings = experiment.discovery
    device = next(model.parameters()).device
    if settings.gradient == "per-step":
        return chosen(experiment, 0)
    if settings.strategy == "offload" and device.type == "cpu":
        raise HBenchError('discovery.strategy = "offload" moves graphs to the CPU, and this is one: take "auto"')
    if settings.strategy != "auto":
        return experiment
    here: int | str = 0
    try:
        probe = measure(experiment, model, seed, repeats=0)
    except UnknownMemoryError as error:
        print(f'{error}; until then "auto" is "node"', file=sys.stderr)
    else:
        budget = budget_of(experiment, device, probe)
        keep = largest_keep(probe, experiment, settings.M, budget)
        here = what_would_fit(probe, experiment, budget) if keep is None else keep
    found = gathered([here])
    if refusals := [each for each in found if isinstance(each, str)]:
        raise DoesNotFitError(refusals[0])
    return chosen(experiment, min(each for each in found if isinstance(each, int)))


def resolve_once(experiment: Experiment, model: UNetModel, seed: int, out: Path) -> Experiment:
    """What :func:`resolve` says, noted in the folder of a training, so that one that goes on there gets the same bits.

    With another budget, number of processes or kind of device it is found out anew.
    """
    settings = experiment.discovery
    if settings.strategy != "auto":
        return resolve(experiment, model, seed)
    device = next(model.parameters()).device
    asked = {
        "memory_budget": settings.memory_budget,
        "checkpoint_blocks": settings.checkpoint_blocks,
        "processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    note = out / "strategy.json"
    noted: Any = read_json(note) if note.is_file() else None
    keep: Any = noted.get("keep") if isinstance(noted, dict) and noted.get("asked") == asked else None
    if all(gathered([keep in range(settings.M + 1)])):  # together: what is found out anew takes all processes
        return chosen(experiment, keep)
    running = resolve(experiment, model, seed)
    if rank() == 0:
        write_json(note, {"asked": asked, "keep": running.discovery.keep})
    return running


def resolve_apart(experiment: Experiment, device: str, seed: int, limit_mib: float | None = None) -> Experiment:
    """The same, found out in a fresh process, for a training with initial weights; it may not pass ``limit_mib``."""
    if experiment.discovery.gradient == "per-step":
        return chosen(experiment, 0)
    probe = measure_apart(experiment, device, seed, repeats=0)
    budget = budget_of(experiment, torch.device(device), probe)
    budget = budget if limit_mib is None else min(budget, limit_mib)
    keep = largest_keep(probe, experiment, experiment.discovery.M, budget)
    if keep is None:
        raise DoesNotFitError(what_would_fit(probe, experiment, budget))
    return chosen(experiment, keep)


def chosen(experiment: Experiment, keep: int) -> Experiment:
    """The experiment with "auto" replaced by "node" that keeps ``keep`` graphs; others as they are."""
    if experiment.discovery.strategy != "auto":
        return experiment
    replaced = {"strategy": "node", "keep": keep, "memory_budget": None}
    return experiment.model_copy(update={"discovery": experiment.discovery.model_copy(update=replaced)})


def what_would_fit(probe: Probe, experiment: Experiment, budget_mib: float) -> str:
    """One line for a budget into which no strategy fits."""
    settings = experiment.discovery
    needed = predict(probe, experiment, settings.M, 0, "node").memory_mib
    smaller = int(settings.batch_size * budget_mib / needed) // world_size() * world_size()
    advice = f"discovery.batch_size={smaller}" if smaller >= 2 else "a smaller discovery.batch_size"
    if not settings.checkpoint_blocks:
        advice += " or discovery.checkpoint_blocks=true"
    return (
        f"one training step needs {needed:,.0f} MiB even with one graph at a time, and the memory budget is "
        f"{budget_mib:,.0f} MiB: try --set {advice}, or a larger discovery.memory_budget"
    )


# The probe ----------------------------------------------------------------------------------------------------------


def measure(experiment: Experiment, model: UNetModel, seed: int, repeats: int = REPEATS, idle: int = 0) -> Probe:
    """Probes training on this frozen model, with networks of its own; see the module.

    Cost: two short steps and some passes, and ten passes more for every repeat; all seconds are nan without repeats.
    On the GPU, ``idle`` is what the device holds in bytes without this process, in case its driver cannot tell.

    Raises:
        UnknownMemoryError: the system does not say how much memory is used or free.
    """
    short = shortened(experiment)
    trained = initial(short, model, seed)
    device = next(model.parameters()).device
    step = partial(train_step, short, model, trained, raw_pairs(short, model, seed), seed)
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
    return replace(take_apart(short, model, trained, peak, repeats), free_mib=free, before_mib=before)


def shortened(experiment: Experiment) -> Experiment:
    """The experiment with the fewest generation steps that still have every kind of its own, and "node"."""
    settings = experiment.discovery

    def kinds(M: int) -> set[bool]:
        return {t >= settings.t_shift for t in timesteps(M, experiment.diffusion.T, settings.spacing)}

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


def take_apart(short: Experiment, model: UNetModel, trained: Trained, peak_mib: float, repeats: int) -> Probe:
    """The parts of a step of the shortened experiment, whose peak memory over that before it is known."""
    settings = short.discovery
    device = next(model.parameters()).device
    alpha_bar = alpha_bar_schedule(**short.diffusion.model_dump())
    shifts = draw_shifts(settings.batch_size, settings.K, settings.S, settings.min_magnitude)
    k, s = (shard(v).to(device) for v in shifts)
    delta_h = own(trained.shift_block, k, s)
    x = torch.randn(len(k), short.data.channels, short.data.size, short.data.size, device=device)
    networks = (model, trained.shift_block, trained.reconstructor, trained.discriminator)
    resident = [parameter for network in networks for parameter in network.parameters()]

    def held_mib(run: Callable[[], object]) -> float:
        return saved_tensors_peak(run, resident) / MIB

    def measured_pass(i: int, t_shift: int) -> Pass:
        """Of step i, 0 or 1, of a chain of two steps that are both shifted or both regular."""
        process = (model, alpha_bar, timesteps(2, len(alpha_bar), settings.spacing), delta_h, t_shift)
        step, pair_step = generation_steps(*process)[i], pair_steps(*process)[i]
        pair = torch.cat([x, x]) if i else x

        def forward(step: Callable[[Tensor], Tensor], x: Tensor) -> None:
            with torch.no_grad(), autocast(device, settings.precision):
                step(x)

        def both_ways(count: int) -> None:
            leaves = [x.clone().requires_grad_(i > 0) for _ in range(count)]
            with autocast(device, settings.precision):
                torch.stack([step(leaf).sum() for leaf in leaves]).sum().backward()

        return Pass(
            forward=median_seconds(lambda: forward(step, x), device, repeats),
            beside=median_seconds(lambda: forward(pair_step, pair), device, repeats),
            both_ways=median_seconds(lambda: both_ways(1), device, repeats),
            graph_mib=held_mib(lambda: both_ways(2)) - held_mib(lambda: both_ways(1)),
        )

    def objective() -> None:
        trained.discriminator.requires_grad_(False)
        with autocast(device, settings.precision):
            seen = x.clone().requires_grad_()
            losses(settings, trained.reconstructor, trained.discriminator, x, seen, k, s)["loss"].backward()
        trained.discriminator.requires_grad_(True)

    T = len(alpha_bar)
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
    done = run_apart("hbench.plan", given)
    if done.returncode:
        killed = done.returncode == -signal.SIGKILL
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
    torch.manual_seed(given["seed"])
    network = freeze(wanted, build_model(wanted), place)
    print(json.dumps(asdict(measure(wanted, network, given["seed"], given["repeats"], idle))))
