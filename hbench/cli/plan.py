"""``hbench plan``."""

from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Options,
    a_path,
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
    click.option("--out", type=a_path, help="Keep the plan in this folder, with its picture and provenance."),
    overwrite_option,
    run_options,
)
def plan(experiment: "Experiment", steps: list[int] | None, options: Options) -> None:
    """Predict memory and speed of training EXPERIMENT.

    For each strategy over M, and which one "auto" takes. Measures one short training step for node, vanilla and auto,
    which needs the memory of node only, and a few short steps for each other strategy; one that does not fit is left
    out, and said so. The memory is what "hbench vram-sweep" would measure. "auto" keeps the graphs of the last "keep"
    steps of M: 0 is node, M vanilla.

    \b
    Example:
        hbench plan mnist16 --set discovery.memory_budget=0.5
    """
    from hbench.evaluation.plan import plan as predict

    folder = options.out and options.claim(options.out)
    result = predict(experiment, steps=steps, device=options.torch_device(), seed=options.seed)
    if folder:
        publish(result, folder)
    else:
        click.echo(result.summary())
    for reason in result.left_out:
        click.echo(f"not in the table: {reason}", err=True)
    click.echo(f"memory budget {result.budget_mib:,.0f} MiB", err=True)
    if result.advice:
        raise HBenchError(result.advice)
