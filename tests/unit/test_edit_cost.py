import math

import pytest
import torch
import torchvision

from hbench.errors import HBenchError
from hbench.evaluation.edit_cost import LPIPS_WEIGHTS, edit_costs, lpips
from hbench.experiments import load_experiment
from hbench.store.classifier import load_classifier, shipped_classifier
from hbench.store.run import load_run


def test_an_edit_that_changes_nothing_costs_nothing():
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    ((same,), _) = edit_costs(images, images[:, None])
    assert (same.change, same.ssim) == (0, pytest.approx(1))
    assert math.isnan(same.kept)
    assert math.isnan(same.change_outside)


def test_change_is_a_share_of_the_range_and_beyond_it_nothing_counts():
    images = -torch.ones(1, 1, 16, 16)
    edits = torch.stack([images + 2, images + 9, images - 9], 1)
    ((white, beyond, darker),) = edit_costs(images, edits)
    assert (white.change, beyond.change, darker.change) == (1, 1, 0)


def test_the_more_structure_is_lost_the_lower_is_the_similarity():
    torch.manual_seed(0)
    images = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16).contiguous()
    noise = torch.randn(1, 1, 16, 16)
    (costs,) = edit_costs(images, torch.stack([images + sigma * noise for sigma in (0.1, 0.4, 1.0)], 1))
    found = [cost.ssim for cost in costs]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.9
    assert found[-1] < 0.5


def test_lpips_is_measured_where_its_weights_are_and_downloads_nothing(tmp_path, monkeypatch):
    """With random weights, for the real ones are 528 MB: positive, as those of LPIPS are."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips() is None
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    edits = torch.stack([images, images + 0.1, images.flip(-1)], 1)
    assert math.isnan(edit_costs(images, edits)[0][1].lpips)
    torch.manual_seed(0)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    lpips_file, vgg_file = (tmp_path / "hub/checkpoints" / name for name in LPIPS_WEIGHTS)
    widths = [64, 128, 256, 512, 512]
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(widths)}, lpips_file)
    vgg_file.touch()
    vgg = torchvision.models.vgg16()
    monkeypatch.setattr("torch_fidelity.sample_similarity_lpips.torchvision_load_pretrained_vgg16", lambda: vgg)
    for same, slightly, other in edit_costs(images, edits):
        assert same.lpips == 0
        assert 0 < slightly.lpips < other.lpips
    torch.save({"lin0": torch.zeros(1)}, lpips_file)
    with pytest.raises(HBenchError, match="holds no weights of LPIPS"):
        lpips()


def test_images_smaller_than_the_window_have_a_similarity_too():
    images = torch.rand(1, 1, 6, 8)
    ((cost,),) = edit_costs(images, images[:, None])
    assert cost.ssim == pytest.approx(1)


def test_only_the_change_outside_of_the_mask_counts_there():
    images, mask = torch.zeros(1, 3, 16, 16), torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = True
    inside, around = images.clone(), images.clone()
    inside[..., :8], around[..., 8:] = 1, 1
    ((one, other),) = edit_costs(images, torch.stack([inside, around], 1), mask=mask)
    assert (one.change, one.change_outside) == (0.25, 0)
    assert (other.change, other.change_outside) == (0.25, 0.5)


def test_kept_is_what_the_classifier_says():
    classifier = load_classifier(shipped_classifier(load_experiment("mnist16").data))
    run = load_run("mnist16", device="cpu")
    images = run.generate(run.noise(16)).clamp(-1, 1)
    classes = classifier.network(images)[0].argmax(1)
    same = int((classes[1:] == classes[0]).nonzero()[0]) + 1
    other = int((classes != classes[0]).nonzero()[0])
    ((kept, lost),) = edit_costs(images[:1], torch.stack([images[same], images[other]])[None], classifier)
    assert (kept.kept, lost.kept) == (1, 0)
