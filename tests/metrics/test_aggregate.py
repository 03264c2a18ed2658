"""Summaries of a run's patients, against values computed by hand."""

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


def test_a_mean_is_over_the_patients_for_which_the_metric_is_defined():
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


def test_dice_has_a_median_a_low_percentile_and_an_interval():
    values = summarise(CASES)
    assert values["dice_median"] == pytest.approx(0.7)
    assert values["dice_p5"] == pytest.approx(0.25)  # a tenth of the way from 0.2 to 0.7
    assert values["dice_under_half"] == 1
    assert 0.2 <= values["dice_low"] < 0.6 < values["dice_high"] <= 0.9
    assert not {"dice_low", "dice_high"} & summarise(CASES, with_interval=False).keys()


def test_a_dice_of_exactly_half_is_not_under_half():
    assert summarise(CASES.assign(dice=[0.5, 0.5, 0.49, 1.0]))["dice_under_half"] == 1


def test_patients_without_tumour_but_with_a_prediction_are_counted():
    """c has no tumour. If every patient has one, the count is absent: a 0 would look like merit."""
    assert summarise(CASES)["false_positive_patients"] == 0
    with_false_positive = CASES.assign(fp=[4, 1, 2, 3], dice=[0.2, 0.9, 0.0, 0.7])
    assert summarise(with_false_positive)["false_positive_patients"] == 1
    assert "false_positive_patients" not in summarise(CASES.drop(index=2))


def test_global_scores_pool_the_pixels_of_all_patients():
    """tp = 17, fp = 8, fn = 8, tn = 367, of 400 pixels."""
    values = summarise(CASES)
    assert values["dice_global"] == pytest.approx(34 / 50)
    assert values["iou_global"] == pytest.approx(17 / 33)
    assert values["precision_global"] == values["recall_global"] == pytest.approx(17 / 25)
    assert values["specificity_global"] == pytest.approx(367 / 375)
    assert values["accuracy_global"] == pytest.approx(384 / 400)
    assert values["dice_global"] != pytest.approx(values["dice"])


def test_identifiers_thresholds_and_counts_are_not_summarised():
    assert not {"case", "fold", "threshold", "tp", "fp", "fn", "tn"} & summarise(CASES).keys()


def test_patients_without_any_defined_dice_cause_no_warning():
    values = summarise(CASES.assign(dice=nan, tp=0, fp=0, fn=0))
    assert isnan(values["dice"])
    assert isnan(values["dice_global"])
    assert "dice_median" not in values
    assert "dice" not in summarise(CASES.drop(columns="dice"))
