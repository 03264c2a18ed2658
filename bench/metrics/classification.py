"""Scores and tables of slice classification (the presence task), with intervals over patients.

Every score is a function of `Calls`, in which slices have weights: a bootstrap over patients changes only these.
A score is NaN where its denominator is zero, such as specificity without negative slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.masks import THRESHOLDS
from bench.stats import clustered_interval, clustered_statistic_interval

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

CALL_COLUMNS = "truth", "probability", "called"  # of a table of slices
BINS = 15  # of equal width, for calibration


@dataclass(frozen=True)
class Calls:
    """Classified slices, (N,) each: true label, predicted probability, predicted label ("called") and weight."""

    truth: Bools
    probability: Floats
    called: Bools
    weight: Floats

    @classmethod
    def from_table(cls, slices: pd.DataFrame) -> Calls:
        """Read a table with the columns `CALL_COLUMNS`; every slice has weight 1."""
        truth, called = slices["truth"].to_numpy(bool), slices["called"].to_numpy(bool)
        return cls(truth, slices["probability"].to_numpy(np.float64), called, np.ones(len(slices)))

    def with_weights(self, weight: Floats) -> Calls:
        return Calls(self.truth, self.probability, self.called, weight)

    def share(self, part: Bools, whole: Bools) -> float:
        """Return the weight of `part & whole` divided by that of `whole`; NaN where that is zero."""
        denominator = self.weight[whole].sum()
        return float(self.weight[part & whole].sum() / denominator) if denominator else np.nan

    @property
    def has_both_classes(self) -> bool:
        return bool(self.weight[self.truth].sum() and self.weight[~self.truth].sum())

    @property
    def cumulative_counts(self) -> tuple[Floats, Floats]:
        """True and false positives (weights) as the threshold falls, from no slice called to all."""
        order = np.argsort(-self.probability, kind="stable")
        last = np.append(np.diff(self.probability[order]) != 0, True)  # equal probabilities are called together
        tp, fp = (np.where(label, self.weight, 0)[order].cumsum()[last] for label in (self.truth, ~self.truth))
        return np.append(0, tp), np.append(0, fp)


def auroc(calls: Calls) -> float:
    """Area under the ROC curve: how often a positive scores above a negative (Hanley and McNeil 1982)."""
    if not calls.has_both_classes:
        return np.nan
    tp, fp = calls.cumulative_counts
    return float(np.trapezoid(tp, fp) / (tp[-1] * fp[-1]))


def average_precision(calls: Calls) -> float:
    """Mean precision over the recall gained at each threshold; the share of positives for a random model."""
    if not calls.has_both_classes:
        return np.nan
    tp, fp = calls.cumulative_counts
    gain = np.diff(tp)
    positive = gain > 0  # elsewhere nothing may be called yet, and precision is undefined
    precisions = tp[1:][positive] / (tp + fp)[1:][positive]
    return float((gain[positive] * precisions).sum() / tp[-1])


def accuracy(calls: Calls) -> float:
    """Share of slices that are called correctly."""
    return calls.share(calls.called == calls.truth, np.ones_like(calls.truth))


def sensitivity(calls: Calls) -> float:
    """Share of the slices with tumour that are called (recall)."""
    return calls.share(calls.called, calls.truth)


def specificity(calls: Calls) -> float:
    """Share of the slices without tumour that are not called."""
    return calls.share(~calls.called, ~calls.truth)


def precision(calls: Calls) -> float:
    """Share of the called slices that have tumour (positive predictive value)."""
    return calls.share(calls.truth, calls.called)


def negative_predictive_value(calls: Calls) -> float:
    """Share of the slices not called that have no tumour."""
    return calls.share(~calls.truth, ~calls.called)


def f1(calls: Calls) -> float:
    """Harmonic mean of precision and sensitivity, 2 TP / (2 TP + FP + FN)."""
    tp = calls.weight[calls.truth & calls.called].sum()
    errors = calls.weight[calls.truth != calls.called].sum()
    return float(2 * tp / (2 * tp + errors)) if tp + errors else np.nan


def brier(calls: Calls) -> float:
    """Brier score: the mean of (probability - truth)² (Brier 1950)."""
    return float(np.average((calls.probability - calls.truth) ** 2, weights=calls.weight))


def ece(calls: Calls) -> float:
    """Expected calibration error over bins of equal width (Naeini et al. 2015)."""
    residuals = np.bincount(bin_of(calls.probability), weights=calls.weight * (calls.probability - calls.truth))
    return float(np.abs(residuals).sum() / calls.weight.sum())


Score = Callable[[Calls], float]
_RATES = (accuracy, sensitivity, specificity, precision, negative_predictive_value, f1)
HIGHER: Mapping[str, Score] = {score.__name__: score for score in (auroc, average_precision, *_RATES)}
LOWER: Mapping[str, Score] = {score.__name__: score for score in (brier, ece)}
SCORES: Mapping[str, Score] = {**HIGHER, **LOWER}


def bin_of(probability: Floats) -> NDArray[np.int64]:
    """Return the calibration bin of each probability, 0 to BINS - 1."""
    return np.asarray(np.digitize(probability, np.linspace(0, 1, BINS + 1)[1:-1]), np.int64)


def summarise_calls(slices: pd.DataFrame, *, with_interval: bool = True) -> dict[str, float]:
    """Compute all scores of a table of slices (case, truth, probability, called).

    `<score>_low` and `<score>_high` are the ends of the 95% interval, which resamples patients. The four counts of
    the confusion matrix follow, then scores of whole patients: a patient is called when any slice is.
    """
    calls = Calls.from_table(slices)
    values: dict[str, float] = {"patients": slices["case"].nunique(), "slices": len(slices)}
    for name, score in SCORES.items():
        values |= _with_ends(name, score, calls, slices) if with_interval else {name: score(calls)}
    counts = ("true_positive_slices", "missed_slices", "false_positive_slices", "true_negative_slices")
    values |= dict(zip(counts, confusion_matrix(slices).to_numpy().ravel().tolist(), strict=True))
    patients = Calls.from_table(slices.groupby("case")[list(CALL_COLUMNS)].max())
    patient_scores = {"auroc": auroc, "sensitivity": sensitivity, "specificity": specificity}
    return values | {f"patient_{name}": score(patients) for name, score in patient_scores.items()}


def confusion_matrix(slices: pd.DataFrame) -> pd.DataFrame:
    """Count slices by true label (rows) and predicted label (columns)."""
    truth, called = slices["truth"].to_numpy(bool), slices["called"].to_numpy(bool)
    counts = [[int((row & column).sum()) for column in (called, ~called)] for row in (truth, ~truth)]
    return pd.DataFrame(counts, index=["tumour", "none"], columns=["called tumour", "called none"])


def report_by_class(slices: pd.DataFrame) -> pd.DataFrame:
    """Compute precision, recall and F1 of both classes, their 95% intervals over patients, and their slices."""
    tumour = Calls.from_table(slices)
    none = Calls(~tumour.truth, 1 - tumour.probability, ~tumour.called, tumour.weight)
    rows = {}
    for name, calls in (("tumour", tumour), ("none", none)):
        rows[name] = {"slices": float(calls.truth.sum())}
        for score_name, score in (("precision", precision), ("recall", sensitivity), ("f1", f1)):
            rows[name] |= _with_ends(score_name, score, calls, slices)
    return pd.DataFrame(rows).T.rename_axis("class").astype({"slices": int}).reset_index()


def reliability_curve(slices: pd.DataFrame) -> pd.DataFrame:
    """Compute the reliability curve, with one row per bin that is not empty.

    Columns: probability (the mean within the bin), share (of slices with tumour), its interval over patients (low,
    high), and slices.
    """
    binned = slices.assign(bin=bin_of(slices["probability"].to_numpy(np.float64)))
    rows = []
    for _, members in binned.groupby("bin"):
        truth = members["truth"].to_numpy(np.float64)
        ends = clustered_interval(truth, members["case"].to_numpy())
        rows.append((members["probability"].mean(), truth.mean(), ends.low, ends.high, len(members)))
    return pd.DataFrame(rows, columns=["probability", "share", "low", "high", "slices"])


def best_threshold(truth: Bools, probability: Floats) -> float:
    """Return the threshold with the largest sensitivity + specificity (Youden 1950).

    Of equally good thresholds, the one nearest to 0.5; 0.5 if there is only one class.
    """
    if truth.all() or not truth.any():
        return 0.5
    called = probability[:, None] >= THRESHOLDS
    youden = called[truth].mean(0) - called[~truth].mean(0)
    best = THRESHOLDS[youden >= youden.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def _with_ends(name: str, score: Score, calls: Calls, slices: pd.DataFrame) -> dict[str, float]:
    ends = clustered_statistic_interval(lambda weight: score(calls.with_weights(weight)), slices["case"])
    return {name: score(calls), f"{name}_low": ends.low, f"{name}_high": ends.high}
