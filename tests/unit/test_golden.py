"""hbench against outputs of the reference implementations; see tests/unit/golden/README.md."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hbench.core.diffusion import (
    alpha_bar_schedule,
    direction_to_x_t,
    predict_x_0,
    regular_step,
    shifted_step,
    timesteps,
    transition,
)
from hbench.models.adm import EncoderUNetModel, UNetModel
from hbench.models.guided_diffusion import config_from_guided_diffusion
from hbench.models.shift import ShiftBlock

FOLDER = Path(os.environ.get("HBENCH_GOLDEN") or Path(__file__).parent / "golden")


def files(pattern):
    return [pytest.param(path, id=path.stem) for path in sorted(FOLDER.glob(pattern))]


def read(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return metadata, load_file(path)


def fill(module, seed, rename=lambda name: name):
    """The weights' rule of the golden files' README."""
    for name, parameter in module.named_parameters():
        source = rename(name)
        state = np.random.RandomState((seed + zlib.crc32(source.encode())) % 2**32)
        shape = tuple(s for s in parameter.shape)
        scale = 0.08 if len(shape) > 1 else 0.2
        values = state.standard_normal(shape).astype(np.float32) * np.float32(scale)
        if len(shape) == 1 and name.endswith("weight"):
            values += 1
        parameter.data = torch.from_numpy(values)
    return module.eval()


def build(cls, metadata):
    module = cls(config_from_guided_diffusion(**json.loads(metadata["config"])))
    own = {name: list(value.shape) for name, value in module.state_dict().items()}
    expected = json.loads(metadata["parameters"])
    assert own == {name: shape for name, shape in expected.items() if not name.startswith("layer_0.")}
    return fill(module, int(metadata["seed"]))


def assert_close(actual, expected, tolerance):
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"


def test_golden_folder_holds_every_kind():
    for pattern in ("adm_unet_*", "adm_encoder_*", "ddim_leading_*", "asyrp_step*"):
        assert files(pattern), f"no {pattern} in {FOLDER}"


@pytest.mark.parametrize("path", files("adm_unet_*"))
@torch.no_grad()
def test_unet(path):
    metadata, golden = read(path)
    model = build(UNetModel, metadata)
    y = golden.get("y")
    h, skips, emb = model.encode(golden["x"], golden["t"], y)
    assert_close(h, golden["h"], 1e-4)
    assert h.shape[1:] == model.h_shape
    assert_close(model.decode(h, skips, emb), golden["out"], 1e-4)
    assert_close(model(golden["x"], golden["t"], y), golden["out"], 1e-4)


@pytest.mark.parametrize("path", files("adm_encoder_*"))
@torch.no_grad()
def test_encoder(path):
    metadata, golden = read(path)
    assert_close(build(EncoderUNetModel, metadata)(golden["x"], golden["t"]), golden["out"], 1e-4)


@pytest.mark.parametrize("path", files("ddim_leading_*"))
@torch.no_grad()
def test_ddim_and_inversion(path):
    metadata, golden = read(path)
    model = build(UNetModel, read(path.with_name(metadata["eps_model"] + ".safetensors"))[0])
    alpha_bar = alpha_bar_schedule(len(golden["alphas_cumprod"]))
    torch.testing.assert_close(alpha_bar, golden["alphas_cumprod"], rtol=1e-12, atol=0)
    ascending = sorted(golden["timesteps"].tolist())
    assert timesteps(len(ascending), alpha_bar, "leading") == ascending[::-1]

    levels = [-1, *ascending]
    x = golden["reverse_nodes"][0]
    for i, node in enumerate(golden["reverse_nodes"][1:]):
        x = regular_step(model, transition(alpha_bar, levels[-1 - i], levels[-2 - i]), x)
        assert_close(x, node, 1e-3)
    # guided-diffusion inverts from its first timestep, and its last step ends in pure noise
    upwards = [*ascending, len(alpha_bar)]
    x = golden["inversion_nodes"][0]
    for i, node in enumerate(golden["inversion_nodes"][1:]):
        x = regular_step(model, transition(alpha_bar, upwards[i], upwards[i + 1]), x)
        assert_close(x, node, 1e-3)


@pytest.mark.parametrize("path", files("asyrp_step*"))
@torch.no_grad()
def test_asyrp_step(path):
    metadata, golden = read(path)
    config = config_from_guided_diffusion(**json.loads(metadata["config"]))
    seed = int(metadata["seed"])
    model = fill(UNetModel(config), seed)
    block = ShiftBlock(model.h_shape[0], model.emb_channels, K=1)
    names = dict(block.named_parameters())
    for name, shape in json.loads(metadata["parameters"]).items():
        if name.startswith("layer_0."):
            own = name.removeprefix("layer_0.").replace("out_layers.3.weight", "out_weight")
            own = own.replace("out_layers.3.bias", "out_bias")
            reference = torch.nn.ParameterDict({"_": torch.empty(shape)})
            fill(reference, seed, lambda _, name=name: name)
            value = reference["_"].data
            if len(shape) == 1 and name.endswith("weight"):
                value = value + 1
            names.pop(own).data = value.reshape(dict(block.named_parameters())[own].shape)
    assert not names

    x = golden["x"]
    alpha_bar = alpha_bar_schedule()
    zeros = torch.zeros(len(x), dtype=torch.long)
    seen = {}

    def delta_h(h, emb, t):
        seen["h"], seen["delta_h"] = h, block(h, emb, zeros)
        return 2.5 * seen["delta_h"]

    # the timesteps and magnitudes of the file's note
    for kind, t, t_prev, shift in (
        ("shifted", 700, 650, delta_h),
        ("last", 450, -1, delta_h),
        ("regular", 300, 250, None),
        ("plain", 700, 650, None),
    ):
        if shift:
            x_next, shifted_x_0 = shifted_step(model, transition(alpha_bar, t, t_prev), shift, x)
            assert_close(shifted_x_0, golden[f"{kind}.x0_pred"], 1e-4)
            assert_close(seen["h"], golden[f"{kind}.h"], 1e-4)
            assert_close(seen["delta_h"], golden[f"{kind}.delta_h"], 1e-4)
        else:
            x_next = regular_step(model, transition(alpha_bar, t, t_prev), x)
        assert_close(x_next, golden[f"{kind}.x_next"], 1e-4)
        times = torch.full((len(x),), t)
        h, skips, emb = model.encode(x, times)
        eps = model.decode(h + (delta_h(h, emb, t) if shift else 0), skips, emb)
        x_0 = predict_x_0(x, eps, float(alpha_bar[t]))
        assert_close(x_0, golden[f"{kind}.x0_pred"], 1e-4)
        if not shift:
            at_prev = float(alpha_bar[t_prev])
            assert_close(at_prev**0.5 * x_0 + direction_to_x_t(eps, at_prev), x_next, 1e-5)
