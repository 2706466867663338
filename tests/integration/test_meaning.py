"""Attributes on shipped models whose "directions" are painted, so that the right answer is known."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hbench.evaluation.attributes.attributes import attributes
from hbench.evaluation.attributes.effects import Changes, effects
from hbench.evaluation.attributes.heads import predicted_classes
from hbench.evaluation.attributes.sets import attribute_sets, measure_all
from hbench.evaluation.sampling import sample_model
from hbench.store.classifier import classifier_for, load_classifier
from hbench.store.directions import DirectionSource
from hbench.store.run import load_run

pytestmark = pytest.mark.slow
S = 5.0


def dilated(image, s):
    """Strokes grow by a pixel on each side at S, and shrink at -S."""
    grown = F.max_pool2d(image, 3, 1, 1) if s > 0 else -F.max_pool2d(-image, 3, 1, 1)
    return torch.lerp(image, grown, abs(s) / S)


def sheared(image, s):
    """The upper end moves by three pixels to the right at S, the lower end to the left."""
    grid = F.affine_grid(torch.tensor([[[1.0, 0.4 * s / S, 0], [0, 1, 0]]]), [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None] + 1, grid, align_corners=False)[0] - 1


def noisy(image, s):
    """Other noise of sigma = 0.003 for every magnitude."""
    return image + 0.003 * torch.randn(image.shape, generator=torch.Generator().manual_seed(round(1000 * s)))


class Painted:
    """The run's samples, each made once, with a painter for the first directions; the others do nothing."""

    def __init__(self, run, painters, monkeypatch):
        self.run, self.painters, self.made = run, painters, {}
        self.generate = type(run.sampler).generate
        monkeypatch.setattr(type(run.sampler), "generate", lambda sampler, x_T, shift=None: self.paint(x_T, shift))
        self.source = DirectionSource("own", self.shift)

    def shift(self, k, s):
        return [(int(a), float(b)) for a, b in zip(k, s, strict=True)]

    def paint(self, x_T, shifts):
        keys = [each.numpy().tobytes() for each in x_T]
        new = {key: row for row, key in enumerate(keys) if key not in self.made}
        if new:
            rows = list(new.values())
            self.made |= zip(new, self.generate(self.run.sampler, x_T[rows]).clamp(-1, 1), strict=True)
        images = [self.made[key] for key in keys]
        if isinstance(shifts, list):
            images = [
                self.painters[k](image, s) if k < len(self.painters) else image
                for image, (k, s) in zip(images, shifts, strict=True)
            ]
        return torch.stack(images)


def measured(name, painters, monkeypatch):
    """Return what painted directions do on a shipped model, beside its own RCA."""
    run = load_run(name, device="cpu")
    painted = Painted(run, painters, monkeypatch)
    monkeypatch.setattr(type(run), "traverse", lambda *_, **__: type("Strips", (), {"images": torch.zeros(1, 1)}))
    return attributes(run, samples=40, source=painted.source)


def test_strokes_that_grow_are_bold_a_shear_is_a_slant_and_faint_noise_is_nothing(monkeypatch):
    found = measured("mnist16", [dilated, sheared, noisy], monkeypatch)
    bolder, slant, *others = found.directions
    assert found.visible == [0, 1]
    assert bolder.proposed in {"thicker", "bolder", "more ink"}
    assert slant.proposed == "slants right"
    assert found.distinct == 2
    assert bolder.specificity > 3
    assert slant.specificity > 3
    assert not any(each.proposed for each in others)


def test_glasses_painted_on_faces_are_named_glasses(monkeypatch):
    run = load_run("faces16", device="cpu")
    classifier = load_classifier(classifier_for(run.experiment, run.folder))
    samples = run.generate(run.noise(64, seed=9)).clamp(-1, 1)
    worn = predicted_classes(classifier, samples)[:, [each.name for each in classifier.factors].index("glasses")]
    eyes = (slice(None), slice(5, 9), slice(3, 13))
    bare, dark = samples[worn == 0], samples[worn == 2]
    contrast = torch.tensor([[(a[eyes] - b[eyes]).abs().mean() for b in dark] for a in bare])
    i, j = divmod(int(contrast.argmax()), len(dark))  # brown glasses on brown skin are hardly seen
    donors = {1: dark[j], -1: bare[i]}

    def glasses(image, s):
        painted = image.clone()
        painted[eyes] = torch.lerp(image[eyes], donors[1 if s > 0 else -1][eyes], abs(s) / S)
        return painted

    found = measured("faces16", [glasses], monkeypatch)
    assert found.visible == [0]
    leading = found.attributes[found.directions[0].leading]
    assert leading.factor == "glasses"
    assert found.directions[0].proposed in {"glasses", "glasses more like dark"}


def test_images_of_other_x_T_have_no_certain_effect_in_nearly_all_seeds():
    run = load_run("mnist16", device="cpu")
    sets = attribute_sets(run.experiment.data, load_classifier(classifier_for(run.experiment, run.folder)))
    values = measure_all(sets, sample_model(run.sampler, 500, 3)).numpy()
    unit, n, s = np.nanstd(values, 0), 40, np.array([-1.0, -0.5, 0.5, 1.0])
    certain = []
    for seed in range(60):
        rows = np.random.default_rng(seed).permutation(len(values))[: n * (1 + len(s))].reshape(n, -1)
        raw, shifted = values[rows[:, 0]] / unit, values[rows[:, 1:]][:, None] / unit
        certain.append(effects(Changes(s, raw, shifted, np.zeros(len(unit), dtype=bool)), seed).certain.any())
    assert np.mean(certain) <= 0.1  # 5 % expected, of 60 seeds
