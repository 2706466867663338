"""``hbench edit``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.options import (
    Count,
    Options,
    Renamed,
    a_path,
    check_steps,
    device_option,
    directions_named,
    publish,
    quiet_option,
    result_of,
    run_argument,
    shared,
    source_options,
    threads_option,
    with_source,
)
from hbench.errors import MOST_COLUMNS

if TYPE_CHECKING:
    from hbench.config import Precision
    from hbench.core.directions import Edit
    from hbench.store.run import Run


@click.command()
@run_argument
@click.argument("images", nargs=-1, required=True, type=a_path, metavar="IMAGE...")
@click.option(
    "--shift", "shifts", multiple=True, metavar="K=S", help="Direction, by number or name, and magnitude; repeatable."
)
@click.option("--sweep", "swept", metavar="K", help="Direction to vary from -S to S.")
@click.option("--grid", "crossed", metavar="K,K", help="Two directions to cross, each from -S to S.")
@click.option(
    "--largest",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest magnitude of a sweep or grid, instead of S [default: the run's S].",
)
@click.option(
    "--samples",
    type=Count(2, MOST_COLUMNS),
    default=5,
    show_default=True,
    help="Number of magnitudes of a sweep, or of each direction of a grid.",
)
@click.option(
    "--steps",
    "--inversion-steps",
    "steps",
    cls=Renamed,
    type=Count(),
    default=100,
    show_default=True,
    help="Number of generation steps M, and of inversion steps.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of the networks; bfloat16 inverts a little less exactly.",
)
@click.option("--mask", type=a_path, help="Picture that is white where the edits may change the images.")
@shared(source_options, result_of("edit"), device_option, threads_option, quiet_option)
def edit(
    run: Path,
    images: tuple[Path, ...],
    shifts: tuple[str, ...],
    swept: str | None,
    crossed: str | None,
    largest: float | None,
    samples: int,
    steps: int,
    precision: "Precision",
    mask: Path | None,
    options: Options,
) -> None:
    """Edit real images along directions of a run.

    Each IMAGE is a picture of any size, or a folder of pictures. Each is inverted to x_T and generated again: as it
    is, which tells the error of the reconstruction, and with every --shift alone and all of them together, with a
    --sweep, or with a --grid. Each edit's cost is told: how much changes, structural similarity, whether the class
    stays, and what changes outside a --mask. A few generated images are inverted too, to see whether their x_T is found
    again. Nothing is random. A name of the run's names.txt, or its beginning, stands for the number of a direction.

    \b
    Example:
        hbench edit mnist16 digit.png --shift 3=2.5 --shift 7=-1
        hbench edit mnist16 folder/of/digits --sweep 12 --samples 7
    """
    from hbench.evaluation.edit import edit as edit_images
    from hbench.store.datasets import read_images

    loaded = options.load(run)
    source = options.source(loaded)
    check_steps(loaded.experiment, steps)
    edits = _requested(loaded, shifts, swept, crossed, largest, samples)
    read = read_images(images, loaded.experiment.data)
    masks = read_images(mask, loaded.experiment.data) if mask else [None]
    if len(masks) > 1:
        raise click.BadParameter("need a single picture", param_hint="--mask")
    folder = options.claim_result(run, with_source("edit", source))
    for image in read:
        click.echo(f"{image.file}: {image.done}", err=True)
    result = edit_images(loaded, read, edits, steps=steps, precision=precision, source=source, mask=masks[0])
    publish(result, folder)


def _requested(
    run: "Run", shifts: tuple[str, ...], swept: str | None, crossed: str | None, largest: float | None, samples: int
) -> "list[Edit]":
    """Return the edits that the options ask for."""
    from hbench.evaluation.edit import grid, singly_and_together, sweep
    from hbench.store.run import LARGEST

    if bool(shifts) + (swept is not None) + bool(crossed) != 1:
        raise click.UsageError("give exactly one of --shift K=S (repeatable), --sweep K and --grid K,K")
    if largest and shifts:
        raise click.UsageError("--largest goes with --sweep or --grid: a --shift says its magnitude")
    S = largest or run.S
    if not S <= LARGEST:
        raise click.BadParameter("the magnitude must be finite in float32", param_hint="--largest")
    if S > run.S:
        click.echo(f"--largest {S:g}: beyond S = {run.S:g}, the largest magnitude of the training", err=True)
    if swept is not None:
        (k,) = directions_named(run, [swept], "--sweep")
        return sweep(k, S, samples)
    if crossed:
        return grid(*_crossed(run, crossed), S, samples)
    edit: dict[int, float] = {}
    for shift in shifts:
        k, s = _shift(run, shift)
        if k in edit:
            raise click.BadParameter("the same direction twice: add the magnitudes up", param_hint="--shift")
        edit[k] = s
    return singly_and_together(edit)


def _crossed(run: "Run", text: str) -> tuple[int, int]:
    """Return the two directions of "3,7", or of names, which may have commas themselves."""
    parts = text.split(",")
    splits = [[",".join(parts[:i]), ",".join(parts[i:])] for i in range(1, len(parts))]
    if not splits:
        raise click.BadParameter(f'"{text}": write two directions, as in 3,7', param_hint="--grid")
    for i, split in enumerate(splits):
        try:
            first, second = directions_named(run, split, "--grid")
        except click.BadParameter:
            if i + 1 == len(splits):
                raise
        else:
            break
    if first == second:
        raise click.BadParameter("give two different directions, or use --sweep", param_hint="--grid")
    return first, second


def _shift(run: "Run", text: str) -> tuple[int, float]:
    """Return direction and magnitude of "3=2.5" or "thickness=2.5"; note a magnitude beyond S."""
    from hbench.store.run import LARGEST

    first, _, second = text.rpartition("=")  # a name may hold the sign itself
    try:
        s = float(second if first else "")
    except ValueError:
        raise click.BadParameter(f'"{text}": write direction=magnitude, as in 3=2.5', param_hint="--shift") from None
    if not abs(s) <= LARGEST:
        raise click.BadParameter(f'"{text}": the magnitude must be finite in float32', param_hint="--shift")
    (k,) = directions_named(run, [first], "--shift")
    if abs(s) > run.S:
        click.echo(f"--shift {text}: beyond S = {run.S:g}, the largest magnitude of the training", err=True)
    return k, s
