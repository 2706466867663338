"""Experiment files: TOML read into settings, with overrides and errors that name the nearest key."""

import difflib
import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from hbench.config import Diffusion, Experiment, Paper, Precision
from hbench.errors import HBenchError, as_list, shown
from hbench.text import read_text

log = logging.getLogger(__name__)

FLAGS = {
    "image_size": "data.size",
    "in_channels": "data.channels",
    "num_channels": "model.model_channels",
    "diffusion_steps": "diffusion.T",
    "timesteps": "diffusion.T",
    "lr_anneal_steps": "pretrain.steps",
    "ema_rate": "pretrain.ema",
    "prediction_type": "diffusion.prediction",
    "beta_schedule": "diffusion.noise_schedule",
    "schedule": "diffusion.noise_schedule",
    "num_train_timesteps": "diffusion.T",
    "rescale_betas_zero_snr": "diffusion.zero_terminal_snr",
}
"""Flags of guided-diffusion, and settings of diffusers' schedulers, that have another name here."""
UNSUPPORTED = {
    "num_heads_upsample": "the decoder has as many heads as the encoder, as without that flag",
    "class_cond": "models are unconditional",
    "num_classes": "models are unconditional",
    "predict_xstart": "models that were trained with it have diffusion.prediction = 'x_0'",
    "rescale_timesteps": "timesteps are 0..T-1, as without that flag",
    "use_fp16": "weights of 16 bits are read as they are",
    "use_checkpoint": "the setting is discovery.checkpoint_blocks",
    "timestep_respacing": "the setting is discovery.M",
    "use_ddim": "sampling is DDIM's",
    "use_kl": "it only matters in training",
    "rescale_learned_sigmas": "it only matters in training",
    "weight_decay": "Adam has none",
}
"""Flags of guided-diffusion and others that have no setting here, and why."""
PATHS = (("data", "root"), ("model", "path"))
"""Settings that say where something lies, section and key; a relative path in a file starts at the file."""
OF_IMAGES = ("dataset", "size", "channels")
"""Settings of the data that make other images."""


def experiments_folder() -> Path:
    """Return the folder of the experiment files: inside an installed package, beside it in a checkout."""
    installed = Path(__file__).parent / "experiments"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "experiments"


def load_experiment(name: str | Path, overrides: str | Sequence[str] = (), /, **settings: Any) -> Experiment:
    """Return an experiment, with some settings changed.

    Args:
        name: an experiment of hbench, or the path of a TOML file.
        overrides: changed settings as text, "discovery.K=16"; one or several.
        settings: changed settings as values, ``**{"discovery.K": 16}``.

    Raises:
        HBenchError: no such experiment, unreadable TOML, unknown key, or a value out of range.
    """
    path = Path(name) if str(name).lower().endswith(".toml") else experiments_folder() / f"{name}.toml"
    if not path.is_file():
        known = known_experiments()
        raise HBenchError(f'no experiment "{name}": choose one of {", ".join(known)}, or give the path of a .toml file')
    try:
        values = tomllib.loads(read_text(path))
    except UnicodeDecodeError as error:
        raise HBenchError(f"{path}: not UTF-8: save it as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:
        raise HBenchError(f"{path}: not valid TOML: {error}") from error
    if "name" in values:  # results go to a folder of this name
        raise HBenchError(f'{path}: unknown key "name": an experiment has the name of its file')
    _resolve_paths(values, path.parent)
    for each in as_list(overrides):
        _set(values, *_parse_override(each))
    for key, value in settings.items():
        _set(values, key, value)
    return parse_experiment({**values, "name": path.stem}, source=str(path))


def to_toml(experiment: Experiment, folder: Path) -> str:
    """Return the text of an experiment file: the settings that were given, and the paths.

    Args:
        experiment: experiment to write.
        folder: folder of the file; a path below it is written as it is seen from there.
    """
    values = experiment.model_dump(mode="json", exclude={"name"}, exclude_unset=True, exclude_none=True)
    for section, key in PATHS:
        if path := getattr(getattr(experiment, section), key):
            below = Path(path).exists() and Path(path).resolve().is_relative_to(folder.resolve())
            path = str(Path(path).resolve().relative_to(folder.resolve())) if below else _anywhere(path)
            values[section] = {key: path, **values[section]}
    tables = [(section, values[section]) for section in type(experiment).model_fields if values.get(section)]
    return "\n".join(line for section, table in tables for line in _table(section, table))


def _anywhere(path: str) -> str:
    """Return a path that is the same seen from any folder; what is none, such as an id of a Hub, as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of TOML, its own tables last."""
    inner = [(f"{name}.{key}", value) for key, value in values.items() if isinstance(value, dict)]
    plain = [(key, value) for key, value in values.items() if not isinstance(value, dict)]
    # JSON's strings, numbers, truths and lists are those of TOML
    lines = [f"[{name}]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain), ""]
    return lines + [line for each in inner for line in _table(*each)]


def known_experiments() -> list[str]:
    """Return the names of the experiments that hbench comes with."""
    return sorted(path.stem for path in experiments_folder().glob("*.toml"))


def paper_of(experiment: Experiment) -> Paper:
    """Return the paper's numbers for an experiment: those in its file, or in the experiment of that name in hbench."""
    if experiment.paper != Paper() or experiment.name not in known_experiments():
        return experiment.paper
    return load_experiment(experiment.name).paper


def parse_experiment(values: dict[str, Any], source: str) -> Experiment:
    """Return the experiment of plain values; ``source`` names their origin in error messages.

    Raises:
        HBenchError: unknown or missing key, or a value out of range.
    """
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        raise HBenchError(f"{source}: {_first_problem(error)}") from error


def override(experiment: Experiment, overrides: str | Sequence[str]) -> Experiment:
    """Return the experiment with other settings, one or several, each ``section.key=value``.

    Raises:
        HBenchError: unknown key, or a value out of range.
    """
    values, overrides = experiment.model_dump(), as_list(overrides)
    for section, key in PATHS:
        values[section][key] = getattr(getattr(experiment, section), key)  # which no dump has
    for each in overrides:
        _set(values, *_parse_override(each))
    return parse_experiment(values, source=", ".join(overrides))


def filled_in(experiment: Experiment, values: Mapping[str, Mapping[str, Any]]) -> Experiment:
    """Return the experiment with other values for the settings that were left out; they go on to count as left out.

    Args:
        experiment: experiment to change.
        values: values by section and setting.

    Raises:
        HBenchError: settings that do not go together.
    """
    sections = {}
    for name, wanted in values.items():
        section = getattr(experiment, name)
        left_out = {key: value for key, value in wanted.items() if key not in section.model_fields_set}
        filled = {**dict(section), **left_out}
        sections[name] = type(section).model_construct(set(section.model_fields_set), **filled)
    filled_in = experiment.model_copy(update=sections)
    parse_experiment(filled_in.model_dump(), source=experiment.name)
    return filled_in


def warn_of_schedule(experiment: Experiment) -> None:
    """Log a warning, once in a process, where the noise schedule does not end in pure noise, and what would help."""
    _warn_once(experiment.diffusion)


@cache
def _warn_once(diffusion: Diffusion) -> None:
    if diffusion.advice:
        log.warning("%s", diffusion.advice)


def without_pool(
    experiment: Experiment, batch_size: int | None = None, precision: Precision | None = None
) -> Experiment:
    """Return the experiment as a sweep over M takes it: without a pool, with its batch size for sweeps.

    Args:
        experiment: experiment to change.
        batch_size: pairs of a training step; the experiment's for sweeps by default.
        precision: precision of the networks; the experiment's by default.
    """
    chosen = {"pool": 0, "batch_size": batch_size or experiment.evaluation.sweep_batch_size, "precision": precision}
    return override(experiment, [f"discovery.{key}={value}" for key, value in chosen.items() if value is not None])


def settings_of_model(experiment: Experiment, section: str | None = None) -> dict[str, object]:
    """Return the settings of the images, the diffusion model and a further section by key: "model.model_channels"."""
    whole = {each: True for each in ("model", "diffusion", section) if each}
    values = experiment.model_dump(mode="json", include={"data": set(OF_IMAGES), **whole})
    return {f"{section}.{key}": value for section, table in values.items() for key, value in table.items()}


def changes(experiment: Experiment, name: str) -> list[str]:
    """Return the overrides by which the experiment ``name`` has the images and the diffusion model of this one."""
    theirs, found = settings_of_model(load_experiment(name)), []
    for key, value in settings_of_model(experiment).items():
        if isinstance(value, dict) and theirs[key] != value:
            found += [f"{key}.{inner}={json.dumps(each)}" for inner, each in value.items() if each is not None]
        elif theirs[key] != value:
            found.append(f"{key}={json.dumps(value)}")
    return found


def one_at_a_time(over: Sequence[str]) -> dict[str, list[str]]:
    """Return variants from "section.key=value,value,…": the experiment as it is, then each of these values alone.

    Raises:
        HBenchError: a variant is not of that form, or names no [discovery] setting.
    """
    variants: dict[str, list[str]] = {"as it is": []}
    for each in over:
        key, separator, values = each.partition("=")
        if not separator or not key.startswith("discovery."):
            raise HBenchError(f'`over` {each}: write "discovery.key=value,value", for example discovery.S=2,5')
        name = key.removeprefix("discovery.")
        variants |= {f"{name}={value.strip()}": [f"{key}={value}"] for value in values.split(",")}
    return variants


def with_home(path: str | Path) -> Path:
    """Return a path with the home folder in the place of "~".

    Raises:
        HBenchError: nobody of that name has one.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise HBenchError(f'{path}: there is no home folder for its "~": write the whole path') from error


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the paths in the values of a file start at the file's folder, where they are relative.

    A model that is not there stays as it is written: it may be an id of the Hugging Face Hub.
    """
    for section, key in PATHS:
        table = values.get(section)
        written = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(written, str) and written:
            found = folder / with_home(written)
            table[key] = str(found) if section == "data" or found.exists() else written


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator:
        raise HBenchError(f'setting {override}: write "section.key=value", for example discovery.K=16')
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), text.strip()  # an unquoted string


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    if not (sections and all(sections) and name):
        raise HBenchError(f'setting {key}: write "section.key=value", for example discovery.K=16')
    table: Any = values
    for section in sections:
        if table.get(section) is None:  # a table that was left out
            table[section] = {}
        table = table[section]
        if key.startswith("name.") or not isinstance(table, dict):
            raise HBenchError(f"setting {key}: {section} is not a section")
    table[name] = value


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section: type[BaseModel] = Experiment
        for part in problem["loc"][:-1]:
            annotation = section.model_fields[str(part)].annotation
            section = annotation if isinstance(annotation, type) else get_args(annotation)[0]
        valid = list(section.model_fields)
        lower = {each.lower(): each for each in valid}
        name = str(problem["loc"][-1])
        if name in FLAGS:
            return f'unknown key "{key}": it is called {FLAGS[name]} here'
        if name in UNSUPPORTED:
            return f'unknown key "{key}": {UNSUPPORTED[name]}; leave it out'
        near = difflib.get_close_matches(str(problem["loc"][-1]).lower(), lower, n=1, cutoff=0.5)
        hint = f'did you mean "{lower[near[0]]}"?' if near else f"valid keys: {', '.join(valid)}"
        return f'unknown key "{key}": {hint}'
    if problem["type"] == "missing":
        return f'missing key "{key}"'
    message = problem["msg"].removeprefix("Value error, ")
    # such a message names the settings itself
    of_a_section = problem["type"] == "value_error" and (not key or isinstance(problem["input"], dict))
    return message if of_a_section else f"{key} = {shown(problem['input'])}: {message[0].lower()}{message[1:]}"
