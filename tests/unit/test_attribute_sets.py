"""Attributes of images: shape of digits, appearance, what a classifier sees, and those of other packages."""

import time
from dataclasses import replace

import pytest
import torch
from committed import V01
from packages import PLUGIN, package
from torch.nn import functional as F

import hbench
from hbench.config import Data
from hbench.errors import HBenchError
from hbench.evaluation.attributes import morphometry
from hbench.evaluation.attributes.appearance import FOR_ALL, FOR_COLOUR, appearance, measure_appearance
from hbench.evaluation.attributes.attribute import Attribute, AttributeSet
from hbench.evaluation.attributes.heads import attributes_of, head_attributes, predicted_classes
from hbench.evaluation.attributes.morphometry import measure_digits
from hbench.evaluation.attributes.sets import ATTRIBUTE_SETS, GROUP, attribute_sets, measure_all
from hbench.evaluation.classifier import train_classifier
from hbench.experiments import load_experiment
from hbench.models.classifier import ClassifierNetwork
from hbench.store.classifier import load_classifier
from hbench.store.datasets import load_set
from hbench.store.labels import Factor, Labels
from hbench.store.registry import DATASETS, DIGIT

DIGITS16 = Data(dataset="digits", label="Digits", size=16, channels=1)
FACES16 = Data(dataset="faces", label="Faces", size=16, channels=3)


def by_name(attributes, values):
    return dict(zip([each.name for each in attributes], values.T, strict=True))


def shape(images):
    return by_name(morphometry.ATTRIBUTES, measure_digits(images))


def look(images):
    attributes = FOR_ALL + FOR_COLOUR if images.shape[1] == 3 else FOR_ALL
    return by_name(attributes, measure_appearance(images))


def drawn(inside, size=16, fine=16):
    """Return an image [1, 1, size, size] of the share of each pixel where a function of (x, y) is true."""
    steps = (torch.arange(size * fine) + 0.5) / fine - size / 2
    shares = inside(steps[None, :], -steps[:, None]).float().view(size, fine, size, fine).mean((1, 3))
    return shares[None, None] * 2 - 1


def bar(width, degrees=0.0, length=10, x=0.0, y=0.0, size=16):
    """Return an upright bar, sheared so that it leans by an angle to the right."""
    shear = torch.tensor(degrees).deg2rad().tan()
    return drawn(
        lambda a, b: ((a - x - shear * (b - y)).abs() < width / 2) & ((b - y).abs() < length / 2) & (a == a), size
    )


def stroke(width, degrees, size=16):
    """Return the stroke of a round pen, tilted to the right and as long as half of the image."""
    angle, length = torch.tensor(degrees).deg2rad(), size / 2

    def inside(x, y):
        along = (x * angle.sin() + y * angle.cos()).clamp(-length / 2, length / 2)
        return torch.hypot(x - along * angle.sin(), y - along * angle.cos()) < width / 2

    return drawn(inside, size)


def ring(x=0.0, y=0.0, radius=4.0, width=2.0, size=16):
    return drawn(lambda a, b: ((a - x) ** 2 + (b - y) ** 2).sqrt().sub(radius).abs() < width / 2, size)


def plain(*colour, size=16):
    return torch.tensor(colour)[None, :, None, None].expand(1, -1, size, size) * 2 - 1.0


def rises(values):
    return bool((torch.as_tensor(values).diff() > 0).all())


# Shape of digits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 28, 32])
@pytest.mark.parametrize("width", [2, 4])
def test_a_bar_has_its_measures(size, width):
    found = shape(bar(width, length=10, size=size))
    assert found["ink"].item() == pytest.approx(10 * width, abs=0.1)
    assert found["thickness"].item() == pytest.approx(width, abs=0.2)
    assert found["width"].item() == pytest.approx(width, abs=0.1)
    assert found["height"].item() == pytest.approx(10, abs=0.1)
    assert found["slant"].item() == pytest.approx(0, abs=0.1)
    assert 10 - width - 1 <= found["stroke length"].item() <= 10
    assert found["holes"].item() == 0


@pytest.mark.parametrize("degrees", [-35.0, -10.0, 20.0])
def test_a_sheared_bar_has_its_slant_and_stays_as_wide(degrees):
    found = shape(bar(3, degrees))
    assert found["slant"].item() == pytest.approx(degrees, abs=1)
    assert found["width"].item() == pytest.approx(3, abs=0.9)
    assert shape(bar(3, degrees, x=1.3, y=0.6))["slant"].item() == pytest.approx(degrees, abs=1)


@pytest.mark.parametrize("size", [16, 28])
@pytest.mark.parametrize("degrees", [8.0, 30.0, -70.0])
def test_thickness_follows_a_tilted_stroke(degrees, size):
    widths = torch.arange(1.5, 4.1, 0.25)
    found = torch.cat([shape(stroke(width.item(), degrees, size=size))["thickness"] for width in widths])
    assert rises(found[::2])
    torch.testing.assert_close(found, widths.double(), atol=0.45, rtol=0)
    assert (found - widths).mean().abs() < 0.25


def test_measures_rise_with_what_they_name():
    assert rises([shape(ring(width=width))["thickness"].item() for width in (1.2, 1.6, 2.0, 2.4, 2.8)])
    assert rises([shape(ring(width=width))["ink"].item() for width in (1.2, 1.6, 2.0, 2.4, 2.8)])
    assert rises([shape(ring(radius=radius))["stroke length"].item() for radius in (2.5, 3.0, 3.5, 4.0, 4.5)])
    assert rises([shape(ring(radius=radius))["width"].item() for radius in (2.5, 3.0, 3.5, 4.0, 4.5)])
    assert rises([shape(bar(2, length=length))["height"].item() for length in (6, 7, 8, 9)])
    assert rises([shape(bar(2, degrees=degrees))["slant"].item() for degrees in (-5.0, 0.0, 1.0, 10.0)])
    assert rises([shape(bar(2, x=x))["centre x"].item() for x in (-1, -0.5, 0, 0.1)])
    assert rises([shape(bar(2, y=y))["centre y"].item() for y in (-1, -0.5, 0, 0.1)])


def test_a_digit_that_moves_a_pixel_changes_its_centre_alone():
    still, moved = shape(ring()), shape(ring().roll((1, 1), (2, 3)))
    assert (moved["centre x"] - still["centre x"]).item() == pytest.approx(1)
    assert (moved["centre y"] - still["centre y"]).item() == pytest.approx(-1)
    for name in still.keys() - {"centre x", "centre y"}:
        torch.testing.assert_close(moved[name], still[name], atol=1e-6, rtol=0)


def test_a_digit_that_fades_changes_its_ink_alone():
    full = ring()
    faded = shape((full + 1) * 0.4 - 1)
    for name, value in shape(full).items():
        torch.testing.assert_close(faded[name], value * (0.4 if name == "ink" else 1), atol=1e-5, rtol=0)


def test_holes_are_counted():
    eight = torch.maximum(ring(y=3, radius=2.2, width=1.4), ring(y=-3, radius=2.8, width=1.4))
    torn = torch.maximum(ring(x=-4, y=4, radius=2, width=1.2), bar(1.5, x=5, length=6))
    images = torch.cat([bar(2), ring(), eight, torn, eight.roll(2, 2)])
    assert shape(images)["holes"].tolist() == [0, 1, 2, 1, 2]
    opened = ring()
    opened[..., 6:10, 8:] = -1
    assert shape(opened)["holes"].item() == 0


def test_a_dash_has_no_slant_and_an_empty_image_has_ink_alone():
    dash = -torch.ones(1, 1, 16, 16)
    dash[..., 8, 3:12] = 1
    found = shape(dash)
    assert found["slant"].isnan().item()
    assert (found["width"].item(), found["height"].item()) == (9, 1)
    nothing = measure_digits(torch.cat([-torch.ones(1, 1, 16, 16), ring(), -0.9 * torch.ones(1, 1, 16, 16)]))
    assert nothing[:, 0].tolist() == pytest.approx([0, nothing[1, 0].item(), 0.05 * 256])
    assert nothing[[0, 2], 1:].isnan().all()
    torch.testing.assert_close(nothing[1:2], measure_digits(ring()))


def test_images_do_not_change_each_other_and_are_clamped():
    images = torch.cat([ring(), bar(3, 20), ring(radius=6.5, width=3), bar(16, length=16), ring(x=3)])
    whole = measure_digits(images)
    torch.testing.assert_close(whole, torch.cat([measure_digits(each[None]) for each in images]), equal_nan=True)
    torch.testing.assert_close(
        measure_digits((images * 1.5).requires_grad_()), measure_digits((images * 1.5).clamp(-1, 1))
    )
    assert shape(bar(16, length=16))["thickness"].item() > 8  # an image that is all white has a thickness too


def test_thirty_thousand_images_take_a_minute():
    images = load_set(load_experiment("digits16").data).images[:64] / 127.5 - 1
    seconds = []
    for _ in range(3):
        start = time.process_time()
        measure_digits(images)
        seconds.append(time.process_time() - start)
    assert min(seconds) / len(images) < 60 / 30_000  # 0.25 ms, and room for other machines


@pytest.mark.slow
def test_the_words_point_the_way_that_people_saw():
    """The names of the directions, as in "thin to bold", were given by eye."""
    run = hbench.load_run(V01)
    x_T = run.noise(24, seed=0)
    raw = measure_digits(run.generate(x_T))
    changes = {k: measure_digits(run.generate(x_T, {k: 2.0})) - raw for k in (3, 12, 19, 21)}
    found = {k: by_name(morphometry.ATTRIBUTES, each.nanmean(0, keepdim=True)) for k, each in changes.items()}
    assert {run.names[k] for k in (3, 12, 19, 21)} == {
        "thin to bold",
        "slanted to upright, thin to bold",
        "upright to slanted, left side closes",
        "narrow to wide and bold",
    }
    assert found[3]["thickness"] > 0.3
    assert found[3]["ink"] > 5
    assert found[12]["slant"] < -3
    assert found[19]["slant"] > 5
    assert found[21]["width"] > 1


# Appearance ---------------------------------------------------------------------------------------------------------


def test_plain_colours_have_their_values():
    white, red, grey = look(plain(1.0, 1.0, 1.0)), look(plain(1.0, 0.0, 0.0)), look(plain(0.5))
    assert white["brightness"].item() == pytest.approx(1)
    assert white["saturation"].item() == pytest.approx(0)
    assert red["brightness"].item() == pytest.approx(0.299)
    assert (red["saturation"].item(), red["warmth"].item(), red["greenness"].item()) == pytest.approx((1, 1, -0.5))
    assert look(plain(0.0, 1.0, 0.0))["greenness"].item() == pytest.approx(1)
    assert look(plain(0.0, 0.0, 1.0))["warmth"].item() == pytest.approx(-1)
    assert grey["brightness"].item() == grey["upper brightness"].item() == pytest.approx(0.5)
    for found in (white, red, grey):
        assert [found[name].item() for name in ("contrast", "sharpness", "foreground")] == pytest.approx([0] * 3)
        assert found["symmetry"].isnan().item()
        assert found["foreground x"].isnan().item()
        assert found["foreground y"].isnan().item()


def test_a_brighter_image_is_brighter_alone_and_more_contrast_is_contrast():
    image = ring() * 0.4 + 0.1
    still, brighter, stronger = look(image), look(image + 0.2), look(image * 1.5)
    assert (brighter["brightness"] - still["brightness"]).item() == pytest.approx(0.1)
    for name in ("contrast", "sharpness", "symmetry", "foreground", "foreground x"):
        torch.testing.assert_close(brighter[name], still[name], atol=1e-6, rtol=0)
    assert (stronger["contrast"] / still["contrast"]).item() == pytest.approx(1.5)
    torch.testing.assert_close(stronger["symmetry"], still["symmetry"])


def test_a_redder_image_is_redder():
    image = ring().expand(1, 3, -1, -1) * 0.5
    steps = [image + torch.tensor([red, 0.0, -red])[:, None, None] for red in (-0.2, 0.0, 0.1, 0.3)]
    assert rises([look(each)["warmth"].item() for each in steps])
    assert rises([look(each)["saturation"].item() for each in steps[1:]])
    torch.testing.assert_close(look(steps[1])["brightness"], look(image[:, :1])["brightness"])


def test_a_soft_image_is_less_sharp():
    blurred = [F.avg_pool2d(ring(), 2 * k + 1, 1, k, count_include_pad=False) for k in (2, 1, 0)]
    assert rises([look(each)["sharpness"].item() for each in blurred])
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16) * 2 - 1
    assert look(ramp)["sharpness"].item() == pytest.approx(1 / 15)


def test_the_foreground_is_what_differs_from_the_border():
    square = -0.6 * torch.ones(1, 3, 16, 16)
    square[:, 1, 2:6, 9:14] = 0.5  # to the right and above
    found = look(square)
    assert found["foreground"].item() == pytest.approx(20 / 256)
    assert (found["foreground x"].item(), found["foreground y"].item()) == pytest.approx((3.5, 4))
    inverse = look(-square)
    for name in ("foreground", "foreground x", "foreground y", "symmetry", "contrast"):
        torch.testing.assert_close(inverse[name], found[name])
    assert found["upper brightness"].item() > found["lower brightness"].item() == pytest.approx(0.2)
    moved = look(square.roll((3, -2), (2, 3)))
    assert (moved["foreground x"].item(), moved["foreground y"].item()) == pytest.approx((1.5, 1))
    square[:, :, 0, 0] = 1  # a speck on the border is no background
    assert look(square)["foreground"].item() == pytest.approx(21 / 256)


def test_a_mirrored_image_is_the_same_but_for_x():
    image = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, mirrored = look(image), look(image.flip(3))
    for name in found:
        torch.testing.assert_close(mirrored[name], -found[name] if name == "foreground x" else found[name])
    assert look(torch.maximum(image, image.flip(3)))["symmetry"].tolist() == pytest.approx([1] * 4)
    assert look(torch.cat([-image[..., :8], image[..., :8].flip(3)], 3))["symmetry"].max() < -0.9


def test_grey_images_have_no_colours_and_odd_sizes_are_measured():
    assert appearance(DIGITS16).attributes == FOR_ALL
    assert appearance(FACES16).attributes == FOR_ALL + FOR_COLOUR
    stripe = -torch.ones(1, 1, 9, 11)
    stripe[..., 4, :] = 1  # the middle row
    found = look(stripe)
    assert found["upper brightness"].item() == found["lower brightness"].item() == 0
    assert found["brightness"].item() == pytest.approx(1 / 9)
    assert torch.equal(measure_appearance(3 * stripe), measure_appearance(stripe))


# What a classifier sees ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spotter():
    """A classifier of bright and dark images of three colours."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.stack([torch.arange(120) % 2, torch.arange(120) // 2 % 3], 1)
    images = torch.randint(0, 60, (120, 3, 12, 12), generator=generator)
    images[torch.arange(120), classes[:, 1]] += 60
    images += 80 * classes[:, 0, None, None, None]
    experiment = load_experiment("faces16", "data.size=12")
    factors = (Factor("light", ("dark", "bright")), Factor("colour", ("red", "green", "blue")))
    images = images.to(torch.uint8)
    return train_classifier(experiment, images, Labels(factors, classes), epochs=20), images / 127.5 - 1, classes


def test_heads_tell_the_classes(spotter):
    classifier, images, classes = spotter
    found = head_attributes(classifier)
    assert [each.name for each in found.attributes] == ["light", "colour: red", "colour: green", "colour: blue"]
    values = measure_all([found], images)
    assert predicted_classes(classifier, images).dtype == torch.int64
    assert (predicted_classes(classifier, images) == classes).double().mean() > 0.95
    assert torch.equal(values[:, 0] > 0, predicted_classes(classifier, images)[:, 0] == 1)
    assert torch.equal(values[:, 1:].argmax(1), predicted_classes(classifier, images)[:, 1])
    light, colour = classifier.network(images)
    assert torch.allclose(values[:, 0], (light[:, 1] - light[:, 0]).double(), atol=1e-4)
    log_odds = colour.double().softmax(1).logit()
    assert torch.allclose(values[:, 1:], log_odds, atol=1e-3)
    assert found.suits(classifier.data)
    assert not found.suits(FACES16)


def test_heads_of_sure_classifiers_are_finite(spotter):
    classifier, images, _ = spotter
    network = ClassifierNetwork(3, 12, [2, 3], width=4).eval()
    network.load_state_dict(classifier.network.state_dict())
    with torch.no_grad():
        for parameter in network.head[-1].parameters():
            parameter *= 1000
    values = head_attributes(replace(classifier, network=network)).measure(images)
    assert values.isfinite().all()
    assert values.abs().max() > 100


@pytest.mark.parametrize(
    ("factor", "more", "less"),
    [
        (Factor("hat", ("no", "yes")), "hat", "no hat"),
        (Factor("hair", ("short", "long")), "long hair", "short hair"),
        (Factor("eye colour", ("grey-blue", "brown")), "brown eye colour", "grey-blue eye colour"),
        (Factor("shade", ("none", "deep")), "shade: deep", "shade: none"),
        (Factor("animal", ("Cat", "Dog")), "animal: Dog", "animal: Cat"),
        (Factor("hair colour", ("red", "blue", "green")), "hair colour more red", "hair colour less red"),
        (Factor("glasses", ("none", "light", "dark")), "no glasses", "glasses"),
        (DIGIT, "more like a 0", "less like a 0"),
    ],
)
def test_words_of_heads(factor, more, less):
    first = attributes_of(factor)[0]
    assert (first.more, first.less) == (more, less)


def test_every_factor_of_the_data_sets_has_words():
    assert attributes_of(DIGIT)[8] == Attribute("digit: 8", "more like an 8", "less like an 8", "digit")
    for known in DATASETS.values():
        attributes = [each for factor in known.factors for each in attributes_of(factor)]
        words = [word for each in attributes for word in (each.more, each.less)]
        assert len({*words}) == len(words)
        assert len({each.name for each in attributes}) == len(attributes)


# The sets -----------------------------------------------------------------------------------------------------------


def names(data, classifier=None):
    return [each.name for each in attribute_sets(data, classifier)]


def test_sets_come_in_order_for_the_images_that_they_suit(spotter):
    classifier = spotter[0]
    shipped = load_classifier(V01 / "lenet" / "lenet.safetensors")
    mnist = shipped.data
    assert names(mnist, shipped) == ["digit", "appearance", "classifier"]
    assert names(DIGITS16) == ["digit", "appearance"]
    assert names(FACES16) == ["appearance"]
    assert names(Data(dataset="fashion", size=16, channels=1)) == ["appearance"]
    assert names(classifier.data, classifier) == ["appearance", "classifier"]
    sets = attribute_sets(mnist, shipped)
    values = measure_all(sets, ring().repeat(300, 1, 1, 1))
    assert values.shape == (300, 9 + 9 + 10)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values[:1, :9], measure_digits(ring()))
    attributes = [(one.name, each.name) for one in sets for each in one.attributes]
    assert len({*attributes}) == len(attributes)
    assert ATTRIBUTE_SETS.keys() == {"digit", "appearance"}


def test_a_classifier_of_other_images_is_refused(spotter):
    with pytest.raises(HBenchError, match=r"^the classifier was trained on other images than Digits: train one on"):
        attribute_sets(DIGITS16, spotter[0])


def test_attributes_of_another_package_are_measured(monkeypatch):
    stripes = Data(dataset="stripes", size=16, channels=1)
    assert names(stripes) == ["appearance"]
    monkeypatch.syspath_prepend(PLUGIN)
    assert names(stripes) == ["appearance", "stripes"]
    assert names(DIGITS16) == ["digit", "appearance"]
    test = load_set(stripes, split="test")
    values = measure_all(attribute_sets(stripes), test.images / 127.5 - 1)
    assert (values[:, -1] < 0).all()  # all test images are level


FINE = AttributeSet(
    name="fine", attributes=(Attribute("a", "more a", "less a"),), measure=lambda images: images.double().mean((2, 3))
)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("sets = None", "package odd has a NoneType in place of an AttributeSet: update it"),
        ("sets = 3.5", "package odd has a float in place of an AttributeSet: update it"),
        ("sets = lambda data: [data]", "package odd has a list in place of an AttributeSet: update it"),
        ("sets = lambda: None", r"package odd is broken \(.*argument.*\): update it"),
        ("import no_such_module", r"package odd is broken \(No module named 'no_such_module'\): update it"),
        (
            "from hbench.evaluation.attributes.attribute import AttributeSet\n"
            "sets = AttributeSet(name='mine', attributes=(), measure=abs)",
            r'package odd is broken \(attribute set "mine": needs attributes of different names, got \[\]\): update it',
        ),
        (
            "from hbench.evaluation.attributes.attribute import Attribute, AttributeSet\n"
            "sets = AttributeSet(name='yours', attributes=(Attribute('a', 'b', 'c'),), measure=abs)",
            'calls itself "yours": update its package',
        ),
    ],
)
def test_a_broken_package_is_named(source, problem, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = f"odd_{abs(hash(source))}"  # a module is imported once
    (tmp_path / f"{module}.py").write_text(source)
    package(tmp_path, "odd", GROUP, f"mine = {module}:sets")
    with pytest.raises(HBenchError, match=f'^attribute set "mine": {problem}$'):
        attribute_sets(DIGITS16)


def test_a_name_that_is_taken_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "odd", GROUP, "mine = math:pi")
    package(tmp_path, "more", GROUP, "mine = math:pi")
    with pytest.raises(HBenchError, match=r'"mine": is in the packages (odd and more|more and odd): uninstall all but'):
        attribute_sets(DIGITS16)
    for taken in ("digit", "appearance", "classifier"):
        (tmp_path / "more-1.0.dist-info" / "entry_points.txt").write_text(f"[{GROUP}]\n{taken} = math:pi\n")
        (tmp_path / "odd-1.0.dist-info" / "entry_points.txt").write_text("")
        with pytest.raises(HBenchError, match=f'^attribute set "{taken}": hbench has one of this name: uninstall'):
            attribute_sets(DIGITS16)


@pytest.mark.parametrize(
    ("measure", "problem"),
    [
        (lambda images: images.mean((2, 3)), r"float32 \[2, 1\]"),
        (lambda images: images.double().mean((1, 2, 3)), r"float64 \[2\]"),
        (lambda images: torch.zeros(2, 2, dtype=torch.float64), r"float64 \[2, 2\]"),
        (lambda images: [0.0, 0.0], "a list"),
        (lambda images: images.double().mean((2, 3)) / 0, "infinite values"),
    ],
)
def test_a_set_that_measures_nonsense_is_named(measure, problem):
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(measure_all([FINE], images), images.double().mean((2, 3)))
    line = rf'^attribute set "fine": returns {problem}, need float64 \[2, 1\]: update its package$'
    with pytest.raises(HBenchError, match=line):
        measure_all([replace(FINE, measure=measure)], images)


def test_two_attributes_of_one_name_are_a_bug():
    with pytest.raises(ValueError, match=r"needs attributes of different names, got \['a', 'a'\]"):
        replace(FINE, attributes=FINE.attributes * 2)
