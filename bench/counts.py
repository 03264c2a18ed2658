"""Overlap as ratios of integer pixel counts; NaN where the ratio has nothing to speak of.

Every function takes numbers or arrays and broadcasts: a slice's counts give slice scores, the sums over a
stack give case scores, the sums over all cases give the globally pooled scores of published tables.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dice(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> NDArray[np.float64]:
    """2 TP / (2 TP + FP + FN) (Dice 1945)."""
    tp, fp, fn = np.asarray(tp), np.asarray(fp), np.asarray(fn)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def iou(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike) -> NDArray[np.float64]:
    """TP / (TP + FP + FN) (Jaccard 1901)."""
    return _ratio(tp, np.asarray(tp) + np.asarray(fp) + np.asarray(fn))


def share(part: ArrayLike, rest: ArrayLike) -> NDArray[np.float64]:
    """part / (part + rest): precision of (TP, FP), recall of (TP, FN), specificity of (TN, FP)."""
    return _ratio(part, np.asarray(part) + np.asarray(rest))


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)
