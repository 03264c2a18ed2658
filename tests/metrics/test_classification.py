"""Scores of slice classification: by hand, against scikit-learn, and against rows repeated by their weight."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from bench import stats
from bench.masks import THRESHOLDS
from bench.metrics.classification import (
    BINS,
    HIGHER,
    LOWER,
    SCORES,
    Calls,
    best_threshold,
    bin_of,
    confusion_matrix,
    reliability_curve,
    report_by_class,
    summarise_calls,
)


def table(case: str, truth: str, probability: list[float], threshold: float = 0.5) -> pd.DataFrame:
    """Return one row per slice: `case` has the letter of its patient, `truth` has + or -."""
    p = np.array(probability)
    labels = [sign == "+" for sign in truth]
    return pd.DataFrame({"case": list(case), "truth": labels, "probability": p, "called": p >= threshold})


# Two of 3 slices with tumour are called, and one of 4 without. One negative slice (0.7) scores above a positive.
HAND = table("aaabbcc", "++--+--", [0.9, 0.6, 0.2, 0.7, 0.4, 0.1, 0.3])


def noisy(seed: int, patients: int = 12, decimals: int = 3, threshold: float = 0.5) -> pd.DataFrame:
    """Return patients of 3 to 9 slices with informative probabilities, some of them tied."""
    rng = np.random.default_rng(seed)
    case = np.repeat([f"p{number}" for number in range(patients)], rng.integers(3, 10, patients))
    truth = rng.random(len(case)) < 0.4
    values = np.round(np.clip(0.3 * truth + 0.7 * rng.random(len(case)), 0, 1), decimals)
    return pd.DataFrame({"case": case, "truth": truth, "probability": values, "called": values >= threshold})


NOISY = noisy(3)


@pytest.fixture(scope="module")
def summary() -> dict[str, float]:
    return summarise_calls(NOISY)


def expected_calibration_error(truth, probability, called, weight) -> float:
    """Compute the error in loops, bin by bin."""
    total = 0.0
    for low in range(BINS):
        inside = [i for i, p in enumerate(probability) if min(int(p * BINS), BINS - 1) == low]
        if sum(weight[i] for i in inside):
            mean, share = (np.average(v[inside], weights=weight[inside]) for v in (probability, truth))
            total += sum(weight[i] for i in inside) * abs(mean - share)
    return total / sum(weight)


REFERENCES: dict[str, Callable[..., float]] = {
    "auroc": lambda t, p, c, w: metrics.roc_auc_score(t, p, sample_weight=w),
    "average_precision": lambda t, p, c, w: metrics.average_precision_score(t, p, sample_weight=w),
    "accuracy": lambda t, p, c, w: metrics.accuracy_score(t, c, sample_weight=w),
    "sensitivity": lambda t, p, c, w: metrics.recall_score(t, c, sample_weight=w),
    "specificity": lambda t, p, c, w: metrics.recall_score(t, c, sample_weight=w, pos_label=False),
    "precision": lambda t, p, c, w: metrics.precision_score(t, c, sample_weight=w),
    "negative_predictive_value": lambda t, p, c, w: metrics.precision_score(
        t, c, sample_weight=w, pos_label=False
    ),
    "f1": lambda t, p, c, w: metrics.f1_score(t, c, sample_weight=w),
    "brier": lambda t, p, c, w: metrics.brier_score_loss(t, p, sample_weight=w),
    "ece": expected_calibration_error,
}


# Scores


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("auroc", 10 / 12),  # of 3 x 4 pairs, 0.6 loses one and 0.4 one
        ("average_precision", (1 / 1 + 2 / 3 + 3 / 4) / 3),
        ("accuracy", 5 / 7),
        ("sensitivity", 2 / 3),
        ("specificity", 3 / 4),
        ("precision", 2 / 3),
        ("negative_predictive_value", 3 / 4),
        ("f1", 4 / 6),
        ("brier", (0.01 + 0.16 + 0.04 + 0.49 + 0.36 + 0.01 + 0.09) / 7),
        ("ece", (0.1 + 0.4 + 0.2 + 0.7 + 0.6 + 0.1 + 0.3) / 7),  # each slice has a bin of its own
    ],
)
def test_a_score_equals_its_value_by_hand(score, expected):
    assert SCORES[score](Calls.from_table(HAND)) == pytest.approx(expected)


def test_slices_of_one_bin_are_calibrated_together():
    """0.50 and 0.52 share a bin: one of the two slices has tumour, and the mean probability is 0.51."""
    two = table("ab", "+-", [0.50, 0.52])
    assert SCORES["ece"](Calls.from_table(two)) == pytest.approx(0.01)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("decimals", "threshold"), [(3, 0.5), (1, 0.3)])
def test_a_score_agrees_with_scikit_learn_with_weights_and_ties(score, decimals, threshold):
    """A weight of 0 is a row that a resample has not drawn."""
    for seed in range(3):
        calls = Calls.from_table(noisy(seed, decimals=decimals, threshold=threshold))
        weight = np.random.default_rng(seed).integers(0, 4, len(calls.truth)).astype(float)
        for weighted in (calls, calls.with_weights(weight)):
            parts = weighted.truth, weighted.probability, weighted.called, weighted.weight
            assert SCORES[score](weighted) == pytest.approx(REFERENCES[score](*parts), rel=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_a_weight_of_w_equals_repeating_the_row_w_times(score):
    for seed in range(3):
        slices = noisy(seed, patients=4, decimals=1)
        weight = np.random.default_rng(seed + 100).integers(0, 4, len(slices))
        weighted = SCORES[score](Calls.from_table(slices).with_weights(weight.astype(float)))
        repeated = SCORES[score](Calls.from_table(slices.loc[slices.index.repeat(weight)]))
        assert weighted == pytest.approx(repeated, rel=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_perfect_calls_score_best_and_inverted_calls_worst(score):
    right, wrong = (Calls.from_table(table("aabb", truth, [1, 1, 0, 0])) for truth in ("++--", "--++"))
    assert SCORES[score](right) == (1 if score in HIGHER else 0)
    worst = 1 / 2 if score == "average_precision" else 0  # all positives rank below all negatives
    assert SCORES[score](wrong) == pytest.approx(worst if score in HIGHER else 1)


def test_equal_probabilities_score_at_chance_level():
    same = Calls.from_table(table("aaabb", "+--+-", [0.3] * 5))
    assert SCORES["auroc"](same) == 0.5
    assert SCORES["average_precision"](same) == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("truth", "probability", "undefined"),
    [
        ("+++", [0.9, 0.8, 0.2], {"auroc", "average_precision", "specificity"}),
        ("---", [0.9, 0.8, 0.2], {"auroc", "average_precision", "sensitivity"}),
        ("++-", [0.1, 0.2, 0.3], {"precision"}),
        ("++-", [0.9, 0.8, 0.7], {"negative_predictive_value"}),
        ("---", [0.1, 0.2, 0.3], {"auroc", "average_precision", "sensitivity", "precision", "f1"}),
    ],
)
def test_a_score_with_a_zero_denominator_is_nan(truth, probability, undefined):
    calls = Calls.from_table(table("abc", truth, probability))
    assert {name for name, score in SCORES.items() if isnan(score(calls))} == undefined


@pytest.mark.parametrize("score", ["auroc", "average_precision", "specificity"])
def test_negatives_of_weight_zero_do_not_count(score):
    calls = Calls.from_table(table("abc", "++-", [0.9, 0.2, 0.6])).with_weights(np.array([1.0, 2, 0]))
    assert isnan(SCORES[score](calls))


def test_every_score_has_a_direction_and_a_reference():
    assert set(HIGHER) | set(LOWER) == set(SCORES) == set(REFERENCES)
    assert not set(HIGHER) & set(LOWER)


# Tables


def test_the_confusion_matrix_has_truth_in_rows_and_calls_in_columns():
    matrix = confusion_matrix(HAND)
    assert matrix.to_numpy().tolist() == [[2, 1], [1, 3]]
    assert matrix.loc["tumour", "called none"] == 1
    expected = metrics.confusion_matrix(NOISY["truth"], NOISY["called"], labels=[True, False])
    assert confusion_matrix(NOISY).to_numpy().tolist() == expected.tolist()


def test_a_summary_has_every_score_its_interval_and_the_four_counts():
    values = summarise_calls(HAND)
    assert (values["patients"], values["slices"]) == (3, 7)
    counts = ("true_positive_slices", "missed_slices", "false_positive_slices", "true_negative_slices")
    assert [values[name] for name in counts] == [2, 1, 1, 3]
    plain = summarise_calls(HAND, with_interval=False)
    for name, score in SCORES.items():
        assert values[name] == plain[name] == score(Calls.from_table(HAND))
        assert {f"{name}_low", f"{name}_high"} <= values.keys()
        assert not {f"{name}_low", f"{name}_high"} & plain.keys()


def test_intervals_resample_patients_not_slices(summary):
    """Repeating the slices of each patient three times adds no information."""
    repeated = summarise_calls(pd.concat([NOISY] * 3, ignore_index=True))
    for name in SCORES:
        low, high = summary[f"{name}_low"], summary[f"{name}_high"]
        assert low < summary[name] < high
        assert (repeated[f"{name}_low"], repeated[f"{name}_high"]) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_of_a_score_clusters_slices_by_patient(summary):
    calls = Calls.from_table(NOISY)
    correct = calls.truth == calls.called
    ends = stats.clustered_statistic_interval(lambda weight: np.average(correct, weights=weight), NOISY["case"])
    assert (summary["accuracy_low"], summary["accuracy_high"]) == pytest.approx((ends.low, ends.high))


def test_the_order_of_the_slices_does_not_matter(summary):
    shuffled = NOISY.sample(frac=1, random_state=1).reset_index(drop=True)
    assert summarise_calls(shuffled) == pytest.approx(summary, rel=1e-9, nan_ok=True)
    pd.testing.assert_frame_equal(report_by_class(NOISY), report_by_class(shuffled))
    pd.testing.assert_frame_equal(reliability_curve(NOISY), reliability_curve(shuffled))
    thresholds = {best_threshold(t["truth"].to_numpy(), t["probability"].to_numpy()) for t in (NOISY, shuffled)}
    assert len(thresholds) == 1


def test_perfect_separation_has_an_interval_of_zero_width():
    values = summarise_calls(table("aaabbbccc", "++-+--+--", [0.9, 0.8, 0.1, 0.7, 0.2, 0.1, 0.6, 0.3, 0.2]))
    for name in ("auroc", "average_precision", "accuracy", "sensitivity", "specificity", "precision", "f1"):
        assert (values[name], values[f"{name}_low"], values[f"{name}_high"]) == (1, 1, 1)


def test_a_single_patient_has_scores_but_no_interval():
    values = summarise_calls(table("aaaa", "+-+-", [0.9, 0.6, 0.3, 0.2]))
    assert values["auroc"] == 0.75
    assert isnan(values["auroc_low"])
    assert isnan(values["brier_high"])


def test_a_patient_is_called_if_any_slice_is():
    """a is detected on its second slice, b is missed, c without tumour has a slice called, d has none."""
    slices = table("aabbcccdd", "-++------", [0.2, 0.8, 0.4, 0.3, 0.1, 0.6, 0.2, 0.3, 0.1])
    values = summarise_calls(slices, with_interval=False)
    assert values["patient_sensitivity"] == 1 / 2
    assert values["patient_specificity"] == 1 / 2
    assert values["patient_auroc"] == 3 / 4  # 0.8 above 0.6 and 0.3, 0.4 above 0.3 alone


def test_without_negative_patients_patient_specificity_is_nan():
    values = summarise_calls(HAND.assign(truth=[True, True, False, False, True, True, False]), with_interval=False)
    assert values["patient_sensitivity"] == 2 / 3
    assert isnan(values["patient_specificity"])
    assert isnan(values["patient_auroc"])
    assert not isnan(values["specificity"])


def test_the_report_by_class_agrees_with_scikit_learn_and_the_summary(summary):
    expected = metrics.classification_report(NOISY["truth"], NOISY["called"], output_dict=True)
    report = report_by_class(NOISY).set_index("class")
    assert list(report.index) == ["tumour", "none"]
    for name, label in (("tumour", "True"), ("none", "False")):
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert report.loc[name, ours] == pytest.approx(expected[label][theirs])
            assert report.loc[name, f"{ours}_low"] <= report.loc[name, ours] <= report.loc[name, f"{ours}_high"]
        assert report.loc[name, "slices"] == expected[label]["support"]
    for end in ("", "_low", "_high"):
        assert report.loc["tumour", f"recall{end}"] == summary[f"sensitivity{end}"]
        assert report.loc["none", f"recall{end}"] == summary[f"specificity{end}"]
        assert report.loc["none", f"precision{end}"] == summary[f"negative_predictive_value{end}"]
        assert report.loc["tumour", f"f1{end}"] == summary[f"f1{end}"]


def test_a_class_without_slices_is_reported_as_nan():
    report = report_by_class(table("abc", "+++", [0.9, 0.8, 0.7])).set_index("class")
    assert report.loc["none", "slices"] == 0
    assert isnan(report.loc["none", "precision"])
    assert isnan(report.loc["none", "recall"])
    assert report.loc["tumour", "recall"] == 1


# Calibration


@pytest.mark.parametrize(
    ("probability", "expected"), [(0, 0), (0.066, 0), (1 / 15, 1), (0.5, 7), (14 / 15, 14), (1, 14)]
)
def test_bins_have_equal_width_and_include_their_lower_edge(probability, expected):
    assert bin_of(np.array([probability]))[0] == expected


def test_the_reliability_curve_equals_its_values_by_hand():
    """Bins of 1/15: 0.01 and 0.05 lie in the first, 0.5 three times in the eighth, 1 in the last."""
    curve = reliability_curve(table("abababb", "-+++--+", [0.01, 0.05, 0.5, 0.5, 0.5, 0.9, 1.0]))
    assert curve["slices"].tolist() == [2, 3, 1, 1]
    assert curve["probability"].tolist() == pytest.approx([0.03, 0.5, 0.9, 1])
    assert curve["share"].tolist() == pytest.approx([1 / 2, 2 / 3, 0, 1])
    assert (curve["low"][0], curve["high"][0]) == (0, 1)  # one patient has tumour in this bin, the other does not
    assert curve[["low", "high"]].iloc[2:].isna().all(axis=None)  # bins of one patient


def test_the_interval_of_a_bin_clusters_slices_by_patient():
    slices = noisy(7, patients=60)
    curve = reliability_curve(slices)
    assert curve["slices"].sum() == len(slices)
    assert len(curve) > 10
    assert (curve["low"] <= curve["share"]).all()
    assert (curve["share"] <= curve["high"]).all()
    bins = (slices["probability"] * BINS).astype(int).clip(upper=BINS - 1)
    row = curve.iloc[5]
    inside = bins == int(row["probability"] * BINS)
    ends = stats.clustered_interval(slices["truth"][inside].astype(float), slices["case"][inside])
    assert (row["low"], row["high"]) == (ends.low, ends.high)


def test_weighted_gaps_of_the_reliability_curve_sum_to_the_calibration_error():
    curve = reliability_curve(NOISY)
    error = (curve["slices"] * (curve["probability"] - curve["share"]).abs()).sum() / len(NOISY)
    assert SCORES["ece"](Calls.from_table(NOISY)) == pytest.approx(error)


# The threshold


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_the_best_threshold_equals_that_of_an_exhaustive_search(decimals):
    slices = noisy(decimals, decimals=decimals)
    truth, probability = slices["truth"].to_numpy(), slices["probability"].to_numpy()
    youden = {t: np.mean(probability[truth] >= t) + np.mean(probability[~truth] < t) for t in THRESHOLDS}
    best = [t for t, value in youden.items() if value >= max(youden.values()) - 1e-9]
    assert len(best) > 1 or decimals > 1  # with one decimal, ten thresholds are equivalent
    chosen = best_threshold(truth, probability)
    assert chosen in best
    assert abs(chosen - 0.5) == min(abs(t - 0.5) for t in best)


@pytest.mark.parametrize(
    ("truth", "probability", "expected"),
    [
        ("+-", [0.9, 0.1], 0.5),  # every threshold between them is as good
        ("+-", [0.3, 0.1], 0.3),
        ("+-", [0.95, 0.705], 0.71),
        ("+++", [0.9, 0.8, 0.1], 0.5),
        ("--", [0.9, 0.8], 0.5),
        ("+-", [0.4, 0.4], 0.5),  # no threshold separates them
    ],
)
def test_of_equally_good_thresholds_the_nearest_to_half_is_chosen(truth, probability, expected):
    labels = np.array([sign == "+" for sign in truth])
    assert best_threshold(labels, np.array(probability)) == pytest.approx(expected)


def test_the_best_threshold_weights_a_rare_class_like_a_common_one():
    """2 of 22 slices have tumour, and two slices without score higher: the most accurate model would call none."""
    truth = np.array([True] * 2 + [False] * 20)
    probability = np.array([0.2, 0.3, 0.6, 0.7, *np.full(18, 0.05)])
    assert best_threshold(truth, probability) == pytest.approx(0.2)
