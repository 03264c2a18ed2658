"""Every summary of a run's patients is one that a hand can check."""

from __future__ import annotations

from math import isnan, nan

import pandas as pd
import pytest

from bench.metrics.aggregate import summarise

CASES = pd.DataFrame(
    {
        "case": ["a", "b", "c", "d"],
        "fold": [0, 0, 1, 1],
        "threshold": [0.5, 0.5, 0.4, 0.4],
        "dice": [0.2, 0.9, nan, 0.7],
        "hd95": [30.0, 2.0, nan, nan],
        "missed_slices": [3.0, 0.0, 1.0, 2.0],
        "ece": [nan] * 4,
        "tp": [1, 9, 0, 7],
        "fp": [4, 1, 0, 3],
        "fn": [4, 1, 0, 3],
        "tn": [91, 89, 100, 87],
    }
)


def test_means_are_over_the_patients_for_whom_a_metric_is_defined():
    values = summarise(CASES)
    assert values["patients"] == 4
    assert values["dice"] == pytest.approx(0.6)
    assert values["hd95"] == pytest.approx(16)
    assert (values["dice_undefined"], values["hd95_undefined"]) == (1, 2)
    assert isnan(values["ece"])
    assert values["ece_undefined"] == 4
    assert "missed_slices_undefined" not in values


def test_counts_of_slices_are_summed():
    assert summarise(CASES)["missed_slices"] == 6


def test_the_spread_of_dice_is_told():
    values = summarise(CASES)
    assert values["dice_median"] == pytest.approx(0.7)
    assert values["dice_p5"] == pytest.approx(0.25)  # a tenth of the way from 0.2 to 0.7
    assert values["dice_under_half"] == 1
    assert 0.2 <= values["dice_low"] < 0.6 < values["dice_high"] <= 0.9
    assert not {"dice_low", "dice_high"} & summarise(CASES, with_interval=False).keys()


def test_exactly_a_half_is_not_under_a_half():
    assert summarise(CASES.assign(dice=[0.5, 0.5, 0.49, 1.0]))["dice_under_half"] == 1


def test_who_has_no_tumour_and_yet_something_predicted_is_counted():
    """c has no tumour. Where everybody has one, there is nothing to count, and no 0 that looks like merit."""
    assert summarise(CASES)["false_positive_patients"] == 0
    alarmed = CASES.assign(fp=[4, 1, 2, 3], dice=[0.2, 0.9, 0.0, 0.7])
    assert summarise(alarmed)["false_positive_patients"] == 1
    assert "false_positive_patients" not in summarise(CASES.drop(index=2))


def test_pooled_scores_are_made_of_all_pixels_at_once():
    """17 pixels found, 8 false, 8 missed, 367 rightly left out, of 400."""
    values = summarise(CASES)
    assert values["dice_global"] == pytest.approx(34 / 50)
    assert values["iou_global"] == pytest.approx(17 / 33)
    assert values["precision_global"] == values["recall_global"] == pytest.approx(17 / 25)
    assert values["specificity_global"] == pytest.approx(367 / 375)
    assert values["accuracy_global"] == pytest.approx(384 / 400)
    assert values["dice_global"] != pytest.approx(values["dice"])


def test_who_was_tested_where_is_no_metric():
    assert not {"case", "fold", "threshold", "tp", "fp", "fn", "tn"} & summarise(CASES).keys()


def test_patients_without_any_defined_dice_make_no_warning():
    values = summarise(CASES.assign(dice=nan, tp=0, fp=0, fn=0))
    assert isnan(values["dice"])
    assert isnan(values["dice_global"])
    assert "dice_median" not in values
    assert "dice" not in summarise(CASES.drop(columns="dice"))
