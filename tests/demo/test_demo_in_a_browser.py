"""The demo in a real browser, with two tiny runs on a phantom."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import tifffile

from bench.data.datasets.lgg import lgg
from bench.demo.logged_models import LoggedModels
from bench.demo.predictions import choose_slice, score
from bench.demo.scans import Patients, read_dropped_files
from bench.tracking import connect
from tests.fakes import Home, inside, make_home, server_environment

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["a Chromium"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the page is not tested without {', '.join(MISSING)}"),
]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
FORGED_PATH_ERROR = "InvalidPathError: Cannot move"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Home]:
    made = make_home(tmp_path_factory.mktemp("browser"), template, "first", "second")
    with pytest.MonkeyPatch.context() as patch:
        inside(made, patch)
        yield made


@pytest.fixture(scope="module")
def models(home: Home) -> LoggedModels:
    """The models whose predictions the page must show."""
    return LoggedModels(connect(home.uri), Patients(lgg(folder=home.phantom)))


@pytest.fixture(scope="module")
def address(home: Home, models: LoggedModels) -> Iterator[str]:
    """The URL at which the command serves the page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "bench", "demo", "first", "--data", str(home.phantom), "--port", str(port)]
    log = home.folder / "demo.log"
    with log.open("w") as out:
        server = subprocess.Popen(words, cwd=home.folder, env=server_environment(home), stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                if answers(url):
                    break
                time.sleep(0.1)
            yield url
        finally:
            server.terminate()
            server.wait(30)
    text = log.read_text()
    assert text.count("Traceback") == text.count(FORGED_PATH_ERROR), text  # only the forged upload failed


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened.new_context(viewport={"width": 1400, "height": 1000})
        opened.close()


@pytest.fixture
def requests() -> list[str]:
    """Every URL that the page of a test requested."""
    return []


@pytest.fixture
def page(address: str, browser, requests: list[str]) -> Iterator[Page]:
    """A new page with its first pictures. The test fails if a script fails or another machine is contacted."""
    errors: list[str] = []
    opened = browser.new_page()
    opened.set_default_timeout(30_000)
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#pictures-a img")
    yield opened
    opened.close()
    assert errors == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []


def pick(page: Page, selector: str, text: str) -> None:
    page.click(f"{selector} input")
    page.locator("[role=option]").filter(has_text=text).first.click()


def slide(page: Page, selector: str, value: object) -> None:
    page.locator(f"{selector} input[type=range]").fill(str(value))


def wait_for(page: Page, selector: str, text: str) -> None:
    """Wait until a part of the page shows a text."""
    page.locator(selector).filter(has_text=text).first.wait_for()


def dice(page: Page, letter: str) -> list[str]:
    """Return the Dice of this slice and of the patient, as shown."""
    return page.locator(f"#heading-{letter} td.dice").all_inner_texts()


def expected(models: LoggedModels, run: str, case: str, at: int, threshold: float | None = None) -> list[str]:
    shown = models.patients.scan(case)
    made = models.predict(models.find(run), shown)
    mask = made.mask(made.thresholds if threshold is None else made.move_threshold(0, threshold))
    values = score(mask[at], shown.truth[at]).dice, score(mask, shown.truth).dice
    return ["–" if np.isnan(value) else f"{value:.3f}" for value in values]


def drop(page: Page, *files: Path) -> None:
    page.set_input_files("#files input[type=file]", [str(file) for file in files])


def read_picture(page: Page, selector: str) -> np.ndarray:
    """Return the RGB pixels of a picture on the page."""
    link = page.get_attribute(f"{selector} img", "src").split(",")[1]
    content = np.frombuffer(base64.b64decode(link), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]


def test_the_page_opens_at_the_largest_tumour_of_a_patient_out_of_fold(page, models):
    case = models.patients.cases[0]
    at = choose_slice(models.patients.scan(case), None)
    wait_for(page, "#areas", f"{case} · slice {at + 1} of 6")
    wait_for(page, "#heading-a", "Out of fold: the model of fold")
    assert dice(page, "a") == expected(models, "first", case, at)
    wait_for(page, "#banner", "SYNTHETIC DATA")
    wait_for(page, ".title", "Research software, not for clinical use")
    assert not page.locator("#pictures-b img").count()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing overflows


def test_the_slider_moves_the_slice_and_its_dice(page, models):
    case = models.patients.cases[0]
    shown = models.patients.scan(case)
    for at in (0, 5, 2):
        slide(page, "#slice", at + 1)
        wait_for(page, "#areas", f"slice {at + 1} of 6")
        assert dice(page, "a") == expected(models, "first", case, at)
        truth = read_picture(page, "#pictures-scan .truth").any(axis=2)
        assert (truth == shown.truth[at, 0]).all()


def test_another_patient_changes_the_pictures(page, models):
    case = models.patients.cases[3]
    pick(page, "#patient", case)
    wait_for(page, "#areas", case)
    assert dice(page, "a") == expected(models, "first", case, choose_slice(models.patients.scan(case), None))


def test_a_second_model_is_shown_below_with_its_own_dice(page, models):
    pick(page, "#model-b", "second")
    wait_for(page, "#heading-b", "second")
    case = models.patients.cases[0]
    at = choose_slice(models.patients.scan(case), None)
    assert dice(page, "a") == expected(models, "first", case, at)
    assert dice(page, "b") == expected(models, "second", case, at)
    assert dice(page, "a") != dice(page, "b")
    pick(page, "#model-b", "none")
    page.locator("#row-b").wait_for(state="hidden")


def test_a_moved_threshold_is_not_a_result_and_can_be_reset(page, models):
    case = models.patients.cases[0]
    at = choose_slice(models.patients.scan(case), None)
    slide(page, "#threshold-a", 0.11)
    wait_for(page, "#heading-a", "At your threshold: not a result.")
    assert dice(page, "a") == expected(models, "first", case, at, 0.11)
    page.click("#reset-a")
    wait_for(page, "#heading-a", "as logged by the run")
    assert dice(page, "a") == expected(models, "first", case, at)


def test_opacity_0_shows_the_scan_alone(page):
    before = page.get_attribute("#pictures-a .overlay img", "src")
    slide(page, "#opacity", 0)
    page.wait_for_function("old => document.querySelector('#pictures-a .overlay img').src != old", arg=before)
    assert (read_picture(page, "#pictures-a .overlay") == read_picture(page, "#pictures-scan .scan")).all()


def test_the_outlines_of_the_overlay_can_be_shown(page):
    before = page.get_attribute("#pictures-a .overlay img", "src")
    page.locator("#style label").filter(has_text="outline").click()
    page.wait_for_function("old => document.querySelector('#pictures-a .overlay img').src != old", arg=before)
    wait_for(page, "#pictures-a .overlay", "truth, dotted")


def test_the_page_says_what_it_does_and_a_new_file_clears_an_error(page, models, tmp_path):
    (tmp_path / "notes.tif").write_text("hello")
    drop(page, tmp_path / "notes.tif")
    wait_for(page, "#status .problem", "notes.tif")
    page.evaluate(
        """() => { window.said = []; const hear = () => said.push(document.querySelector('#status').innerText);
        new MutationObserver(hear).observe(document.body, {subtree: true, childList: true}) }"""
    )
    image = models.patients.scan(models.patients.cases[2]).images[3]
    cv2.imwrite(str(tmp_path / "one.png"), image[..., ::-1])
    drop(page, tmp_path / "one.png")
    wait_for(page, "#heading-a", "Dropped files")
    page.locator("#status p").wait_for(state="detached")
    assert "Reading 1 file(s)" in " ".join(page.evaluate("said"))


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(23, 24, 26)")])
def test_a_phone_shows_the_page_in_its_own_colours_without_scrolling_sideways(address, browser, scheme, ground):
    opened = browser.browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    opened.goto(address)
    opened.wait_for_selector("#pictures-a img")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    overlay, scan = (opened.locator(f"figure.{name}").first.bounding_box() for name in ("overlay", "scan"))
    assert overlay["width"] > 1.3 * scan["width"]
    opened.close()


def test_a_bad_file_is_refused_and_the_page_still_works(page, models, tmp_path):
    (tmp_path / "notes.tif").write_text("hello")
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((32, 32, 3), np.uint16), photometric="rgb")
    (tmp_path / "<img src=x onerror=document.title=1>.txt").write_text("hello")
    for file, sentence in (
        (tmp_path / "notes.tif", "notes.tif cannot be read as TIFF"),
        (tmp_path / "deep.tif", "deep.tif holds uint16 pixels"),
        (next(tmp_path.glob("*.txt")), "is not a scan"),
    ):
        drop(page, file)
        wait_for(page, "#status .problem", sentence)
        assert "Traceback" not in page.content()
    assert "/tmp" not in page.inner_text("#status")
    assert page.title() != "1"
    slide(page, "#slice", 1)  # the patient is still shown
    wait_for(page, "#areas", "slice 1 of 6")
    assert dice(page, "a") == expected(models, "first", models.patients.cases[0], 0)


def test_the_masks_of_dropped_slices_are_what_the_models_predict(page, models, home, tmp_path):
    case = models.patients.cases[1]
    files = []
    for number, image in enumerate(models.patients.scan(case).images, 1):
        files.append(tmp_path / f"mine_{number}.png")
        cv2.imwrite(str(files[-1]), image[..., ::-1])
    drop(page, *files)
    wait_for(page, "#heading-a", "Dropped files: the mean of all 3 fold models.")
    wait_for(page, "#heading-a", f"the same images as those of {case}")
    assert set(dice(page, "a")) == {"–"}
    with page.expect_download() as download:
        page.click("#save-a")
    assert download.value.suggested_filename == "mine_1_first.zip"
    with zipfile.ZipFile(download.value.path()) as file:
        masks = [tifffile.imread(io.BytesIO(file.read(f"mine_1_first/mine_{n}_mask.tif"))) for n in range(1, 7)]
    shown = read_dropped_files(files, ("pre", "flair", "post"))
    whole = models.load(models.find("first")).models
    assert (np.stack(masks) == (whole.predict(shown.images) >= whole.thresholds[0]) * 255).all()


def test_one_slice_is_downloaded_as_a_tiff_at_the_shown_threshold(page, models, tmp_path):
    image = models.patients.scan(models.patients.cases[2]).images[3]
    cv2.imwrite(str(tmp_path / "one.png"), image[..., ::-1])
    drop(page, tmp_path / "one.png")
    wait_for(page, "#heading-a", "This slice is normalised by its own grey levels")
    slide(page, "#threshold-a", 0.2)
    wait_for(page, "#heading-a", "Threshold 0.2")
    with page.expect_download() as download:
        page.click("#save-a")
    assert download.value.suggested_filename == "one_mask.tif"
    probability = models.load(models.find("first")).models.predict(image[None])[0]
    assert (tifffile.imread(download.value.path()) == (probability >= 0.2) * 255).all()


def test_other_files_of_this_machine_cannot_be_read(address, home):
    secret = home.folder / "mlruns" / "mlflow.db"
    for path in (secret, "/etc/passwd", home.phantom / "data.csv", "../../../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=10)
        assert error.value.code in (403, 404)
        error.value.close()


def test_a_forged_upload_cannot_name_a_file_of_this_machine(address, home, page):
    """A page of an attacker could send a path in place of an uploaded file."""
    scan = next(home.phantom.rglob("*_1.tif"))
    with urllib.request.urlopen(f"{address}/config", timeout=10) as answer:
        config = json.load(answer)
    event = next(d for d in config["dependencies"] if any(target[1] == "upload" for target in d["targets"]))
    defaults = {c["id"]: c["props"].get("value") for c in config["components"]}
    values = [defaults.get(number) for number in event["inputs"]]
    values[-1] = [{"path": str(scan), "orig_name": "x.tif", "meta": {"_type": "gradio.FileData"}}]
    session = {"fn_index": event["id"], "session_hash": "forged", "data": values}
    joined = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(session).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(joined, timeout=10).close()
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=forged", timeout=20) as stream:
        ended = next(line for line in stream if b"process_completed" in line)
    assert json.loads(ended.removeprefix(b"data: "))["success"] is False
    assert f"{FORGED_PATH_ERROR} {scan}" in (home.folder / "demo.log").read_text()


def test_everything_that_the_page_needs_comes_from_this_machine(page, requests, address):
    kinds = {url.split("?")[0].rsplit(".", 1)[-1] for url in requests if url.startswith(address)}
    assert {"js", "css"} <= kinds  # the fixture `page` asserts that nothing else was requested


@pytest.mark.parametrize(
    ("name", "value"), [("Host", "evil.example"), ("Origin", "http://evil.example"), ("Origin", "null")]
)
def test_the_server_refuses_foreign_names_and_uploads_of_other_sites(address, name, value):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    body = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\nhello\r\n--x--\r\n'
    upload = urllib.request.Request(f"{address}/gradio_api/upload", body, kind | {name: value})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(upload, timeout=10)
    assert error.value.code == 403
    error.value.close()
