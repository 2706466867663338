import logging

import pytest
import torch

from hbench.core.domain import log_look, look, neighbours, outside
from hbench.core.images import to_float
from hbench.core.sampler import Sampler
from hbench.experiments import load_experiment
from hbench.models import build_model
from hbench.store.datasets import load_images
from hbench.store.run import load_run
from hbench.store.shipped import shipped_runs


def test_images_are_outside_with_a_single_pixel_beyond_the_domain():
    images = torch.zeros(4, 3, 5, 5)
    images[1, 2, 0, 4] = 1.6
    images[2, 0, 0, 0] = -1.4
    images[3, 1, 1, 1] = float("nan")
    assert outside(images).tolist() == [False, True, False, True]


def test_neighbours_correlate_in_images_and_not_in_noise():
    images = to_float(load_images(load_experiment("digits16").data)[:64])
    noise = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert neighbours(images).mean() > 0.8
    assert neighbours(1e20 * images).tolist() == pytest.approx(neighbours(images).tolist())
    assert abs(neighbours(noise).mean()) < 0.03
    row = torch.tensor([1.0, -1, 1, -1]).expand(1, 1, 4, 4)  # side by side -1, one above the other 1
    assert neighbours(row).item() == pytest.approx(0)
    broken = torch.stack([torch.ones(1, 4, 4), torch.full((1, 4, 4), torch.inf), torch.full((1, 4, 4), torch.nan)])
    assert neighbours(broken).tolist() == [0, 0, 0]
    assert neighbours(torch.ones(2, 1, 1, 1)).tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_runs())
def test_a_shipped_model_makes_images_and_an_untrained_one_noise(name):
    run = load_run(name, device="cpu")
    images = run.sampler.generate(run.noise(16))
    assert look(images).doubts() == []
    assert look(images).outside == 0
    torch.manual_seed(0)
    sampler = Sampler.of(run.experiment, build_model(run.experiment).eval(), run.device)
    noise = sampler.generate(sampler.noise(16))
    leaves, grainy = look(noise).doubts()
    assert leaves.startswith("100% of the raw samples leave the image domain")
    assert "look like noise" in grainy
    (grainy,) = look(noise.clamp(-1, 1)).doubts()
    assert "look like noise" in grainy


def test_a_look_is_a_line_and_each_doubt_a_warning(caplog):
    caplog.set_level(logging.INFO, "hbench")
    log_look(torch.zeros(2, 1, 4, 4))
    line, warning = caplog.records
    assert line.getMessage() == "raw samples: outside the domain 0.00%, correlation of neighbouring pixels 0.00"
    assert (line.levelname, warning.levelname) == ("INFO", "WARNING")
    assert "look like noise" in warning.getMessage()
