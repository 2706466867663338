"""What the readmes show works as it stands there."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from hbench.experiments import load_experiment
from hbench.models import build_model
from hbench.store.run import load_model

ROOT = Path(__file__).parents[2]
GUIDES = ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_experiment_file_of_the_guide_takes_a_checkpoint_of_its_shape(tmp_path):
    (text,) = blocks("toml")
    (tmp_path / "my.toml").write_text(text)
    experiment = load_experiment(str(tmp_path / "my.toml"))
    assert experiment.title == "Faces64-400-40-64-2"
    with torch.device("meta"):
        model = build_model(experiment)
    assert model.h_shape == (512, 8, 8)
    small = experiment.model_copy(update={"model": experiment.model.model_copy(update={"model_channels": 32})})
    torch.save(build_model(small).state_dict(), tmp_path / "ema.pt")
    assert load_model(tmp_path / "ema.pt", small).state_dict()["out.2.bias"].shape == (6,)


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_of_the_guide_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (20, 20), 90).save("digit.png")
    values = {}
    exec(code, values)
    assert values.get("images", torch.zeros(1, 3, 1, 16, 16)).shape == (1, 3, 1, 16, 16)


@pytest.mark.parametrize("page", ["README.md", *GUIDES, "docs", "experiments", "results"])
def test_links_lead_somewhere(page):
    found = [ROOT / page] if page.endswith(".md") else sorted((ROOT / page).rglob("*.md"))
    assert found
    for file in found:
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
            assert link.startswith("http") or (file.parent / link).exists(), f"{file}: {link}"
