"""No mistake of a user ends in a traceback: whatever is given, one line says what to do about it."""

import io
import os
import shutil
import tempfile
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from command_line import invoke, tiny_options
from PIL import Image

from hbench.cli import main
from hbench.config import Data, Experiment
from hbench.errors import HBenchError
from hbench.experiments import experiments_folder, load_experiment, parse_experiment
from hbench.models import build_discriminator, build_model, build_reconstructor, build_shift_block
from hbench.store.datasets import load_images

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
HealthCheck, example, given, settings = (
    hypothesis.HealthCheck,
    hypothesis.example,
    hypothesis.given,
    hypothesis.settings,
)

OPTIONS = tiny_options()
PRESET = (experiments_folder() / "digits16.toml").read_text()
KEYS = [
    f"{section}.{key}"
    for section, field in Experiment.model_fields.items()
    if hasattr(field.annotation, "model_fields")
    for key in field.annotation.model_fields
]
quick = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def answered(*arguments):
    """Runs a command, which may succeed, or say in one line what is wrong."""
    result = invoke(*arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{arguments}: {result.exception!r}") from result.exception
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    if result.exit_code:
        said = result.stderr.strip("\n").split("\n")
        assert sum(line.startswith("Error: ") for line in said) == 1, result.stderr
        assert said[-1].startswith("Error: "), result.stderr
        assert len(said[-1]) > len("Error: ")
    return result


# Configuration ------------------------------------------------------------------------------------------------------

literals = st.one_of(
    st.sampled_from(
        ["", "nan", "inf", "-inf", "1e400", "true", "[]", "[1, 2]", "{}", "1979-05-27", "0x10", "'x'", '"']
    ),
    st.integers(-3, 10**6).map(str),
    st.integers().map(str),
    st.floats().map(str),
    words,
    st.lists(st.integers(-2, 40), max_size=4).map(str),
)


@st.composite
def damaged_presets(draw):
    """A preset with some lines gone, doubled, or with another value."""
    lines = PRESET.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(lines) - 1))
        key = lines[i].partition("=")[0]
        lines[i] = draw(
            st.sampled_from(["", f"{lines[i]}\n{lines[i]}", lines[i][:-1], f"x{lines[i]}"])
            | literals.map(lambda value, key=key: f"{key}= {value}")
            | words
        )
    return "\n".join(lines).encode()


@quick
@given(damaged_presets() | st.binary(max_size=60) | words.map(str.encode))
@example(b"name = '../../elsewhere'\n" + PRESET.encode())
@example(b"x = " + b"[" * 5000)
@example(b"x = " + b"1" * 5000)
@example(b"discovery = 1\n")
def test_any_file_of_settings(tmp_path, content):
    file = tmp_path / "my.toml"
    file.write_bytes(content)
    result = answered("train", file, "--dry-run")
    if not result.exit_code:
        assert parse_experiment(tomllib.loads(content.decode()) | {"name": "my"}, "").name == "my"


@quick
@given(st.lists(st.tuples(st.sampled_from(KEYS) | words, literals).map("=".join) | words, min_size=1, max_size=3))
@example(["discovery.S=inf"])
@example(["discovery.lr=nan"])
@example(["name.x=1"])
@example(["discovery.K=" + "1" * 5000])
@example(["discovery.K=" + "[" * 5000])
def test_any_change_of_a_setting(overrides):
    options = [part for override in overrides for part in ("--set", override)]
    result = answered("train", "digits16", "--dry-run", *options)
    if not result.exit_code:
        assert "nan" not in result.stdout.lower()
        assert "inf" not in result.stdout.lower()


@pytest.mark.slow
@settings(quick, max_examples=40)
@given(
    st.fixed_dictionaries(
        {
            "data.size": st.sampled_from([8, 12, 16, 20, 28, 32]),
            "data.channels": st.sampled_from([1, 3]),
            "model.model_channels": st.sampled_from([32, 48, 64, 96]),
            "model.channel_mult": st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4),
            "model.num_res_blocks": st.integers(1, 2),
            "model.attention_resolutions": st.lists(st.sampled_from([4, 7, 8, 14, 16]), max_size=2),
            "model.num_heads": st.integers(1, 5),
            "model.num_head_channels": st.sampled_from([-1, 0, 16, 24, 32]),
            "model.use_scale_shift_norm": st.booleans(),
            "model.resblock_updown": st.booleans(),
            "model.learn_sigma": st.booleans(),
            "discovery.reconstructor": st.sampled_from(["lenet", "resnet18"]),
        }
    )
)
def test_accepted_settings_make_networks_that_run(values):
    overrides = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]
    try:
        experiment = load_experiment("digits16", overrides)
    except HBenchError:
        return
    shape = (2, experiment.data.channels, experiment.data.size, experiment.data.size)
    with torch.device("meta"):
        model = build_model(experiment).eval()
        block = build_shift_block(experiment, model)
        x, t = torch.zeros(shape), torch.zeros(2, dtype=torch.long)
        assert model(x, t).shape[2:] == shape[2:]
        assert build_discriminator(experiment)(x, t).shape == (2, 1)
        assert build_reconstructor(experiment)(x, x)[0].shape == (2, experiment.discovery.K)
        assert block.K == experiment.discovery.K


# Pictures -----------------------------------------------------------------------------------------------------------

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]
FORMATS = ["png", "jpeg", "bmp", "tiff", "webp"]


@st.composite
def pictures(draw):
    """The bytes of a picture of any mode, perhaps cut or with some bytes changed."""
    pixels = draw(st.sampled_from([(16, 16), (9, 31), (1, 1), (3, 300)]))
    picture = Image.new(draw(st.sampled_from(MODES)), pixels)
    if draw(st.booleans()) and picture.mode in ("L", "RGB"):
        noise = np.random.default_rng(0).integers(0, 256, (*pixels, len(picture.getbands())), dtype=np.uint8)
        picture = Image.fromarray(noise.squeeze(2) if noise.shape[2] == 1 else noise)
    file = io.BytesIO()
    kind = draw(st.sampled_from(FORMATS))
    try:
        picture.save(file, kind)
    except (OSError, KeyError, ValueError):  # no such pictures of this mode
        picture.convert("RGB").save(file, kind)
    content = bytearray(file.getvalue())
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


@pytest.mark.slow
@settings(quick, max_examples=250)
@given(pictures() | st.binary(max_size=40), st.sampled_from([1, 3]), st.sampled_from([".png", ".TIFF", ".jpg"]))
def test_any_picture(content, channels, suffix):
    data = Data(dataset="folder", label="x", size=16, channels=channels)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a", "b"):
            (Path(folder) / f"{name}{suffix}").write_bytes(content)
        said = None
        try:
            images = load_images(data, Path(folder))
        except HBenchError as error:
            said = str(error)
    if said is None:
        assert images.shape == (2, channels, 16, 16)
        assert torch.equal(images[0], images[1])
    else:
        assert f"a{suffix}: " in said
        assert said.endswith("repair or remove them")  # both of them
        assert len(said.splitlines()) == 1


def test_floating_point_pixels_are_not_made_black(tmp_path):
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "a.tiff")
    Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(
        HBenchError, match=r"a\.tiff: not a readable image \(floating-point pixels; save it with 8 or 16"
    ):
        load_images(Data(dataset="folder", label="x", size=16), tmp_path)


def test_odd_entries_of_a_folder(tmp_path):
    data = Data(dataset="folder", label="x", size=16)
    for i in range(3):
        Image.new("L", (16, 16), i).save(tmp_path / f"{i}.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "broken.png").symlink_to("absent.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert len(load_images(data, tmp_path)) == 3
    (tmp_path / "empty.png").touch()
    with pytest.raises(HBenchError, match=r"empty\.png: not a readable image"):
        load_images(data, tmp_path)


ODD_NAMES = ["a b", "ä", "\u202egnp", "new\nline", "$x^$", "-rf", "%s{}", "'\"", "\udcff", "😀", "=1+1", "x" * 200]


def test_pictures_of_any_name_are_edited(tmp_path, tiny_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ODD_NAMES:
        Image.new("L", (16, 16)).save(folder / f"{name}.png")
    options = ["--shift", "0=1", "--inversion-steps", 1, "--out", tmp_path / "\udcfeout", "--quiet"]
    result = answered("edit", tiny_run, folder, *options)
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "\udcfeout" / "images").glob("*.png"))) == 3 * len(ODD_NAMES)


# Command lines ------------------------------------------------------------------------------------------------------

COMMANDS = {name: found for name, found in main.commands.items() if not isinstance(found, click.Group)}
COMMANDS |= {f"mos {name}": found for name, found in main.commands["mos"].commands.items()}
del COMMANDS["demo"]  # needs nothing, and so would run
PLACES = [
    "",
    ".",
    "absent",
    "absent/er",
    "file",
    "empty",
    "weights",
    "file/inside",
    "x" * 300,
    "/proc/self/mem",
    "\udcff",
]
values = st.one_of(
    st.sampled_from(PLACES),
    st.integers(-2, 3).map(str),
    st.sampled_from(
        ["nan", "inf", "-1", "1e9", "99999999999999999999", "cuda:99", "cpu", "0=1", "0,1", "own", "mnist16x"]
    ),
    words,
)


@st.composite
def command_lines(draw):
    """A command with any options, in which at least one needed thing is missing or is not what it should be."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    arguments = name.split()
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Argument):
            if any(option.name == "dry_run" for option in COMMANDS[name].params):
                arguments += [
                    draw(st.sampled_from(["digits16", "digits17", "empty", "file.toml"]) | words),
                    "--dry-run",
                ]
            else:
                arguments += draw(st.lists(st.sampled_from(PLACES), max_size=2))
        elif draw(st.integers(0, 4)) == 0:
            arguments.append(parameter.opts[0])
            if not parameter.is_flag or draw(st.integers(0, 9)) == 0:
                arguments.append(draw(values))
    return arguments


@pytest.mark.slow
@settings(quick, max_examples=300)
@given(command_lines())
@example(["reproduce", "digits16", "--run", "empty"])
@example(["sample", "weights"])
@example(["rca", "x" * 300])
@example(["rca", "file/inside"])
@example(["mos", "score", "file", "--key", "file"])
def test_any_command_line(tmp_path_factory, tiny_model, arguments):
    folder = tmp_path_factory.getbasetemp() / "mistakes"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "empty").mkdir(parents=True)
    (folder / "file").write_text("nothing")
    (folder / "file.toml").write_text("nothing")
    shutil.copytree(tiny_model, folder / "weights", copy_function=os.link)  # a command may write its result there
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answered(*arguments)
