"""Time of a training, estimated before it begins: a few of its steps are taken, timed, and undone.

The estimate changes no bit of the training: everything that the steps change is set back, and their random numbers
follow from (seed, step). It is made where progress is shown, and not for trainings of a few steps.
"""

import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import nn

from hbench.config import Discovery, Experiment, Pretrain
from hbench.core.sampler import Sampler
from hbench.errors import counted
from hbench.runtime.device import wall_seconds
from hbench.runtime.distributed import all_reduce_mean, rank, world_size
from hbench.runtime.progress import duration, is_asked_for
from hbench.training.checkpoint import Metrics
from hbench.training.cost import whole_seconds
from hbench.training.step import DrawRaw, Trained, raw_pairs, train_step

log = logging.getLogger(__name__)

Parts = Mapping[str, nn.Module | torch.optim.Optimizer]
"""Networks and optimisers by name: everything that a training changes, and so everything that a checkpoint holds."""
FEWEST = 20
"""Fewest steps of a training that is worth an estimate."""
TIMED, SECONDS = 2, 2.0
"""Timed steps, after one that does not count; a single process times more of them, a tenth of all, for so long."""


def announce(settings: Pretrain | Discovery, done: int, unit: str, seconds: Callable[[], float]) -> None:
    """Say how long the rest of a training takes, where progress is shown.

    Args:
        settings: settings of the stage.
        done: number of steps that a training which goes on has done.
        unit: word for the members of a batch.
        seconds: function that estimates the seconds of the rest; all processes call it.
    """
    left = settings.steps - done
    if left >= FEWEST and is_asked_for():
        which = f"{left:,} of {counted(settings.steps, 'step')}" if done else counted(left, "step")
        log.info("%s of %d %s: about %s", which, settings.batch_size, unit, duration(seconds()))


def training_seconds(
    settings: Pretrain | Discovery,
    done: int,
    parts: Parts,
    take_step: Callable[[int], Mapping[str, float]],
    device: torch.device,
    *,
    draw: Callable[[Path], None] | None = None,
    once: float = 0.0,
    grid: float = 0.0,
) -> float:
    """Return the seconds of the rest of a training, checkpoints included; the parts are as before.

    Cost: three training steps at least, and two pictures of curves.

    Args:
        settings: settings of the stage.
        done: number of steps that are done.
        parts: networks and optimisers that the steps change.
        take_step: function that takes step i and returns its metrics.
        device: device of the training.
        draw: function that draws the curves of a folder at each checkpoint.
        once: seconds before the first step.
        grid: seconds of a sample grid.
    """
    with undone(parts) as saving:
        step, row = timed_steps(take_step, device, settings.steps - done)
    checkpoint = 2 * saving + (_drawing_seconds(draw, row) if draw and rank() == 0 else 0.0)  # 2: hashed and written
    seconds = whole_seconds(settings, done, step, once=once, checkpoint=checkpoint, grid=grid)
    return all_reduce_mean({"seconds": seconds})["seconds"]


@contextmanager
def undone(parts: Parts) -> Iterator[float]:
    """Set networks and optimisers back when the block ends; yield the seconds of keeping their states in memory."""
    content, began = io.BytesIO(), time.perf_counter()
    torch.save({name: part.state_dict() for name, part in parts.items()}, content)
    try:
        yield time.perf_counter() - began
    finally:
        content.seek(0)
        states = torch.load(content, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.zero_grad()
            part.load_state_dict(states.pop(name))


def timed_steps(
    take_step: Callable[[int], Mapping[str, float]], device: torch.device, left: int
) -> tuple[float, Mapping[str, float]]:
    """Take a few steps. Return the mean seconds of those after the first, and the metrics of the last one."""
    row = take_step(0)

    def step() -> None:
        nonlocal row
        row = take_step(0)

    seconds = [wall_seconds(step, device) for _ in range(TIMED)]
    while world_size() == 1 and sum(seconds) < SECONDS and len(seconds) < left // 10:
        seconds.append(wall_seconds(step, device))
    return mean(seconds), row


def _drawing_seconds(draw: Callable[[Path], None], row: Mapping[str, float]) -> float:
    """Return the seconds of a picture of curves, drawn of one step, after a first one that does not count."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder), 0)
        metrics.log(0, row)
        metrics.flush()
        draw(Path(folder))
        return wall_seconds(partial(draw, Path(folder)), torch.device("cpu"))


# Discovery ----------------------------------------------------------------------------------------------------------


def discovery_seconds(
    experiment: Experiment,
    sampler: Sampler,
    trained: Trained,
    seed: int,
    done: int = 0,
    draw: Callable[[Path], None] | None = None,
) -> float:
    """Return the seconds of the rest of a discovery, its pool of raw samples included; see :func:`training_seconds`.

    Args:
        experiment: settings, with a strategy that is not "auto".
        sampler: frozen model and chain.
        trained: networks and optimisers, which are as before in the end.
        seed: random seed of the training.
        done: number of steps that are done.
        draw: function that draws the curves of a folder at each checkpoint.
    """
    settings = experiment.discovery
    draw_raw, once = (raw_pairs(experiment, sampler, seed), 0.0) if not settings.pool else _pool(experiment, sampler)
    take_step = partial(train_step, experiment, sampler, trained, draw_raw, seed)
    return training_seconds(settings, done, vars(trained), take_step, sampler.device, draw=draw, once=once)


def _pool(experiment: Experiment, sampler: Sampler) -> tuple[DrawRaw, float]:
    """Return a stand-in for a pool, which always draws the same batch, and the seconds to make the pool."""
    settings = experiment.discovery
    x_T = torch.randn(settings.batch_size, *sampler.image_shape).to(sampler.device)
    x_0 = sampler.generate(x_T)
    seconds = wall_seconds(lambda: sampler.generate(x_T), sampler.device)
    here = settings.batch_size // world_size()
    return lambda: (x_T[:here], x_0[:here]), seconds * settings.pool / (settings.batch_size * world_size())
