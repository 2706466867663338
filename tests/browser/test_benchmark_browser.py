import shutil
from pathlib import Path

import pytest

from hbench.evaluation.benchmark.result import Benchmark
from hbench.reporting.benchmark_page import write_page

COMMITTED = Path(__file__).parents[2] / "results" / "bench-faces16"
SIZES = {"desktop": (1280, 900), "phone": (360, 740)}
"""Sizes of the window, in pixels."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return the address of the committed bench's page, written anew."""
    out = tmp_path_factory.mktemp("bench")
    for name in ("benchmark.png", "methods.png", "provenance.json"):
        shutil.copy(COMMITTED / name, out)
    return write_page(Benchmark.load(COMMITTED), out).as_uri()


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_the_page_has_every_method_and_its_pictures(page):
    heads = page.locator("table").first.locator("thead th").all_inner_texts()
    assert heads[1:] == [each.name for each in Benchmark.load(COMMITTED).methods]
    widths = page.eval_on_selector_all("img", "all => all.map(each => each.naturalWidth)")
    assert len(widths) == 2
    assert all(widths)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_cut_off(page, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
