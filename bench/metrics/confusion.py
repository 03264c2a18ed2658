"""Overlap scores from integer pixel counts; NaN, without a warning, where the denominator is zero.

Counts may have any shape: counts per slice give slice scores, sums over a stack give patient scores, and sums over
all patients give the globally pooled scores of published tables.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Counts: TypeAlias = NDArray[np.int64] | np.int64 | int
Scores: TypeAlias = NDArray[np.float64]


def ratio(part: Counts, whole: Counts) -> Scores:
    """Return part / whole, elementwise; NaN where `whole` is zero."""
    part, whole = np.broadcast_arrays(part, whole)
    scores = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=scores, where=whole != 0)
    return scores


def dice_of(tp: Counts, fp: Counts, fn: Counts) -> Scores:
    return ratio(2 * tp, 2 * tp + fp + fn)


def overlap_scores(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> dict[str, Scores]:
    """Return all scores by name."""
    return {
        "dice": dice_of(tp, fp, fn),
        "iou": ratio(tp, tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "accuracy": ratio(tp + tn, tp + fp + fn + tn),
    }
