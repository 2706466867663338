import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from committed import V01
from PIL import Image

import hbench
from hbench.core.images import to_uint8
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.sampling import choose_x_T
from hbench.store.names import load_names

playwright = pytest.importorskip("playwright.sync_api")

DIRECTIONS = [12, 3, 7]
HOSTILE = '</script><i>"1 & 2"'
SIZES = {"desktop": (1280, 900), "phone": (360, 740)}
"""Sizes of the window, in pixels."""


@pytest.fixture(scope="module")
def run():
    names = {3: "thin to bold", 5: "left out", 12: HOSTILE}
    return replace(hbench.load_run(V01, device="cpu"), names=names, folder=None)


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    out, attributes = tmp_path_factory.mktemp("explore") / "out", Attributes.load(V01 / "attributes")
    path = hbench.explore(run, out, samples=2, magnitudes=5, directions=DIRECTIONS, attributes=attributes)
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(accept_downloads=True, reduced_motion="reduce")
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else problems.append(request.url),
    )
    page.goto(address)
    yield page
    assert problems == []
    context.close()


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.tagName")


def displayed(page):
    """Return the picture that is displayed, uint8 [H, W]."""
    address = page.evaluate("draw().then(() => byId('edited').toDataURL())")
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L"))


def same(picture, other):
    return np.abs(picture.astype(int) - other.astype(int)).mean() < 0.5  # of 255: another batch rounds otherwise


def test_by_keyboard_alone_a_sample_is_chosen_moved_named_and_saved(page, run, tmp_path):
    first = displayed(page)
    original = page.locator("#original").get_attribute("src")
    press(page, "p", "ArrowRight")
    assert page.locator("#original").get_attribute("src") != original
    second = displayed(page)
    assert not same(first, second)

    press(page, "1", "2")
    assert focused(page) == "slider-12"
    press(page, "End")
    alone = displayed(page)
    assert not same(alone, second)
    playwright.expect(page.locator("#edit")).to_have_text(f"{HOSTILE} +5")
    assert page.locator("#slider-12").get_attribute("aria-valuetext") == "+5"

    page.wait_for_timeout(1100)  # a digit soon after another one is the second of a number
    press(page, "7", "ArrowLeft")
    playwright.expect(page.locator("#edit")).to_contain_text(f"{HOSTILE} +5 and ")
    playwright.expect(page.locator("#value-7")).to_have_text("−5")  # two at once have every second magnitude
    both = displayed(page)
    assert not same(both, alone)

    press(page, "3", "Home")
    playwright.expect(page.locator("#edit")).to_contain_text(f"thin to bold −5; {HOSTILE} is back at 0")
    assert page.locator("#slider-12").input_value() == "0"
    assert page.locator(".moved").count() == 2

    press(page, "n")
    page.keyboard.type("bold to ü, thin: 2")
    playwright.expect(page.locator("#unsaved")).to_have_text("Not saved yet: the name of 3.")
    press(page, "Enter")
    assert focused(page) == "slider-3"
    press(page, "r")
    assert same(displayed(page), second)
    while focused(page) != "save":
        press(page, "Tab")
    with page.expect_download() as download:
        press(page, "Enter")
    assert download.value.suggested_filename == "names.txt"
    download.value.save_as(tmp_path / "names.txt")
    assert load_names(tmp_path, run.K) == {3: "bold to ü, thin: 2", 5: "left out", 12: HOSTILE}
    playwright.expect(page.locator("#unsaved")).to_have_text("All names are saved.")


def test_every_position_shows_its_own_picture(page, run):
    chosen = choose_x_T(run, 2).indices
    for sample in (0, 1):
        page.evaluate("i => choose(i)", sample)
        x_T = run.noise(1, first=chosen[sample])
        for edit in ({}, {12: -5}, {3: -2.5}, {7: 2.5}, {7: 5}, {12: 5, 3: -5}, {3: 5, 12: -5}, {7: -5, 3: 5}):
            page.evaluate("reset()")
            for k, s in edit.items():
                page.evaluate("([k, step]) => move(k, step)", [k, round(s / 2.5)])
            expected = to_uint8(run.generate(x_T, edit))[0, 0].numpy()
            assert same(displayed(page), expected), edit


def test_a_pair_takes_the_nearest_pictures_outwards(page):
    press(page, "3", "ArrowRight")
    playwright.expect(page.locator("#value-3")).to_have_text("+2.5")
    press(page, "7", "ArrowLeft")
    playwright.expect(page.locator("#value-3")).to_have_text("+5")
    playwright.expect(page.locator("#value-7")).to_have_text("−5")
    press(page, "ArrowRight")
    playwright.expect(page.locator("#value-7")).to_have_text("0")
    assert page.locator("#slider-3").get_attribute("step") == "1"


def test_characters_that_end_a_line_do_not_end_a_name(page, tmp_path):
    page.locator("#name-7").fill("a\u2028b\x85c \x1c\x0b  d")
    page.locator("#name-3").fill("  ")
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(tmp_path / "names.txt")
    assert load_names(tmp_path) == {5: "left out", 7: "a b c d", 12: HOSTILE}
    playwright.expect(page.locator("#edit")).to_have_text("All sliders are at 0")
    assert page.locator("#slider-3").get_attribute("aria-label") == "Direction 3: thicker"  # as is proposed


def test_keys_in_a_name_move_nothing_and_can_be_switched_off(page):
    page.locator("#name-3").fill("")
    page.locator("#name-3").press_sequentially("7rpn")
    assert focused(page) == "name-3"
    press(page, "Escape")
    page.uncheck("#shortcuts")
    press(page, "7")
    assert focused(page) == "shortcuts"


def test_unsaved_names_are_announced_before_the_page_closes(page):
    page.locator("#name-7").press_sequentially("x")
    with page.expect_event("dialog") as asked:
        page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    asked.value.accept()


def test_what_was_measured_stands_beside_the_slider(page):
    attributes = Attributes.load(V01 / "attributes")
    each = attributes.directions[3]
    name = attributes.attributes[each.leading].name
    playwright.expect(page.locator("#facts-3")).to_contain_text(f"{name} ")
    playwright.expect(page.locator("#facts-3")).to_contain_text("classes kept")
    assert page.locator("#slider-3").get_attribute("aria-describedby") == "facts-3"
    playwright.expect(page.locator("#name-7")).to_have_attribute(
        "placeholder", attributes.directions[7].proposed or "direction 7"
    )


def test_everything_is_reached_by_tab_and_the_focus_is_seen(page):
    reached = []
    for _ in range(14):
        press(page, "Tab")
        reached.append(focused(page))
        style = "e => [getComputedStyle(e).outlineStyle, getComputedStyle(e.nextElementSibling ?? e).outlineWidth]"
        outline, beside = page.evaluate(f"({style})(document.activeElement)")
        assert outline != "none" or beside == "3px", reached[-1]
    sliders = [f"{kind}-{k}" for k in DIRECTIONS for kind in ("name", "slider")]
    assert [each for each in reached if each in sliders] == sliders
    assert {"reset", "save", "shortcuts"} <= set(reached)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_axe_finds_nothing(page, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    press(page, "3", "End", "7", "Home")  # moved sliders look otherwise
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280, 1900])
def test_nothing_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.getElementById('edited')).imageRendering") == "pixelated"
    press(page, "7", "End")
    for each in ("#edited", "#original", "#slider-7", "#edit"):
        playwright.expect(page.locator(each)).to_be_in_viewport(ratio=1)
    assert page.locator("#edited").bounding_box()["width"] >= 140


def test_without_scripts_the_page_says_so(browser, address):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    playwright.expect(page.get_by_text("This browser runs no scripts")).to_be_in_viewport(ratio=1)
    assert page.locator("button:visible, input:visible").count() == 0
    context.close()
