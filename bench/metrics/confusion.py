"""Overlap as ratios of integer pixel counts; NaN where the ratio has nothing to divide by, without a warning.

Counts may have any shape: a slice's give slice scores, the sums over a stack case scores, and the sums over
all cases the globally pooled scores of published tables.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Counts: TypeAlias = NDArray[np.int64] | np.int64 | int


Scores: TypeAlias = NDArray[np.float64]


def share(part: Counts, whole: Counts) -> Scores:
    """part / whole, elementwise; NaN where `whole` is zero."""
    part, whole = np.broadcast_arrays(part, whole)
    scores = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=scores, where=whole != 0)
    return scores


def dice_of(tp: Counts, fp: Counts, fn: Counts) -> Scores:
    return share(2 * tp, 2 * tp + fp + fn)


def iou_of(tp: Counts, fp: Counts, fn: Counts) -> Scores:
    return share(tp, tp + fp + fn)


def precision_of(tp: Counts, fp: Counts) -> Scores:
    return share(tp, tp + fp)


def recall_of(tp: Counts, fn: Counts) -> Scores:
    return share(tp, tp + fn)


def specificity_of(tn: Counts, fp: Counts) -> Scores:
    return share(tn, tn + fp)


def accuracy_of(tp: Counts, fp: Counts, fn: Counts, tn: Counts) -> Scores:
    return share(tp + tn, tp + fp + fn + tn)
