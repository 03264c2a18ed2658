"""The report page in a browser, opened from disk: sorting, gallery, no requests, no injected scripts."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from tests.reports.test_html_report import EVIL, ReportStore, filled, gallery, report_store_in, tree

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [] if importlib.util.find_spec("playwright") else ["playwright"]
MISSING += [] if CHROMIUM else ["a Chromium"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the page is not tested without {', '.join(MISSING)}"),
]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def reports(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportStore]:
    yield from report_store_in(tmp_path_factory.mktemp("browser"), template)


@pytest.fixture(scope="module")
def source(reports: ReportStore) -> Path:
    return reports.page(title=EVIL)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def page(source: Path, browser) -> Iterator[Page]:
    """The page, opened from disk; fails the test if anything is logged to its console or requested."""
    logged: list[str] = []
    requested: list[str] = []
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.on("console", lambda message: logged.append(message.text))
    opened.on("pageerror", lambda error: logged.append(str(error)))
    opened.on("request", lambda request: requested.append(request.url))
    opened.goto(source.as_uri())
    opened.wait_for_selector(".tile")
    yield opened
    opened.close()
    assert logged == []
    assert [url for url in requested if url != source.as_uri() and not url.startswith("data:")] == []


def column(page: Page, number: int, attribute: str = "") -> list[str]:
    """Return the texts, or an attribute, of a column of the first table."""
    cells = page.locator("table.board").first.locator(f"tbody tr > :nth-child({number})")
    return [c.get_attribute(attribute) or "" for c in cells.all()] if attribute else cells.all_inner_texts()


def headings(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("table.board").first.locator("thead th").all_inner_texts()]


def heading(page: Page, number: int):
    return page.locator("table.board").first.locator(f"thead th:nth-child({number})")


@pytest.mark.parametrize("name", ["Dice", "95% interval", "missed"])
def test_a_heading_sorts_numbers_by_full_value_in_both_directions(page, name):
    number = headings(page).index(name) + 1
    values = [float(v) for v in column(page, number, "data-value")]
    button = heading(page, number).locator("button")
    button.click()
    first = heading(page, number).get_attribute("aria-sort")
    seen = [[float(v) for v in column(page, number, "data-value")]]
    button.focus()
    page.keyboard.press("Enter")
    second = heading(page, number).get_attribute("aria-sort")
    seen.append([float(v) for v in column(page, number, "data-value")])
    assert {first, second} == {"ascending", "descending"}
    assert seen == [sorted(values, reverse=first == "descending"), sorted(values, reverse=second == "descending")]
    assert first == ("ascending" if name == "missed" else "descending")  # the best values come first
    assert page.locator("th[aria-sort]").count() == 2  # one per table


def test_names_sort_alphabetically_and_undefined_values_come_last(page):
    names = column(page, 2)
    heading(page, 2).locator("button").click()
    assert heading(page, 2).get_attribute("aria-sort") == "ascending"
    assert column(page, 2)[1:] == ["bare [synthetic]", "second [synthetic]"]
    page.evaluate("document.querySelector('table.board tbody tr').cells[2].dataset.value = ''")
    undefined = column(page, 2)[0]
    for _ in range(2):
        heading(page, 3).locator("button").click()
        assert column(page, 2)[-1] == undefined
    assert sorted(column(page, 2)) == sorted(names)


def paths(page: Page, kind: str) -> list[str | None]:
    return [path.get_attribute("d") for path in page.locator(f".tile path.{kind}").all()]


def test_choosing_a_patient_changes_the_gallery(page, source):
    patients = gallery(tree(source))
    rows = 2  # models with logged masks
    for at in (0, 3, 5):
        page.locator(".gallery select").select_option(str(at))
        slices = patients[at]["slices"]
        assert paths(page, "truth") == [s["truth"][0] for s in slices for _ in range(rows)]
        assert paths(page, "prediction") == [m[0] for s in slices for m in s["masks"]]
        assert page.locator(".tile").count() == len(slices) * (rows + 1)
        assert patients[at]["about"] in page.locator(".stage").inner_text()
    page.click(".gallery .on")  # from the last to the first
    assert page.locator(".gallery select").input_value() == "0"
    page.click(".gallery .back")
    assert page.locator(".gallery select").input_value() == "5"


def test_clicking_a_heat_map_cell_shows_its_patient(page, source):
    cell = page.locator(".cell").last
    cell.click()
    cases = [patient["case"] for patient in gallery(tree(source))]
    assert page.locator(".gallery select").input_value() == str(cases.index(cell.get_attribute("data-patient")))
    cell.hover()
    assert page.locator("#tip").inner_text() == cell.get_attribute("data-tip")


def test_truth_prediction_outlines_and_fill_can_be_switched(page):
    seen = page.locator(".tile path.truth").first
    page.uncheck(".gallery [name=truth]")
    assert seen.evaluate("e => getComputedStyle(e).display") == "none"
    assert page.locator(".tile path.prediction").first.evaluate("e => getComputedStyle(e).display") != "none"
    page.check(".gallery [name=truth]")
    page.locator(".gallery [name=fill]").fill("40")
    assert seen.evaluate("e => getComputedStyle(e).fillOpacity") == "0.4"
    page.uncheck(".gallery [name=outline]")
    assert seen.evaluate("e => getComputedStyle(e).stroke") == "none"
    whole = page.locator(".tile svg").first.get_attribute("viewBox")
    page.check(".gallery [name=near]")
    assert (
        page.locator(".tile svg").first.get_attribute("viewBox") == whole == "0 0 32 32"
    )  # the close-up is not smaller than the image


def pixels(page: Page, where: str, number: int = 0) -> np.ndarray:
    shot = np.frombuffer(page.locator(where).nth(number).screenshot(), np.uint8)
    return cv2.imdecode(shot, cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def test_filled_outlines_cover_exactly_the_mask(page, source):
    """With only the truth filled, exactly its pixels are green on the screen."""
    page.uncheck(".gallery [name=prediction]")
    page.uncheck(".gallery [name=outline]")
    page.locator(".gallery [name=fill]").fill("100")
    piece = gallery(tree(source))[0]["slices"][0]
    truth = filled(piece["truth"][0], (32, 32))
    shown = pixels(page, ".tile svg", 1)
    step = shown.shape[0] / 32
    centres = ((np.arange(32) + 0.5) * step).astype(int)
    green = (shown[..., 1] > shown[..., 0] + 60)[np.ix_(centres, centres)]
    assert truth.any()
    inner = np.s_[1:-1, 1:-1]  # the corners of the image are rounded
    assert (green[inner] == truth[inner]).all()


def test_every_figure_is_drawn(page):
    for number in range(page.locator("section svg[role=img]").count()):
        shown = pixels(page, "section svg[role=img]", number)
        assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 10
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_narrow_page_does_not_scroll_sideways(page):
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_names_are_shown_as_text(page):
    shown = "".join(c if c.isprintable() else "?" for c in EVIL)
    assert page.title() == shown
    assert page.locator("h1").inner_text() == shown
    assert f"{shown} [synthetic]" in column(page, 2)
    assert shown in page.locator(".tile b").all_inner_texts()
    assert page.locator("b[onclick]").count() == 0


def test_the_policy_blocks_scripts_that_were_injected(browser, source, tmp_path):
    injected = tmp_path / "injected.html"
    element = "<b id=injected onclick='document.title=1'>x</b><script>document.title=2</script>"
    injected.write_text(source.read_text().replace("<h1>", f"{element}<h1>"))
    opened = browser.new_page()
    opened.goto(injected.as_uri())
    opened.wait_for_selector(".tile")
    opened.click("#injected")
    assert opened.title() not in ("1", "2")
    opened.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_long_names_do_not_widen_the_page(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate(
        "document.querySelectorAll('h1, h2, h3, .finding, .notes li, dd, nav a, .name, figcaption, svg text')"
        ".forEach(each => { each.textContent = 'a-very-long-name-of-a-run'.repeat(12) + 'x'.repeat(200) })"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
