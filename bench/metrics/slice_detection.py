"""Is there tumour on this slice? A slice is called positive when any pixel of it is predicted.

Where the tumour lies on the slice is another question: a disjoint prediction on a slice with tumour is no miss.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.metrics.confusion import recall_of, specificity_of
from bench.registry import metric
from bench.types import SliceCounts


def slice_presence(stack: SliceCounts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which slices have tumour, and which are called positive; both bool (S,)."""
    return stack.tp + stack.fn > 0, stack.tp + stack.fp > 0


@metric(higher=True, unit="")
def slice_sensitivity(stack: SliceCounts) -> float:
    """Share of the slices with tumour that are called positive; NaN where no slice has tumour."""
    present, called = slice_presence(stack)
    return float(recall_of((present & called).sum(), (present & ~called).sum()))


@metric(higher=True, unit="")
def slice_specificity(stack: SliceCounts) -> float:
    """Share of the slices without tumour on which nothing is predicted; NaN where every slice has tumour."""
    present, called = slice_presence(stack)
    return float(specificity_of((~present & ~called).sum(), (~present & called).sum()))


@metric(higher=False, unit="slices")
def missed_slices(stack: SliceCounts) -> float:
    """Number of slices with tumour on which nothing is predicted."""
    present, called = slice_presence(stack)
    return float((present & ~called).sum())


@metric(higher=False, unit="slices")
def false_positive_slices(stack: SliceCounts) -> float:
    """Number of slices without tumour on which something is predicted."""
    present, called = slice_presence(stack)
    return float((~present & called).sum())
