"""Metrics of pixel counts: overlap of two masks (`bench.metrics.confusion`), and detection of slices with tumour.

A slice is predicted positive when any of its pixels is predicted. The position does not matter: a prediction
beside the tumour still detects the slice.

A metric with the fact `ranked=False` exists for comparison with published tables. An empty prediction scores high
on it, so the leaderboard does not show it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.metrics.confusion import Scores, dice_of, overlap_scores, ratio
from bench.registry import metric
from bench.types import SliceCounts


def slice_dice(stack: SliceCounts) -> Scores:
    """Return the Dice of each slice, (S,): NaN for a true-negative slice, 0 for a false-positive or missed one."""
    return dice_of(stack.tp, stack.fp, stack.fn)


def _of_stack(score: str, stack: SliceCounts) -> float:
    counts = (stack.tp.sum(), stack.fp.sum(), stack.fn.sum(), stack.tn.sum())
    return float(overlap_scores(*counts)[score])


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
    return _of_stack("iou", stack)


@metric(higher=True, unit="")
def precision(stack: SliceCounts) -> float:
    """Share of the predicted pixels that are tumour, TP / (TP + FP).

    NaN where nothing is predicted, even if a tumour is missed. A mean over patients therefore leaves misses out;
    Dice and recall are 0 for them.
    """
    return _of_stack("precision", stack)


@metric(higher=True, unit="")
def recall(stack: SliceCounts) -> float:
    """Share of the tumour's pixels that are predicted (sensitivity), TP / (TP + FN).

    0 where the tumour is missed, NaN where the patient has no tumour.
    """
    return _of_stack("recall", stack)


@metric(higher=True, unit="", ranked=False)
def specificity(stack: SliceCounts) -> float:
    """Share of the background pixels that are not predicted, TN / (TN + FP); near 1 for any small prediction.

    NaN where the tumour fills the whole stack.
    """
    return _of_stack("specificity", stack)


@metric(higher=True, unit="", ranked=False)
def accuracy(stack: SliceCounts) -> float:
    """Share of all pixels that are correct; about 0.99 for an empty prediction, so for comparison only."""
    return _of_stack("accuracy", stack)


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


def slice_labels(stack: SliceCounts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which slices have tumour and which are predicted positive; both bool (S,)."""
    return stack.tp + stack.fn > 0, stack.tp + stack.fp > 0


@metric(higher=True, unit="")
def slice_sensitivity(stack: SliceCounts) -> float:
    """Share of the slices with tumour that are predicted positive; NaN where no slice has tumour."""
    truth, predicted = slice_labels(stack)
    return float(ratio((truth & predicted).sum(), truth.sum()))


@metric(higher=True, unit="")
def slice_specificity(stack: SliceCounts) -> float:
    """Share of the slices without tumour on which nothing is predicted; NaN where every slice has tumour."""
    truth, predicted = slice_labels(stack)
    return float(ratio((~truth & ~predicted).sum(), (~truth).sum()))


@metric(higher=False, unit="slices")
def missed_slices(stack: SliceCounts) -> float:
    """Number of slices with tumour on which nothing is predicted."""
    truth, predicted = slice_labels(stack)
    return float((truth & ~predicted).sum())


@metric(higher=False, unit="slices")
def false_positive_slices(stack: SliceCounts) -> float:
    """Number of slices without tumour on which something is predicted."""
    truth, predicted = slice_labels(stack)
    return float((~truth & predicted).sum())
