"""Runs and models read back from disk; a name such as "mnist16" stands for the run shipped with hbench."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

import hbench
from hbench.config import Experiment
from hbench.errors import HBenchError
from hbench.models import build_discriminator, build_model, build_reconstructor, build_shift_block
from hbench.models.adm import EncoderUNetModel, UNetModel
from hbench.models.reconstructor import LeNet, ResNet18
from hbench.models.shift import ShiftBlock
from hbench.store.files import sha256
from hbench.store.folders import refuse_links
from hbench.store.weights import load_pickled, load_tensors, load_weights, read_experiment

ROLES = ("model", "shift_block", "reconstructor", "discriminator")
WEIGHTS = ".safetensors"
"""Of a file that carries its settings."""
SHIPPED = Path(hbench.__file__).parent / "shipped"


@dataclass(frozen=True)
class Run:
    """A finished discovery, ready for evaluation: all networks frozen, in eval mode, on one device."""

    experiment: Experiment
    model: UNetModel
    shift_block: ShiftBlock
    reconstructor: LeNet | ResNet18
    discriminator: EncoderUNetModel
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files that it was read from."""

    @property
    def device(self) -> torch.device:
        """Device of all networks."""
        return next(self.model.parameters()).device


def locate(path: Path) -> Path:
    """The path itself, or the shipped run of that name where nothing lies at the path.

    Raises:
        HBenchError: a link leads out of a folder there, which may have come from anyone.
    """
    shipped = SHIPPED / path
    if path.is_dir():
        refuse_links(path)
    if not path.exists() and len(path.parts) == 1 and shipped.is_dir():
        return shipped
    return path


def run_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of each weights file of a run that is there."""
    files = {role: locate(path) / f"{role}.safetensors" for role in ROLES}
    return {role: sha256(file) for role, file in files.items() if file.is_file()}


def load_run(path: Path, device: torch.device) -> Run:
    """The run in a folder, or the shipped one of that name.

    Raises:
        HBenchError: not a run folder, unfinished, or damaged.
    """
    folder = locate(path)
    if not folder.is_dir():
        raise HBenchError(f"{path}: no such run: give the folder of one, or {_shipped()}")
    missing = [role for role in ROLES if not (folder / f"{role}.safetensors").is_file()]
    if missing:
        raise HBenchError(
            f'{folder}: no finished discovery there ({missing[0]}.safetensors is missing): run "hbench train", '
            "with --resume if it was stopped"
        )
    experiment = read_experiment(folder / "shift_block.safetensors")
    model = build_model(experiment)
    run = Run(
        experiment=experiment,
        model=model,
        shift_block=build_shift_block(experiment, model),
        reconstructor=build_reconstructor(experiment),
        discriminator=build_discriminator(experiment),
        hashes=run_hashes(folder),
    )
    for role in ROLES:
        module: torch.nn.Module = getattr(run, role)
        load_weights(folder / f"{role}.safetensors", module, role)
        module.to(device).eval().requires_grad_(False)
    return run


def load_model(path: Path, experiment: Experiment | None = None) -> UNetModel:
    """A diffusion model: from a folder with model.safetensors, such a file, a shipped run, or a PyTorch state dict.

    Args:
        path: where it is; a file that is not called ``.safetensors`` is a state dict, as guided-diffusion saves it.
        experiment: whose model settings to use; default: those that the file carries (a state dict carries none).

    Raises:
        HBenchError: missing, damaged, foreign, or of other settings.
    """
    file = _model_file(path)
    if file.suffix != WEIGHTS:
        model = build_model(experiment or model_experiment(path))
        load_tensors(model, load_pickled(file), str(file))
        return model.eval()
    own = read_experiment(file)
    if experiment is not None:
        if (own.data.size, own.data.channels) != (experiment.data.size, experiment.data.channels):
            shapes = [f"{e.data.size}x{e.data.size} with {e.data.channels} channels" for e in (own, experiment)]
            raise HBenchError(f"{file}: was trained on images of {shapes[0]}, not {shapes[1]}: use its [data] settings")
        for section in ("model", "diffusion"):
            wanted = getattr(experiment, section).model_dump()
            for key, value in getattr(own, section).model_dump().items():
                if value != wanted[key]:
                    raise HBenchError(
                        f"{file}: was trained with {section}.{key} = {value!r}, not {wanted[key]!r}: use its settings"
                    )
    model = build_model(own)
    load_weights(file, model, "model")
    return model.eval()


def model_to_train_on(given: Path | None, folder: Path, experiment: Experiment, resume: bool) -> UNetModel:
    """The model for a discovery in ``folder``: the given one, by default the pretrained one of the experiment's name.

    A resumed discovery goes on with the model in its folder, where it has come so far; HBenchError if another one is
    given.
    """
    if not resume or not (folder / "model.safetensors").is_file():
        return load_model(given or Path("runs") / experiment.name / "pretrain", experiment)
    model = load_model(folder, experiment)
    if given:
        stored_as = getattr(torch, experiment.pretrain.weights)
        other = load_model(given, experiment).state_dict()
        if not all(torch.equal(value, other[name].to(stored_as).float()) for name, value in model.state_dict().items()):
            raise HBenchError(f"{folder}: was started with another model than {given}: leave --model out")
    return model


def model_experiment(path: Path) -> Experiment:
    """The experiment that a model, given as for :func:`load_model`, carries; HBenchError for a state dict."""
    file = _model_file(path)
    if file.suffix != WEIGHTS:
        raise HBenchError(f"{file}: a state dict does not know its settings: name its experiment with --experiment")
    return read_experiment(file)


def load_names(path: Path) -> dict[int, str]:
    """The names of directions in a run's ``names.txt``, lines of ``index: name``; empty without that file."""
    file = locate(path) / "names.txt"
    names = {}
    if file.is_file():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise HBenchError(f"{file}: not UTF-8: save it as UTF-8") from error
        for number, line in enumerate(lines, start=1):
            index, colon, name = line.partition(":")
            if line.strip() and not (colon and re.fullmatch("[0-9]{1,9}", index.strip())):
                raise HBenchError(f'{file}, line {number}: write "index: name", for example "3: thickness"')
            if line.strip():
                names[int(index)] = name.strip()
    return names


def _shipped() -> str:
    return "the shipped " + ", ".join(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()))


def _model_file(path: Path) -> Path:
    file = locate(path)
    if file.is_dir() or not (file.suffix or file.is_file()):
        file = file / f"model{WEIGHTS}"
    if not file.is_file():
        raise HBenchError(
            f'{file}: no such model: make it with "hbench pretrain", or give another one, such as {_shipped()}'
        )
    return file
