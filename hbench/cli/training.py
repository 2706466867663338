"""The commands that train: the diffusion model, the directions, the feature extractor."""

from pathlib import Path

import click

from hbench.cli.legacy import (
    claim_folder,
    data_options,
    experiment_options,
    print_experiment,
    run_options,
)
from hbench.errors import HBenchError


@click.command()
@experiment_options
@click.option("--out", type=click.Path(path_type=Path), help="Output folder [default: runs/EXPERIMENT/lenet].")
@data_options
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True, help="Passes over the images.")
@click.option("--overwrite", is_flag=True, help="Replace a LeNet that is already there.")
@run_options
def lenet(
    experiment: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    out: Path | None,
    data_root: Path | None,
    download: bool,
    epochs: int,
    overwrite: bool,
    device: str,
    seed: int,
) -> None:
    """Train the digit LeNet whose features fid uses.

    On the labelled images of EXPERIMENT. It is so small that it is trained on the CPU, whatever --device says.

    \b
    Example:
        hbench lenet digits16 --epochs 20
    """
    from hbench.experiments import load_experiment

    settings = load_experiment(experiment, overrides)
    if dry_run:
        print_experiment(settings)
        return
    from hbench.evaluation.fid import real_reference
    from hbench.evaluation.lenet import FILE as LENET
    from hbench.evaluation.lenet import accuracy, save_lenet, single_features, train_lenet
    from hbench.runtime.device import pick_device
    from hbench.store.datasets import load_labelled
    from hbench.store.files import sha256
    from hbench.store.provenance import FILE, provenance

    pick_device(device)
    (images, labels), (test_images, test_labels) = (
        load_labelled(settings.data, data_root, split, download) for split in ("train", "test")
    )
    if labels is None or test_labels is None:
        raise HBenchError(f"{settings.name}: its images carry no labels: use an experiment on mnist or digits")
    folder = out or Path("runs") / settings.name / "lenet"
    claim_folder(folder, overwrite=overwrite)
    origin = provenance(settings, pick_device("cpu"), seed)
    network = train_lenet(settings, images, labels, epochs=epochs, seed=seed)
    reference = real_reference(single_features(network, test_images))
    weights = folder / LENET
    save_lenet(weights, network, settings, reference.statistics, reference.n, reference.halves)
    found = accuracy(network, test_images, test_labels)
    done = origin.finished(
        n_train=len(images),
        n_test=len(test_images),
        accuracy=found,
        halves=reference.halves,
        weights_sha256=sha256(weights),
    )
    done.write(folder / FILE)
    click.echo(
        f"test accuracy {found:.4f}  n {len(test_images)}  "
        f"FD (LeNet digits) between two halves of the test images {reference.halves:.3f}"
    )
    click.echo(weights)
