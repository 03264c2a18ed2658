"""Do a model's probabilities mean what they say, and does it know when it is wrong?

Pixels count within 5 pixels of the union of truth and prediction, where `bench.metrics.calibration` counts them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.masks import Hundredths, Mask
from bench.metrics.calibration import region
from bench.types import Stack

Floats = NDArray[np.float64]


Counts = NDArray[np.int64]


MARGIN = 5


BINS = 10


# What a probability kept in hundredths stands for. Below 0.01 it is 0: the half hundredths of a whole stack's
# background would outweigh a tumour.
LEVELS = np.append(0, (np.arange(1, 100) + 0.5) / 100)


@dataclass(frozen=True)
class Trust:
    """What the probabilities of one run say of it: its reliability curve, and its patients by confidence."""

    reliability: pd.DataFrame
    coverage: Floats  # shares of patients kept, the most confident first
    kept: Floats  # their mean Dice
    aurc: float
    perfect: float  # the AURC if patients came in the order of their Dice, and
    blind: float  # if in no order


def trust(pixels: Counts, confidence: Floats, dice: Floats) -> Trust:
    """From counts of pixels (2, 100) and each patient's confidence and Dice; undefined patients are left out."""
    known = np.isfinite(dice)
    confidence, dice = confidence[known], dice[known]
    coverage, kept = selective(confidence, dice)
    best = aurc(selective(dice, dice)[1])
    return Trust(reliability(pixels), coverage, kept, aurc(kept), best, float(1 - dice.mean()))


def pixels_around(kept: Hundredths, truth: Mask, prediction: Mask) -> Counts:
    """Pixels (2, 100) around the tumour, empty and of tumour, at each probability in hundredths."""
    busy = (truth | prediction).any((1, 2))
    if not busy.any():
        return np.zeros((2, 100), np.int64)
    kept, truth, prediction = kept[busy], truth[busy], prediction[busy]
    inside = region(Stack(truth, prediction.astype(np.float32)), MARGIN)
    return np.bincount(100 * truth[inside].astype(np.int64) + kept[inside], minlength=200).reshape(2, 100)


def reliability(pixels: Counts) -> pd.DataFrame:
    """A row a bin of a tenth that is not empty: mean probability, share of tumour, pixels."""
    both = pixels.sum(0)
    tenths = pd.DataFrame({"mass": both * LEVELS, "tumour": pixels[1], "pixels": both})
    binned = tenths.groupby(np.arange(100) * BINS // 100).sum().query("pixels > 0")
    table = {"probability": binned["mass"] / binned["pixels"], "share": binned["tumour"] / binned["pixels"]}
    return pd.DataFrame({**table, "pixels": binned["pixels"]}).reset_index(drop=True)


def confidence(kept: Hundredths, prediction: Mask) -> float:
    """The Dice that a model expects: 2 sum(p m) / (sum p + sum m) of its probability p and its mask m.

    Over a whole stack (soft Dice confidence, Borges et al. 2024); 0 for an empty mask.
    """
    inside, whole = LEVELS[kept[prediction]].sum(), LEVELS[kept[kept > 0]].sum()
    size = np.count_nonzero(prediction)
    return float(2 * inside / (whole + size)) if size else 0.0


def selective(confidence: Floats, dice: Floats) -> tuple[Floats, Floats]:
    """Shares of patients kept, the most confident first, and their mean Dice; equal confidence shares its Dice."""
    _, tie, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    expected = (np.bincount(tie, dice) / count)[np.sort(tie)]
    kept = np.arange(1, len(dice) + 1)
    return kept / len(dice), expected.cumsum() / kept


def aurc(kept: Floats) -> float:
    """Area under the risk-coverage curve: the mean of 1 - Dice over all coverages (Geifman and El-Yaniv 2017)."""
    return float(1 - kept.mean())
