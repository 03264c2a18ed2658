"""The demo without logged runs: eligible models, warnings, pictures, dropped files and downloads."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile

from bench.config import RunConfig
from bench.demo import panels
from bench.demo.eligibility import (
    EligibleModels,
    describe_models,
    describe_threshold,
    find_eligible_models,
    list_warnings,
)
from bench.demo.predictions import (
    Prediction,
    Score,
    choose_slice,
    encode_masks,
    mean_score,
    quantize,
    score,
    score_structures,
)
from bench.demo.scans import Scan, read_dropped_files
from bench.errors import DataError
from bench.inference.overlays import PREDICTION, TRUTH, colour_of
from bench.overrides import override
from bench.structures import COLOURS, TUMOUR, Structures, call_structures
from bench.types import RunRecord
from tests import fakes

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
    masks = np.zeros((count, 1, 4, 4), bool)
    masks[1:2, 0, :2, :2] = True
    names = tuple(f"ann_{n}" for n in range(1, count + 1))
    values = {"key": "k", "title": "ann", "case": "ann", "images": images, "truth": masks if truth else None}
    return Scan(**values | {"names": names, "channels": CHANNELS} | changes)


def record(**tags: str) -> RunRecord:
    cases = pd.DataFrame({"case": ["ann"], "dice": [0.5]})
    return RunRecord("0123456789abcdef", "first", cases, {}, {"dice": 0.61}, tags)


def prediction(
    probability: np.ndarray, *own: float, structures: Structures = TUMOUR, **changes: object
) -> Prediction:
    """The prediction of probabilities (S, K, H, W), or (S, H, W) of one structure."""
    shape = len(probability), len(structures), *probability.shape[-2:]
    thresholds = own or (0.5,) * len(structures)
    values = {"run": record(), "structures": structures, "thresholds": thresholds, "warnings": ()}
    values |= quantize(probability.astype(np.float32).reshape(shape), thresholds, exclusive=structures.exclusive)
    return Prediction(**values | {"threshold_text": "the run's own", "models_text": "Out of fold."} | changes)


def test_a_scan_is_black_at_0_and_white_at_the_white_level_and_above():
    image = np.array([[0, 50], [100, 200]], np.uint8)
    assert panels.draw_scan(image, 100)[..., 0].tolist() == [[0, 128], [255, 255]]


def test_a_probability_has_the_colour_of_the_colour_map():
    drawn = panels.draw_probability(np.array([[0.0, 0.5, 1.0]]))
    inferno = [[0, 0, 4], [188, 55, 84], [252, 255, 164]]  # as published; matplotlib rounds down or to nearest
    assert np.abs(drawn[0].astype(int) - inferno).max() <= 1


def test_an_overlay_is_the_scan_at_opacity_0_and_solid_colours_at_1():
    grey = np.full((1, 4, 3), 100, np.uint8)
    predicted, true = np.array([[[1, 1, 0, 0]]], bool), np.array([[[1, 0, 1, 0]]], bool)
    assert (panels.draw_overlay(grey, predicted, true, 0.0, COLOURS) == grey).all()
    colours = [tuple(panels.rgb(c)) for c in (panels.BOTH, PREDICTION, TRUTH)]
    assert [tuple(p) for p in panels.draw_overlay(grey, predicted, true, 1.0, COLOURS)[0]] == [
        *colours,
        (100, 100, 100),
    ]
    half = panels.draw_overlay(grey, predicted, None, 0.5, COLOURS)[0]
    assert half.tolist() == [[178, 120, 63], [178, 120, 63], [100] * 3, [100] * 3]  # of #ff8c1a over 100


def test_outlines_leave_the_inside_of_a_mask_as_it_is():
    """A picture of 10 x 10 is enlarged 64 times, and a line is 3 pixels wide."""
    grey, side = np.full((10, 10, 3), 100, np.uint8), panels.FINE // 10
    predicted, true = np.zeros((2, 1, 10, 10), bool)
    predicted[0, 2:5, 2:5] = true[0, 6:9, 6:9] = True
    assert (panels.draw_outlines(grey, predicted, true, 0.0, COLOURS) == 100).all()
    drawn = panels.draw_outlines(grey, predicted, true, 1.0, COLOURS)
    assert (drawn[2 * side : 2 * side + 3, 3 * side] == panels.rgb(PREDICTION)).all()
    assert (drawn[2 * side + 3, 3 * side] == 100).all()
    assert (drawn[2 * side - 1, 3 * side] == 100).all()
    border = {tuple(pixel) for pixel in drawn[6 * side, 6 * side : 9 * side]}
    assert border == {tuple(panels.rgb(TRUTH)), (0, 0, 0)}
    without_truth = panels.draw_outlines(grey, predicted, None, 1.0, COLOURS)
    assert (without_truth[6 * side :, 6 * side :] == 100).all()


def test_models_share_the_pictures_of_scan_and_truth():
    view, made = panels.View(1, 0, 0.5), prediction(np.full((3, 4, 4), 0.7))
    inputs, pictures = panels.render_inputs(scan(), view), panels.render_pictures(scan(), made, (0.5,), view)
    assert re.findall("<figure class='(.*?)'", inputs) == ["scan", "truth"]
    assert re.findall("<figure class='(.*?)'", pictures) == ["overlay", "prediction", "probability"]
    assert "no truth" in panels.render_inputs(scan(truth=False), view)


def test_a_data_uri_holds_the_picture():
    drawn = np.random.default_rng(1).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    png = np.frombuffer(base64.b64decode(panels.encode_data_uri(drawn).split(",")[1]), np.uint8)
    assert (cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1] == drawn).all()


@pytest.mark.parametrize(
    ("predicted", "true", "dice"),
    [([1, 1, 0, 0], [1, 0, 1, 0], 0.5), ([1, 1, 1, 0], [1, 0, 0, 0], 0.5), ([0] * 4, [1, 0, 0, 0], 0.0)],
)
def test_a_score_holds_dice_and_areas(predicted, true, dice):
    assert score(np.array(predicted, bool), np.array(true, bool)) == Score(sum(true), sum(predicted), dice)


def test_dice_is_nan_if_both_masks_are_empty_and_none_without_a_truth():
    empty = np.zeros(4, bool)
    assert np.isnan(score(empty, empty).dice)
    assert score(~empty, None) == Score(None, 4, None)
    shown = panels.render_heading("A", scan(), prediction(np.zeros((3, 4, 4))), (0.5,), panels.View(0, 0, 0.5))
    assert "<td class='dice'>–</td><td>0</td><td>0</td>" in shown  # this slice
    assert "<td class='dice'>0.000</td><td>4</td><td>0</td>" in shown  # the patient has a tumour that is missed


@pytest.mark.parametrize("own", [0.5, 0.37, 0.4733333, 0.47000000000000003, 0.001])
def test_a_mask_of_levels_equals_the_mask_of_probabilities(own):
    rng = np.random.default_rng(2)
    ties = np.linspace(0, 1, 101, dtype=np.float32)
    probability = np.concatenate((rng.random(2000, np.float32), ties, np.float32([own]))).reshape(1, 1, -1)
    made = prediction(probability, own)
    assert made.levels.dtype == np.uint8
    for slider in (own, *np.arange(1, 100) / 100):
        (threshold,) = made.move_threshold(0, round(float(slider), 2))
        assert abs(threshold - slider) <= 0.00501
        assert (made.mask((threshold,))[:, 0] == (probability >= threshold)).all()
    assert made.move_threshold(0, round(own, 2)) == (own,)
    assert (np.abs(made.probability(0, 0) - probability[0]) < 0.0101).all()


def test_the_page_opens_at_the_largest_tumour_or_prediction():
    probability = np.zeros((3, 4, 4))
    probability[2, 0] = 0.9
    assert choose_slice(scan(), prediction(probability)) == 1
    assert choose_slice(scan(truth=False), prediction(probability)) == 2
    assert choose_slice(scan(truth=False), prediction(np.zeros((3, 4, 4)))) == 1


def test_a_patient_of_the_run_is_shown_by_the_fold_that_tested_it():
    assert find_eligible_models(SPLIT, ["bob"], [0, 1, 2]) == EligibleModels((1,), tested=True)


def test_a_new_patient_and_dropped_files_are_shown_by_all_models():
    for cases in (["zoe"], []):
        assert find_eligible_models(SPLIT, cases, [0, 1, 2]) == EligibleModels((0, 1, 2), tested=False)


def test_a_patient_whose_test_fold_was_not_run_is_refused():
    with pytest.raises(DataError, match=r"fold 1, which tests it, was not run: the model of fold 0 was trained"):
        find_eligible_models(SPLIT, ["bob"], [0])


def test_a_patient_that_no_fold_tested_is_refused():
    with pytest.raises(DataError, match="no fold tested it"):
        find_eligible_models(SPLIT[SPLIT["part"] != "test"], ["bob"], [0, 1, 2])


def test_a_patient_with_two_ids_is_shown_by_no_model_trained_on_either():
    with pytest.raises(DataError, match="ann and bob took part in this run, but no fold tested it"):
        find_eligible_models(SPLIT, ["ann", "bob"], [0, 1, 2])


def test_a_patient_that_several_folds_tested_is_shown_by_all_of_them():
    again = pd.concat((SPLIT, pd.DataFrame([{"fold": 3, "part": "test", "case": "bob"}])))
    assert find_eligible_models(again, ["bob"], [0, 1, 2, 3]).folds == (1, 3)


@pytest.mark.parametrize(
    ("case", "folds", "tested", "text"),
    [
        ("bob", (1,), True, "Out of fold: the model of fold 1, which was not trained on this"),
        ("bob", (1, 3), True, "the mean of the models of folds 1 and 3, none trained on this"),
        ("zoe", (0, 1), False, "zoe took no part in this run, so this is the mean of all 2 fold"),
        ("zoe", (2,), False, "this is the model of fold 2 alone"),
        (None, (0, 1), False, "Dropped files: the mean of all 2 fold models. Without a truth there is no Dice"),
    ],
)
def test_the_page_says_which_models_predict(case, folds, tested, text):
    assert text in describe_models(scan(case=case), EligibleModels(folds, tested))


def test_the_page_says_how_the_threshold_was_set():
    one, all_ = EligibleModels((1,), tested=True), EligibleModels((0, 1), tested=False)
    chosen = override(RunConfig(), {"evaluate.threshold": "validation"})
    assert describe_threshold(RunConfig(), one) == "the run's own, fixed in advance"
    assert describe_threshold(chosen, one) == "the run's own, chosen on validation patients"
    assert describe_threshold(chosen, all_) == "the run's own, chosen on validation patients, mean of 2 folds"


def warnings_of(shown: Scan, same_images: Sequence[str] = (), **tags: str) -> str:
    return " ".join(list_warnings(record(**tags), RunConfig(), SPLIT, [0, 1, 2], shown, same_images))


def test_a_file_name_with_a_patient_of_the_run_is_a_warning():
    text = warnings_of(scan(case=None, truth=False, names=("x_BOB_1", "bobby_2", "zoe_3")))
    assert "A file name contains bob" in text
    assert "2 of the 3 models here were trained or validated on it, so this is not a test" in text
    assert "ann" not in text
    assert "contains bob" not in warnings_of(scan(case=None, truth=False, names=("bobby_1", "kebob2")))


def test_images_of_a_patient_of_the_run_are_a_warning_under_any_name():
    assert "the same images as those of eve" in warnings_of(scan(case=None, truth=False, names=("x",)), ["eve"])
    text = warnings_of(scan(case="subject1"), ["eve"])
    assert text == "These are the same images as those of eve, who took part in this run under that name."
    assert warnings_of(scan(case="eve"), ["eve"]) == ""


def test_a_single_slice_is_a_warning():
    assert "Drop all slices" in warnings_of(scan(1, case=None, truth=False))
    assert "normalised together" in warnings_of(scan(3, case=None, truth=False))


def test_synthetic_data_and_other_images_are_warnings():
    assert "trained on synthetic phantoms" in warnings_of(scan(), **{"bench.synthetic": "true"})
    assert "other images" in warnings_of(scan(data="1"), **{"bench.data": "2"})
    assert warnings_of(scan(data="1"), ["ann"], **{"bench.data": "2"}) == ""  # other data, but these images
    assert warnings_of(scan(data="2"), **{"bench.data": "2"}) == ""
    assert "SYNTHETIC" in panels.render_banner(scan(synthetic=True))


def test_a_score_at_a_moved_threshold_is_not_a_result():
    view, made = panels.View(1, 0, 0.5), prediction(np.full((3, 4, 4), 0.7), logged_dice=4 * 2 / 52)
    own, moved = (panels.render_heading("A", scan(), made, (t,), view) for t in (0.5, 0.6))
    assert "not a result" not in own
    assert "as logged by the run: 0.154" in own
    assert "not a result" in moved
    assert "yours; the run's own is 0.5" in moved
    assert "logged" not in moved


def test_a_score_that_differs_from_the_logged_one_is_marked():
    made = prediction(np.full((3, 4, 4), 0.7), logged_dice=0.9)
    heading = panels.render_heading("A", scan(), made, (0.5,), panels.View(1, 0, 0.5))
    assert "differs from the Dice logged by the run: 0.900" in heading


def test_names_are_escaped():
    evil = "<img src=x onerror=alert(1)>"
    shown = scan(title=evil, names=(evil,) * 3, notes=(evil,))
    made = prediction(np.zeros((3, 4, 4)), models_text=evil, warnings=(evil,))
    view = panels.View(0, 0, 0.5)
    for html in (
        panels.render_banner(shown),
        panels.render_areas(shown, view, [("A", made, (0.5,))]),
        panels.render_heading("A", shown, made, (0.5,), view),
        panels.render_problem(evil),
        panels.render_refusal("A", evil),
    ):
        assert "<img" not in html
        assert "&lt;img" in html


def png(path: Path, pixels: np.ndarray | None = None) -> Path:
    cv2.imwrite(str(path), fakes.image_of(path.stem) if pixels is None else pixels)
    return path


def test_files_are_the_slices_of_one_patient_ordered_by_number(tmp_path):
    made = read_dropped_files([png(tmp_path / f"x_{n}.png") for n in (10, 9, 1)], CHANNELS)
    assert made.names == ("x_1", "x_9", "x_10")
    assert made.truth is None
    assert made.case is None
    assert (made.images[0] == fakes.image_of("x_1")[..., ::-1]).all()


def test_masks_among_the_files_are_left_out_with_a_note(tmp_path):
    fakes.write_case(tmp_path, "p", (1, 2))
    made = read_dropped_files(sorted((tmp_path / "p").iterdir()), CHANNELS)
    assert made.names == ("p_1", "p_2")
    assert "2 file(s) that end in _mask were left out" in panels.render_banner(made)


def damaged(damage: Callable[[Path], None]) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        path = fakes.write_case(folder, "p", (1,)) / "p_1.tif"
        damage(path)
        return [path]

    return make


def _two_sizes(folder: Path) -> list[Path]:
    return [png(folder / "a_1.png"), png(folder / "a_2.png", fakes.image_of("a", 24))]


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
    ("make", "message"),
    [
        (damaged(fakes.garbage), "p_1.tif cannot be read as TIFF"),
        (damaged(fakes.sixteen_bits), "p_1.tif holds uint16 pixels"),
        (damaged(fakes.four_channels), "p_1.tif has the shape"),
        (damaged(fakes.two_pages), "p_1.tif has 2 pages"),
        (damaged(fakes.truncate), "p_1.tif is truncated"),
        (damaged(fakes.giant), "p_1.tif claims 100000x100000"),
        (_two_sizes, "a_1.png is 16x16 and a_2.png is 24x24: the files of one patient must have one size"),
        (_same_name, "two files are called a.png"),
        (_text, "a.txt is not a scan. Drop images that end in .tif"),
        (_not_a_png, "a.png cannot be read as an 8-bit image"),
        (
            lambda folder: [png(folder / "a.png", np.zeros((8, 8, 3), np.uint16))],
            "a.png holds uint16 pixels",
        ),
        (lambda folder: [png(folder / "a_1_mask.png")], "only masks were dropped"),
        (lambda folder: [], "no files were dropped"),
    ],
)
def test_a_file_that_cannot_be_shown_is_refused_by_name(make, message, tmp_path):
    with pytest.raises(DataError) as error:
        read_dropped_files(make(tmp_path), CHANNELS)
    assert message in str(error.value)
    assert "/tmp" not in str(error.value)


def test_another_number_of_channels_is_refused(tmp_path):
    with pytest.raises(DataError, match="has 3 channels; the model was trained on 2"):
        read_dropped_files([png(tmp_path / "a.png")], ("flair", "post"))


def test_the_mask_of_one_slice_is_a_tiff_of_0_and_255():
    name, content = encode_masks(scan(1, truth=False), prediction(np.full((1, 4, 4), 0.6)), (0.6,))
    assert name == "ann_1_mask.tif"
    assert (tifffile.imread(io.BytesIO(content)) == np.full((4, 4), 255, np.uint8)).all()


def test_the_masks_of_several_slices_are_a_zip_with_a_note():
    probability = np.zeros((3, 4, 4))
    probability[1, 0] = 0.6
    name, content = encode_masks(scan(), prediction(probability, warnings=("Beware.",)), (0.55,))
    assert name == "ann_first.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert file.namelist() == [*(f"ann_first/ann_{n}_mask.tif" for n in (1, 2, 3)), "ann_first/about.txt"]
        pages = [tifffile.imread(io.BytesIO(file.read(n))) for n in file.namelist()[:3]]
        about = file.read("ann_first/about.txt").decode()
    assert [int((page == 255).sum()) for page in pages] == [0, 4, 0]
    for text in ("0123456789abcdef", "Threshold 0.55, moved by hand", "Beware.", "not for clinical use"):
        assert text in about


# Several structures

TWO = Structures(("anterior", "posterior"), ((1,), (2,)))
REGIONS = Structures(("whole", "core"), ((1, 2), (2,)), exclusive=False)


def scan_of_two(structures: Structures = TWO) -> Scan:
    """One slice: the first structure is the upper half, the second the first pixel of the lower half."""
    truth = np.zeros((1, 2, 4, 4), bool)
    truth[0, 0, :2], truth[0, 1, 2, 0] = True, True
    return replace(scan(1), structures=structures.names, truth=truth)


def of_two(*own: float, structures: Structures = TWO, **changes: object) -> Prediction:
    """The probability of the first structure is 0.6 in the upper half, of the second 0.7 in the first row."""
    probability = np.zeros((1, 2, 4, 4))
    probability[0, 0, :2], probability[0, 1, :1] = 0.6, 0.7
    return prediction(probability, *own, structures=structures, **changes)


@pytest.mark.parametrize("exclusive", [True, False])
def test_masks_at_the_own_thresholds_are_those_of_the_run(exclusive):
    probability = np.random.default_rng(3).random((2, 3, 20, 20), np.float32)
    probability[:, 1, :5] = probability[:, 0, :5]  # equally probable
    probability[:, 2, 5:9] = probability[:, 0, 5:9] + np.float32(1e-7)  # of one level
    own = 0.3, 0.4733333, 0.61
    three = Structures(("a", "b", "c"), ((1,), (2,), (3,)), exclusive)
    made = prediction(probability, *own, structures=three)
    for thresholds in (own, made.move_threshold(2, 0.11), made.move_threshold(0, 0.97)):
        assert (made.mask(thresholds) == call_structures(probability, thresholds, exclusive=exclusive)).all()
    assert made.move_threshold(2, 0.11) == (0.3, 0.4733333, 0.11)


def test_scores_of_structures_are_averaged_where_defined():
    mask, truth = of_two().mask((0.5, 0.5)), scan_of_two().truth
    each = score_structures(mask, truth)  # 4 of 8 pixels of the first; the second is at the wrong place
    assert each == [Score(8, 4, 2 / 3), Score(1, 4, 0.0)]
    assert mean_score(each) == Score(9, 8, 1 / 3)
    assert mean_score([each[0], Score(0, 0, float("nan"))]) == Score(8, 4, 2 / 3)
    assert mean_score(score_structures(mask, None)) == Score(None, 8, None)


def test_a_heading_names_the_score_and_threshold_of_each_structure():
    made, view = of_two(0.5, 0.43), panels.View(0, 0, 0.5, (0, 1), 1)
    own, moved = (
        panels.render_heading("A", scan_of_two(), made, made.move_threshold(1, t), view) for t in (0.43, 0.6)
    )
    assert "Threshold 0.5 (anterior), 0.43 (posterior), the run's own." in own
    assert "Threshold 0.5 (anterior), 0.6 (posterior), yours; the run's own is 0.5 (anterior), 0.43" in moved
    anterior = (
        f"{panels._render_key(colour_of(0), 'anterior')}</th><td class='dice'>0.667</td><td>8</td><td>4</td>"
    )
    assert anterior in own
    assert "this slice</th><td class='dice'>0.333</td><td>9</td><td>8</td>" in own


def test_several_structures_are_painted_in_their_colours_smaller_ones_on_top():
    black, masks = np.zeros((1, 3, 3), np.uint8), np.array([[[1, 0, 0]], [[1, 1, 0]]], bool)
    painted = panels.paint(black, masks, COLOURS)
    assert (painted[0] == [panels.rgb(colour_of(0)), panels.rgb(colour_of(1)), (0, 0, 0)]).all()


def test_an_overlay_of_structures_has_dotted_outlines_of_the_truth():
    grey = np.full((4, 4, 3), 100, np.uint8)
    mask, truth = of_two().mask((0.5, 0.5))[0], scan_of_two().truth[0]
    drawn = panels.draw_overlay(grey, mask, truth, 1.0, COLOURS)
    side = len(drawn) // 4  # of an enlarged pixel
    assert (panels.draw_overlay(grey, mask, truth, 0.0, COLOURS) == 100).all()
    assert (drawn[side + side // 2, side // 2] == panels.rgb(colour_of(0))).all()  # predicted in the second row
    assert (drawn[3 * side + side // 2, side // 2] == 100).all()
    border = {tuple(pixel) for pixel in drawn[2 * side, : side // 2]}  # of the second structure's truth
    assert border == {tuple(panels.rgb(colour_of(1))), (0, 0, 0)}


def test_structures_that_are_switched_off_are_not_drawn():
    shown, made = scan_of_two(), of_two()
    both, first, none = (panels.View(0, 0, 0.5, on) for on in ((0, 1), (0,), ()))
    for view, lines in ((both, 4), (first, 2), (none, 0)):
        areas = panels.render_areas(shown, view, [("A", made, (0.5, 0.5))])
        assert areas.count("<polyline") == lines
        pictures = panels.render_inputs(shown, view) + panels.render_pictures(shown, made, (0.5, 0.5), view)
        assert pictures.count("<img") == 5
        assert pictures.count(f"background:{colour_of(1)}") == (
            2 if view is both else 0
        )  # the key of the probability is that of the first structure


@pytest.mark.parametrize(
    ("structures", "files", "values"),
    [
        (Structures(("anterior", "posterior"), ((3,), (5,))), ["_mask"], [[5] * 4 + [3] * 4]),
        (REGIONS, ["_whole_mask", "_core_mask"], [[1] * 8, [1] * 4 + [0] * 4]),
    ],
)
def test_downloads_of_structures_have_the_labels_of_the_data_set(structures, files, values):
    name, content = encode_masks(scan_of_two(structures), of_two(structures=structures), (0.5, 0.5))
    pages = {name: content}
    if name.endswith("zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            pages = {name.rpartition("/")[2]: file.read(name) for name in file.namelist()[:-1]}
    assert list(pages) == [f"ann_1{end}.tif" for end in files]
    assert [tifffile.imread(io.BytesIO(page))[:2].ravel().tolist() for page in pages.values()] == values
