"""Summaries of a segmentation run: means over patients, the interval of Dice, and globally pooled scores."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from bench import registry
from bench.metrics.confusion import overlap_scores
from bench.stats import interval
from bench.structures import select_structure, structure_column, structures_in

COUNTS = ("tp", "fp", "fn", "tn")
NOT_METRICS = ("case", "fold", "threshold", *COUNTS)


def summarise(cases: pd.DataFrame, *, with_interval: bool = True) -> dict[str, float]:
    """Summarise a table of scores with one row per patient: over all structures, and each structure by itself.

    Scores of pooled pixels are pooled by structure; over all structures they are the mean of these.
    """
    structures = structures_in(cases.columns)
    plain = cases[[name for name in cases.columns if not str(name).endswith("]")]]
    values = _summarise(plain, with_interval=with_interval)
    each = {s: _summarise(select_structure(cases, s), with_interval=with_interval) for s in structures}
    for name in [name for name in values if name.endswith("_global")] if each else []:
        values[name] = float(pd.Series([of[name] for of in each.values()]).mean())
    for structure, of in each.items():
        del of["patients"]
        values |= {structure_column(name, structure): value for name, value in of.items()}
    return values


def _summarise(cases: pd.DataFrame, *, with_interval: bool) -> dict[str, float]:
    """Summarise the scores of one structure.

    A metric is averaged over the patients for which it is defined, and `<metric>_undefined` counts the others.
    Metrics that count slices are summed. `<metric>_global` is the score of all pixels pooled.
    `false_positive_patients` counts the patients without tumour that have a prediction, if any have no tumour.
    """
    values: dict[str, float] = {"patients": len(cases)}
    for name in (c for c in cases.columns if c not in NOT_METRICS):
        defined = cases[name].dropna().to_numpy(np.float64)
        if name in registry.metric and registry.metric[name].facts.get("unit") == "slices":
            values[name] = float(defined.sum())
            continue
        values[name] = float(defined.mean()) if len(defined) else math.nan
        if len(defined) < len(cases):
            values[f"{name}_undefined"] = len(cases) - len(defined)
    dice = cases["dice"].dropna().to_numpy(np.float64) if "dice" in cases else np.empty(0)
    if len(dice):
        values |= {"dice_median": float(np.median(dice)), "dice_p5": float(np.percentile(dice, 5))}
        values["dice_under_half"] = int((dice < 0.5).sum())
        if with_interval:
            ends = interval(dice)
            values |= {"dice_low": ends.low, "dice_high": ends.high}
    healthy = cases[cases["tp"] + cases["fn"] == 0]
    if len(healthy):
        values["false_positive_patients"] = int((healthy["fp"] > 0).sum())
    pooled = overlap_scores(*(int(cases[count].sum()) for count in COUNTS))
    return values | {f"{name}_global": float(score) for name, score in pooled.items()}
