"""Overlap of two masks: ratios of the pixel counts tp, fp, fn and tn (`bench.metrics.confusion`).

A metric with the fact `ranked=False` exists for comparison with published tables. An empty prediction scores high
on it, so the leaderboard does not show it.
"""

from __future__ import annotations

import numpy as np

from bench.metrics.confusion import (
    Scores,
    accuracy_of,
    dice_of,
    iou_of,
    precision_of,
    ratio,
    recall_of,
    specificity_of,
)
from bench.registry import metric
from bench.types import SliceCounts


def slice_dice(stack: SliceCounts) -> Scores:
    """Return the Dice of each slice, (S,): NaN for a true-negative slice, 0 for a false-positive or missed one."""
    return dice_of(stack.tp, stack.fp, stack.fn)


@metric(higher=True, unit="")
def dice(stack: SliceCounts) -> float:
    """Dice coefficient of the whole stack, 2 TP / (2 TP + FP + FN).

    Dice 1945; Sørensen 1948. 0 where the tumour is missed, NaN where both masks are empty.
    """
    return float(dice_of(stack.tp.sum(), stack.fp.sum(), stack.fn.sum()))


@metric(higher=True, unit="")
def iou(stack: SliceCounts) -> float:
    """Intersection over union of the whole stack, TP / (TP + FP + FN).

    Jaccard 1912; dice / (2 - dice). 0 where the tumour is missed, NaN where both masks are empty.
    """
    return float(iou_of(stack.tp.sum(), stack.fp.sum(), stack.fn.sum()))


@metric(higher=True, unit="")
def precision(stack: SliceCounts) -> float:
    """Share of the predicted pixels that are tumour, TP / (TP + FP).

    NaN where nothing is predicted, even if a tumour is missed. A mean over patients therefore leaves misses out;
    Dice and recall are 0 for them.
    """
    return float(precision_of(stack.tp.sum(), stack.fp.sum()))


@metric(higher=True, unit="")
def recall(stack: SliceCounts) -> float:
    """Share of the tumour's pixels that are predicted (sensitivity), TP / (TP + FN).

    0 where the tumour is missed, NaN where the patient has no tumour.
    """
    return float(recall_of(stack.tp.sum(), stack.fn.sum()))


@metric(higher=True, unit="", ranked=False)
def specificity(stack: SliceCounts) -> float:
    """Share of the background pixels that are not predicted, TN / (TN + FP); near 1 for any small prediction.

    NaN where the tumour fills the whole stack.
    """
    return float(specificity_of(stack.tn.sum(), stack.fp.sum()))


@metric(higher=True, unit="", ranked=False)
def accuracy(stack: SliceCounts) -> float:
    """Share of all pixels that are correct; about 0.99 for an empty prediction, so for comparison only."""
    return float(accuracy_of(stack.tp.sum(), stack.fp.sum(), stack.fn.sum(), stack.tn.sum()))


@metric(higher=None, unit="")
def relative_volume_difference(stack: SliceCounts) -> float:
    """(predicted - true volume) / true volume: negative if too small, positive if too large.

    Heimann et al. 2009, as a fraction. The slice spacing cancels. -1 where the tumour is missed, NaN where the
    patient has no tumour.
    """
    return float(ratio(stack.fp.sum() - stack.fn.sum(), stack.tp.sum() + stack.fn.sum()))


@metric(higher=True, unit="")
def dice_positive_slices(stack: SliceCounts) -> float:
    """Mean Dice of the slices with tumour; a missed slice counts 0.

    Slices without tumour are left out, and with them their false positives. NaN where no slice has tumour.
    """
    with_tumour = slice_dice(stack)[stack.tp + stack.fn > 0]
    return float(with_tumour.mean()) if with_tumour.size else np.nan


@metric(higher=True, unit="", ranked=False)
def dice_slices_empty1(stack: SliceCounts) -> float:
    """Mean Dice of all slices, where a true-negative slice counts 1 and a false-positive slice 0.

    The convention of many published tables. It is too generous: an empty prediction scores the share of slices
    without tumour. For comparison only.
    """
    return float(np.nan_to_num(slice_dice(stack), nan=1.0).mean())
