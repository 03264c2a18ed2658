"""What the demo shows, without a browser: who may speak, what is said, what is drawn and what is refused."""

from __future__ import annotations

import base64
import io
import shutil
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from typer.testing import CliRunner

from bench.cli import app
from bench.config import RunConfig
from bench.data.datasets.lgg import lgg
from bench.demo import panels, pictures
from bench.demo.honesty import EligibleModels, cautions, describe_models, eligible_models, origin
from bench.demo.scans import Patients, Scan, dropped
from bench.demo.studio import IMPOSSIBLE, Prediction, Score, Studio, busiest, graded, held, mask_file, score
from bench.errors import BenchError, DataError, StoreError, UnknownName
from bench.inference.overlays import PREDICTION, TRUTH
from bench.masks import load_masks
from bench.overrides import override
from bench.tracking import connect, find_run, open_run
from bench.types import RunRecord
from tests import fakes as tiffs
from tests.fakes import Home, inside, make_home, train

CHANNELS = ("pre", "flair", "post")
SPLIT = pd.DataFrame(
    [
        {"fold": fold, "part": part, "case": case}
        for fold, parts in enumerate(
            [("test", "train", "val"), ("val", "test", "train"), ("train", "val", "test")]
        )
        for case, part in zip(("ann", "bob", "eve"), parts, strict=True)
    ]
)


def scan(count: int = 3, *, truth: bool = True, **changes: object) -> Scan:
    """Slices of 4 x 4; the second has a tumour of 4 pixels, the others none."""
    images = np.random.default_rng(0).integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    masks = np.zeros((count, 4, 4), bool)
    masks[1:2, :2, :2] = True
    given = {"key": "k", "title": "ann", "case": "ann", "images": images, "truth": masks if truth else None}
    return Scan(
        **given | {"names": tuple(f"ann_{n}" for n in range(1, count + 1)), "channels": CHANNELS} | changes
    )


def record(**tags: str) -> RunRecord:
    cases = pd.DataFrame({"case": ["ann"], "dice": [0.5]})
    return RunRecord("0123456789abcdef", "first", cases, {}, {"dice": 0.61}, tags)


def prediction(probability: np.ndarray, own: float = 0.5, **changes: object) -> Prediction:
    levels, edges = graded(probability.astype(np.float32), own)
    given = {"run": record(), "levels": levels, "edges": edges, "threshold": own, "origin": "the run's own"}
    return Prediction(**given | {"said": "Out of fold.", "cautions": ()} | changes)


# -- pixels


def test_a_scan_is_black_at_0_and_white_from_the_bright_level_on():
    image = np.array([[0, 50], [100, 200]], np.uint8)
    assert pictures.grey(image, 100)[..., 0].tolist() == [[0, 128], [255, 255]]


def test_a_probability_has_the_colour_of_the_ramp():
    drawn = pictures.heat(np.array([[0.0, 0.5, 1.0]]))
    inferno = [[0, 0, 4], [188, 55, 84], [252, 255, 164]]  # as published; matplotlib rounds down or to nearest
    assert np.abs(drawn[0].astype(int) - inferno).max() <= 1


def test_an_overlay_of_opacity_0_is_the_scan_and_of_1_solid_colours():
    under = np.full((1, 4, 3), 100, np.uint8)
    called, there = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    assert (pictures.overlay(under, called, there, 0.0) == under).all()
    colours = [tuple(pictures.rgb(c)) for c in (pictures.BOTH, PREDICTION, TRUTH)]
    assert [tuple(p) for p in pictures.overlay(under, called, there, 1.0)[0]] == [*colours, (100, 100, 100)]
    half = pictures.overlay(under, called, None, 0.5)[0]
    assert half.tolist() == [[178, 120, 63], [178, 120, 63], [100] * 3, [100] * 3]  # of #ff8c1a over 100


def test_a_picture_in_a_link_is_the_picture():
    drawn = np.random.default_rng(1).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    png = np.frombuffer(base64.b64decode(pictures.data_uri(drawn).split(",")[1]), np.uint8)
    assert (cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1] == drawn).all()


# -- numbers


@pytest.mark.parametrize(
    ("called", "there", "dice"),
    [([1, 1, 0, 0], [1, 0, 1, 0], 0.5), ([1, 1, 1, 0], [1, 0, 0, 0], 0.5), ([0] * 4, [1, 0, 0, 0], 0.0)],
)
def test_dice_and_areas_are_counted(called, there, dice):
    assert score(np.array(called, bool), np.array(there, bool)) == Score(sum(there), sum(called), dice)


def test_dice_is_not_defined_where_both_are_empty_and_absent_without_a_truth():
    empty = np.zeros(4, bool)
    assert np.isnan(score(empty, empty).dice)
    assert score(~empty, None) == Score(None, 4, None)
    shown = panels.heading("A", scan(), prediction(np.zeros((3, 4, 4))), 0.5, panels.View(0, 0, 0.5))
    assert "<td class='dice'>–</td><td>0</td><td>0</td>" in shown  # this slice
    assert "<td class='dice'>0.000</td><td>4</td><td>0</td>" in shown  # the patient has a tumour, and it is missed


@pytest.mark.parametrize("own", [0.5, 0.37, 0.4733333, 0.47000000000000003, 0.001])
def test_a_mask_of_levels_is_the_mask_of_the_probabilities_at_every_threshold(own):
    rng = np.random.default_rng(2)
    ties = np.linspace(0, 1, 101, dtype=np.float32)
    probability = np.concatenate((rng.random(2000, np.float32), ties, np.float32([own]))).reshape(1, 1, -1)
    made = prediction(probability, own)
    assert made.levels.dtype == np.uint8
    for asked in (own, *np.arange(1, 100) / 100):
        meant = made.nearest(round(float(asked), 2))
        assert abs(meant - asked) <= 0.00501
        assert (made.mask(meant) == (probability >= meant)).all()
    assert made.nearest(round(own, 2)) == own
    assert (np.abs(made.probability(0) - probability[0]) < 0.0101).all()


def test_the_first_slice_shown_is_that_with_the_largest_tumour_else_with_the_largest_prediction():
    called = np.zeros((3, 4, 4))
    called[2, 0] = 0.9
    assert busiest(scan(), prediction(called)) == 1
    assert busiest(scan(truth=False), prediction(called)) == 2
    assert busiest(scan(truth=False), prediction(np.zeros((3, 4, 4)))) == 1


# -- who may speak


def test_a_patient_of_the_run_is_shown_by_the_fold_that_tested_it():
    assert eligible_models(SPLIT, ["bob"], [0, 1, 2]) == EligibleModels((1,), (0, 1, 2), tested=True)


def test_anybody_else_and_files_are_shown_by_all_models():
    for cases in (["zoe"], []):
        assert eligible_models(SPLIT, cases, [0, 1, 2]) == EligibleModels((0, 1, 2), (0, 1, 2), tested=False)


def test_a_patient_whose_test_fold_was_not_run_is_refused():
    with pytest.raises(DataError, match=r"fold 1, which tested it, was not run: the model of fold 0 was trained"):
        eligible_models(SPLIT, ["bob"], [0])


def test_a_patient_whom_no_fold_tested_is_refused():
    with pytest.raises(DataError, match="no fold tested it"):
        eligible_models(SPLIT[SPLIT["part"] != "test"], ["bob"], [0, 1, 2])


def test_who_is_known_by_two_ids_is_shown_by_no_model_that_learnt_from_either():
    with pytest.raises(DataError, match="ann and bob took part in this run, and no fold tested it"):
        eligible_models(SPLIT, ["ann", "bob"], [0, 1, 2])


def test_a_patient_whom_several_folds_tested_is_shown_by_these():
    again = pd.concat((SPLIT, pd.DataFrame([{"fold": 3, "part": "test", "case": "bob"}])))
    assert eligible_models(again, ["bob"], [0, 1, 2, 3]).folds == (1, 3)


@pytest.mark.parametrize(
    ("case", "who", "says"),
    [
        (
            "bob",
            EligibleModels((1,), (0, 1, 2), True),
            "Out of fold: the model of fold 1, which was not trained on this",
        ),
        (
            "bob",
            EligibleModels((1, 3), (0, 1, 2, 3), True),
            "the mean of the models of folds 1 and 3, none trained on this",
        ),
        (
            "zoe",
            EligibleModels((0, 1), (0, 1), False),
            "zoe took no part in this run, so this is the mean of all 2 fold",
        ),
        ("zoe", EligibleModels((2,), (2,), False), "this is the model of fold 2 alone"),
        (
            None,
            EligibleModels((0, 1), (0, 1), False),
            "Dropped files: the mean of all 2 fold models. There is no truth",
        ),
    ],
)
def test_the_page_says_which_models_speak(case, who, says):
    assert says in describe_models(scan(case=case), who)


def test_the_page_says_where_the_threshold_is_from():
    one, all_ = EligibleModels((1,), (0, 1), True), EligibleModels((0, 1), (0, 1), False)
    chosen = override(RunConfig(), {"evaluate.threshold": "validation"})
    assert origin(RunConfig(), one) == "the run's own, fixed in advance"
    assert origin(chosen, one) == "the run's own, chosen on validation patients"
    assert origin(chosen, all_) == "the run's own, chosen on validation patients, mean of 2 folds"


def warned(shown: Scan, alike: Sequence[str] = (), **tags: str) -> str:
    return " ".join(cautions(record(**tags), RunConfig(), SPLIT, [0, 1, 2], shown, alike))


def test_a_file_that_names_a_patient_of_the_run_is_pointed_out():
    said = warned(scan(case=None, truth=False, names=("x_BOB_1", "bobby_2", "zoe_3")))
    assert "A file name contains bob" in said
    assert "2 of the 3 models here were trained on it or chosen by it, so this is no test" in said
    assert "ann" not in said
    assert "contains bob" not in warned(scan(case=None, truth=False, names=("bobby_1", "kebob2")))


def test_pixels_of_a_patient_of_the_run_are_pointed_out_under_any_name():
    assert "the very pixels of eve" in warned(scan(case=None, truth=False, names=("x",)), ["eve"])
    said = warned(scan(case="subject1"), ["eve"])
    assert said == "These are the very pixels of eve, who took part in this run under that name."
    assert warned(scan(case="eve"), ["eve"]) == ""


def test_a_single_slice_is_pointed_out():
    assert "Drop all slices" in warned(scan(1, case=None, truth=False))
    assert "normalised together" in warned(scan(3, case=None, truth=False))


def test_synthetic_data_and_other_pixels_are_pointed_out():
    assert "trained on synthetic phantoms" in warned(scan(), **{"bench.synthetic": "true"})
    assert "other pixels" in warned(scan(data="1"), **{"bench.data": "2"})
    assert warned(scan(data="1"), ["ann"], **{"bench.data": "2"}) == ""  # other data, but these images
    assert warned(scan(data="2"), **{"bench.data": "2"}) == ""
    assert "SYNTHETIC" in panels.banner(scan(synthetic=True))


def test_a_threshold_of_ones_own_makes_no_result():
    view, made = panels.View(1, 0, 0.5), prediction(np.full((3, 4, 4), 0.7), logged=4 * 2 / 52)
    own, moved = (panels.heading("A", scan(), made, t, view) for t in (0.5, 0.6))
    assert "not a result" not in own
    assert "as logged by the run: 0.154" in own
    assert "not a result" in moved
    assert "yours; the run's own is 0.5" in moved
    assert "logged" not in moved


def test_a_score_unlike_the_logged_one_is_said():
    made = prediction(np.full((3, 4, 4), 0.7), logged=0.9)
    assert "unlike logged by the run: 0.900" in panels.heading("A", scan(), made, 0.5, panels.View(1, 0, 0.5))


def test_names_are_text_and_never_markup():
    evil = "<img src=x onerror=alert(1)>"
    shown = scan(title=evil, names=(evil,) * 3, notes=(evil,))
    made = prediction(np.zeros((3, 4, 4)), said=evil, cautions=(evil,))
    view = panels.View(0, 0, 0.5)
    for html in (
        panels.banner(shown),
        panels.strip(shown, 0, [("A", made, 0.5)]),
        panels.heading("A", shown, made, 0.5, view),
        panels.problem(evil),
        panels.refusal("A", evil),
    ):
        assert "<img" not in html
        assert "&lt;img" in html


# -- files that are dropped


def png(path: Path, pixels: np.ndarray | None = None) -> Path:
    cv2.imwrite(str(path), tiffs.image_of(path.stem) if pixels is None else pixels)
    return path


def test_files_are_the_slices_of_one_patient_in_the_order_of_their_numbers(tmp_path):
    found = dropped([png(tmp_path / f"x_{n}.png") for n in (10, 9, 1)], CHANNELS)
    assert found.names == ("x_1", "x_9", "x_10")
    assert found.truth is None
    assert found.case is None
    assert (found.images[0] == tiffs.image_of("x_1")[..., ::-1]).all()


def test_masks_among_the_files_are_left_out_and_said(tmp_path):
    tiffs.write_case(tmp_path, "p", (1, 2))
    found = dropped(sorted((tmp_path / "p").iterdir()), CHANNELS)
    assert found.names == ("p_1", "p_2")
    assert "2 file(s) that end in _mask were left out" in panels.banner(found)


def spoiled(spoil: Callable[[Path], None]) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        path = tiffs.write_case(folder, "p", (1,)) / "p_1.tif"
        spoil(path)
        return [path]

    return make


def _two_sizes(folder: Path) -> list[Path]:
    return [png(folder / "a_1.png"), png(folder / "a_2.png", tiffs.image_of("a", 24))]


def _same_name(folder: Path) -> list[Path]:
    (folder / "other").mkdir()
    return [png(folder / "a.png"), png(folder / "other" / "a.png")]


def _text(folder: Path) -> list[Path]:
    (folder / "a.txt").write_text("hello")
    return [folder / "a.txt"]


def _not_a_png(folder: Path) -> list[Path]:
    (folder / "a.png").write_text("hello")
    return [folder / "a.png"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (spoiled(tiffs.garbage), "p_1.tif cannot be read as TIFF"),
        (spoiled(tiffs.sixteen_bits), "p_1.tif holds uint16 pixels"),
        (spoiled(tiffs.four_channels), "p_1.tif has the shape"),
        (spoiled(tiffs.two_pages), "p_1.tif has 2 pages"),
        (spoiled(tiffs.truncate), "p_1.tif is cut short"),
        (spoiled(tiffs.giant), "p_1.tif claims 100000x100000"),
        (_two_sizes, "a_1.png is 16x16 and a_2.png is 24x24: the files of one patient have one size"),
        (_same_name, "two files are called a.png"),
        (_text, "a.txt is no scan. Drop images that end in .tif"),
        (_not_a_png, "a.png is no 8-bit image that can be read"),
        (lambda folder: [png(folder / "a.png", np.zeros((8, 8, 3), np.uint16))], "a.png is no 8-bit image"),
        (lambda folder: [png(folder / "a_1_mask.png")], "only masks were dropped"),
        (lambda folder: [], "no files were dropped"),
    ],
)
def test_a_file_that_cannot_be_shown_is_one_sentence_with_its_name(make, says, tmp_path):
    with pytest.raises(DataError) as caught:
        dropped(make(tmp_path), CHANNELS)
    assert says in str(caught.value)
    assert "/tmp" not in str(caught.value)


def test_another_number_of_channels_is_refused(tmp_path):
    with pytest.raises(DataError, match="has 3 channels; the model was trained on 2"):
        dropped([png(tmp_path / "a.png")], ("flair", "post"))


# -- what is downloaded


def test_the_mask_of_one_slice_is_a_tiff_of_0_and_255():
    name, content = mask_file(scan(1, truth=False), prediction(np.full((1, 4, 4), 0.6)), 0.6)
    assert name == "ann_1_mask.tif"
    assert (tifffile.imread(io.BytesIO(content)) == np.full((4, 4), 255, np.uint8)).all()


def test_the_masks_of_several_slices_are_a_zip_of_tiffs_with_a_note():
    probability = np.zeros((3, 4, 4))
    probability[1, 0] = 0.6
    name, content = mask_file(scan(), prediction(probability, cautions=("Beware.",)), 0.55)
    assert name == "ann_first.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert file.namelist() == [*(f"ann_first/ann_{n}_mask.tif" for n in (1, 2, 3)), "ann_first/about.txt"]
        pages = [tifffile.imread(io.BytesIO(file.read(n))) for n in file.namelist()[:3]]
        about = file.read("ann_first/about.txt").decode()
    assert [int((page == 255).sum()) for page in pages] == [0, 4, 0]
    for said in ("0123456789abcdef", "Threshold 0.55, moved by hand", "Beware.", "not for clinical use"):
        assert said in about


# -- logged runs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, template: Path):
    made = make_home(tmp_path_factory.mktemp("demo"), template, "first")
    with pytest.MonkeyPatch.context() as patch:
        inside(made, patch)
        yield made


@pytest.fixture(scope="module")
def studio(home: Home) -> Studio:
    return Studio(connect(home.uri), Patients(lgg(folder=home.phantom)))


def fold_masks(studio: Studio, fold: int, into: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """What the run itself logged for the test patients of a fold."""
    parent = find_run(studio.store, "first")
    (child,) = studio.store.client.search_runs(
        [parent.info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.`bench.fold` = '{fold}'",
    )
    return load_masks(
        Path(studio.store.client.download_artifacts(child.info.run_id, "masks/masks.npz", str(into)))
    )


def test_every_patient_of_a_run_is_shown_with_the_mask_and_the_dice_that_the_run_logged(studio, tmp_path):
    run = studio.find("first")
    folds = set()
    for case, said in studio.tested(run).items():
        shown = studio.patients.scan(case)
        made = studio.predict(run, shown)
        fold = int(said.removeprefix("tested in fold "))
        (tmp_path / case).mkdir()
        index, masks = fold_masks(studio, fold, tmp_path / case)
        assert (made.mask(made.threshold) == masks[(index["case"] == case).to_numpy()]).all()
        assert made.said.startswith(f"Out of fold: the model of fold {fold},")
        assert made.logged == pytest.approx(score(made.mask(made.threshold), shown.truth).dice, nan_ok=True)
        folds.add(fold)
    assert folds == {0, 1, 2}


def test_files_are_shown_by_the_mean_of_all_models_and_known_again(studio, tmp_path):
    run, case = studio.find("first"), studio.patients.cases[0]
    known = studio.patients.scan(case)
    files = [
        png(tmp_path / f"{n}.png", image[::-1, :, ::-1]) for n, image in enumerate(known.images, 1)
    ]  # upside down
    shown = dropped(files, CHANNELS)
    assert shown.prints == known.prints
    made = studio.predict(run, shown)
    whole = studio.load(run).segmenter
    assert held(whole) == [0, 1, 2]
    assert (made.mask(made.threshold) == (whole.predict(shown.images) >= whole.threshold)).all()
    assert "the mean of all 3 fold models" in made.said
    assert f"the very pixels of {case}" in " ".join(made.cautions)


def test_a_patient_who_took_no_part_is_shown_by_the_mean_of_all_models(studio):
    run = studio.find("first")
    known = studio.patients.scan(studio.patients.cases[0])
    stranger = Scan("s", "zoe", "zoe", known.images, known.truth, known.names, known.channels)  # without prints
    whole = studio.load(run).segmenter
    assert (studio.predict(run, stranger).mask(whole.threshold) == (whole.predict(known.images) >= 0.5)).all()


def test_a_patient_under_another_name_is_shown_by_the_fold_that_tested_it(studio, home, tmp_path):
    run, case = studio.find("first"), studio.patients.cases[0]
    folder = next(path for path in home.phantom.rglob(f"{case}*") if path.is_dir())
    shutil.copytree(folder, tmp_path / "subject1")
    other = Studio(studio.store, Patients(lgg(folder=tmp_path)))
    assert other.tested(run) == {"subject1": studio.tested(run)[case]}
    ours = studio.predict(run, studio.patients.scan(case))
    theirs = other.predict(run, other.patients.scan("subject1"))
    assert (theirs.said, theirs.logged) == (ours.said, None)
    assert (theirs.levels == ours.levels).all()
    assert theirs.cautions == (
        *ours.cautions,
        f"These are the very pixels of {case}, who took part in this run under that name.",
    )


def test_models_are_loaded_and_a_scan_is_predicted_once(studio):
    run, shown = studio.find("first"), studio.patients.scan(studio.patients.cases[0])
    assert studio.load(run) is studio.load(run)
    assert studio.predict(run, shown) is studio.predict(run, studio.patients.scan(shown.case))


def test_a_run_of_one_fold_is_silent_about_those_whom_it_was_trained_on(home, studio):
    train("single", "--fold", 0)
    run = studio.find("single")
    told = studio.tested(run)
    assert sorted(told.values()).count(IMPOSSIBLE) == 4
    silent = next(case for case, said in told.items() if said == IMPOSSIBLE)
    with pytest.raises(DataError, match="was not run: the model of fold 0 was trained"):
        studio.predict(run, studio.patients.scan(silent))


def test_other_channels_than_those_of_the_run_are_refused(studio):
    shown = studio.patients.scan(studio.patients.cases[0])
    other = Scan("o", "o", None, shown.images, None, shown.names, ("t1", "t2", "flair"))
    with pytest.raises(
        DataError, match="was trained on the channels pre, flair, post; this scan has t1, t2, flair"
    ):
        studio.predict(studio.find("first"), other)


def test_only_finished_segmentation_runs_are_offered(studio):
    run, client = studio.find("first"), studio.store.client
    offered = [r.run_id for r in studio.offers()]
    client.log_text(run, "case,slice,truth,probability,called\n", "slices.csv")  # every classifier has them
    client.set_tag(run, "bench.task", "presence")
    try:
        assert run not in [r.run_id for r in studio.offers()]
        with pytest.raises(UnknownName, match="no finished segmentation run with models"):
            studio.find("first")
        client.set_tag(run, "bench.task", "segmentation")
        assert [r.run_id for r in studio.offers()] == offered
    finally:
        client.delete_tag(run, "bench.task")


def test_a_run_without_models_is_not_offered(home, studio):
    """A cascade is made of the masks of other runs: a parent with tables, without folds."""
    given = {"bench.kind": "cv", "bench.task": "segmentation"}
    with open_run(studio.store, "cascade", "phantom", given, say=print) as recorder:
        recorder.table("cases", pd.DataFrame({"case": ["ann"], "dice": [0.5]}))
    assert "cascade" not in [r.name for r in studio.offers()]
    assert "no finished segmentation run with models" in refused("cascade", "--port", 0)


def test_a_fold_stands_for_its_run(studio):
    assert studio.find(find_run(studio.store, "fold 0").info.run_id) in {r.run_id for r in studio.offers()}


def test_a_patient_who_is_not_there(studio):
    with pytest.raises(DataError, match="no patient nobody"):
        studio.patients.scan("nobody")


# -- the command


def refused(*words: object) -> str:
    with pytest.raises(BenchError) as caught:
        CliRunner().invoke(app, [str(w) for w in ("demo", *words)], catch_exceptions=False)
    return str(caught.value)


def test_a_store_without_runs_is_said(store):
    assert "no finished segmentation run" in refused("--port", 0)
    with pytest.raises(StoreError):
        Studio(store, None).offers()


def test_without_gradio_the_way_to_it_is_said(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")  # so that they are put back
    assert "pip install 'medseg-bench[demo]'" in refused("--port", 0)


def test_a_busy_port_is_said():
    import socket

    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        assert "Give another --port" in refused("--port", busy.getsockname()[1])


def test_an_unknown_run_is_said(home):
    assert "no run 'frist'" in refused("frist", "--port", 0)
