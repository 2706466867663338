"""Diffusion models read back from disk: hbench's own, which carry their settings, and state dicts, which carry none."""

import logging
from pathlib import Path

import torch

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.errors import HBenchError, check_type, counted
from hbench.experiments import filled_in, override
from hbench.models import build_model
from hbench.models.guided_diffusion import SILENT, silent_settings, with_its_defaults
from hbench.runtime.device import pick_device
from hbench.store.foreign import read_state_dict, refuse_elsewhere, refuse_other_files, weights_beside
from hbench.store.provenance import checked_sha256
from hbench.store.run import WEIGHTS, locate
from hbench.store.shipped import shipped
from hbench.store.weights import carries_experiment, load_tensors, load_weights, read_experiment

log = logging.getLogger(__name__)


@torch.random.fork_rng(devices=[])
def load_model(
    path: str | Path, experiment: Experiment | None = None, *, device: str | torch.device = "auto"
) -> DiffusionModel:
    """Return a diffusion model.

    Args:
        path: a file of hbench's, a folder with ``model.safetensors``, the name of a shipped run, or a state dict with
            guided-diffusion's names: a pickle of tensors or safetensors, also nested or with a prefix.
        experiment: experiment of the model; by default the one that the file carries. A state dict carries none, and
            what no shape betrays, such as ``model.num_heads``, has guided-diffusion's default unless the experiment's
            file gives it. A notice names these settings.
        device: device of the model; "auto" is a GPU where there is one, else the CPU.

    Raises:
        HBenchError: missing, damaged, foreign, of other settings, or not the file of the provenance beside it.
    """
    if experiment is not None:
        check_type(Experiment, "as load_experiment returns it", experiment=experiment)
    file, device = _model_file(path), pick_device(device)
    settings = model_experiment(path, experiment)
    model = build_model(settings)
    if carries_experiment(file):
        checked_sha256(file)
        load_weights(file, model, "model")
    else:
        load_tensors(model, read_state_dict(file, settings), str(file))
        log.warning(
            "%s: read as guided-diffusion's: %s, linear schedule, no classes, as many heads in the "
            "decoder; wrong ones would load as well: look at samples",
            file,
            silent_settings(settings),
        )
    return model.to(device).eval()


def model_to_train_on(
    given: Path | None, folder: Path, experiment: Experiment, resume: bool
) -> tuple[Experiment, DiffusionModel]:
    """Return the model for a discovery in ``folder``, on the CPU: by default the pretrained one of the experiment.

    The experiment comes back as the model has it; see :func:`model_experiment`. A resumed discovery goes on with the
    model in its folder, if there is one already and none is given.
    """
    path = given or Path("runs") / experiment.name / "pretrain"
    if resume and (folder / f"model{WEIGHTS}").is_file():
        experiment = override(model_experiment(folder, experiment), [])  # as if all of it were given
        path = given or folder
    experiment = model_experiment(path, experiment)
    return experiment, load_model(path, experiment, device="cpu")


def model_experiment(path: str | Path, experiment: Experiment | None = None) -> Experiment:
    """Return the experiment of a model: the one it carries, or the given one, with what the model alone knows.

    The settings that no shape betrays, where the given experiment leaves them out, are those that the model was trained
    with; for a state dict, which carries none, they are the defaults of guided-diffusion's command line.

    Args:
        path: as for :func:`load_model`.
        experiment: experiment to use the model with.

    Raises:
        HBenchError: the file is missing, carries other settings than the given ones, or none, and none are given.
    """
    file = _model_file(path)
    if not carries_experiment(file):
        if experiment is None:
            raise HBenchError(f"{file}: a state dict does not know its settings: name its `experiment`")
        return with_its_defaults(experiment)
    trained_with = read_experiment(file)
    if experiment is None:
        return trained_with
    if trained_with.data.image_shape != experiment.data.image_shape:
        both = (trained_with.data, experiment.data)
        shapes = [f"{data.size}x{data.size} with {counted(data.channels, 'channel')}" for data in both]
        raise HBenchError(f"{file}: was trained on images of {shapes[0]}, not {shapes[1]}: use its [data] settings")
    known = {
        section: {name: getattr(getattr(trained_with, section), name) for name in SILENT[section]} for section in SILENT
    }
    experiment = filled_in(experiment, known)
    for section in SILENT:
        wanted = getattr(experiment, section).model_dump()
        for key, value in getattr(trained_with, section).model_dump().items():
            if value != wanted[key]:
                raise HBenchError(
                    f"{file}: was trained with {section}.{key} = {value!r}, not {wanted[key]!r}: use its settings"
                )
    return experiment


def _model_file(path: str | Path) -> Path:
    """Return the file of a model.

    Raises:
        HBenchError: there is none, or a model of other programs.
    """
    file = locate(path)
    inside = file / f"model{WEIGHTS}"
    file = inside if inside.is_file() else file
    if not file.is_file():
        refuse_elsewhere(file)
        if (file / "pretrain" / inside.name).is_file():
            raise HBenchError(f"{file}: holds no {inside.name}: give {file / 'pretrain'}")
        if found := weights_beside(file):
            raise HBenchError(f"{file}: holds no {inside.name}: give one of its files, such as {file / found[0]}")
        missing = inside if file.is_dir() or not file.suffix else file
        raise HBenchError(f"{missing}: no such model: pretrain it, or give another one, such as {shipped()}")
    refuse_other_files(file)
    return file
