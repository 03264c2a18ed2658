"""Summaries of a segmentation run: means over patients, the interval of Dice, and globally pooled scores."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench import registry
from bench.metrics.confusion import accuracy_of, dice_of, iou_of, precision_of, recall_of, specificity_of
from bench.stats import interval

COUNTS = ("tp", "fp", "fn", "tn")
NOT_METRICS = ("case", "fold", "threshold", *COUNTS)


def summarise(cases: pd.DataFrame, *, with_interval: bool = True) -> dict[str, float]:
    """Summarise a table of scores with one row per patient.

    A metric is averaged over the patients for which it is defined, and `<metric>_undefined` counts the others.
    Metrics that count slices are summed. `<metric>_global` is the score of all pixels pooled.
    `false_positive_patients` counts the patients without tumour that have a prediction, if any have no tumour.
    """
    values: dict[str, float] = {"patients": len(cases)}
    for name in (c for c in cases.columns if c not in NOT_METRICS):
        values |= _summarise_metric(name, cases[name].to_numpy(np.float64))
    if "dice" in cases:
        values |= _dice_distribution(cases["dice"].dropna().to_numpy(np.float64), with_interval)
    healthy = cases[cases["tp"] + cases["fn"] == 0]
    if len(healthy):
        values["false_positive_patients"] = int((healthy["fp"] > 0).sum())
    return values | _pooled_scores(cases)


def _summarise_metric(name: str, column: NDArray[np.float64]) -> dict[str, float]:
    defined = column[~np.isnan(column)]
    if name in registry.metric and registry.metric[name].facts.get("unit") == "slices":
        return {name: float(defined.sum())}
    mean = {name: float(defined.mean()) if len(defined) else math.nan}
    undefined = len(column) - len(defined)
    return mean | ({f"{name}_undefined": undefined} if undefined else {})


def _dice_distribution(dice: NDArray[np.float64], with_interval: bool) -> dict[str, float]:
    if not len(dice):
        return {}
    values = {
        "dice_median": float(np.median(dice)),
        "dice_p5": float(np.percentile(dice, 5)),
        "dice_under_half": int((dice < 0.5).sum()),
    }
    if with_interval:
        ends = interval(dice)
        values |= {"dice_low": ends.low, "dice_high": ends.high}
    return values


def _pooled_scores(cases: pd.DataFrame) -> dict[str, float]:
    tp, fp, fn, tn = (int(cases[count].sum()) for count in COUNTS)
    return {
        "dice_global": float(dice_of(tp, fp, fn)),
        "iou_global": float(iou_of(tp, fp, fn)),
        "precision_global": float(precision_of(tp, fp)),
        "recall_global": float(recall_of(tp, fn)),
        "specificity_global": float(specificity_of(tn, fp)),
        "accuracy_global": float(accuracy_of(tp, fp, fn, tn)),
    }
