"""Detection of slices with tumour. A slice is predicted positive when any of its pixels is predicted.

The position does not matter: a prediction beside the tumour still detects the slice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.metrics.confusion import recall_of, specificity_of
from bench.registry import metric
from bench.types import SliceCounts


def slice_labels(stack: SliceCounts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which slices have tumour and which are predicted positive; both bool (S,)."""
    return stack.tp + stack.fn > 0, stack.tp + stack.fp > 0


@metric(higher=True, unit="")
def slice_sensitivity(stack: SliceCounts) -> float:
    """Share of the slices with tumour that are predicted positive; NaN where no slice has tumour."""
    truth, predicted = slice_labels(stack)
    return float(recall_of((truth & predicted).sum(), (truth & ~predicted).sum()))


@metric(higher=True, unit="")
def slice_specificity(stack: SliceCounts) -> float:
    """Share of the slices without tumour on which nothing is predicted; NaN where every slice has tumour."""
    truth, predicted = slice_labels(stack)
    return float(specificity_of((~truth & ~predicted).sum(), (~truth & predicted).sum()))


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
