"""A fresh reconstructor of fixed budget for directions that are there already, whoever found them."""

from collections.abc import Callable
from pathlib import Path

from hbench.errors import check_at_least, check_type
from hbench.experiments import parse_experiment
from hbench.runtime import distributed
from hbench.runtime.distributed import all_gather, main_process_first, rank
from hbench.store.folders import EXPERIMENT
from hbench.store.names import add_names
from hbench.store.run import Run, load_run
from hbench.training.discover import train

STEPS = 500
"""Steps of the training, by default: the budget that every method gets."""


def reconstruct(
    run: Run,
    out: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    max_minutes: float | None = None,
    draw: Callable[[Path], None] | None = None,
) -> Run | None:
    """Train a fresh reconstructor for a run's directions, write both to ``out`` as a run, and return it.

    The directions stay as they are: those of a file, or of a discovery. All methods are told apart by the same network,
    of the same budget and seed, and so their RCAs compare. The discriminator is fresh, too. All other settings are
    the experiment's. A training that ``out`` has
    begun goes on, and a complete one is read. Cost: a shifted chain a pair, without gradients, and a chain for each of
    at most a quarter as many raw samples.

    Args:
        run: run with the directions, as of :func:`hbench.directions_run` or :func:`hbench.load_run`.
        out: output folder.
        steps: steps of the training, at least 1.
        seed: random seed.
        max_minutes: stop cleanly after this time; None is then returned.
        draw: function that draws the curves of a folder, called before each checkpoint.

    Raises:
        TypeError: not a run.
        ValueError: a number out of range.
        HBenchError: as :func:`hbench.train` says; ``out`` holds a training of other directions.
    """
    check_type(Run, "as load_run or directions_run returns it", run=run)
    check_at_least(1, steps=steps)
    out, settings = Path(out), run.experiment.discovery
    distributed.start(run.device)
    begun = all_gather([(out / EXPERIMENT).is_file()])[0]  # a slower process might see the file that is written now
    values = run.experiment.model_dump()
    pool = min(settings.pool, max(settings.batch_size, steps * settings.batch_size // 4))
    values["discovery"] |= {"steps": steps, "pool": pool}
    complete = train(
        parse_experiment(values, str(out)),
        run.model,
        out,
        seed=seed,
        device=run.device,
        resume=begun,
        max_minutes=max_minutes,
        draw=draw,
        shift_block=run.shift_block,
    )
    if not complete:
        return None
    with main_process_first():
        if rank() == 0:
            add_names(out, run.names)
    return load_run(out, device=run.device)
