import logging

import pytest
import torch

from hbench.core.domain import h_deviation, log_h_scale, log_look, look, neighbours, outside
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


class Wide(torch.nn.Module):
    """A backbone whose h_t has a standard deviation of 6 at every timestep, whatever the image."""

    h_shape, emb_channels, in_channels, prediction = (4, 2, 2), 8, 1, "eps"

    def encode(self, x, t):
        h = 6 * torch.randn(len(x), *self.h_shape, generator=torch.Generator().manual_seed(0))
        return h + t[:, None, None, None], [x], torch.zeros(len(x), 8)

    def decode(self, h, skips, emb):
        return torch.zeros_like(skips[0])


def test_the_deviation_of_h_is_that_around_its_mean_at_each_shifted_timestep():
    experiment = load_experiment("digits16")
    sampler = Sampler.of(experiment, Wide(), torch.device("cpu"))
    assert h_deviation(sampler, torch.randn(256, 1, 16, 16)) == pytest.approx(6, rel=0.03)


@pytest.mark.parametrize(("h_scale", "words"), [(1.0, "too small to be seen"), (30.0, "too large"), (6.0, None)])
def test_a_scale_far_from_that_of_h_is_a_warning_with_its_remedy(h_scale, words, caplog):
    caplog.set_level(logging.INFO, "hbench")
    log_h_scale(6.0, h_scale)
    assert f"standard deviation of 6, discovery.h_scale is {h_scale:g}" in caplog.records[0].getMessage()
    warnings = [each.getMessage() for each in caplog.records[1:]]
    assert len(warnings) == (words is not None)
    assert all(words in each and "try discovery.h_scale = 6" in each for each in warnings)
