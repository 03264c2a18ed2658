"""The demo as a person uses it: a real browser on a real page, with two tiny runs on a phantom."""

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
from bench.demo.scans import Patients, dropped
from bench.demo.studio import Studio, busiest, score
from bench.tracking import connect
from tests.fakes import Home, inside, make_home, server_environment

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LACKING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
LACKING += [] if CHROMIUM else ["a Chromium"]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"the page is not tested without {', '.join(LACKING)}")

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
FORGED = "InvalidPathError: Cannot move"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Home]:
    made = make_home(tmp_path_factory.mktemp("browser"), template, "first", "second")
    with pytest.MonkeyPatch.context() as patch:
        inside(made, patch)
        yield made


@pytest.fixture(scope="module")
def studio(home: Home) -> Studio:
    """What the page must agree with."""
    return Studio(connect(home.uri), Patients(lgg(folder=home.phantom)))


@pytest.fixture(scope="module")
def address(home: Home, studio: Studio) -> Iterator[str]:
    """Where the command serves its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "bench", "demo", "first", "--data", str(home.phantom), "--port", str(port)]
    log = home.folder / "demo.log"
    with log.open("w") as out:
        server = subprocess.Popen(words, cwd=home.folder, env=server_environment(home), stdout=out, stderr=out)
        try:
            where = f"http://127.0.0.1:{port}"
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                if answers(where):
                    break
                time.sleep(0.1)
            yield where
        finally:
            server.terminate()
            server.wait(30)
    said = log.read_text()
    assert said.count("Traceback") == said.count(FORGED), said  # nothing went wrong but what was forged


def answers(where: str) -> bool:
    try:
        with urllib.request.urlopen(where, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened.new_context(viewport={"width": 1400, "height": 1000})
        opened.close()


@pytest.fixture
def asked() -> list[str]:
    """Every address that the page of a test asked for."""
    return []


@pytest.fixture
def page(address: str, browser, asked: list[str]) -> Iterator[Page]:
    """A fresh page that has drawn its first pictures. It fails a test by an error in its scripts, and by asking
    anything of another machine.
    """
    broken: list[str] = []
    opened = browser.new_page()
    opened.set_default_timeout(30_000)
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: broken.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#pictures-a img")
    yield opened
    opened.close()
    assert broken == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def pick(page: Page, where: str, text: str) -> None:
    page.click(f"{where} input")
    page.locator("[role=option]").filter(has_text=text).first.click()


def slide(page: Page, where: str, value: object) -> None:
    page.locator(f"{where} input[type=range]").fill(str(value))


def says(page: Page, where: str, text: str) -> None:
    """Wait until a part of the page says so."""
    page.locator(where).filter(has_text=text).first.wait_for()


def dice(page: Page, letter: str) -> list[str]:
    """Of this slice, and of the patient."""
    return page.locator(f"#heading-{letter} td.dice").all_inner_texts()


def expected(studio: Studio, run: str, case: str, at: int, threshold: float | None = None) -> list[str]:
    shown = studio.patients.scan(case)
    made = studio.predict(studio.find(run), shown)
    mask = made.mask(made.threshold if threshold is None else made.nearest(threshold))
    values = score(mask[at], shown.truth[at]).dice, score(mask, shown.truth).dice
    return ["–" if np.isnan(value) else f"{value:.3f}" for value in values]


def drop(page: Page, *files: Path) -> None:
    page.set_input_files("#files input[type=file]", [str(file) for file in files])


def pictured(page: Page, where: str) -> np.ndarray:
    """The pixels of a picture on the page, RGB."""
    link = page.get_attribute(f"{where} img", "src").split(",")[1]
    content = np.frombuffer(base64.b64decode(link), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR)[..., ::-1]


def test_the_page_opens_on_the_busiest_slice_of_a_patient_out_of_fold(page, studio):
    case = studio.patients.cases[0]
    at = busiest(studio.patients.scan(case), None)
    says(page, "#strip", f"{case} · slice {at + 1} of 6")
    says(page, "#heading-a", "Out of fold: the model of fold")
    assert dice(page, "a") == expected(studio, "first", case, at)
    says(page, "#banner", "SYNTHETIC DATA")
    says(page, ".title", "Research software, not for clinical use")
    assert not page.locator("#pictures-b img").count()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing hangs over the edge


def test_the_slider_moves_the_slice_and_its_dice(page, studio):
    case = studio.patients.cases[0]
    shown = studio.patients.scan(case)
    for at in (0, 5, 2):
        slide(page, "#slice", at + 1)
        says(page, "#strip", f"slice {at + 1} of 6")
        assert dice(page, "a") == expected(studio, "first", case, at)
        truth = pictured(page, "#pictures-a .truth").any(axis=2)
        assert (truth == shown.truth[at]).all()


def test_another_patient_is_another_picture(page, studio):
    case = studio.patients.cases[3]
    pick(page, "#patient", case)
    says(page, "#strip", case)
    assert dice(page, "a") == expected(studio, "first", case, busiest(studio.patients.scan(case), None))


def test_a_second_model_stands_below_with_a_dice_of_its_own(page, studio):
    pick(page, "#model-b", "second")
    says(page, "#heading-b", "second")
    case = studio.patients.cases[0]
    at = busiest(studio.patients.scan(case), None)
    assert dice(page, "a") == expected(studio, "first", case, at)
    assert dice(page, "b") == expected(studio, "second", case, at)
    assert dice(page, "a") != dice(page, "b")
    pick(page, "#model-b", "none")
    page.locator("#row-b").wait_for(state="hidden")


def test_a_moved_threshold_is_no_result_and_can_be_put_back(page, studio):
    case = studio.patients.cases[0]
    at = busiest(studio.patients.scan(case), None)
    slide(page, "#threshold-a", 0.11)
    says(page, "#heading-a", "At your threshold: not a result.")
    assert dice(page, "a") == expected(studio, "first", case, at, 0.11)
    page.click("#own-a")
    says(page, "#heading-a", "as logged by the run")
    assert dice(page, "a") == expected(studio, "first", case, at)


def test_opacity_0_shows_the_scan_alone(page):
    before = page.get_attribute("#pictures-a .overlay img", "src")
    slide(page, "#opacity", 0)
    page.wait_for_function("old => document.querySelector('#pictures-a .overlay img').src != old", arg=before)
    assert (pictured(page, "#pictures-a .overlay") == pictured(page, "#pictures-a .scan")).all()


def test_a_bad_file_is_a_sentence_and_the_page_goes_on(page, studio, tmp_path):
    (tmp_path / "notes.tif").write_text("hello")
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((32, 32, 3), np.uint16), photometric="rgb")
    (tmp_path / "<img src=x onerror=document.title=1>.txt").write_text("hello")
    for file, sentence in (
        (tmp_path / "notes.tif", "notes.tif cannot be read as TIFF"),
        (tmp_path / "deep.tif", "deep.tif holds uint16 pixels"),
        (next(tmp_path.glob("*.txt")), "is no scan"),
    ):
        drop(page, file)
        says(page, "#status .problem", sentence)
        assert "Traceback" not in page.content()
    assert "/tmp" not in page.inner_text("#status")
    assert page.title() != "1"
    slide(page, "#slice", 1)  # the patient is still there
    says(page, "#strip", "slice 1 of 6")
    assert dice(page, "a") == expected(studio, "first", studio.patients.cases[0], 0)


def test_dropped_slices_are_one_patient_and_their_masks_are_what_the_models_predict(page, studio, home, tmp_path):
    case = studio.patients.cases[1]
    files = []
    for number, image in enumerate(studio.patients.scan(case).images, 1):
        files.append(tmp_path / f"mine_{number}.png")
        cv2.imwrite(str(files[-1]), image[..., ::-1])
    drop(page, *files)
    says(page, "#heading-a", "Dropped files: the mean of all 3 fold models.")
    says(page, "#heading-a", f"the very pixels of {case}")
    assert set(dice(page, "a")) == {"–"}
    with page.expect_download() as download:
        page.click("#save-a")
    assert download.value.suggested_filename == "mine_1_first.zip"
    with zipfile.ZipFile(download.value.path()) as file:
        masks = [tifffile.imread(io.BytesIO(file.read(f"mine_1_first/mine_{n}_mask.tif"))) for n in range(1, 7)]
    shown = dropped(files, ("pre", "flair", "post"))
    whole = studio.load(studio.find("first")).segmenter
    assert (np.stack(masks) == (whole.predict(shown.images) >= whole.threshold) * 255).all()


def test_one_slice_is_downloaded_as_one_tiff_at_the_threshold_that_is_shown(page, studio, tmp_path):
    image = studio.patients.scan(studio.patients.cases[2]).images[3]
    cv2.imwrite(str(tmp_path / "one.png"), image[..., ::-1])
    drop(page, tmp_path / "one.png")
    says(page, "#heading-a", "One slice: its grey levels are normalised alone")
    slide(page, "#threshold-a", 0.2)
    says(page, "#heading-a", "Threshold 0.2")
    with page.expect_download() as download:
        page.click("#save-a")
    assert download.value.suggested_filename == "one_mask.tif"
    probability = studio.load(studio.find("first")).segmenter.predict(image[None])[0]
    assert (tifffile.imread(download.value.path()) == (probability >= 0.2) * 255).all()


def test_other_files_of_this_machine_cannot_be_read(address, home):
    secret = home.folder / "mlruns" / "mlflow.db"
    for path in (secret, "/etc/passwd", home.phantom / "data.csv", "../../../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}", timeout=10)
        assert caught.value.code in (403, 404)
        caught.value.close()


def test_a_forged_upload_cannot_name_a_file_of_this_machine(address, home, page):
    """What a page could send that was written by somebody else: a path in place of an uploaded file."""
    scan = next(home.phantom.rglob("*_1.tif"))
    with urllib.request.urlopen(f"{address}/config", timeout=10) as answer:
        config = json.load(answer)
    event = next(d for d in config["dependencies"] if any(target[1] == "upload" for target in d["targets"]))
    standing = {c["id"]: c["props"].get("value") for c in config["components"]}
    values = [standing.get(number) for number in event["inputs"]]
    values[-1] = [{"path": str(scan), "orig_name": "x.tif", "meta": {"_type": "gradio.FileData"}}]
    session = {"fn_index": event["id"], "session_hash": "forged", "data": values}
    joined = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(session).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(joined, timeout=10).close()
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=forged", timeout=20) as stream:
        ended = next(line for line in stream if b"process_completed" in line)
    assert json.loads(ended.removeprefix(b"data: "))["success"] is False
    assert f"{FORGED} {scan}" in (home.folder / "demo.log").read_text()


def test_everything_that_the_page_needs_comes_from_this_machine(page, asked, address):
    kinds = {url.split("?")[0].rsplit(".", 1)[-1] for url in asked if url.startswith(address)}
    assert {"js", "css"} <= kinds  # that nothing else was asked for, the page itself asserts
