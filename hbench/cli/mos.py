"""The commands of the user study: sheets for assessors, and the score of their marks."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.legacy import claim_folder, run_options, write_results

if TYPE_CHECKING:
    from hbench.evaluation.mos.score import Estimate

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is already there.")


@click.group()
def mos() -> None:
    """Ask people which directions mean something.

    The Mean Opinion Score of Table 1: sheets to mark, and the score of the marks.

    \b
    Example:
        hbench mos export mnist16 --out runs/mos
        hbench mos score marks_*.csv --key runs/mos/key.json
    """


@mos.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--assessors", type=click.IntRange(min=1), default=5, show_default=True, help="People: one sheet each.")
@click.option("--votes", type=click.IntRange(min=1), help="Assessors per direction [default: all of them].")
@click.option("--examples", type=click.IntRange(min=1), default=10, show_default=True, help="Rows: random x_T.")
@click.option("--samples", type=click.IntRange(min=3), default=5, show_default=True, help="Columns, an odd number.")
@click.option(
    "--repeats", type=click.FloatRange(0, 0.5), default=0.1, show_default=True, help="Share of items shown twice."
)
@click.option(
    "--controls", type=click.IntRange(min=0), default=3, show_default=True, help="Untrained directions per run."
)
@click.option("--label-studio", is_flag=True, help="Write tasks and configuration for Label Studio too.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/mos"), show_default=True, help="Folder.")
@overwrite_option
@run_options
def export(
    runs: tuple[Path, ...],
    assessors: int,
    votes: int | None,
    examples: int,
    samples: int,
    repeats: float,
    controls: int,
    label_studio: bool,
    out: Path,
    overwrite: bool,
    device: str,
    seed: int,
) -> None:
    """Make blind sheets for assessors to mark every direction of one or several RUNs.

    Hand out sheet_1.html, sheet_2.html, ..., one to each assessor: pages that work without a network. The folders
    beside them hold the same as pictures and an empty CSV. Keep back key.json and design.csv until all marks are in.

    Untrained directions are mixed in as a floor: a fresh shift block with Gaussian output convolutions, its steps as
    large as the trained ones.

    \b
    Example:
        hbench mos export mnist16 --assessors 3
    """
    import pandas as pd

    from hbench.evaluation.mos.score import guarded
    from hbench.evaluation.mos.study import design, pictures
    from hbench.reporting.sheets import refuse_marked, write_sheets
    from hbench.runtime.device import pick_device
    from hbench.store.provenance import provenance
    from hbench.store.run import load_run

    if not samples % 2:
        raise click.BadParameter("need an odd number, so that the middle is the original", param_hint="--samples")
    if votes and votes > assessors:
        raise click.BadParameter(f"at most {assessors}, the number of assessors", param_hint="--votes")
    if len(set(runs)) < len(runs):
        raise click.BadParameter("the same run twice", param_hint="RUN")
    place = pick_device(device)
    loaded = {str(run): load_run(run, device=place) for run in runs}
    claim_folder(out, overwrite=overwrite)
    refuse_marked(out)
    origin = provenance(
        None,
        place,
        seed,
        runs={
            name: {"experiment": run.experiment.model_dump(mode="json"), "weights_sha256": run.hashes}
            for name, run in loaded.items()
        },
    )
    images = pictures(loaded, examples, samples, controls, seed)
    titles = {name: run.experiment.title for name, run in loaded.items()}
    key = design(images, titles, assessors, votes or assessors, repeats, seed)
    write_sheets(key, images, out, label_studio)
    table = pd.DataFrame(
        {"assessor": sheet.assessor, "sheet": sheet.sheet, **item.model_dump() | {"run": guarded(item.run)}}
        for sheet in key.sheets
        for item in sheet.items
    ).astype({"repeat_of": "Int64"})
    settings = {
        "assessors": assessors,
        "votes": votes or assessors,
        "examples": examples,
        "samples": samples,
        "repeats": repeats,
        "controls": controls,
    }
    write_results(out, "design", settings, table, origin, n=len(table), **settings)
    for sheet in key.sheets:
        page = out / f"sheet_{sheet.assessor}.html"
        click.echo(f"{page}  items {len(sheet.items)}  {page.stat().st_size / 2**20:.1f} MiB")
    click.echo(f"hand out the sheets; keep back {out / 'key.json'} and {out / 'design.csv'}", err=True)


@mos.command()
@click.argument(
    "marks",
    metavar="MARKS.csv...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--key",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='The key.json that "hbench mos export" wrote.',
)
@click.option("--partial", is_flag=True, help="Score although whole sheets are missing.")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: score/ beside the key].")
@overwrite_option
@run_options
def score(
    marks: tuple[Path, ...],
    key: Path,
    partial: bool,
    out: Path | None,
    overwrite: bool,
    device: str,
    seed: int,
) -> None:
    """Score the marks of assessors: MOS, agreement, the floor of untrained directions, the names given.

    Takes the files that the sheets exported, or spreadsheets saved as CSV in UTF-8, with commas or semicolons. A mark
    that is foreign, missing, double or out of range is refused by file and line.

    \b
    Example:
        hbench mos score marks_*.csv --key runs/mos/key.json
    """
    import pandas as pd

    from hbench.evaluation.mos.score import guarded, proposed_names, read_key, read_marks
    from hbench.evaluation.mos.score import score as measure
    from hbench.reporting.charts import draw_mos
    from hbench.runtime.device import pick_device
    from hbench.store.files import sha256, write_text
    from hbench.store.provenance import provenance

    study = read_key(key)
    read = read_marks(marks, study, partial)
    folder = out or key.parent / "score"
    claim_folder(folder, overwrite=overwrite)
    files = {str(path): sha256(path) for path in marks}
    origin = provenance(None, pick_device(device), seed, key_sha256=sha256(key), marks_sha256=files)
    result = measure(read, study, seed)
    table = pd.DataFrame(
        {
            "run": guarded(d.run),
            "direction": d.direction,
            "control": d.control,
            "mean": d.mean,
            "low": d.interval and d.interval[0],
            "high": d.interval and d.interval[1],
            "votes": d.votes,
            "names": guarded("; ".join(f"{name} ({count})" for name, count in d.names.items())),
        }
        for d in result.directions
    )
    for number, run in enumerate(result.runs, start=1):
        if proposal := proposed_names(result, run.run):
            file = folder / ("names.txt" if len(result.runs) == 1 else f"names_{number}.txt")
            write_text(file, proposal)
            click.echo(f"names proposed for {run.run}: {file}", err=True)
    draw_mos(result, folder / "mos.png")
    write_results(folder, "mos", asdict(result), table, origin, n=len(read))
    for run in result.runs:
        click.echo(
            f"{run.run}  MOS {_shown(run.mos, 'directions')}  marks {run.marks}  "
            f"floor {_shown(run.floor, 'untrained directions')}"
        )
    alpha = "no agreement computable" if result.alpha is None else f"{result.alpha:.3f}"
    click.echo(f"Krippendorff's alpha {alpha}  assessors {result.sheets} of {result.sheets_made}")
    click.echo(f"self-agreement {_shown(result.self_agreement, 'repeats')}")
    click.echo(f"see {folder / 'mos.png'}", err=True)


def _shown(estimate: "Estimate", unit: str) -> str:
    if estimate.mean is None:
        return f"not measured (0 {unit})"
    low, high = estimate.interval or (None, None)
    interval = "no interval computable" if low is None else f"95% [{low:.3f}, {high:.3f}]"
    return f"{estimate.mean:.3f}  {interval}  n {estimate.n} {unit}"
