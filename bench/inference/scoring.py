from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.masks import THRESHOLDS, to_hundredths
from bench.metrics import confusion as counts
from bench.types import CaseScore, SliceCounts, Stack

Metric = Callable[[Any], float]  # of a Stack, or of a SliceCounts


def needs_pixels(metric: Metric) -> bool:
    """Whether a metric asks for a whole `Stack`, or is content with `SliceCounts`: its annotation says so."""
    function = metric.func if isinstance(metric, partial) else metric
    asked = next(iter(get_type_hints(function).values()), Stack)
    return asked is not SliceCounts


def score_case(case: str, numbers: Sequence[int], stack: Stack, metrics: Mapping[str, Metric]) -> CaseScore:
    """All metrics of one patient, its pixel counts, and one row a slice."""
    return CaseScore(
        case,
        {name: float(metric(stack)) for name, metric in metrics.items()},
        {name: int(getattr(stack, name).sum()) for name in ("tp", "fp", "fn", "tn")},
        pd.DataFrame(
            {
                "case": case,
                "slice": numbers,
                "tp": stack.tp,
                "fp": stack.fp,
                "fn": stack.fn,
                "tn": stack.tn,
                "dice": counts.dice_of(stack.tp, stack.fp, stack.fn),
            }
        ),
    )


def choose_threshold(pairs: Iterable[Stack]) -> float:
    """The threshold with the best mean per-patient Dice; give it validation patients, never test patients.

    Of equally good thresholds, the one nearest to 0.5.
    """
    curves = [_dice_curve(stack) for stack in pairs]
    # A patient with tumour has a Dice at every threshold; without any such patient there is nothing to choose by.
    if all(np.isnan(curve).any() for curve in curves):
        return 0.5
    mean = np.nanmean(curves, axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    return float(THRESHOLDS[best[np.abs(THRESHOLDS[best] - 0.5).argmin()]])


def _dice_curve(stack: Stack) -> NDArray[np.float64]:
    """Dice of the stack at every threshold, from one histogram of probabilities."""
    bins = to_hundredths(stack.probability)  # summed from the top: pixels that reach a threshold
    inside = np.bincount(bins[stack.truth], minlength=100)
    outside = np.bincount(bins[~stack.truth], minlength=100)
    tp = inside[::-1].cumsum()[::-1][1:]
    fp = outside[::-1].cumsum()[::-1][1:]
    return counts.dice_of(tp, fp, stack.truth.sum() - tp)
