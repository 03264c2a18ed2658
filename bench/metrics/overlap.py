"""Overlap of two masks: every score here is a ratio of the pixel counts tp, fp, fn and tn.

The `*_of` functions take counts of any shape, so that a slice, a case and a pool over all cases share one
definition. Where a ratio has nothing to divide by it is not defined: NaN, without a warning.
A metric with the fact `ranked=False` is there to compare with published tables: a prediction that finds
nothing scores high on it, so it stays off the leaderboard.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.records import Stack
from bench.registry import metric

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


def slice_dice(stack: Stack) -> Scores:
    """Dice of each slice, (S,): NaN on a true-negative slice, 0 on a false-positive or a missed one."""
    return dice_of(stack.tp, stack.fp, stack.fn)


@metric(higher=True, unit="")
def dice(stack: Stack) -> float:
    """Dice coefficient of the whole stack, 2 TP / (2 TP + FP + FN).

    Dice 1945; Sørensen 1948. 0 where the tumour is missed, NaN where both masks are empty.
    """
    return float(dice_of(stack.tp.sum(), stack.fp.sum(), stack.fn.sum()))


@metric(higher=True, unit="")
def iou(stack: Stack) -> float:
    """Intersection over union of the whole stack, TP / (TP + FP + FN).

    Jaccard 1912; dice / (2 - dice). 0 where the tumour is missed, NaN where both masks are empty.
    """
    return float(iou_of(stack.tp.sum(), stack.fp.sum(), stack.fn.sum()))


@metric(higher=True, unit="")
def precision(stack: Stack) -> float:
    """Share of the predicted pixels that are tumour, TP / (TP + FP).

    NaN where nothing is predicted, a missed tumour included: nothing was claimed that could be wrong. A mean
    over cases therefore leaves misses out; Dice and recall are 0 there and keep them.
    """
    return float(precision_of(stack.tp.sum(), stack.fp.sum()))


@metric(higher=True, unit="")
def recall(stack: Stack) -> float:
    """Share of the tumour's pixels that are predicted (sensitivity), TP / (TP + FN).

    0 where the tumour is missed, NaN where the case has no tumour.
    """
    return float(recall_of(stack.tp.sum(), stack.fn.sum()))


@metric(higher=True, unit="", ranked=False)
def specificity(stack: Stack) -> float:
    """Share of the background pixels left alone, TN / (TN + FP); near 1 for any small prediction.

    NaN where tumour fills the whole stack.
    """
    return float(specificity_of(stack.tn.sum(), stack.fp.sum()))


@metric(higher=True, unit="", ranked=False)
def accuracy(stack: Stack) -> float:
    """Share of all pixels that are right; about 0.99 for an empty prediction, so for comparison only."""
    return float(accuracy_of(stack.tp.sum(), stack.fp.sum(), stack.fn.sum(), stack.tn.sum()))


@metric(higher=None, unit="")
def relative_volume_difference(stack: Stack) -> float:
    """(predicted - true volume) / true volume: below 0 too small, above 0 too large.

    Heimann et al. 2009, as a fraction. The slice spacing cancels. -1 where the tumour is missed, NaN where
    the case has no tumour.
    """
    return float(share(stack.fp.sum() - stack.fn.sum(), stack.tp.sum() + stack.fn.sum()))


@metric(higher=True, unit="")
def dice_positive_slices(stack: Stack) -> float:
    """Mean Dice of the slices with tumour; a missed slice counts 0.

    Slices without tumour are left out, so false positives there do not show. NaN where no slice has tumour.
    """
    with_tumour = slice_dice(stack)[stack.tp + stack.fn > 0]
    return float(with_tumour.mean()) if with_tumour.size else np.nan


@metric(higher=True, unit="", ranked=False)
def dice_slices_empty1(stack: Stack) -> float:
    """Mean Dice of all slices, where a true-negative slice counts 1 and a false-positive slice 0.

    The flattering convention of many published tables: a prediction that finds nothing scores the share of
    slices without tumour. For comparison only.
    """
    return float(np.nan_to_num(slice_dice(stack), nan=1.0).mean())
