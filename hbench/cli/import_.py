"""``hbench import``."""

import shlex
from pathlib import Path

import click

from hbench.cli.options import Count, Options, a_path, overwrite_option, run_options, shared
from hbench.errors import HBenchError


@click.command("import")
@click.argument("model", type=a_path)
@click.option("--class-label", type=Count(0), help="Class of a class-conditional model.")
@shared(
    click.option("--out", type=a_path, help="Experiment file to write [default: NAME.toml, as the model is called]."),
    overwrite_option,
    run_options,
)
def import_(model: Path, class_label: int | None, options: Options) -> None:
    """Write the experiment of a diffusion model of others, to be trained as it is.

    MODEL is a pipeline of diffusers or its UNet2DModel: a folder, a weights file (.safetensors, .bin) beside its
    config.json, or an id of the Hugging Face Hub; or a model of hbench. The file has the model's network, noise
    schedule and place, and a discovery that suits them, so that "hbench train FILE.toml" goes; change what you like.

    \b
    Example:
        hbench import ddpm-celebahq-256 --out celebahq.toml
    """
    from hbench.experiments import to_toml
    from hbench.store.files import write_text
    from hbench.store.imported import import_model
    from hbench.store.pipeline import model_name

    out = options.out or Path(f"{model_name(model)}.toml")
    if out.suffix != ".toml":
        raise HBenchError(f"{out}: an experiment is a .toml file: choose another `out`")
    if out.exists() and not options.overwrite:
        raise HBenchError(f"{out}: is there already: choose another `out`, or add `overwrite=True`")
    found = import_model(model, out.stem, class_label=class_label, seed=options.seed, device=options.torch_device())
    write_text(out, to_toml(found, out.parent))
    click.echo(out)
    commands = (["sample", str(model)], ["train", str(out)])
    click.echo(f"next: {', then '.join(shlex.join(['hbench', *each]) for each in commands)}", err=True)
