"""``hbench plan``."""

from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Options,
    a_path,
    check_steps,
    experiment_options,
    many_steps_option,
    overwrite_option,
    publish,
    run_options,
    shared,
)
from hbench.errors import HBenchError

if TYPE_CHECKING:
    from hbench.config import Experiment


@click.command()
@experiment_options
@many_steps_option
@shared(
    click.option("--out", type=a_path, help="Output folder, with a picture and provenance [default: none]."),
    overwrite_option,
    run_options,
)
def plan(experiment: "Experiment", steps: list[int] | None, options: Options) -> None:
    """Predict memory and speed of training over generation steps.

    The table has a line for each strategy of back-propagation and each M, and tells the steps that "auto" keeps. One
    short training step is measured for node, vanilla and auto, in the memory of node, and a few short steps for each
    other strategy; a strategy that does not fit is left out, with a note. Memory is meant as "hbench vram-sweep"
    measures it. The strategy "auto" keeps the graphs of the last "keep" of M steps: 0 is node, M is vanilla. Time and
    memory of EXPERIMENT's own discovery, and of its pretraining unless it has a model.path, follow the table.

    \b
    Example:
        hbench plan mnist16 --set discovery.memory_budget=0.5
    """
    from hbench.evaluation.plan import plan as predict

    for M in steps or []:
        check_steps(experiment, M)
    folder = options.out and options.claim(options.out)
    result = predict(experiment, steps=steps, device=options.torch_device(), seed=options.seed)
    if folder:
        publish(result, folder)
    else:
        click.echo(result.summary())
    for reason in result.left_out:
        click.echo(f"not in the table: {reason}", err=True)
    for training in result.trainings:
        click.echo(str(training), err=True)
    click.echo(f"memory budget {result.budget_mib:,.0f} MiB", err=True)
    if result.advice:
        raise HBenchError(result.advice)
