"""How well yes and no are told apart: scores of called slices, their tables, and what probabilities are worth.

Every score is a function of `Calls`, in which slices carry weights: a bootstrap over patients changes only these.
NaN where there is nothing to divide by: without negatives there is no specificity, and nothing to rank positives
against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.masks import THRESHOLDS
from bench.stats import Interval, clustered_interval, clustered_statistic

Bools = NDArray[np.bool_]


Floats = NDArray[np.float64]


CALLED = "truth", "probability", "called"  # what a table of slices says of each


BINS = 15  # of equal width, for calibration


@dataclass(frozen=True)
class Calls:
    """Judged slices: what is true, how probable it was held, what was called, how much each weighs; (N,) each."""

    truth: Bools
    probability: Floats
    called: Bools
    weight: Floats

    @classmethod
    def of(cls, slices: pd.DataFrame) -> Calls:
        """From a table with the columns `CALLED`."""
        truth, called = slices["truth"].to_numpy(bool), slices["called"].to_numpy(bool)
        return cls(truth, slices["probability"].to_numpy(np.float64), called, np.ones(len(slices)))

    def weighing(self, weight: Floats) -> Calls:
        return Calls(self.truth, self.probability, self.called, weight)

    def share(self, part: Bools, whole: Bools) -> float:
        """The weight of `part` and `whole` by that of `whole`; NaN where that is nothing."""
        below = self.weight[whole].sum()
        return float(self.weight[part & whole].sum() / below) if below else np.nan

    @property
    def everything(self) -> Bools:
        return np.ones_like(self.truth)

    @property
    def both(self) -> bool:
        """Whether there are positives as well as negatives."""
        return bool(self.weight[self.truth].sum() and self.weight[~self.truth].sum())

    @property
    def curve(self) -> tuple[Floats, Floats]:
        """The weight of hits and of false alarms as the threshold falls, from nothing called to everything."""
        order = np.argsort(-self.probability, kind="stable")
        last = np.append(np.diff(self.probability[order]) != 0, True)  # equal probabilities are called together
        hits, alarms = (np.where(side, self.weight, 0)[order].cumsum()[last] for side in (self.truth, ~self.truth))
        return np.append(0, hits), np.append(0, alarms)


def auroc(calls: Calls) -> float:
    """Area under the ROC curve: how often a positive gets more than a negative (Hanley and McNeil 1982)."""
    if not calls.both:
        return np.nan
    hits, alarms = calls.curve
    return float(np.trapezoid(hits, alarms) / (hits[-1] * alarms[-1]))


def average_precision(calls: Calls) -> float:
    """Mean precision over the recall gained at each threshold; the share of positives for a model that guesses."""
    if not calls.both:
        return np.nan
    hits, alarms = calls.curve
    gained = np.diff(hits)
    some = gained > 0  # elsewhere nothing may be called yet, and precision is not defined
    precisions = hits[1:][some] / (hits + alarms)[1:][some]
    return float((gained[some] * precisions).sum() / hits[-1])


def accuracy(calls: Calls) -> float:
    """Share of slices that are called right."""
    return calls.share(calls.called == calls.truth, calls.everything)


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
    """Share of the slices that are not called that have no tumour."""
    return calls.share(~calls.truth, ~calls.called)


def f1(calls: Calls) -> float:
    """Harmonic mean of precision and sensitivity, 2 TP / (2 TP + FP + FN)."""
    return _f1(calls, calls.truth, calls.called)


def brier(calls: Calls) -> float:
    """Mean of (probability - truth) squared (Brier 1950)."""
    return float(np.average((calls.probability - calls.truth) ** 2, weights=calls.weight))


def ece(calls: Calls) -> float:
    """Expected calibration error over bins of equal width (Naeini et al. 2015)."""
    residuals = np.bincount(bin_of(calls.probability), weights=calls.weight * (calls.probability - calls.truth))
    return float(np.abs(residuals).sum() / calls.weight.sum())


Score = Callable[[Calls], float]


HIGHER: Mapping[str, Score] = {
    score.__name__: score
    for score in (
        auroc,
        average_precision,
        accuracy,
        sensitivity,
        specificity,
        precision,
        negative_predictive_value,
        f1,
    )
}


LOWER: Mapping[str, Score] = {score.__name__: score for score in (brier, ece)}


SCORES: Mapping[str, Score] = {**HIGHER, **LOWER}


def bin_of(probability: Floats) -> NDArray[np.int64]:
    """The calibration bin of each probability, 0 to BINS - 1."""
    return np.asarray(np.digitize(probability, np.linspace(0, 1, BINS + 1)[1:-1]), np.int64)


def summarise_calls(slices: pd.DataFrame, *, with_interval: bool = True) -> dict[str, float]:
    """All scores of a table of slices (case, truth, probability, called), with intervals that resample patients.

    `<score>_low` and `<score>_high` are the ends of the 95% interval. The four counts of the confusion matrix come
    beside them, and what can be said of whole patients: a patient is called when any slice is.
    """
    calls = Calls.of(slices)
    values: dict[str, float] = {"patients": slices["case"].nunique(), "slices": len(slices)}
    for name, score in SCORES.items():
        values[name] = score(calls)
        if with_interval:
            ends = _ends(score, calls, slices)
            values |= {f"{name}_low": ends.low, f"{name}_high": ends.high}
    cells = ("true_positive_slices", "missed_slices", "false_positive_slices", "true_negative_slices")
    values |= dict(zip(cells, confusion(slices).to_numpy().ravel().tolist(), strict=True))
    whole = Calls.of(slices.groupby("case")[["truth", "probability", "called"]].max())
    of_patients = {"auroc": auroc, "sensitivity": sensitivity, "specificity": specificity}
    return values | {f"patient_{name}": score(whole) for name, score in of_patients.items()}


def confusion(slices: pd.DataFrame) -> pd.DataFrame:
    """Slices counted by truth (rows) and call (columns)."""
    truth, called = slices["truth"].to_numpy(bool), slices["called"].to_numpy(bool)
    cells = [[int((side & (called == said)).sum()) for said in (True, False)] for side in (truth, ~truth)]
    return pd.DataFrame(cells, index=["tumour", "none"], columns=["called tumour", "called none"])


def report_by_class(slices: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall and F1 of either class with 95% intervals over patients, and how many slices it has."""
    calls = Calls.of(slices)
    rows = {}
    for name, truth, called in (
        ("tumour", calls.truth, calls.called),
        ("none", ~calls.truth, ~calls.called),
    ):
        scores: dict[str, Score] = {
            "precision": lambda c, t=truth, k=called: c.share(t, k),  # type: ignore[misc]
            "recall": lambda c, t=truth, k=called: c.share(k, t),  # type: ignore[misc]
            "f1": lambda c, t=truth, k=called: _f1(c, t, k),  # type: ignore[misc]
        }
        rows[name] = {"slices": float(truth.sum())}
        for score_name, score in scores.items():
            ends = _ends(score, calls, slices)
            rows[name] |= {
                score_name: score(calls),
                f"{score_name}_low": ends.low,
                f"{score_name}_high": ends.high,
            }
    return pd.DataFrame(rows).T.rename_axis("class").astype({"slices": int}).reset_index()


def reliability(slices: pd.DataFrame) -> pd.DataFrame:
    """The reliability curve: a row a bin that is not empty, with the share of tumour's interval over patients.

    Columns: probability (the mean within the bin), share, low, high, slices.
    """
    binned = slices.assign(bin=bin_of(slices["probability"].to_numpy(np.float64)))
    rows = []
    for _, members in binned.groupby("bin"):
        truth = members["truth"].to_numpy(np.float64)
        ends = clustered_interval(truth, members["case"].to_numpy())
        rows.append(
            {
                "probability": members["probability"].mean(),
                "share": truth.mean(),
                "low": ends.low,
                "high": ends.high,
                "slices": len(members),
            }
        )
    return pd.DataFrame(rows)


def best_threshold(truth: Bools, probability: Floats) -> float:
    """The threshold with the largest sensitivity + specificity (Youden 1950); of equals, the nearest to 0.5."""
    if truth.all() or not truth.any():
        return 0.5
    called = probability[:, None] >= THRESHOLDS
    youden = called[truth].mean(0) - called[~truth].mean(0)
    best = THRESHOLDS[youden >= youden.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def _ends(score: Score, calls: Calls, slices: pd.DataFrame) -> Interval:
    return clustered_statistic(lambda weight: score(calls.weighing(weight)), slices["case"])


def _f1(calls: Calls, truth: Bools, called: Bools) -> float:
    hits, errors = calls.weight[truth & called].sum(), calls.weight[truth != called].sum()
    return float(2 * hits / (2 * hits + errors)) if hits + errors else np.nan
