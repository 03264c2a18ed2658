"""Outlines where they belong, in colours that can be told apart, and the patients that were asked for."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bench.inference.overlays import (
    PREDICTION,
    TRUTH,
    colour_of,
    outline,
    overlay,
    overlays,
    pixels_of,
    side_by_side,
)
from bench.metrics.classification import confusion_matrix, reliability_curve
from bench.training.plots import curves, presence_pictures
from tests.fakes import TWO, tiny_pack


def near(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Where the colour is, bool (H, W); antialiasing blends it with what is around."""
    return np.abs(pixels.astype(int) - np.array([round(255 * c) for c in to_rgb(colour)])).max(-1) < 40


def drawn(truth: np.ndarray | None, prediction: np.ndarray) -> np.ndarray:
    """The outlines on a black slice that fills the figure: 10 pixels for each of the slice."""
    height, width = prediction.shape
    figure = Figure(figsize=(width / 10, height / 10), dpi=100)
    masks = (None if mask is None else mask[None] for mask in (truth, prediction))
    outline(figure.add_axes((0, 0, 1, 1)), np.zeros(prediction.shape, np.uint8), 1, *masks)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def box(top: int, left: int, side: int = 6, size: int = 32) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.parametrize(("top", "left"), [(4, 5), (0, 0), (26, 26), (10, 26)])
def test_an_outline_runs_around_its_mask_also_at_the_border(top, left):
    """Of each side of the 6 x 6 box, the middle of its edge is coloured, and nothing far from the edge is."""
    seen = near(drawn(None, box(top, left)), PREDICTION)
    middle_y, middle_x = 10 * top + 30, 10 * left + 30
    for y, x in [
        (10 * top, middle_x),
        (10 * top + 60, middle_x),
        (middle_y, 10 * left),
        (middle_y, 10 * left + 60),
    ]:
        assert seen[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].any(), (y, x)
    rows, columns = np.nonzero(seen)
    assert rows.min() >= 10 * top - 3
    assert columns.min() >= 10 * left - 3
    assert rows.max() <= 10 * top + 63
    assert columns.max() <= 10 * left + 63
    assert not seen[10 * top + 5 : 10 * top + 55, 10 * left + 5 : 10 * left + 55].any()


def test_truth_and_prediction_have_their_own_colours():
    pixels = drawn(box(2, 2), box(20, 20))
    truth, prediction = near(pixels, TRUTH), near(pixels, PREDICTION)
    assert truth[:160, :160].any()
    assert prediction[160:, 160:].any()
    assert not truth[160:].any()
    assert not prediction[:160].any()


def test_each_of_several_structures_has_a_colour_and_its_truth_is_dotted():
    figure = Figure(figsize=(3.2, 3.2), dpi=100)
    masks = np.stack((box(2, 2), box(20, 20)))
    axis = figure.add_axes((0, 0, 1, 1))
    outline(axis, np.zeros((32, 32), np.uint8), 1, None, masks)
    pixels = pixels_of(figure)
    first, second = (near(pixels, colour_of(k)) for k in range(2))
    assert first[:160, :160].any()
    assert second[160:, 160:].any()
    assert not first[160:].any()
    assert not second[:160].any()
    whole = (pixels > 40).any(2).sum()
    axis.clear()
    outline(axis, np.zeros((32, 32), np.uint8), 1, masks, None)
    assert 0 < (pixels_of(figure) > 40).any(2).sum() < 0.8 * whole  # gaps between dots


def test_an_overlay_names_the_structures_of_the_pack():
    pack = tiny_pack(cases=1, structures=TWO)
    pixels = overlay(pack, "P0", pack.truth(pack.rows(["P0"])), "found")
    assert all(near(pixels, colour_of(k)).any() for k in range(2))


@pytest.mark.parametrize("mask", [np.zeros((32, 32), bool), np.ones((32, 32), bool), box(0, 0, 1)])
def test_empty_full_and_tiny_masks_are_drawn_without_a_warning(mask):
    pixels = drawn(mask, mask)
    assert near(pixels, PREDICTION).any() == mask.any()


PACK = tiny_pack(cases=3, slices=6)
NOTHING = np.zeros((6, 1, 32, 32), bool)


def test_an_overlay_shows_truth_and_prediction_as_rgb_pixels():
    found = overlay(PACK, "P1", PACK.truth(PACK.rows(["P1"])), "found")
    missed = overlay(PACK, "P1", NOTHING, "missed")
    for pixels in (found, missed):
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
    slices = np.s_[: missed.shape[0] * 8 // 10]  # above the legend
    assert near(missed[slices], TRUTH).any()
    assert not near(missed[slices], PREDICTION).any()
    assert near(found[slices], PREDICTION).any()


def test_an_overlay_of_a_patient_without_tumour_is_drawn():
    empty = replace(PACK, masks=np.zeros_like(PACK.masks))
    assert overlay(empty, "P0", NOTHING, "empty").shape[2] == 3


def test_an_overlay_of_synthetic_data_says_so():
    synthetic = replace(PACK, manifest=replace(PACK.manifest, synthetic=True))
    said, silent = (overlay(pack, "P0", NOTHING, "title") for pack in (synthetic, PACK))
    heading = np.s_[: said.shape[0] // 25]
    dark = [(pixels[heading] < 128).all(-1).sum() for pixels in (said, silent)]
    assert dark[0] > 1.5 * dark[1]


def test_overlays_are_of_the_worst_the_median_and_the_best_patient():
    """Only the patient shown needs a prediction: a wrong choice would not find one."""
    cases = pd.DataFrame({"case": ["P0", "P1", "P2", "P9"], "dice": [0.9, 0.2, 0.5, nan]})
    predictions = {case: NOTHING for case in ("P0", "P1", "P2")}
    made = overlays(PACK, cases, predictions, "dice")
    assert list(made) == ["worst", "median", "best"]
    expected = {"worst": "P1, dice 0.200", "median": "P2, dice 0.500", "best": "P0, dice 0.900"}
    for name, said in expected.items():
        assert np.array_equal(made[name], overlay(PACK, said[:2], NOTHING, f"{name}: {said}"))
    assert overlays(PACK, cases.assign(dice=nan), predictions, "dice") == {}
    far = overlays(PACK, cases.rename(columns={"dice": "hd95"}), predictions, "hd95", sign=-1)
    assert np.array_equal(far["worst"], overlay(PACK, "P0", NOTHING, "worst: P0, hd95 0.900"))


def test_curves_and_pairs_are_rgb_pixels():
    history = pd.DataFrame({"epoch": [1, 2, 3], "train/loss": [3.0, 2.0, 1.5], "val/dice": [0.1, nan, 0.4]})
    shown = curves(history, "dice")
    assert shown.dtype == np.uint8
    assert near(shown[:, : shown.shape[1] // 2], "#4059ad").any()
    assert near(shown[:, shown.shape[1] // 2 :], "#d1495b").any()
    pair = side_by_side(PACK.images[1, ..., 1], PACK.truth(np.array([1]))[0])
    half = pair.shape[1] // 2
    assert not near(pair[:, :half], PREDICTION).any()
    assert near(pair[:, half:], PREDICTION).any()


# Classifiers


@pytest.mark.parametrize(
    ("truth", "case"),
    [("+-+-+--+", "aabbccdd"), ("++++++++", "aabbccdd"), ("--------", "aabbccdd"), ("+-+-+--+", "aaaaaaaa")],
)
def test_pictures_of_any_calls_are_drawn_in_rgb_without_a_warning(truth, case):
    held = np.array([0.9, 0.1, 0.8, 0.8, 0.55, 0.3, 0.3, 1.0])
    there = np.array([sign == "+" for sign in truth])
    slices = pd.DataFrame({"case": list(case), "truth": there, "probability": held, "called": held >= 0.5})
    made = presence_pictures(slices, confusion_matrix(slices), reliability_curve(slices))
    assert list(made) == ["discrimination", "confusion", "reliability"]
    for pixels in made.values():
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)
        assert pixels.std() > 0


def test_what_stands_above_a_prediction_is_not_cut_off():
    everything = np.ones((1, 256, 256), bool)
    pair = side_by_side(np.zeros((256, 256), np.uint8), everything, everything)
    above = pair[:18]
    assert (above < 128).any(), "there is text"
    assert (above[:, :4] == 255).all()
    assert (above[:, -4:] == 255).all(), "and all of it"


def test_a_perfect_and_a_useless_classifier_do_not_look_alike():
    truth = np.arange(40) % 2 == 0
    drawn = []
    for held in (truth * 0.8 + 0.1, np.tile([0.1, 0.1, 0.9, 0.9], 10)):
        slices = pd.DataFrame(
            {"case": np.arange(40) // 4, "truth": truth, "probability": held, "called": held > 0.5}
        )
        drawn.append(presence_pictures(slices, confusion_matrix(slices), reliability_curve(slices)))
    for name in drawn[0]:
        assert not np.array_equal(drawn[0][name], drawn[1][name])
