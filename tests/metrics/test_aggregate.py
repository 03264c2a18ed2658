"""Summaries of a run's patients, against values computed by hand."""

from __future__ import annotations

from math import isnan, nan

import pandas as pd
import pytest

from bench.metrics.aggregate import COUNTS, summarise
from bench.structures import select_structure

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


# Several structures

# b is absent in P1, and a and b in P3. The plain columns are what `score_case` gives: means and sums.
TWO = pd.DataFrame(
    {
        "case": ["P1", "P2", "P3"],
        "threshold[a]": 0.5,
        "threshold[b]": 0.4,
        "dice": [0.6, 0.5, nan],
        "missed_slices": [1.0, 2.0, 0.0],
        "dice[a]": [0.6, 0.8, nan],
        "missed_slices[a]": [1.0, 0.0, 0.0],
        "dice[b]": [nan, 0.2, nan],
        "missed_slices[b]": [0.0, 2.0, 0.0],
    }
    | {
        f"{name}[a]": values
        for name, values in zip(COUNTS, ([3, 4, 0], [2, 1, 0], [2, 1, 0], [3, 4, 10]), strict=True)
    }
    | {
        f"{name}[b]": values
        for name, values in zip(COUNTS, ([0, 1, 0], [0, 4, 0], [0, 4, 0], [10, 1, 10]), strict=True)
    }
)
for count in COUNTS:
    TWO[count] = TWO[f"{count}[a]"] + TWO[f"{count}[b]"]


def test_structures_are_summarised_together_and_each_by_itself():
    values = summarise(TWO, with_interval=False)
    assert values["patients"] == 3
    assert (values["dice"], values["dice[a]"], values["dice[b]"]) == pytest.approx((0.55, 0.7, 0.2))
    assert [values[f"dice_undefined{end}"] for end in ("", "[a]", "[b]")] == [1, 1, 2]
    assert [values[f"missed_slices{end}"] for end in ("", "[a]", "[b]")] == [3, 1, 2]
    # tp 7, fp 3, fn 3 of a: 14 / 20; tp 1, fp 4, fn 4 of b: 2 / 10. Over both their mean, not that of all pixels.
    assert (values["dice_global"], values["dice_global[a]"], values["dice_global[b]"]) == pytest.approx(
        (0.45, 0.7, 0.2)
    )
    assert not {name for name in values if name.startswith(("threshold", "patients[", *COUNTS))}


@pytest.mark.parametrize("structure", ["a", "b"])
def test_a_structure_is_summarised_as_if_it_were_the_only_one(structure):
    alone = summarise(select_structure(TWO, structure))
    both = summarise(TWO)
    assert alone.pop("patients") == both["patients"]
    assert {f"{name}[{structure}]": value for name, value in alone.items()}.items() <= both.items()


def test_structures_that_no_patient_has_cause_no_warning():
    nothing = {name: 0 for name in TWO if str(name).startswith(("tp", "fp", "fn"))}
    values = summarise(TWO.assign(**nothing, **{name: nan for name in ("dice", "dice[a]", "dice[b]")}))
    assert isnan(values["dice"])
    assert isnan(values["dice_global"])
    assert isnan(values["dice_global[b]"])
