"""Diffusion models read from disk.

They are hbench's own and those of diffusers, which carry their settings, and state dicts, which carry none.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hbench.config import Diffusion, Experiment, Model, Section
from hbench.core.backbone import DiffusionModel
from hbench.errors import HBenchError, check_type, counted
from hbench.experiments import filled_in, load_experiment, override
from hbench.models import build_model
from hbench.models.guided_diffusion import SILENT, silent_settings, with_its_defaults
from hbench.runtime.device import pick_device
from hbench.store.foreign import read_state_dict, refuse_elsewhere, refuse_other_files, weights_beside
from hbench.store.pipeline import experiment_of, find_pipeline, read_unet
from hbench.store.provenance import checked_sha256
from hbench.store.run_files import WEIGHTS, locate
from hbench.store.shipped import shipped, unhiding
from hbench.store.weights import carries_experiment, load_tensors, load_weights, read_experiment

log = logging.getLogger(__name__)

Settings = Mapping[str, Sequence[str]]
"""Names of settings, section by section."""
OF_MODEL: Settings = {**SILENT, "model": (*SILENT["model"], "unet2d", "backbone")}
"""Settings that a model of hbench has and no shape betrays, or that say its kind."""
ALL: Settings = {
    "model": [key for key in Model.model_fields if key != "path"],
    "diffusion": [*Diffusion.model_fields],
}
"""All settings of a model of hbench."""


@torch.random.fork_rng(devices=[])
def load_model(
    path: str | Path, experiment: Experiment | None = None, *, device: str | torch.device = "auto"
) -> DiffusionModel:
    """Return a diffusion model.

    Args:
        path: a file of hbench's, a folder with ``model.safetensors``, the name of a shipped run; a pipeline or
            ``UNet2DModel`` of diffusers: its folder, its weights file beside ``config.json``, or an id of the Hugging
            Face Hub, which is downloaded unless it is in the Hub's cache; or a state dict with guided-diffusion's
            names: a pickle of tensors or safetensors, also nested or with a prefix.
        experiment: experiment of the model; by default the one that the file carries, or that diffusers' settings
            describe. A state dict carries none, and what no shape betrays, such as ``model.num_heads``, has
            guided-diffusion's default unless the experiment's file gives it. A notice names these settings.
        device: device of the model; "auto" is a GPU where there is one, else the CPU.

    Raises:
        HBenchError: missing, damaged, foreign, of other settings, or not the file of the provenance beside it.
    """
    if experiment is not None:
        check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    device, pipeline = pick_device(device), find_pipeline(path)
    settings = model_experiment(path, experiment)
    model, file = build_model(settings), model_file(path)
    if pipeline:
        load_tensors(model, {f"unet.{name}": value for name, value in read_unet(pipeline).items()}, str(file))
        if pipeline.scheduler is None:
            log.warning(
                "%s: no scheduler_config.json beside it: read with %s, diffusers' defaults unless the experiment has "
                "others; wrong ones would load as well: look at samples",
                file,
                silent_settings(settings, ["diffusion"], with_origin=False),
            )
    elif carries_experiment(file):
        checked_sha256(file)
        load_weights(file, model, "model")
    else:
        load_tensors(model, read_state_dict(file, settings), str(file))
        log.warning(
            "%s: read as guided-diffusion's: %s, no classes, as many heads in the decoder; wrong ones would load as "
            "well: look at samples",
            file,
            silent_settings(settings),
        )
    return model.to(device).eval()


def model_to_train_on(
    given: Path | None, folder: Path, experiment: Experiment, resume: bool
) -> tuple[Experiment, DiffusionModel]:
    """Return the model for a discovery in ``folder``, on the CPU: by default the experiment's, or its pretrained one.

    The experiment comes back as the model has it; see :func:`model_experiment`. A resumed discovery goes on with the
    model in its folder, if there is one already and none is given.
    """
    path = given or Path(experiment.model.path or f"runs/{experiment.name}/pretrain")
    if resume and (folder / f"model{WEIGHTS}").is_file():
        experiment = override(model_experiment(folder, experiment), [])  # as if all of it were given
        path = given or folder
    experiment = model_experiment(path, experiment)
    return experiment, load_model(path, experiment, device="cpu")


def model_experiment(path: str | Path, experiment: Experiment | None = None) -> Experiment:
    """Return the experiment of a model: the one it carries, or the given one, with what the model alone knows.

    The settings that no shape betrays, where the given experiment leaves them out, are those that the model was trained
    with; for a state dict, which carries none, they are the defaults of guided-diffusion's command line. A model of
    diffusers knows its network and its noise schedule; the rest of [model] shapes the discriminator.

    Args:
        path: as for :func:`load_model`.
        experiment: experiment to use the model with.

    Raises:
        HBenchError: the file is missing, carries other settings than the given ones, or none, and none are given.
    """
    pipeline = find_pipeline(path)
    if pipeline:
        unet2d = experiment and experiment.model.unet2d
        trained_with = experiment_of(pipeline, class_label=unet2d.class_label if unet2d else None)
        diffusion = {} if pipeline.scheduler is None else {"diffusion": ALL["diffusion"]}
        known: Settings = {"model": ("unet2d", "learn_sigma"), **diffusion}
        compared = known
    else:
        file = model_file(path)
        if not carries_experiment(file):
            if experiment is None:
                raise HBenchError(f"{file}: a state dict does not know its settings: name its `experiment`")
            return with_its_defaults(experiment)
        trained_with, known, compared, path = read_experiment(file), OF_MODEL, ALL, file
    if experiment is None:
        return trained_with
    return _as_trained(experiment, trained_with, known, compared, str(path))


def _as_trained(
    experiment: Experiment, trained_with: Experiment, known: Settings, compared: Settings, source: str
) -> Experiment:
    """Return the experiment with what the model alone knows.

    Args:
        experiment: experiment to use the model with.
        trained_with: the model's own.
        known: settings that come from the model where the experiment leaves them out, by section.
        compared: settings that must be the same, by section.
        source: name of the model for messages.

    Raises:
        HBenchError: the images, or a compared setting, are others.
    """
    if trained_with.data.image_shape != experiment.data.image_shape:
        both = (trained_with.data, experiment.data)
        shapes = [f"{data.size}x{data.size} with {counted(data.channels, 'channel')}" for data in both]
        raise HBenchError(f"{source}: was trained on images of {shapes[0]}, not {shapes[1]}: use its [data] settings")
    values = {
        section: {key: getattr(getattr(trained_with, section), key) for key in known[section]} for section in known
    }
    experiment = filled_in(experiment, values)
    for section, keys in compared.items():
        theirs, wanted = (_flat(getattr(each, section), keys) for each in (trained_with, experiment))
        for key in [*theirs, *wanted]:
            if (value := theirs.get(key)) != (ours := wanted.get(key)):
                raise HBenchError(
                    f"{source}: was trained with {section}.{key} = {value!r}, not {ours!r}: use its settings"
                )
    return experiment


def _flat(section: Section, keys: Sequence[str]) -> dict[str, object]:
    """Return settings of a section by key, those of a table in it by the keys of both."""
    found: dict[str, object] = {}
    for key, value in section.model_dump(include=set(keys)).items():
        found |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    return found


def model_file(path: str | Path) -> Path:
    """Return the file of a model.

    Raises:
        HBenchError: there is none, or a model of other programs.
    """
    if pipeline := find_pipeline(path):
        return pipeline.weights
    file = locate(path)
    inside = file / f"model{WEIGHTS}"
    file = inside if inside.is_file() else file
    if file.is_file() and file.suffix == ".toml":
        _refuse_experiment(file)
    if not file.is_file():
        refuse_elsewhere(file)
        if (file / "pretrain" / inside.name).is_file():
            raise HBenchError(f"{file}: holds no {inside.name}: give {file / 'pretrain'}")
        if found := weights_beside(file):
            raise HBenchError(f"{file}: holds no {inside.name}: give one of its files, such as {file / found[0]}")
        missing = inside if file.is_dir() or not file.suffix else file
        raise HBenchError(
            f"{missing}: no such model: pretrain it, or give another one, such as {shipped()}{unhiding(file)}"
        )
    refuse_other_files(file)
    return file


def _refuse_experiment(file: Path) -> None:
    """Raise an HBenchError that names the model of an experiment, which was given in its place."""
    problem = f"{file}: is an experiment, not a model"
    if own := load_experiment(file).model.path:
        raise HBenchError(f"{problem}: give its model, {own}, or give that with the file as `experiment`")
    raise HBenchError(f"{problem}: pretrain it, and give its model, runs/{file.stem}/pretrain")
