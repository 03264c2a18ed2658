"""Score one patient's stack, and choose a threshold by validation patients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.masks import THRESHOLDS, to_hundredths
from bench.metrics.aggregate import COUNTS
from bench.metrics.confusion import dice_of
from bench.types import CaseScore, SliceCounts, Stack

Metric = Callable[[Any], float]  # of a Stack, or of SliceCounts


def needs_pixels(metric: Metric) -> bool:
    """Return whether a metric takes a `Stack`; one whose argument is annotated `SliceCounts` needs no pixels."""
    function = metric.func if isinstance(metric, partial) else metric
    argument = next(iter(get_type_hints(function).values()), Stack)
    return argument is not SliceCounts


def score_case(case: str, numbers: Sequence[int], stack: Stack, metrics: Mapping[str, Metric]) -> CaseScore:
    """Compute all metrics of one patient, its pixel counts, and one table row per slice."""
    counts = {name: getattr(stack, name) for name in COUNTS}
    slices = {"case": case, "slice": numbers, **counts, "dice": dice_of(stack.tp, stack.fp, stack.fn)}
    return CaseScore(
        case,
        {name: float(metric(stack)) for name, metric in metrics.items()},
        {name: int(values.sum()) for name, values in counts.items()},
        pd.DataFrame(slices),
    )


def choose_threshold(stacks: Iterable[Stack]) -> float:
    """Return the threshold with the best mean per-patient Dice; of equal ones, the nearest to 0.5.

    `stacks` must be those of validation patients, never of test patients.
    """
    curves = [_dice_curve(stack) for stack in stacks]
    # A patient with tumour has a Dice at every threshold; without any such patient there is nothing to choose by.
    if all(np.isnan(curve).any() for curve in curves):
        return 0.5
    mean = np.nanmean(curves, axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    return float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - 0.5).argmin()]])


def _dice_curve(stack: Stack) -> NDArray[np.float64]:
    """Return the Dice of the stack at every threshold, from one histogram of probabilities."""
    bins = to_hundredths(stack.probability)
    inside = np.bincount(bins[stack.truth], minlength=100)
    outside = np.bincount(bins[~stack.truth], minlength=100)
    tp = inside[::-1].cumsum()[::-1][1:]  # summed from the top: pixels that reach a threshold
    fp = outside[::-1].cumsum()[::-1][1:]
    return dice_of(tp, fp, stack.truth.sum() - tp)
