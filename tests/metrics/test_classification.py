"""Scores of yes and no: by hand, against scikit-learn, and against repeating every row as often as it weighs."""

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
    bin_of,
    confusion,
    reliability,
    report_by_class,
    summarise_calls,
)
from bench.metrics.classification import best_threshold as best


def table(case: str, truth: str, probability: list[float], threshold: float = 0.5) -> pd.DataFrame:
    """A row a slice: the letter of its patient, + or - for its truth."""
    held = np.array(probability)
    there = [sign == "+" for sign in truth]
    return pd.DataFrame({"case": list(case), "truth": there, "probability": held, "called": held >= threshold})


# Of 3 slices with tumour two are called, of 4 without one is: 0.6 stands above a positive.
HAND = table("aaabbcc", "++--+--", [0.9, 0.6, 0.2, 0.7, 0.4, 0.1, 0.3])


def noisy(seed: int, patients: int = 12, decimals: int = 3, threshold: float = 0.5) -> pd.DataFrame:
    """Patients of 3 to 9 slices whose probabilities tell something, with a few ties."""
    rng = np.random.default_rng(seed)
    case = np.repeat([f"p{number}" for number in range(patients)], rng.integers(3, 10, patients))
    truth = rng.random(len(case)) < 0.4
    held = np.round(np.clip(0.3 * truth + 0.7 * rng.random(len(case)), 0, 1), decimals)
    return pd.DataFrame({"case": case, "truth": truth, "probability": held, "called": held >= threshold})


def expected_calibration_error(truth, probability, called, weight) -> float:
    """In loops: bin by bin, how far the mean probability is from the share of tumour."""
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
def test_a_score_by_hand(score, expected):
    assert SCORES[score](Calls.of(HAND)) == pytest.approx(expected)


def test_slices_of_one_bin_are_calibrated_together():
    """0.50 and 0.52 share a bin: one of two has tumour, so half is right, and 0.51 was said."""
    two = table("ab", "+-", [0.50, 0.52])
    assert SCORES["ece"](Calls.of(two)) == pytest.approx(0.01)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("decimals", "threshold"), [(3, 0.5), (1, 0.3)])
def test_every_score_is_that_of_scikit_learn_also_with_weights_and_ties(score, decimals, threshold):
    """Weights of 0 are rows that a resample has not drawn."""
    for seed in range(8):
        calls = Calls.of(noisy(seed, decimals=decimals, threshold=threshold))
        weight = np.random.default_rng(seed).integers(0, 4, len(calls.truth)).astype(float)
        for weighed in (calls, calls.weighing(weight)):
            parts = weighed.truth, weighed.probability, weighed.called, weighed.weight
            assert SCORES[score](weighed) == pytest.approx(REFERENCES[score](*parts), rel=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_to_weigh_w_is_to_be_there_w_times(score):
    for seed in range(8):
        slices = noisy(seed, patients=4, decimals=1)
        weight = np.random.default_rng(seed + 100).integers(0, 4, len(slices))
        weighed = SCORES[score](Calls.of(slices).weighing(weight.astype(float)))
        repeated = SCORES[score](Calls.of(slices.loc[slices.index.repeat(weight)]))
        assert weighed == pytest.approx(repeated, rel=1e-9)


@pytest.mark.parametrize("score", SCORES)
def test_all_is_right_and_all_is_wrong(score):
    """Sure and right is the best there is; the same table turned around is the worst."""
    right, wrong = (Calls.of(table("aabb", truth, [1, 1, 0, 0])) for truth in ("++--", "--++"))
    assert SCORES[score](right) == (1 if score in HIGHER else 0)
    worst = 1 / 2 if score == "average_precision" else 0  # both are found when everything is called
    assert SCORES[score](wrong) == pytest.approx(worst if score in HIGHER else 1)


def test_a_model_that_says_the_same_of_all_ranks_nothing():
    same = Calls.of(table("aaabb", "+--+-", [0.3] * 5))
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
def test_where_there_is_nothing_to_divide_by_a_score_is_not_defined(truth, probability, undefined):
    calls = Calls.of(table("abc", truth, probability))
    assert {name for name, score in SCORES.items() if isnan(score(calls))} == undefined


@pytest.mark.parametrize("score", ["auroc", "average_precision", "specificity"])
def test_negatives_that_weigh_nothing_are_no_negatives(score):
    calls = Calls.of(table("abc", "++-", [0.9, 0.2, 0.6])).weighing(np.array([1.0, 2, 0]))
    assert isnan(SCORES[score](calls))


def test_every_score_has_a_side():
    assert set(HIGHER) | set(LOWER) == set(SCORES) == set(REFERENCES)
    assert not set(HIGHER) & set(LOWER)


# What a table says


def test_the_confusion_matrix_is_truth_by_call():
    found = confusion(HAND)
    assert found.to_numpy().tolist() == [[2, 1], [1, 3]]
    assert found.loc["tumour", "called none"] == 1
    for seed in range(3):
        slices = noisy(seed)
        theirs = metrics.confusion_matrix(slices["truth"], slices["called"], labels=[True, False])
        assert confusion(slices).to_numpy().tolist() == theirs.tolist()


def test_a_summary_has_every_score_its_interval_and_the_four_counts():
    values = summarise_calls(HAND)
    assert (values["patients"], values["slices"]) == (3, 7)
    counts = ("true_positive_slices", "missed_slices", "false_positive_slices", "true_negative_slices")
    assert [values[name] for name in counts] == [2, 1, 1, 3]
    plain = summarise_calls(HAND, with_interval=False)
    for name, score in SCORES.items():
        assert values[name] == plain[name] == score(Calls.of(HAND))
        assert {f"{name}_low", f"{name}_high"} <= values.keys()
        assert not {f"{name}_low", f"{name}_high"} & plain.keys()


def test_intervals_resample_patients_not_slices():
    """Each patient's slices told three times over say no more than once."""
    slices = noisy(3)
    thrice = pd.concat([slices] * 3, ignore_index=True)
    once, more = summarise_calls(slices), summarise_calls(thrice)
    for name in SCORES:
        low, high = once[f"{name}_low"], once[f"{name}_high"]
        assert low < once[name] < high
        assert (more[f"{name}_low"], more[f"{name}_high"]) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_of_a_score_is_that_of_its_clusters():
    slices = noisy(4)
    calls = Calls.of(slices)
    right = calls.truth == calls.called
    ends = stats.clustered_statistic(lambda weight: np.average(right, weights=weight), slices["case"])
    values = summarise_calls(slices)
    assert (values["accuracy_low"], values["accuracy_high"]) == pytest.approx((ends.low, ends.high))


def test_the_order_of_the_slices_changes_nothing():
    slices = noisy(5)
    shuffled = slices.sample(frac=1, random_state=1).reset_index(drop=True)
    assert summarise_calls(shuffled) == pytest.approx(summarise_calls(slices), rel=1e-9, nan_ok=True)
    first, second = report_by_class(slices), report_by_class(shuffled)
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(reliability(slices), reliability(shuffled))
    assert best(slices["truth"].to_numpy(), slices["probability"].to_numpy()) == best(
        shuffled["truth"].to_numpy(), shuffled["probability"].to_numpy()
    )


def test_perfect_separation_is_certain_of_itself():
    """All resamples agree, so that the interval has no width."""
    values = summarise_calls(table("aaabbbccc", "++-+--+--", [0.9, 0.8, 0.1, 0.7, 0.2, 0.1, 0.6, 0.3, 0.2]))
    for name in ("auroc", "average_precision", "accuracy", "sensitivity", "specificity", "precision", "f1"):
        assert (values[name], values[f"{name}_low"], values[f"{name}_high"]) == (1, 1, 1)


def test_a_single_patient_has_scores_and_no_interval():
    values = summarise_calls(table("aaaa", "+-+-", [0.9, 0.6, 0.3, 0.2]))
    assert values["auroc"] == 0.75
    assert isnan(values["auroc_low"])
    assert isnan(values["brier_high"])


def test_a_patient_is_called_where_any_slice_is():
    """a: found on its second slice; b: missed; c: no tumour, called for one slice of three; d: no tumour, left."""
    slices = table("aabbcccdd", "-++------", [0.2, 0.8, 0.4, 0.3, 0.1, 0.6, 0.2, 0.3, 0.1])
    values = summarise_calls(slices, with_interval=False)
    assert values["patient_sensitivity"] == 1 / 2
    assert values["patient_specificity"] == 1 / 2
    assert values["patient_auroc"] == 3 / 4  # 0.8 above 0.6 and 0.3, 0.4 above 0.3 alone


def test_without_a_negative_patient_there_is_no_specificity_of_patients():
    values = summarise_calls(HAND.assign(truth=[True, True, False, False, True, True, False]), with_interval=False)
    assert values["patient_sensitivity"] == 2 / 3
    assert isnan(values["patient_specificity"])
    assert isnan(values["patient_auroc"])
    assert not isnan(values["specificity"])


@pytest.mark.parametrize("seed", range(3))
def test_the_report_by_class_is_that_of_scikit_learn(seed):
    slices = noisy(seed)
    theirs = metrics.classification_report(slices["truth"], slices["called"], output_dict=True)
    ours = report_by_class(slices).set_index("class")
    assert list(ours.index) == ["tumour", "none"]
    for name, label in (("tumour", "True"), ("none", "False")):
        for score, its in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert ours.loc[name, score] == pytest.approx(theirs[label][its])
            assert ours.loc[name, f"{score}_low"] <= ours.loc[name, score] <= ours.loc[name, f"{score}_high"]
        assert ours.loc[name, "slices"] == theirs[label]["support"]


def test_the_report_and_the_summary_agree():
    slices = noisy(6)
    report, values = report_by_class(slices).set_index("class"), summarise_calls(slices)
    for end in ("", "_low", "_high"):
        assert report.loc["tumour", f"recall{end}"] == values[f"sensitivity{end}"]
        assert report.loc["none", f"recall{end}"] == values[f"specificity{end}"]
        assert report.loc["none", f"precision{end}"] == values[f"negative_predictive_value{end}"]
        assert report.loc["tumour", f"f1{end}"] == values[f"f1{end}"]


def test_a_class_that_nobody_has_is_reported_as_undefined():
    report = report_by_class(table("abc", "+++", [0.9, 0.8, 0.7])).set_index("class")
    assert report.loc["none", "slices"] == 0
    assert isnan(report.loc["none", "precision"])
    assert isnan(report.loc["none", "recall"])
    assert report.loc["tumour", "recall"] == 1


# Calibration


@pytest.mark.parametrize(
    ("probability", "expected"), [(0, 0), (0.066, 0), (1 / 15, 1), (0.5, 7), (14 / 15, 14), (1, 14)]
)
def test_bins_are_of_equal_width_closed_below_and_the_last_one_on_both_sides(probability, expected):
    assert bin_of(np.array([probability]))[0] == expected


def test_the_reliability_curve_by_hand():
    """Bins of 1/15: 0.01 and 0.05 lie in the first, 0.5 three times in the eighth, 1 in the last."""
    slices = table("abababb", "-+++--+", [0.01, 0.05, 0.5, 0.5, 0.5, 0.9, 1.0])
    found = reliability(slices)
    assert found["slices"].tolist() == [2, 3, 1, 1]
    assert found["probability"].tolist() == pytest.approx([0.03, 0.5, 0.9, 1])
    assert found["share"].tolist() == pytest.approx([1 / 2, 2 / 3, 0, 1])
    assert (found["low"][0], found["high"][0]) == (0, 1)  # one patient has tumour there, the other none
    assert found[["low", "high"]].iloc[2:].isna().all(axis=None)  # of one patient


def test_the_reliability_of_every_bin_lies_in_its_interval():
    slices = noisy(7, patients=60)
    found = reliability(slices)
    assert found["slices"].sum() == len(slices)
    assert len(found) > 10
    assert (found["low"] <= found["share"]).all()
    assert (found["share"] <= found["high"]).all()
    for row in found.itertuples():
        inside = (slices["probability"] * BINS).astype(int).clip(upper=BINS - 1) == int(row.probability * BINS)
        ends = stats.clustered_interval(slices["truth"][inside].astype(float), slices["case"][inside])
        assert (row.low, row.high) == (ends.low, ends.high)


def test_weighted_residuals_of_the_curve_are_the_calibration_error():
    slices = noisy(8)
    found = reliability(slices)
    error = (found["slices"] * (found["probability"] - found["share"]).abs()).sum() / len(slices)
    assert SCORES["ece"](Calls.of(slices)) == pytest.approx(error)


# The threshold


@pytest.mark.parametrize("seed", range(6))
def test_the_best_threshold_is_found_by_trying_all(seed):
    slices = noisy(seed, decimals=1 + seed % 3)
    truth, held = slices["truth"].to_numpy(), slices["probability"].to_numpy()
    tried = {
        t: metrics.recall_score(truth, held >= t) + metrics.recall_score(truth, held >= t, pos_label=False)
        for t in THRESHOLDS
    }
    good = [t for t, value in tried.items() if value >= max(tried.values()) - 1e-9]
    assert len(good) > 1 or seed % 3  # of probabilities with one digit, ten thresholds are the same
    found = best(truth, held)
    assert found in good
    assert abs(found - 0.5) == min(abs(t - 0.5) for t in good)


@pytest.mark.parametrize(
    ("truth", "probability", "expected"),
    [
        ("+-", [0.9, 0.1], 0.5),  # anything between is as good
        ("+-", [0.3, 0.1], 0.3),
        ("+-", [0.95, 0.705], 0.71),
        ("+++", [0.9, 0.8, 0.1], 0.5),
        ("--", [0.9, 0.8], 0.5),
        ("+-", [0.4, 0.4], 0.5),  # nothing tells them apart
    ],
)
def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken(truth, probability, expected):
    assert best(np.array([t == "+" for t in truth]), np.array(probability)) == pytest.approx(expected)


def test_a_rare_class_counts_as_much_as_a_common_one():
    """Accuracy would call nothing: 2 of 22 slices have tumour, and two without have more than these."""
    truth = np.array([True] * 2 + [False] * 20)
    held = np.array([0.2, 0.3, 0.6, 0.7, *np.full(18, 0.05)])
    assert best(truth, held) == pytest.approx(0.2)
