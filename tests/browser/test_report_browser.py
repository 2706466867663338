import html
import shutil
from dataclasses import replace

import pytest

from hbench.reporting.report import collect, write_pages
from hbench.reporting.rows import Named

playwright = pytest.importorskip("playwright.sync_api")

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
"""Sizes of the window, in pixels."""


@pytest.fixture(scope="module")
def reports(results, tmp_path_factory):
    """One report with cautions, and the same run twice, the second with a name."""
    other = tmp_path_factory.mktemp("other") / f"again-{'x' * 120}"
    shutil.copytree(results, other)
    report, again = collect(results), collect(other)
    named = [replace(section, named=[Named(2, "thin to bold <i>", "0.5")]) for section in again.sections]
    sections = [replace(section, cautions=["n = 8 is <too> small."]) for section in report.sections]
    return {"one": [replace(report, sections=sections)], "two": [report, replace(again, sections=named)]}


@pytest.fixture(scope="module", params=["one", "two"])
def address(request, reports, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    write_pages(reports[request.param], out)
    return (out / "report.html").as_uri()


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    yield page
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_the_page_opens_in_a_browser(browser, reports, tmp_path):
    (report,) = reports["one"]
    write_pages([report], tmp_path)
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    dom = page.content()
    page.close()
    assert report.experiment.title in dom
    assert dom.count("<img") == sum(len(section.pictures) for section in report.sections)
    assert all(html.escape(row.artifact) in dom for row in report.rows)
    assert dom.count("<strong>Caution:</strong> n = 8 is &lt;too&gt; small.") == len(report.sections)
    assert "<strong>Read with caution</strong>" in dom
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1900])
def test_only_cards_and_tables_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_contents_lead_to_every_section(page):
    links = page.eval_on_selector_all("a[href^='#']", "links => links.map(each => each.getAttribute('href').slice(1))")
    ids = page.eval_on_selector_all("[id]", "found => found.map(each => each.id)")
    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    contents = page.eval_on_selector_all("nav a", "links => links.map(each => each.getAttribute('href').slice(1))")
    headed = page.eval_on_selector_all("main :is(h2, h3)[id]", "found => found.map(each => each.id)")
    assert set(contents) == set(headed)


def test_pictures_say_what_is_seen_and_stay_white_in_the_dark(page):
    page.emulate_media(color_scheme="dark")
    assert all(len(alt) > 40 for alt in page.eval_on_selector_all("img", "found => found.map(each => each.alt)"))
    grounds = page.eval_on_selector_all(".card", "found => found.map(each => getComputedStyle(each).backgroundColor)")
    assert set(grounds) == {"rgb(255, 255, 255)"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_paper_has_no_open_details_and_no_dark_ground(page, tmp_path):
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.locator("details dl:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
