"""Intensity statistics for normalisation, computed from histograms: no pixel is read twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.errors import BadSetting

CLIP = (0.5, 99.5)  # percentiles at the ends of the range
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of channels in [0, 1]


class IntensityStats(NamedTuple):
    """Per slice and channel (N, C): range [low, high] in grey levels; mean and standard deviation in [0, 1]."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def compute_intensity_stats(
    histograms: NDArray[np.uint32], cases: Sequence[str], normalise: str
) -> IntensityStats:
    """Compute the statistics of every slice from histograms (N, C, 256).

    `normalise` is 'patient' (the default: one range for all slices of a patient, since levels differ eightfold
    between patients), 'image' (each slice separately) or 'imagenet' (the constants that pretrained encoders
    expect).
    """
    shape = histograms.shape[:2]
    if normalise == "imagenet":
        if shape[1] != 3:
            raise BadSetting(f"input.normalise = imagenet needs 3 channels, not {shape[1]}. Use patient or image.")
        constants = (np.tile(np.array(v, np.float32), (shape[0], 1)) for v in IMAGENET)
        return IntensityStats(np.zeros(shape, np.float32), np.full(shape, 255, np.float32), *constants)
    _, group = np.unique(cases, return_inverse=True) if normalise == "patient" else (None, np.arange(shape[0]))
    pooled = np.zeros((group.max() + 1, shape[1], 256))
    np.add.at(pooled, group, histograms)
    total = pooled.sum(-1, keepdims=True)
    cumulative, weight = pooled.cumsum(-1) / total, pooled / total
    low, high = ((cumulative >= q / 100).argmax(-1).astype(float) for q in CLIP)
    high = np.maximum(high, low + 1)  # a blank channel has no range
    scaled = ((np.arange(256) - low[..., None]) / (high - low)[..., None]).clip(0, 1)
    mean = (weight * scaled).sum(-1)
    std = np.sqrt((weight * (scaled - mean[..., None]) ** 2).sum(-1))
    return IntensityStats(*(v[group].astype(np.float32) for v in (low, high, mean, np.maximum(std, 1e-3))))
