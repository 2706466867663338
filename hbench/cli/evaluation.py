"""The commands that measure and draw a finished run."""

from dataclasses import asdict
from pathlib import Path

import click

from hbench.cli.legacy import (
    check_steps,
    claim_results,
    data_options,
    of_steps,
    open_results,
    processes_option,
    result_options,
    run_argument,
    run_options,
    write_results,
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--experiment", help="Whose settings to use, for a state dict such as guided-diffusion saves.")
@click.option("--count", type=click.IntRange(min=1), default=64, show_default=True, help="Samples in the grid.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Generation steps M.")
@result_options
@processes_option
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
) -> None:
    """Draw a grid of samples of the diffusion model in MODEL.

    MODEL is a folder with model.safetensors, such a file, a shipped run's name, or a state dict (.pt) of
    guided-diffusion.

    \b
    Example:
        hbench sample mnist16 --count 36 --steps 50
    """
    from hbench.core.sampler import Sampler
    from hbench.evaluation.sampling import sample_model
    from hbench.experiments import load_experiment
    from hbench.runtime.device import pick_device
    from hbench.runtime.distributed import rank, start
    from hbench.store.pictures import save_grid
    from hbench.store.provenance import FILE, provenance
    from hbench.store.run import load_model, model_experiment

    place = pick_device(device)
    start(place)
    settings = load_experiment(experiment) if experiment else model_experiment(model)
    check_steps(settings, steps, "--steps")
    network = load_model(model, settings, device=place)
    folder = claim_results(model.parent if model.is_file() else model, "samples", out, overwrite)
    origin = provenance(settings, place, seed, n=count, M=steps)
    sampler = Sampler.of(settings, network, place, M=steps, precision=settings.pretrain.precision)
    images = sample_model(sampler, count, seed)
    if rank():
        return
    save_grid(images, folder / "samples.png", columns=max(1, round(count**0.5)), scale=max(1, 64 // settings.data.size))
    origin.finished().write(folder / FILE)
    click.echo(folder / "samples.png")


@click.command()
@run_argument
@click.option("--samples", type=click.IntRange(min=2), help="Of each kind [default: the experiment's; the paper's].")
@click.option("--steps", type=click.IntRange(min=1), help="Generation steps M [default: the run's].")
@click.option(
    "--feature-extractor",
    "extractor",
    help="One of torch-fidelity's that is plain weights, or lenet-digits [default: inception-v3-compat; of digits "
    "lenet-digits].",
)
@click.option("--weights", type=click.Path(path_type=Path), help="Of the extractor [default: its own].")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path("runs/cache"),
    show_default=True,
    help="Of images, features.",
)
@data_options
@result_options
@processes_option
@run_options
def fid(
    run: Path,
    samples: int | None,
    steps: int | None,
    extractor: str | None,
    weights: Path | None,
    cache: Path,
    data_root: Path | None,
    download: bool,
    out: Path | None,
    overwrite: bool,
    device: str,
    seed: int,
) -> None:
    """Measure the FID of raw and shifted samples.

    As in Table 2. Digits, which Inception does not know, are compared in the features of a LeNet. Its weights, if not
    given those shipped with mnist16, carry the statistics of MNIST's test images, so that FD needs no data set (KID
    does); "hbench lenet" makes others.

    \b
    Example:
        hbench fid mnist16 --samples 2000
        hbench fid mnist16 --samples 2000 --steps 50
    """
    import pandas as pd

    from hbench.evaluation.features import check_extractor, default_extractor, features
    from hbench.evaluation.fid import fidelity, lenet_reference, real_reference
    from hbench.evaluation.lenet import EXTRACTOR, FILE
    from hbench.evaluation.sample_cache import image_folder, pngs, sample_folders
    from hbench.reporting.charts import draw_fidelity
    from hbench.runtime.device import pick_device
    from hbench.runtime.distributed import rank, start
    from hbench.store.datasets import at_hand, load_reference
    from hbench.store.files import sha256
    from hbench.store.folders import remove_leftovers
    from hbench.store.run import SHIPPED, load_run

    place = pick_device(device)
    start(place)
    loaded = load_run(run, device=place)
    check_steps(loaded.experiment, steps, "--steps")
    M = steps or loaded.experiment.discovery.M
    extractor = extractor or default_extractor(loaded.experiment.data)
    if extractor == EXTRACTOR and weights is None:
        weights = SHIPPED / "mnist16" / FILE
    count = samples or loaded.experiment.evaluation.fid_samples
    check_extractor(extractor, weights, loaded.experiment.data)
    name = of_steps(f"fid-{extractor}", loaded.experiment, M)
    folder, origin = open_results(loaded, run, name, out, overwrite, seed, M=M)
    if rank():  # process 0 measures
        sample_folders(loaded, count, cache, seed, M)
        return
    remove_leftovers(cache)
    if extractor == EXTRACTOR and weights and not at_hand(loaded.experiment.data, data_root, download):
        reference = lenet_reference(weights)
    else:
        real = image_folder(load_reference(loaded.experiment.data, data_root, download), cache)
        reference = real_reference(features(pngs(real), extractor, weights, cache, place))
    kinds = sample_folders(loaded, count, cache, seed, M)
    result = fidelity(kinds, reference, extractor, weights, cache, place, count)
    for what, n in (("samples", count), ("real images", result.n_real)):
        if n <= result.feature_size:
            click.echo(f"warning: {n} {what} for {result.feature_size} features: a rank-deficient covariance", err=True)
    table = pd.DataFrame(
        {
            "samples": name,
            "n": d.n,
            "n_real": result.n_real,
            result.metric: d.fd,
            "low": d.interval[0],
            "high": d.interval[1],
            "KID": d.kid,
            "KID_std": d.kid_std,
        }
        for name, d in (("raw", result.raw), ("shifted", result.shifted))
    )
    draw_fidelity(result, kinds, of_steps(loaded.experiment.title, loaded.experiment, M), folder / "fid.png")
    write_results(
        folder,
        "fid",
        asdict(result),
        table,
        origin,
        n=count,
        n_real=result.n_real,
        extractor=extractor,
        extractor_sha256=weights and sha256(weights),
        reference_sha256=reference.sha256,
        samples={"raw": str(kinds[0]), "shifted": str(kinds[1])},
    )
    click.echo(table.to_string(index=False))
    low, high = result.ratio_interval
    click.echo(
        f"shifted / raw {result.ratio:.3f}  95% [{low:.3f}, {high:.3f}]   "
        f"two halves of the real images {result.halves:.3f}"
    )
    click.echo(f"see {folder / 'fid.png'}", err=True)
