"""The commands that edit: with the three sources of directions compared, and real images."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hbench.cli.legacy import (
    check_steps,
    load_run_and_source,
    of_steps,
    open_results,
    result_options,
    run_argument,
    run_options,
    source_options,
    write_results,
)

if TYPE_CHECKING:
    from torch import Tensor

    from hbench.config import Experiment, Precision
    from hbench.core.directions import Edit

PICTURED = (-1.0, -0.5, 0.5, 1.0)  # magnitudes of the comparison, in units of S
MOST_ROWS = 40  # of the picture of edits
LONGEST = 24  # name beside a row, in characters


@click.command()
@run_argument
@click.option("--samples", type=click.IntRange(min=2), default=1000, show_default=True, help="In the mean direction.")
@click.option(
    "--pairs",
    type=click.IntRange(min=20),
    default=200,
    show_default=True,
    help="Other samples, each edited along every direction.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Generation steps M [default: the run's].")
@click.option("--examples", type=click.IntRange(min=1), default=3, show_default=True, help="Rows in the picture.")
@click.option(
    "--direction", "shown", type=int, multiple=True, help="In the picture; repeatable [default: the four best known]."
)
@result_options
@run_options
def properties(
    run: Path,
    samples: int,
    pairs: int,
    steps: int | None,
    examples: int,
    shown: tuple[int, ...],
    out: Path | None,
    overwrite: bool,
    device: str,
    seed: int,
) -> None:
    """Measure homogeneity, consistency and linearity.

    As in Fig. 9: compares edits with the sample's own direction, its mean over samples, and the time-invariant one,
    and writes the mean directions as directions.safetensors, for --direction-source.

    \b
    Example:
        hbench properties mnist16 --samples 200 --pairs 40
    """
    import numpy as np

    from hbench.evaluation.properties import compare
    from hbench.evaluation.properties import properties as measure
    from hbench.reporting.charts import draw_properties, plain
    from hbench.reporting.grids import draw_sources
    from hbench.runtime.device import pick_device
    from hbench.store.directions import save_directions
    from hbench.store.files import write_text
    from hbench.store.run import load_run

    loaded = load_run(run, device=pick_device(device))
    names = loaded.names
    settings = loaded.experiment.discovery
    _check_directions(loaded.experiment, shown, "--direction")
    check_steps(loaded.experiment, steps, "--steps")
    M = steps or settings.M
    name = of_steps("properties", loaded.experiment, M)
    folder, origin = open_results(loaded, run, name, out, overwrite, seed, M=M)
    title = of_steps(loaded.experiment.title, loaded.experiment, M)
    result, directions = measure(loaded, samples, pairs, seed, steps)
    save_directions(folder / "directions.safetensors", directions, loaded)
    write_text(folder / "timesteps.csv", result.timestep_table().to_csv(index=False))
    draw_properties(result, title, folder / "properties.png")
    recognised = result.accuracy_own.value[:-1]
    order = list(shown) or np.argsort(recognised)[::-1][:4].tolist()
    values = [settings.S * share for share in PICTURED]
    images = compare(loaded, directions, order, values, examples, seed, steps)
    labels = [f"{k}: {plain(names[k])}" if k in names else f"direction {k}" for k in order]
    draw_sources(images, labels, values, title, folder / "edits.png")
    write_results(folder, "properties", asdict(result), result.table(), origin, n=pairs, n_mean=samples)

    def shown_with_interval(name: str) -> str:
        estimate = getattr(result, name)
        return f"{estimate.value[-1]:.3f} [{estimate.low[-1]:.3f}, {estimate.high[-1]:.3f}]"

    click.echo(f"mean of {settings.K} directions, 95 % intervals, n {pairs} samples, means over {samples} others")
    for text, name in (
        ("homogeneity (cosine of own and mean direction)", "homogeneity"),
        ("consistency (cosine between timesteps)", "consistency"),
        ("cosine between two directions", "others"),
        ("distance of the mean edit / size of the own", "distance_mean"),
        ("distance of the time-invariant edit / size", "distance_global"),
        ("k recognised, own", "accuracy_own"),
        ("k recognised, mean", "accuracy_mean"),
        ("k recognised, time-invariant", "accuracy_global"),
        ("same k in the mean edit as in the own", "same_k_mean"),
        ("same k in the time-invariant edit", "same_k_global"),
        ("|s_hat - s_hat of the own|, mean", "s_difference_mean"),
        ("|s_hat - s_hat of the own|, time-invariant", "s_difference_global"),
        ("slope of s_hat against s", "slope"),
        ("correlation of s_hat and s", "correlation"),
    ):
        click.echo(f"{text:48}{shown_with_interval(name)}")
    click.echo(f"see {folder / 'edits.png'} and {folder / 'properties.png'}", err=True)


@click.command()
@run_argument
@click.argument("image", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--shift", "shifts", multiple=True, metavar="K=S", help="Direction and magnitude; repeatable.")
@click.option("--sweep", "swept", type=int, metavar="K", help="One direction from -S to S.")
@click.option("--grid", "crossed", metavar="K,K", help="Two directions at once, each from -S to S.")
@click.option(
    "--samples", type=click.IntRange(min=2), default=5, show_default=True, help="Magnitudes of a sweep or a grid."
)
@click.option(
    "--inversion-steps", "steps", type=click.IntRange(min=1), default=100, show_default=True, help="Up and down."
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="bfloat16 inverts a little less exactly.",
)
@source_options
@result_options
@run_options
def edit(
    run: Path,
    image: tuple[Path, ...],
    shifts: tuple[str, ...],
    swept: int | None,
    crossed: str | None,
    samples: int,
    steps: int,
    precision: "Precision",
    direction_source: str,
    directions: Path | None,
    out: Path | None,
    overwrite: bool,
    device: str,
    seed: int,
) -> None:
    """Edit real images along directions of RUN.

    As in Fig. 8. Each IMAGE is a picture of any size, or a folder of them. Inverts each image to x_T, says how well
    it is reconstructed, and generates it again with the given --shift (each alone, and all together), with a --sweep,
    or with a --grid. Nothing is random here: --seed is only recorded.

    \b
    Example:
        hbench edit mnist16 digit.png --shift 3=2.5 --shift 7=-1
        hbench edit mnist16 folder/of/digits --sweep 3 --samples 7
    """
    import pandas as pd
    import torch

    from hbench.core.images import to_float
    from hbench.evaluation.edit import caption, edit_each, label, mean_square_error, psnr
    from hbench.reporting.charts import plain
    from hbench.reporting.grids import draw_edits
    from hbench.store.datasets import image_files, read_image
    from hbench.store.files import sha256
    from hbench.store.pictures import save_image

    loaded, source, details = load_run_and_source(run, device, direction_source, directions)
    names = loaded.names
    experiment = loaded.experiment
    check_steps(experiment, steps, "--inversion-steps")
    edits = _requested(experiment, shifts, swept, crossed, samples)
    files = [file for path in image for file in image_files(path)]
    read = [read_image(file, experiment.data) for file in files]
    hashes = {str(file): sha256(file) for file in files}
    settings = {"M": steps, "precision": precision, "images_sha256": hashes, **details}
    folder, origin = open_results(loaded, run, "edit", out, overwrite, seed, **settings)
    for file, (_, done) in zip(files, read, strict=True):
        click.echo(f"{file}: {done}", err=True)

    x_0 = to_float(torch.stack([pixels for pixels, _ in read]))
    x_T = loaded.invert(x_0, steps=steps, precision=precision)
    reconstructed = edit_each(loaded, x_T, [{}], source, steps, precision)
    errors = mean_square_error(reconstructed[:, 0], x_0).tolist()
    for file, mse in zip(files, errors, strict=True):
        click.echo(f"{file}  reconstruction MSE {mse:.3g}  PSNR {psnr(mse):.1f} dB")
    if len(files) > 1:
        psnrs = pd.Series([psnr(mse) for mse in errors])
        click.echo(
            f"n {len(files)}  MSE mean {sum(errors) / len(errors):.3g}  PSNR median {psnrs.median():.1f} dB, "
            f"{psnrs.min():.1f} to {psnrs.max():.1f}"
        )

    edited = edit_each(loaded, x_T, edits, source, steps, precision)
    kinds = ["original", "reconstruction", *map(label, edits)]
    images = torch.cat([x_0[:, None], reconstructed, edited], dim=1)
    for left in (folder / "images").glob("*.png"):  # of an earlier call
        left.unlink()
    stems = [f"{i:02d}-{file.stem}" for i, file in enumerate(files)]  # two folders may hold the same name
    for stem, row in zip(stems, images, strict=True):
        for kind, picture in zip(kinds, row, strict=True):
            save_image(picture, folder / "images" / f"{stem}-{kind.replace(' ', '_')}.png")
    table = pd.DataFrame(
        {"image": [str(file) for file in files], "mse": errors, "psnr": [psnr(mse) for mse in errors], "files": stems}
    )
    result = {"edits": [list(each.items()) for each in edits], "images": table.to_dict("records")}

    title = f"{experiment.title}, {direction_source} directions, {steps} steps"
    columns = [*kinds[:2], *(caption(each, names) for each in edits)]
    if swept is not None:
        title += f"\ndirection {swept}" + (f": {names[swept]}" if swept in names else "")
        columns = [*kinds[:2], *(f"s = {s:.3g}" for each in edits for s in each.values())]
    shown = [" ".join(file.stem.split()) for file in files]
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in shown]
    rows = [f"{name}\n{psnr(mse):.1f} dB" for name, mse in zip(shown, errors, strict=True)]
    if crossed:
        images, columns, rows = _unfold(images, edits, rows, samples)
    if len(images) > MOST_ROWS:
        click.echo(f"the picture shows the first {MOST_ROWS} of {len(images)} rows", err=True)
    draw_edits(images[:MOST_ROWS], columns, rows[:MOST_ROWS], [2], plain(title), folder / "edits.png")
    write_results(folder, "edit", result, table, origin, n=len(files))
    click.echo(f"see {folder / 'edits.png'}", err=True)


def _requested(
    experiment: "Experiment", shifts: tuple[str, ...], swept: int | None, crossed: str | None, samples: int
) -> "list[Edit]":
    """The edits that the options ask for."""
    from hbench.evaluation.edit import grid, singly_and_together, sweep

    S = experiment.discovery.S
    if bool(shifts) + (swept is not None) + bool(crossed) != 1:
        raise click.UsageError("give exactly one of --shift K=S (repeatable), --sweep K and --grid K,K")
    if swept is not None:
        _check_directions(experiment, [swept], "--sweep")
        return sweep(swept, S, samples)
    if crossed:
        parts = crossed.split(",")
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            raise click.BadParameter(f'"{crossed}": write two directions, as in 3,7', param_hint="--grid")
        first, second = (int(part) for part in parts)
        _check_directions(experiment, [first, second], "--grid")
        if first == second:
            raise click.BadParameter("give two different directions, or use --sweep", param_hint="--grid")
        return grid(first, second, S, samples)
    terms: dict[int, float] = {}
    for shift in shifts:
        k, _, s = shift.partition("=")
        try:
            direction, magnitude = int(k), float(s)
        except ValueError:
            raise click.BadParameter(
                f'"{shift}": write direction=magnitude, as in 3=2.5', param_hint="--shift"
            ) from None
        if not math.isfinite(magnitude):
            raise click.BadParameter(f'"{shift}": the magnitude must be finite', param_hint="--shift")
        if abs(magnitude) > S:
            click.echo(f"--shift {shift}: beyond S = {S:g}, the largest magnitude of the training", err=True)
        if direction in terms:
            raise click.BadParameter("the same direction twice: add the magnitudes up", param_hint="--shift")
        terms[direction] = magnitude
    _check_directions(experiment, list(terms), "--shift")
    return singly_and_together(terms)


def _unfold(
    images: "Tensor", edits: "list[Edit]", names: list[str], samples: int
) -> "tuple[Tensor, list[str], list[str]]":
    """The images of a grid in the rows of the picture: ``samples`` an image, original and reconstruction in the first.

    Returns the images, the labels of the columns, and those of the rows.
    """
    import torch

    from hbench.evaluation.edit import caption

    ends = torch.full_like(images[:, :2, None].expand(-1, -1, samples, -1, -1, -1), float("nan"))
    ends[:, :, 0] = images[:, :2]
    k, u = edits[0]
    squares = images[:, 2:].unflatten(1, (samples, samples))
    unfolded = torch.cat([ends.transpose(1, 2), squares], dim=2).flatten(0, 1)
    columns = ["original", "reconstruction", *(caption({k: each[k]}) for each in edits[:samples])]
    seconds = [caption({u: each[u]}) for each in edits[::samples]]
    return unfolded, columns, [f"{name}\n{u}" if not i else u for name in names for i, u in enumerate(seconds)]


def _check_directions(experiment: "Experiment", directions: Sequence[int], option: str) -> None:
    K = experiment.discovery.K
    for k in directions:
        if not 0 <= k < K:
            raise click.BadParameter(f"no direction {k}: the run has 0 to {K - 1}", param_hint=option)
