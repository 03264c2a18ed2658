"""Predict a patient's stack and score it. Means over patients are made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from bench import counts
from bench.device import autocast
from bench.feed import Feed, logits_of
from bench.records import CaseScore, Stack

Metric = Callable[[Stack], float]
THRESHOLDS = np.arange(1, 100) / 100


@torch.inference_mode()
def predict(
    models: Sequence[nn.Module], feed: Feed, rows: NDArray[np.int64], *, batch_size: int, precision: str = "auto"
) -> NDArray[np.float32]:
    """Probabilities (S, H, W) of these rows on the packed grid, averaged over `models`.

    A model that was trained on smaller slices has its logits interpolated, so that every configuration is
    scored on the same pixels.
    """
    shape = feed.pack.masks.shape[1:]
    stack = np.empty((len(rows), *shape), np.float32)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        images = feed.standard(feed.unit(batch)[0], batch)
        mean = torch.zeros((len(batch), 1, *shape), device=feed.device)
        for model in models:
            model.eval()
            with autocast(feed.device, precision):
                logits = logits_of(model, images)
            if logits.shape[-2:] != shape:
                logits = F.interpolate(logits, shape, mode="bilinear", align_corners=False)
            mean += logits.sigmoid() / len(models)
        stack[start : start + len(batch)] = mean[:, 0].cpu().numpy()
    return stack


def stacks(
    models: Sequence[nn.Module],
    feed: Feed,
    cases: Iterable[str],
    *,
    threshold: float,
    batch_size: int,
    precision: str = "auto",
) -> Iterator[tuple[str, NDArray[np.int64], Stack]]:
    """For each patient: name, rows of the pack, and the stack of truth and probability."""
    for case in sorted(cases):
        rows = feed.pack.rows([case])
        probability = predict(models, feed, rows, batch_size=batch_size, precision=precision)
        yield case, rows, Stack(feed.pack.masks[rows].astype(bool), probability, threshold)


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
    # Bin k holds THRESHOLDS[k - 1] <= p < THRESHOLDS[k]: summing from the top counts p >= threshold.
    bins = np.digitize(stack.probability, THRESHOLDS.astype(np.float32))
    inside = np.bincount(bins[stack.truth], minlength=100)
    outside = np.bincount(bins[~stack.truth], minlength=100)
    tp = inside[::-1].cumsum()[::-1][1:]
    fp = outside[::-1].cumsum()[::-1][1:]
    return counts.dice_of(tp, fp, stack.truth.sum() - tp)
