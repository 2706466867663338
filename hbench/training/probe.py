"""Probe of one short training step: its memory and its time, part by part.

The probe takes training steps as :func:`hbench.train` does, of a few generation steps with ``strategy = "node"``, and
measures three things:

- the graphs of a regular and of a shifted generation step: exact bytes, from autograd's hooks;
- the peak memory of the whole step, as the system or the driver sees it; the part that no graph explains (work space of
  the kernels, gradients, optimiser states, the allocator's slack) is taken to be the same for all M and strategies;
- the seconds of each kind of pass, and of the parts that come once a step: reconstructor, discriminator, optimisers.

Everything else is arithmetic, in :mod:`hbench.training.cost`: a step with M, whose last r graphs are kept, holds these
graphs at once.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hbench.config import Experiment
from hbench.core import seeds
from hbench.core.directions import draw_shifts, own_direction
from hbench.core.sampler import Sampler, visited
from hbench.errors import HBenchError, is_out_of_memory
from hbench.experiments import parse_experiment
from hbench.models import build_model
from hbench.models.discriminator import frozen
from hbench.runtime.device import pick_device, wall_seconds
from hbench.runtime.distributed import shard
from hbench.runtime.fresh_process import die_first, reason_of, run_apart, was_killed
from hbench.runtime.memory import MIB, free_mib, gpu_memory, mps_memory, saved_tensors_peak, watch_resident
from hbench.training import pretrain
from hbench.training.checkpoint import Stage
from hbench.training.cost import DoesNotFitError, Pass, Probe, StepParts, Whole, passes, peak_mib, whole_seconds
from hbench.training.estimate import timed_steps
from hbench.training.freeze import freeze
from hbench.training.step import Trained, initial, losses, raw_pairs, train_discriminator, train_step

STEPS, REPEATS = 2, 5
"""Whole steps of the probe, which allocate Adam's state and let libraries choose their kernels, and timed passes."""


def measure(experiment: Experiment, sampler: Sampler, seed: int, repeats: int = REPEATS, idle: int = 0) -> Probe:
    """Measure a training step with this sampler, and with new networks; see the module.

    Cost: two short steps and some passes, and ten passes more for every repeat.

    Args:
        experiment: settings of the training.
        sampler: sampler of the training, with the frozen model.
        seed: random seed.
        repeats: number of timed passes of each kind; without any, all seconds are nan, unless steps are replayed: the
            number of graphs that pay then depends on them.
        idle: bytes that the GPU holds without this process, in case its driver cannot tell.

    Raises:
        UnknownMemoryError: NVML does not say how much memory is used.
    """
    short = shortened(experiment)
    sampler = Sampler.of(short, sampler.backbone, sampler.device)
    repeats = repeats or (REPEATS if sampler.graphs else 0)
    trained = initial(short, sampler, seed)
    step = partial(train_step, short, sampler, trained, raw_pairs(short, sampler, seed), seed)
    free = free_mib(sampler.device)
    before, peak = memory_of(lambda: [step(i) for i in range(STEPS)], sampler.device, idle)
    parts = measure_parts(draw_batch(short, sampler, trained), repeats)
    explained = sum(peak_mib(parts, passes(parts, short, short.discovery.M), keep=0))
    return Probe(**vars(parts), free_mib=free, before_mib=before, other_mib=peak - explained)


def shortened(experiment: Experiment) -> Experiment:
    """Return the experiment with the fewest generation steps that still have every kind of its steps, and "node"."""
    settings = experiment.discovery

    def kinds(M: int) -> set[bool]:
        return {t >= settings.t_shift for t in visited(experiment, M)}

    M = next(M for M in range(1, settings.M + 1) if kinds(M) == kinds(settings.M))
    values = {"M": M, "strategy": "node", "keep": 0, "memory_budget": None, "pool": 0}
    values |= {"gradient": "chain", "last_steps": None}  # an approximation needs no more
    return experiment.model_copy(update={"discovery": settings.model_copy(update=values)})


def memory_of(take_steps: Callable[[], object], device: torch.device, idle: int) -> tuple[float, float]:
    """Take training steps; return the MiB on the GPU before (0 on the CPU), and their peak on top of that."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = gpu_memory(device, idle)[0]
        take_steps()
        torch.cuda.synchronize(device)
        return before, gpu_memory(device, idle)[0] - before  # the allocator keeps its peak; kernels loaded count too
    if device.type == "mps":
        torch.mps.empty_cache()
        before = mps_memory()
        take_steps()
        torch.mps.synchronize()
        return before, mps_memory() - before
    with watch_resident() as (baseline, peak, _):
        take_steps()
        return 0.0, peak() - baseline


# Parts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Random inputs of one step, and the networks that take them."""

    experiment: Experiment
    sampler: Sampler
    trained: Trained
    x: Tensor
    """Node of the chain, [B, C, H, W]."""
    k: Tensor
    s: Tensor


def draw_batch(experiment: Experiment, sampler: Sampler, trained: Trained) -> Batch:
    """Return random inputs of this process's slice of a batch, on the sampler's device."""
    settings, device = experiment.discovery, sampler.device
    shifts = draw_shifts(settings.batch_size, settings.K, settings.S, settings.min_magnitude)
    k, s = (shard(v).to(device) for v in shifts)
    return Batch(experiment, sampler, trained, torch.randn(len(k), *sampler.image_shape, device=device), k, s)


def measure_parts(batch: Batch, repeats: int) -> StepParts:
    """Measure the parts of a step, one at a time."""
    two_steps = Sampler.of(batch.experiment, batch.sampler.backbone, batch.sampler.device, M=2)
    all_shifted, all_regular = (replace(two_steps, t_shift=t) for t in (0, len(two_steps.alpha_bar)))
    return StepParts(
        first=measure_pass(batch, all_shifted, 0, repeats),
        shifted=measure_pass(batch, all_shifted, 1, repeats),
        regular=measure_pass(batch, all_regular, 1, repeats),
        objective_mib=held_mib(lambda: take_objective(batch), batch),
        discriminator_mib=held_mib(lambda: take_discriminator_step(batch), batch),
        node_mib=0.0 if offloads_nodes(batch) else batch.x.nbytes / MIB,
        other_seconds=median_seconds(lambda: take_other(batch), batch.sampler.device, repeats),
    )


def offloads_nodes(batch: Batch) -> bool:
    """Return whether the nodes of the chain leave the memory of the device."""
    return batch.experiment.discovery.nodes == "cpu" and batch.x.device.type != "cpu"


def measure_pass(batch: Batch, two_steps: Sampler, i: int, repeats: int) -> Pass:
    """Measure step i, 0 or 1, of a chain of two steps; step 0 starts at x_T, which needs no gradient."""
    delta_h = own_direction(batch.trained.shift_block, batch.k, batch.s)
    step, pair_step = two_steps.steps(delta_h)[i], two_steps.pair_steps(delta_h)[i]
    x = batch.x
    pair = torch.cat([x, x]) if i else x

    @torch.no_grad()
    def forward(step: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with two_steps.autocast():
            step(x)

    def both_ways(count: int) -> None:
        leaves = [x.clone().requires_grad_(i > 0) for _ in range(count)]
        with two_steps.autocast():
            torch.stack([step(leaf).sum() for leaf in leaves]).sum().backward()

    def recomputed() -> None:
        with two_steps.autocast():
            step.pull_back(x.clone(), torch.ones_like(x), wanted=i > 0)

    kept = median_seconds(lambda: both_ways(1), two_steps.device, repeats)
    replayed = median_seconds(recomputed, two_steps.device, repeats) if two_steps.graphs else None
    return Pass(
        forward=median_seconds(lambda: forward(step, x), two_steps.device, repeats),
        beside=median_seconds(lambda: forward(pair_step, pair), two_steps.device, repeats),
        both_ways=kept if replayed is None else replayed,
        graph_mib=held_mib(lambda: both_ways(2), batch) - held_mib(lambda: both_ways(1), batch),
        kept=None if replayed is None else kept,
    )


def take_objective(batch: Batch) -> None:
    """Back-propagate the objective to x'_0."""
    trained = batch.trained
    with frozen(trained.discriminator), batch.sampler.autocast():
        x_0_shifted = batch.x.clone().requires_grad_()
        row = losses(batch.experiment.discovery, trained, batch.x, x_0_shifted, batch.k, batch.s)
        row["loss"].backward()


def take_discriminator_step(batch: Batch) -> None:
    """Take one optimiser step of the discriminator."""
    train_discriminator(batch.experiment.discovery, batch.trained, batch.x, batch.x)


def take_other(batch: Batch) -> None:
    """Do all that comes once a step, beside its generation steps."""
    take_objective(batch)
    batch.trained.optimizer.step()
    take_discriminator_step(batch)


def held_mib(work: Callable[[], object], batch: Batch) -> float:
    """Return the MiB that autograd holds at most during ``work``, without the weights."""
    return saved_tensors_peak(work, parameters_of(batch)) / MIB


def parameters_of(batch: Batch) -> Iterable[nn.Parameter]:
    """Return the parameters of all networks of a step."""
    assert isinstance(batch.sampler.backbone, nn.Module)
    trained = batch.trained
    for network in (batch.sampler.backbone, trained.shift_block, trained.reconstructor, trained.discriminator):
        yield from network.parameters()


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median wall time of ``work`` in seconds, after a call that does not count; nan without repeats."""
    if not repeats:
        return math.nan
    work()
    return float(np.median([wall_seconds(work, device) for _ in range(repeats)]))


# Pretraining --------------------------------------------------------------------------------------------------------


def measure_pretraining(experiment: Experiment, device: torch.device, seed: int, idle: int = 0) -> Whole:
    """Return time and memory of a whole pretraining, from three steps or a few more on random images."""
    settings, steps = experiment.pretrain, []
    trained = pretrain.initial(experiment, seed, device)
    sampler = pretrain.grid_sampler(experiment, trained, device)
    images = torch.randint(256, (settings.batch_size, *experiment.data.image_shape), dtype=torch.uint8)
    step = partial(pretrain.train_step, settings, trained, sampler, images, seed)
    before, peak = memory_of(lambda: steps.append(timed_steps(step, device, settings.steps)[0]), device, idle)
    seconds = whole_seconds(settings, 0, steps[0], grid=pretrain.grid_seconds(experiment, sampler))
    return Whole("pretraining", settings.steps, settings.batch_size, None, seconds, before + peak)


# A fresh process ----------------------------------------------------------------------------------------------------


def measure_apart(experiment: Experiment, device: str, seed: int, repeats: int = REPEATS) -> Probe:
    """Return the :func:`measure` of a fresh process, whose memory nothing else has used.

    Raises:
        DoesNotFitError: the process died of too little memory.
        HBenchError: the process died of something else.
    """
    values = _probed(experiment, "discovery", device=device, seed=seed, repeats=repeats)
    first, shifted, regular = (Pass(**values.pop(name)) for name in ("first", "shifted", "regular"))
    return Probe(first=first, shifted=shifted, regular=regular, **values)


def measure_pretraining_apart(experiment: Experiment, device: str, seed: int) -> Whole:
    """Return the :func:`measure_pretraining` of a fresh process; see :func:`measure_apart` for its errors."""
    return Whole(**_probed(experiment, "pretrain", device=device, seed=seed))


def _probed(experiment: Experiment, stage: Stage, **given: str | int) -> dict[str, Any]:
    """Return what a fresh process found about a stage of training."""
    given |= {"stage": stage}
    done = run_apart("hbench.training.probe", {"experiment": experiment.model_dump(mode="json"), **given})
    if done.returncode:
        killed = was_killed(done)
        reason = "killed by the system, as it does when memory runs out" if killed else reason_of(done)
        kind = DoesNotFitError if killed or is_out_of_memory(RuntimeError(reason)) else HBenchError
        raise kind(f"the probe of one {stage} step failed ({reason}): lower {stage}.batch_size")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def _probe(given: dict[str, Any]) -> Probe | Whole:
    """Return what this process finds, of the stage of training that it was asked about."""
    wanted = parse_experiment(given["experiment"], "probe")
    device = pick_device(given["device"])
    idle = torch.cuda.device_memory_used(device) if device.type == "cuda" else 0  # before there is a CUDA context
    torch.manual_seed(seeds.probe(given["seed"]))
    if given["stage"] == "pretrain":
        return measure_pretraining(wanted, device, given["seed"], idle)
    sampler = Sampler.of(wanted, freeze(wanted, build_model(wanted), device), device)
    return measure(wanted, sampler, given["seed"], given["repeats"], idle)


if __name__ == "__main__":
    die_first()
    print(json.dumps(asdict(_probe(json.load(sys.stdin)))))
