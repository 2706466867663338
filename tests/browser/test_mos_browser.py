import pytest
import torch

from hbench.evaluation.mos.marks import read_marks
from hbench.evaluation.mos.score import score
from hbench.evaluation.mos.study import Direction, design
from hbench.reporting.sheets import write_sheets

playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    generator = torch.Generator().manual_seed(0)
    images = {
        Direction("runs/a", k, control): torch.randint(256, (4, 5, 1, 16, 16), dtype=torch.uint8, generator=generator)
        for k, control in [(0, False), (1, False), (2, False), (0, True)]
    }
    key = design(images, {"runs/a": "T"}, assessors=1, votes=1, repeats=0.5)
    write_sheets(key, images, folder, asked_by="Ada Lovelace")
    return folder, key


@pytest.fixture
def page(browser, study):
    context = browser.new_context(accept_downloads=True)
    page = context.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else problems.append(request.url),
    )
    page.goto((study[0] / "sheet_1.html").as_uri())
    yield page
    assert problems == []
    context.close()


def heading(page):
    return page.locator("section:visible h2").inner_text()


def export(page, path, button="#download"):
    with page.expect_download() as download:
        page.click(button)
    assert download.value.suggested_filename == "marks_1.csv"
    download.value.save_as(path)
    return path


def test_marks_made_in_the_browser_are_the_marks_scored(page, study, tmp_path):
    _, key = study
    page.get_by_role("button", name="Start").click()
    assert heading(page) == "Item 1 of 6"
    page.keyboard.press("n")
    page.keyboard.type('=1+1 "dünn, 10"')
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    page.get_by_role("button", name="0 no").click()
    page.keyboard.press("1")  # item 3, taken back below
    page.reload()
    assert heading(page) == "Item 4 of 6"
    page.keyboard.press("u")
    assert heading(page) == "Item 3 of 6"
    page.keyboard.press("0")
    page.keyboard.press("ArrowRight")
    assert heading(page) == "Item 5 of 6"
    page.keyboard.press("1")
    page.keyboard.press("0")
    assert heading(page) == "Item 4 of 6"  # the one that was skipped
    playwright.expect(page.locator("#count")).to_have_text("5 of 6 marked")
    page.keyboard.press("1")
    assert heading(page) == "Export your marks"
    playwright.expect(page.locator("#summary")).to_have_text("All 6 items are marked.")
    marks = read_marks([export(page, tmp_path / "marks.csv")], key)
    assert [mark.mark for mark in marks] == [1, 0, 0, 1, 1, 0]
    assert [mark.name for mark in marks] == ['=1+1 "dünn, 10"', "", "", "", "", ""]
    first = [mark.mark for mark in marks if mark.item.repeat_of is None and not mark.item.control]
    assert score(marks, key).runs[0].mos.mean == pytest.approx(sum(first) / len(first))


def test_exported_marks_are_read_in_again_and_taken_back(page, study, tmp_path):
    _, key = study
    playwright.expect(page.locator("#over")).to_be_disabled()
    page.click("#start")
    page.locator("#name").fill('=1+1 "dünn, 10"')
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.keyboard.press("0")
    page.get_by_role("button", name="Export CSV").first.click()
    first = export(page, tmp_path / "marks.csv")
    page.click("#instructions")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#over")
    playwright.expect(page.locator("#count")).to_have_text("0 of 6 marked")
    page.reload()
    playwright.expect(page.locator("#count")).to_have_text("0 of 6 marked")  # and stay away
    page.set_input_files("#file", first)
    playwright.expect(page.locator("#count")).to_have_text("2 of 6 marked")
    page.reload()
    page.get_by_role("button", name="Go on").click()
    assert heading(page) == "Item 3 of 6"
    for _ in range(4):
        page.keyboard.press("0")
    marks = read_marks([export(page, tmp_path / "all.csv")], key)
    assert [mark.mark for mark in marks] == [1, 0, 0, 0, 0, 0]
    assert marks[0].name == '=1+1 "dünn, 10"'
    page.click("#instructions")
    for name, text in {
        "another.csv": first.read_text().replace(key.sheets[0].sheet, "another"),
        "page.csv": "<html>\n<p>",
        "letters.csv": "a\nb",
    }.items():
        other = tmp_path / name  # each has its own: a file that changes while the page reads it is not read
        other.write_text(text)
        page.set_input_files("#file", other)
        playwright.expect(page.locator("#warning")).to_have_text(
            f"{name} holds no marks of this sheet: open the one that was exported from it."
        )
        playwright.expect(page.locator("#count")).to_have_text("6 of 6 marked")
    spreadsheet = tmp_path / "spreadsheet.csv"  # saves quotes only where they are needed
    spreadsheet.write_text(first.read_text().replace('""', "").replace(",\n", ',""\n'))
    page.set_input_files("#file", spreadsheet)
    playwright.expect(page.locator("#warning")).to_be_hidden()


def test_a_file_that_cannot_be_read_is_said_and_changes_nothing(page, tmp_path):
    page.click("#start")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.click("#instructions")
    page.evaluate("() => { File.prototype.text = () => Promise.reject(new DOMException('', 'NotReadableError')); }")
    locked = tmp_path / "marks.csv"
    locked.write_text("anything")
    page.set_input_files("#file", locked)
    playwright.expect(page.locator("#warning")).to_have_text(
        "marks.csv cannot be read: it was moved, changed or locked since it was chosen. Choose it again."
    )
    playwright.expect(page.locator("#count")).to_have_text("1 of 6 marked")


def test_keys_in_the_name_do_not_mark_and_held_keys_mark_once(page):
    page.keyboard.press("1")
    assert heading(page) == "Can you tell what changes?"
    page.click("#start")
    page.locator("#name").fill("")
    page.locator("#name").press_sequentially("01un")
    page.keyboard.press("Backspace")
    assert heading(page) == "Item 1 of 6"
    playwright.expect(page.locator("#name")).to_have_value("01u")
    page.keyboard.press("Escape")
    for _ in range(4):
        page.keyboard.down("1")  # what a held key sends
    page.keyboard.up("1")
    assert heading(page) == "Item 2 of 6"
    playwright.expect(page.locator("#count")).to_have_text("1 of 6 marked")
    page.keyboard.press("Backspace")
    assert heading(page) == "Item 1 of 6"
    playwright.expect(page.locator("#count")).to_have_text("0 of 6 marked")
    page.keyboard.press("ArrowLeft")
    page.uncheck("#shortcuts")
    page.click("#start")
    page.keyboard.press("1")
    assert heading(page) == "Item 1 of 6"


def test_an_incomplete_sheet_warns_first(page, tmp_path):
    page.click("#start")
    page.keyboard.press("1")
    page.click(".export")
    playwright.expect(page.locator("#summary")).to_contain_text("5 of 6 items have no mark yet: 2, 3, 4, 5, 6.")
    lines = export(page, tmp_path / "marks.csv").read_text(encoding="utf-8-sig").splitlines()
    assert lines[1].endswith(',1,1,""')
    assert lines[2].endswith(',2,,""')
    page.click("#unmarked")
    assert heading(page) == "Item 2 of 6"


def test_a_browser_that_keeps_nothing_says_so(browser, study):
    page = browser.new_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no'); } })")
    page.goto((study[0] / "sheet_1.html").as_uri())
    playwright.expect(page.get_by_role("alert")).to_contain_text("does not keep your marks")
    page.click("#start")
    page.keyboard.press("1")
    playwright.expect(page.locator("#count")).to_have_text("1 of 6 marked")
    page.close()


@pytest.mark.parametrize(
    "kept",
    ["{", "null", "[]", '"x"', '{"marks": {"1": 7, "99": 1}, "names": {"1": 5}, "at": "<b>", "history": [[1, 9], 3]}'],
)
def test_damaged_storage_is_left_out(page, study, kept):
    page.evaluate(
        "([key, value]) => localStorage.setItem(key, value)", [f"hbench-mos:{study[1].sheets[0].sheet}", kept]
    )
    page.reload()
    playwright.expect(page.locator("#count")).to_have_text("0 of 6 marked")
    page.click("#start")
    page.keyboard.press("1")
    playwright.expect(page.locator("#count")).to_have_text("1 of 6 marked")


def test_everything_has_a_name_and_can_be_reached_by_tab(page):
    page.click("#start")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.dataset.mark || document.activeElement.tagName"
            )
        )
        focused = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert focused != "none" or reached[-1] == "BODY"
    assert {"instructions", "SUMMARY", "name", "0", "1", "back", "next"} <= set(reached)
    playwright.expect(page.get_by_role("textbox", name="What changes?")).to_be_visible()
    playwright.expect(page.get_by_role("progressbar", name="0 of 6 marked")).to_be_visible()
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    for button in page.locator("button:visible").all():
        assert button.inner_text().strip()
        assert button.bounding_box()["height"] >= 44  # pixels, WCAG 2.5.5
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    playwright.expect(page.get_by_role("status")).to_contain_text("Item 1 marked 1.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_AA(page, scheme):
    page.emulate_media(color_scheme=scheme)
    names = ["ground", "raised", "ink", "soft", "accent", "on-accent", "warn"]
    colors = page.evaluate(
        "n => n.map(x => getComputedStyle(document.documentElement).getPropertyValue('--' + x).trim())", names
    )

    def luminance(name):
        color = colors[names.index(name)]
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, ground in [
        ("ink", "ground"),
        ("ink", "raised"),
        ("soft", "ground"),
        ("soft", "raised"),
        ("on-accent", "accent"),
        ("warn", "raised"),
    ]:
        low, high = sorted((luminance(text), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)  # WCAG 1.4.3


@pytest.mark.parametrize("size", [(1400, 850), (1180, 820), (820, 1180), (390, 800)])
def test_images_keep_square_pixels_and_nothing_is_cut_off(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.click("#start")
    box = page.locator("section:visible img").first.bounding_box()
    assert box["width"] / 90 == pytest.approx(round(box["width"] / 90))  # 5 images of 16 pixels, margins of 1
    assert box["width"] >= 5 * 48
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    playwright.expect(page.get_by_role("button", name="1 yes, all three")).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("size", [(390, 844), (360, 640), (844, 390)])
def test_on_a_phone_everything_needed_to_mark_is_in_view(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#start")
    page.mouse.wheel(0, 300)  # the images may scroll, the rest stays
    playwright.expect(page.get_by_role("heading", name="Sheet of assessor 1, item 1 of 6")).to_be_in_viewport(ratio=1)
    playwright.expect(page.get_by_text("1 only if smooth, consistent and easy to interpret")).to_be_in_viewport(ratio=1)
    for mark in ("0 no", "1 yes, all three"):
        playwright.expect(page.get_by_role("button", name=mark)).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_complete_export_thanks_and_says_that_the_page_may_be_closed(page, tmp_path):
    page.click("#start")
    for _ in range(6):
        page.keyboard.press("1")
    playwright.expect(page.locator("#thanks")).to_be_hidden()
    export(page, tmp_path / "marks.csv")
    playwright.expect(page.locator("#thanks")).to_contain_text("Thank you! marks_1.csv is among your downloads")
    playwright.expect(page.locator("#thanks")).to_contain_text("saved in this browser. You may close this page.")
    page.keyboard.press("u")  # a mark taken back is not exported yet
    page.keyboard.press("1")
    playwright.expect(page.locator("#thanks")).to_be_hidden()


def test_the_instructions_say_who_asks_how_long_it_takes_and_show_a_mark_of_each_kind(page):
    first = page.locator("#page-0")
    playwright.expect(first).to_contain_text("Ada Lovelace asks you to look at 6 items. This takes about 2 minutes")
    playwright.expect(first).to_contain_text("Where nothing visible changes, the mark is 0.")
    assert [caption[0] for caption in first.locator("figcaption").all_inner_texts()] == ["1", "0"]
    assert all(image.bounding_box()["width"] > 150 for image in first.locator("figure img").all())


@pytest.mark.parametrize("width", [1280, 390])
def test_without_scripts_the_notice_is_on_top_and_no_dead_button_shows(browser, study, width):
    context = browser.new_context(java_script_enabled=False, viewport={"width": width, "height": 850})
    page = context.new_page()
    page.goto((study[0] / "sheet_1.html").as_uri())
    playwright.expect(page.get_by_text("This browser runs no scripts")).to_be_in_viewport(ratio=1)
    assert page.locator("button:visible, input:visible, progress:visible").count() == 0
    assert page.locator("section.item:visible").count() == 6
    assert page.locator(".item .box:visible").count() == 12
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def test_paper_shows_every_item_with_boxes(page):
    page.emulate_media(media="print")
    assert page.locator("section.item:visible").count() == 6
    assert page.locator(".item .box:visible").count() == 12
    assert page.locator("button:visible").count() == 0
