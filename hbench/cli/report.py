"""``hbench report``."""

from pathlib import Path

import click

from hbench.cli.options import a_path


@click.command()
@click.argument("runs", nargs=-1, required=True, type=a_path, metavar="RUN...")
@click.option("--out", type=a_path, help="Output folder [default: RUN, of a shipped run runs/shipped-RUN].")
@click.option("--summary", type=a_path, help="Markdown file for one table of all RUNs.")
@click.option(
    "--not-run",
    nargs=2,
    multiple=True,
    metavar="EXPERIMENT REASON",
    help="Experiment to list in the summary as not run; repeatable.",
)
@click.option("--redraw", is_flag=True, help="Draw the charts anew first; pictures of images stay as they are.")
@click.pass_context
def report(
    ctx: click.Context,
    runs: tuple[Path, ...],
    out: Path | None,
    summary: Path | None,
    not_run: tuple[tuple[str, str], ...],
    redraw: bool,
) -> None:
    """Write one page of all results, beside the paper's.

    RUN is a run folder, the folder of an experiment with the run "train", a shipped run, or any folder of results. The
    page shows what lies in the run's folder, and of its experiment's folder what has the same images and model. The
    page report.html needs no other file; report.md, report.csv and report.json hold the same. An earlier report is
    replaced.

    \b
    Example:
        hbench report runs/mnist16/train
        hbench report results/mnist16-v0.1 --summary results/README.md --not-run mnist32 "no GPU"
    """
    from hbench.experiments import load_experiment
    from hbench.reporting import report as pages

    if redraw:
        for run in runs:
            pages.redraw(run)
    reports = list({report.folder: report for report in map(pages.collect, runs)}.values())  # a run named twice is one
    folder = out or reports[0].folder or Path()
    absent = [pages.not_run(load_experiment(name), reason) for name, reason in not_run]
    pages.write_pages(reports, folder)
    click.echo(folder / "report.html")
    if summary:
        pages.write_summary([*reports, *absent], summary, ctx.obj)
        click.echo(summary)
