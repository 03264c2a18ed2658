"""Assess how far the probabilities of a model can be trusted: calibration of pixels, and confidence of patients.

Only pixels within 5 pixels of the union of truth and prediction count, as in `bench.metrics.calibration`.
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
# The probability that each hundredth stands for. The lowest is 0, not half a hundredth: summed over the background
# of a whole stack, half hundredths would outweigh a tumour.
LEVELS = np.append(0, (np.arange(1, 100) + 0.5) / 100)


@dataclass(frozen=True)
class Trust:
    """How far the probabilities of one run can be trusted: reliability of pixels, and risk against coverage.

    `coverage` (N,) are shares of patients, the most confident first, and `mean_dice` (N,) the mean Dice over each
    share. `aurc` is the area under the risk-coverage curve; `perfect` and `blind` are its values if patients were
    sorted by their Dice, and if their order were random.
    """

    reliability: pd.DataFrame
    coverage: Floats
    mean_dice: Floats
    aurc: float
    perfect: float
    blind: float


def assess_trust(pixels: Counts, confidence: Floats, dice: Floats) -> Trust:
    """Assess counts of pixels (2, 100) and the confidence and Dice of each patient; leaves out undefined Dice."""
    defined = np.isfinite(dice)
    confidence, dice = confidence[defined], dice[defined]
    coverage, mean_dice = coverage_curve(confidence, dice)
    perfect = aurc(coverage_curve(dice, dice)[1])
    return Trust(pixel_reliability(pixels), coverage, mean_dice, aurc(mean_dice), perfect, float(1 - dice.mean()))


def count_pixels(probability: Hundredths, truth: Mask, prediction: Mask) -> Counts:
    """Count the pixels (2, 100) around the tumour at each hundredth: without tumour, and with tumour."""
    slices = (truth | prediction).any((1, 2))
    if not slices.any():
        return np.zeros((2, 100), np.int64)
    probability, truth, prediction = probability[slices], truth[slices], prediction[slices]
    inside = region(Stack(truth, prediction.astype(np.float32)), MARGIN)
    cells = 100 * truth[inside].astype(np.int64) + probability[inside]
    return np.bincount(cells, minlength=200).reshape(2, 100)


def pixel_reliability(pixels: Counts) -> pd.DataFrame:
    """Return mean probability, share of tumour and pixels of each non-empty bin; bins are a tenth wide."""
    both = pixels.sum(0)
    hundredths = pd.DataFrame({"mass": both * LEVELS, "tumour": pixels[1], "pixels": both})
    bins = hundredths.groupby(np.arange(100) * BINS // 100).sum().query("pixels > 0")
    table = {"probability": bins["mass"] / bins["pixels"], "share": bins["tumour"] / bins["pixels"]}
    return pd.DataFrame({**table, "pixels": bins["pixels"]}).reset_index(drop=True)


def soft_dice_confidence(probability: Hundredths, prediction: Mask) -> float:
    """Return the Dice that a model expects of its own mask: 2 sum(p m) / (sum p + sum m).

    p is the probability and m the mask, over a whole stack (soft Dice confidence, Borges et al. 2024). 0 for an
    empty mask.
    """
    inside, total = LEVELS[probability[prediction]].sum(), LEVELS[probability[probability > 0]].sum()
    size = np.count_nonzero(prediction)
    return float(2 * inside / (total + size)) if size else 0.0


def coverage_curve(confidence: Floats, dice: Floats) -> tuple[Floats, Floats]:
    """Return shares of patients, the most confident first, and the mean Dice over each share.

    Patients of equal confidence share their mean Dice.
    """
    _, tie, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    expected = (np.bincount(tie, dice) / count)[np.sort(tie)]
    covered = np.arange(1, len(dice) + 1)
    return covered / len(dice), expected.cumsum() / covered


def aurc(mean_dice: Floats) -> float:
    """Return the area under the risk-coverage curve: the mean of 1 - Dice over all coverages.

    Geifman and El-Yaniv 2017.
    """
    return float(1 - mean_dice.mean())
