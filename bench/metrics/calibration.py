"""Calibration of the predicted probabilities around the tumour.

Most of an image is background that any model gets right: over all pixels a constant 0 has a Brier score of about
0.01. So only pixels within `margin` pixels (Euclidean, in 2D) of the union of truth and prediction count. This
region depends on the prediction: a model is scored where there is tumour and where it predicts tumour.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bench.registry import metric
from bench.types import Stack

Margin: TypeAlias = Annotated[
    int, Field(ge=0, le=100, description="pixels around truth and prediction that count")
]


def region(stack: Stack, margin: int) -> NDArray[np.bool_]:
    """Return the union of truth and prediction, dilated per slice by a disc of radius `margin`; bool (S, H, W)."""
    y, x = np.ogrid[-margin : margin + 1, -margin : margin + 1]
    disc = (y * y + x * x <= margin * margin).astype(np.uint8)
    union = (stack.truth | stack.prediction).astype(np.uint8)
    return np.stack([cv2.dilate(image, disc) for image in union]).astype(bool)


@metric(higher=False, unit="", probability=True)
def brier(stack: Stack, *, margin: Margin = 5) -> float:
    """Brier score around the tumour: the mean of (probability - truth)².

    Brier 1950. 0 is best, a constant 0.5 scores 0.25. NaN where truth and prediction are both empty.
    """
    inside = region(stack, margin)
    if not inside.any():
        return np.nan
    return float(np.square(stack.probability[inside].astype(np.float64) - stack.truth[inside]).mean())


@metric(higher=False, unit="", probability=True)
def ece(stack: Stack, *, bins: Annotated[int, Field(ge=1, le=1000)] = 15, margin: Margin = 5) -> float:
    """Expected calibration error around the tumour: |share of tumour - mean probability|, averaged over bins.

    Naeini et al. 2015: `bins` of equal width over the tumour's probability, each weighted by its pixels.
    0 is best. NaN where truth and prediction are both empty.
    """
    inside = region(stack, margin)
    if not inside.any():
        return np.nan
    probability = stack.probability[inside].astype(np.float64)
    bin_of = np.digitize(probability, np.linspace(0, 1, bins + 1)[1:-1])
    # The sum of a bin's residuals is its gap times its number of pixels, and 0 for an empty bin.
    residuals = np.bincount(bin_of, weights=probability - stack.truth[inside])
    return float(np.abs(residuals).sum() / probability.size)
