"""The command line: each command checks its options, calls one function, and prints the result.

Numbers go to stdout, everything else to stderr. torch is imported inside the commands, so that help is instant.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from hbench import __version__
from hbench.errors import HBenchError

Command = TypeVar("Command", bound=Callable[..., Any])


class Group(click.Group):
    """The group that turns every HBenchError into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except HBenchError as error:
            raise click.ClickException(str(error)) from error
        except (MemoryError, RuntimeError) as error:  # PyTorch has an own class for CUDA, and none for the CPU
            if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
                advice = "lower the batch size with --set, or choose another --device"
                raise click.ClickException(f"out of memory: {advice} ({str(error).splitlines()[0]})") from error
            raise


def combined(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click decorators as one."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


run_argument = click.argument("run", type=click.Path(path_type=Path))
result_options = combined(
    click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: inside the run's]."),
    click.option("--overwrite", is_flag=True, help="Replace results that are already there."),
)
experiment_options = combined(
    click.argument("experiment"),
    click.option(
        "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting; repeatable."
    ),
    click.option("-n", "--dry-run", is_flag=True, help="Print the resolved configuration and stop."),
)
data_options = combined(
    click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data set [env: HBENCH_DATA]."),
    click.option("--download", is_flag=True, help="Let torchvision download MNIST if it is missing."),
)
training_options = combined(
    click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out."),
    click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Stop cleanly after this time."),
)
run_options = combined(
    click.option("--device", default="auto", show_default=True, help='"auto", "cpu", "cuda" or "cuda:N".'),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random."),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hbench")
def main() -> None:
    """Find interpretable directions in the h-space of frozen diffusion models, and measure them."""


@main.command()
@experiment_options
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: runs/EXPERIMENT/pretrain].")
@data_options
@training_options
@run_options
def pretrain(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    out: Path | None,
    data_root: Path | None,
    download: bool,
    resume: bool,
    max_minutes: float | None,
    device: str,
    seed: int,
    quiet: bool,
) -> None:
    """Train the diffusion model of EXPERIMENT on its images.

    \b
    Example:
        hbench pretrain digits16 --max-minutes 10
    """
    from hbench.config import load_experiment

    settings = load_experiment(experiment, overrides)
    if dry_run:
        print_experiment(settings)
        return
    from hbench.data import load_images
    from hbench.device import pick_device
    from hbench.pretrain import pretrain as train_model
    from hbench.runs import claim_folder

    place = pick_device(device)
    images = load_images(settings.data, data_root, download=download)
    folder = out or Path("runs") / settings.name / "pretrain"
    claim_folder(folder, overwrite=resume)
    if train_model(
        settings, images, folder, seed=seed, device=place, resume=resume, max_minutes=max_minutes, quiet=quiet
    ):
        click.echo(folder / "model.safetensors")


@main.command()
@experiment_options
@click.option("--model", type=click.Path(path_type=Path), help="Weights [default: runs/EXPERIMENT/pretrain].")
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: runs/EXPERIMENT/train].")
@training_options
@run_options
def train(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    model: Path | None,
    out: Path | None,
    resume: bool,
    max_minutes: float | None,
    device: str,
    seed: int,
    quiet: bool,
) -> None:
    """Discover directions in the h-space of EXPERIMENT's frozen diffusion model.

    --model takes a folder or file of hbench (or the name of a shipped run), or a .pt state dict of guided-diffusion.

    \b
    Example:
        hbench train mnist16 --model mnist16 --set discovery.K=8
    """
    from hbench.config import load_experiment

    settings = load_experiment(experiment, overrides)
    if dry_run:
        print_experiment(settings)
        return
    from hbench.device import pick_device
    from hbench.load import load_model
    from hbench.runs import claim_folder
    from hbench.train import train as discover

    place = pick_device(device)
    folder = out or Path("runs") / settings.name / "train"
    if resume and model:
        raise click.UsageError("--resume goes on with the model in the run's folder: leave --model out")
    network = load_model(folder if resume else model or Path("runs") / settings.name / "pretrain", settings)
    claim_folder(folder, overwrite=resume)
    if discover(
        settings, network, folder, seed=seed, device=place, resume=resume, max_minutes=max_minutes, quiet=quiet
    ):
        click.echo(folder)


@main.command()
@run_argument
@click.option("--pairs", "count", type=click.IntRange(min=1), default=10_000, show_default=True, help="Fresh pairs.")
@result_options
@run_options
def rca(run: Path, count: int, out: Path | None, overwrite: bool, device: str, seed: int, quiet: bool) -> None:
    """Measure how well the reconstructor of RUN tells its directions apart, on fresh pairs.

    \b
    Example:
        hbench rca mnist16 --pairs 2000
    """
    import pandas as pd

    from hbench.device import pick_device
    from hbench.evaluate import rca as measure
    from hbench.figures import draw_confusion
    from hbench.load import load_run

    place = pick_device(device)
    loaded = load_run(run, place)
    folder = claim_results(run, "rca", out, overwrite)
    result = measure(loaded, count, seed, quiet)
    table = pd.DataFrame({"direction": range(len(result.per_direction)), "accuracy": result.per_direction})
    write_results(folder, "rca", asdict(result), table, loaded, place, seed)
    draw_confusion(result, loaded.experiment.title, folder / "rca.png")
    low, high = result.interval
    click.echo(f"RCA {result.accuracy:.4f}  95% [{low:.4f}, {high:.4f}]  n {result.n}  chance {result.chance:.4f}")
    click.echo(
        f"magnitude error {result.magnitude_error:.3f}  D raw {result.D_raw:.3f}  D shifted {result.D_shifted:.3f}"
    )
    click.echo(f"shifted samples outside the domain {result.outside:.2%}")
    click.echo(f"see {folder / 'rca.png'}", err=True)


@main.command()
@run_argument
@click.option("--examples", type=click.IntRange(min=1), default=6, show_default=True, help="Rows: random x_T.")
@click.option("--samples", type=click.IntRange(min=2), default=5, show_default=True, help="Columns: s from -S to S.")
@click.option("--pairs", "count", type=click.IntRange(min=1), default=1000, show_default=True, help="To rank by.")
@result_options
@run_options
def traverse(
    run: Path,
    examples: int,
    samples: int,
    count: int,
    out: Path | None,
    overwrite: bool,
    device: str,
    seed: int,
    quiet: bool,
) -> None:
    """Draw the grid of every direction of RUN, most recognisable first.

    Lines "index: name" of a names.txt in the run folder label the grids.

    \b
    Example:
        hbench traverse mnist16 --examples 4
    """
    import pandas as pd

    from hbench.device import pick_device
    from hbench.evaluate import rca as measure
    from hbench.evaluate import traverse as walk
    from hbench.figures import direction_label, draw_directions
    from hbench.load import load_names, load_run

    place = pick_device(device)
    loaded = load_run(run, place)
    names = load_names(run)
    folder = claim_results(run, "traverse", out, overwrite)
    ranked = measure(loaded, count, seed, quiet)
    order = ranked.ranking()
    images = walk(loaded, order, examples, samples, seed, quiet)
    labels = [direction_label(k, ranked, names) for k in order]
    draw_directions(images, labels, loaded.experiment.discovery.S, loaded.experiment.title, folder / "directions.png")
    table = pd.DataFrame(
        {
            "direction": order,
            "name": [names.get(k, "") for k in order],
            "accuracy": [ranked.per_direction[k] for k in order],
        }
    )
    details = {"examples": examples, "samples": samples, "pairs": count, "order": order}
    write_results(folder, "traverse", details, table, loaded, place, seed)
    click.echo(folder / "directions.png")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--experiment", help="Whose settings to use, for a .pt file of guided-diffusion.")
@click.option("--count", type=click.IntRange(min=1), default=64, show_default=True, help="Samples in the grid.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Generation steps M.")
@result_options
@run_options
def sample(
    model: Path,
    experiment: str | None,
    count: int,
    steps: int,
    out: Path | None,
    overwrite: bool,
    device: str,
    seed: int,
    quiet: bool,
) -> None:
    """Draw a grid of samples of the diffusion model in MODEL.

    MODEL is a folder with model.safetensors, such a file, a shipped run's name, or a .pt file of guided-diffusion.

    \b
    Example:
        hbench sample mnist16 --count 36 --steps 50
    """
    from hbench.config import load_experiment
    from hbench.device import pick_device
    from hbench.evaluate import sample_model
    from hbench.images import save_grid
    from hbench.load import load_model, model_experiment
    from hbench.runs import provenance, write_json

    place = pick_device(device)
    settings = load_experiment(experiment) if experiment else model_experiment(model)
    if steps > settings.diffusion.T:
        raise click.BadParameter(f"at most {settings.diffusion.T}, the number of timesteps", param_hint="--steps")
    network = load_model(model, settings).to(place)
    folder = claim_results(model if model.is_dir() else Path(model.stem), "samples", out, overwrite)
    images = sample_model(settings, network, count, steps, seed, quiet)
    save_grid(images, folder / "samples.png", columns=max(1, round(count**0.5)), scale=max(1, 64 // settings.data.size))
    write_json(folder / "provenance.json", provenance(settings, place, seed, n=count, M=steps))
    click.echo(folder / "samples.png")


@main.command()
@run_argument
@click.option("--samples", "count", type=click.IntRange(min=2), default=10_000, show_default=True, help="Of each kind.")
@click.option("--lenet", type=click.Path(path_type=Path), help='Made by "hbench lenet" [default: the shipped one].')
@result_options
@run_options
def fid(
    run: Path, count: int, lenet: Path | None, out: Path | None, overwrite: bool, device: str, seed: int, quiet: bool
) -> None:
    """Measure the Frechet distance of raw and shifted samples of RUN to real digits.

    The features are those of a digit LeNet, through torch-fidelity, so no FID compares with the number.

    \b
    Example:
        hbench fid mnist16 --samples 2000
    """
    import pandas as pd

    from hbench.device import pick_device
    from hbench.features import FILE, fidelity
    from hbench.load import SHIPPED, load_run

    place = pick_device(device)
    loaded = load_run(run, place)
    folder = claim_results(run, "fid", out, overwrite)
    result = fidelity(loaded, lenet or SHIPPED / "mnist16" / FILE, count, seed, quiet)
    rows = [("raw", result.raw, *result.raw_interval), ("shifted", result.shifted, *result.shifted_interval)]
    table = pd.DataFrame(rows, columns=["samples", "FD (LeNet digits)", "low", "high"]).assign(
        n=result.n, n_real=result.n_real
    )
    write_results(folder, "fid", asdict(result) | {"ratio": result.ratio}, table, loaded, place, seed)
    click.echo(table.to_string(index=False))
    click.echo(f"shifted / raw {result.ratio:.3f}")


@main.command()
@experiment_options
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: runs/EXPERIMENT/lenet].")
@data_options
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True, help="Passes over the images.")
@run_options
def lenet(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    out: Path | None,
    data_root: Path | None,
    download: bool,
    epochs: int,
    device: str,
    seed: int,
    quiet: bool,
) -> None:
    """Train the digit LeNet whose features "hbench fid" uses, on the labelled images of EXPERIMENT.

    \b
    Example:
        hbench lenet digits16 --epochs 20
    """
    from hbench.config import load_experiment

    settings = load_experiment(experiment, overrides)
    if dry_run:
        print_experiment(settings)
        return
    from hbench.data import load_labelled
    from hbench.device import pick_device
    from hbench.features import FILE, train_lenet
    from hbench.runs import claim_folder, provenance, sha256, write_json

    pick_device(device)
    (images, labels), (test_images, test_labels) = (
        load_labelled(settings.data, data_root, split, download) for split in ("train", "test")
    )
    if labels is None or test_labels is None:
        raise HBenchError(f"{settings.name}: its images carry no labels: use an experiment on mnist or digits")
    folder = out or Path("runs") / settings.name / "lenet"
    claim_folder(folder)
    result = train_lenet(
        settings, (images, labels), (test_images, test_labels), folder / FILE, epochs=epochs, seed=seed, quiet=quiet
    )
    details = {"n_train": len(images), "n_test": len(test_images), "weights_sha256": sha256(folder / FILE), **result}
    write_json(folder / "provenance.json", provenance(settings, pick_device("cpu"), seed, **details))
    click.echo(
        f"test accuracy {result['accuracy']:.4f}  FD between two halves of the real test set {result['floor']:.3f}"
    )
    click.echo(folder / FILE)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
@click.option("--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Of the fresh discovery.")
@run_options
def demo(out: Path, overwrite: bool, steps: int, device: str, seed: int, quiet: bool) -> None:
    """Show the shipped directions, then discover new ones on the shipped model; about ten minutes on a laptop.

    \b
    Example:
        hbench demo
    """
    from hbench.demo import show
    from hbench.device import pick_device
    from hbench.runs import claim_folder

    place = pick_device(device)
    claim_folder(out, overwrite=overwrite)
    show(out, steps=steps, seed=seed, device=place, quiet=quiet)


def claim_results(run: Path, name: str, out: Path | None, overwrite: bool) -> Path:
    """The output folder of a result: inside the run's folder, or under runs/ for a run shipped with hbench."""
    from hbench.runs import claim_folder

    folder = out or (run if run.is_dir() else Path("runs") / f"shipped-{run.name}") / name
    claim_folder(folder, overwrite=overwrite)
    return folder


def write_results(
    folder: Path, name: str, result: dict[str, Any], table: Any, run: Any, device: Any, seed: int
) -> None:
    """Writes a result as JSON and CSV, with its provenance beside it."""
    from hbench.runs import provenance, write_json, write_text

    write_json(folder / f"{name}.json", result)
    write_text(folder / f"{name}.csv", table.to_csv(index=False))
    write_json(folder / "provenance.json", provenance(run.experiment, device, seed, weights_sha256=run.hashes))


def print_experiment(settings: Any) -> None:
    """Prints a resolved experiment as JSON, after its paper-style name."""
    click.echo(settings.title, err=True)
    click.echo(settings.model_dump_json(indent=2))


if __name__ == "__main__":
    main()
