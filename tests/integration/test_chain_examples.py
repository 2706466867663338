"""The programs of docs/chain.md do what the page says."""

import re
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hbench import backpropagate
from hbench.core.chain import run_chain
from hbench.runtime.memory import saved_tensors_peak

DOCS = Path(__file__).parents[2] / "docs"


def program(name):
    """Return the names that a program defines."""
    return runpy.run_path(str(DOCS / "examples" / name))


def printed(capsys, pattern):
    """Return the numbers in the line of this pattern that a program has printed."""
    found = re.search(pattern, text := capsys.readouterr().out)
    assert found, text
    return [float(each.replace(",", "")) for each in found.groups()]


def size_of(picture):
    with Image.open(picture) as opened:
        return opened.size


def test_the_first_lines_of_the_page_run():
    code = re.search(r"^```python\n(import torch\n.*?)^```", (DOCS / "chain.md").read_text(), re.DOTALL | re.MULTILINE)
    values = {}
    exec(code[1], values)
    assert all(layer.weight.grad.any() for layer in values["layers"])
    assert values["x_0"].shape == (16, 8)


@pytest.mark.parametrize("path", sorted((DOCS / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_programs_are_short_and_on_the_page(path):
    assert len(path.read_text().splitlines()) < 60
    assert path.read_text() in (DOCS / "chain.md").read_text()


@pytest.mark.slow
def test_a_reward_rises_and_lora_weights_change_alone(capsys, tmp_path, monkeypatch):
    pytest.importorskip("diffusers", reason='needs pip install "hbench[diffusers]"')
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    before = {}

    def inject(config, unet):
        peft.inject_adapter_in_model(config, unet)
        before.update((name, each.clone()) for name, each in unet.state_dict().items())

    values = program("reward.py")
    values["main"].__globals__["inject_adapter_in_model"] = inject
    after = values["main"](pretraining=20, iterations=5).state_dict()
    changed = {name for name, each in before.items() if not torch.equal(after[name], each)}
    assert changed == {name for name in before if ".lora_" in name}
    first, last = printed(capsys, r"after 0 steps: ([\d.]+)\nreward after 5 steps: ([\d.]+)\n")
    assert last > 1.1 * first
    assert size_of("reward.png") == (16 * 50 + 2, 2 * 50 + 2)


@pytest.mark.slow
def test_noise_is_found_whose_samples_match_and_wear_hats(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program("noise.py")["main"](iterations=3)
    pattern = r"error: ([\d.]+) by inversion -> ([\d.]+)\n.* hat: ([\d.]+) -> ([\d.]+)\n"
    inverted, matched, before, after = printed(capsys, pattern)
    assert matched < 0.9 * inverted
    assert after > 3 * before
    assert size_of("noise.png") == (6 * 98 + 2, 2 * 98 + 2)


@pytest.mark.slow
def test_an_ode_is_fitted_to_a_trajectory(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program("ode.py")["main"](iterations=40)
    pattern = r"ahead: ([\d.]+) -> ([\d.]+)\nvanilla: graphs of ([\d,]+) .*\nnode: graphs of ([\d,]+) "
    first, last, vanilla, node = printed(capsys, pattern)
    assert last < 0.2 * first
    assert vanilla == 400 * node
    assert size_of("ode.png") == (640, 480)


def test_gradients_of_an_integrator_are_exact_in_the_memory_of_one_step():
    values = program("ode.py")
    path = values["pendulum"]().double()
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def gradients(M, **how):
        f.zero_grad()
        steps = [partial(values["runge_kutta"], f, 0.02)] * M
        held = saved_tensors_peak(lambda: backpropagate(steps, path, Tensor.sum, **how), f.parameters())
        return held, [each.grad.clone() for each in f.parameters()]

    expected = gradients(60, strategy="vanilla")
    for how in ({}, {"keep": 20}, {"nodes": "cpu"}, {"strategy": "torch-checkpoint"}):
        for got, wanted in zip(gradients(60, **how)[1], expected[1], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert gradients(60)[0] == gradients(240)[0] == expected[0] / 60


def test_the_integrator_is_of_order_4():
    runge_kutta = program("ode.py")["runge_kutta"]

    def error(M):  # of a turn around a circle
        steps = [partial(runge_kutta, lambda y: torch.stack([y[:, 1], -y[:, 0]], 1), 2 * torch.pi / M)] * M
        y = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        return (run_chain(steps, y) - y).norm().item()

    assert error(40) / error(80) == pytest.approx(16, rel=0.1)
