"""What a run's patients say together: means over patients, their interval, and pooled scores."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench import registry
from bench.metrics import confusion as counts
from bench.stats import interval

COUNTS = ("tp", "fp", "fn", "tn")


NOT_METRICS = ("case", "fold", "threshold", *COUNTS)


def summarise(cases: pd.DataFrame, *, with_interval: bool = True) -> dict[str, float]:
    """What a run's patients say together, from a table with one row a patient.

    A metric is averaged over the patients for whom it is defined, and `<metric>_undefined` counts the others;
    counts of slices are summed. Globally pooled scores stand under `<metric>_global`, and
    `false_positive_patients` counts who has no tumour and yet something predicted, where anybody has none.
    """
    values: dict[str, float] = {"patients": len(cases)}
    for name in (c for c in cases.columns if c not in NOT_METRICS):
        column = cases[name].to_numpy(np.float64)
        defined = column[~np.isnan(column)]
        if _is_count(name):
            values[name] = float(defined.sum())
            continue
        values[name] = float(defined.mean()) if len(defined) else math.nan
        if len(defined) < len(column):
            values[f"{name}_undefined"] = len(column) - len(defined)
    dice = cases["dice"].dropna().to_numpy(np.float64) if "dice" in cases else np.array([])
    if len(dice):
        values |= {
            "dice_median": float(np.median(dice)),
            "dice_p5": float(np.percentile(dice, 5)),
            "dice_under_half": int((dice < 0.5).sum()),
        }
        if with_interval:
            ends = interval(dice)
            values |= {"dice_low": ends.low, "dice_high": ends.high}
    healthy = cases[cases["tp"] + cases["fn"] == 0]
    if len(healthy):
        values["false_positive_patients"] = int((healthy["fp"] > 0).sum())
    tp, fp, fn, tn = (int(cases[c].sum()) for c in COUNTS)
    pooled = {
        "dice": counts.dice_of(tp, fp, fn),
        "iou": counts.iou_of(tp, fp, fn),
        "precision": counts.precision_of(tp, fp),
        "recall": counts.recall_of(tp, fn),
        "specificity": counts.specificity_of(tn, fp),
        "accuracy": counts.accuracy_of(tp, fp, fn, tn),
    }
    return values | {f"{name}_global": float(value) for name, value in pooled.items()}


def _is_count(name: str) -> bool:
    return name in registry.metric and registry.metric[name].facts.get("unit") == "slices"
