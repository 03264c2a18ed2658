"""One pass over all slices: which pixels show the head, where tumours are, and the grey levels of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.pack import Pack
from bench.data.source import Pixels

REST, TUMOUR = 0, 1


@dataclass(frozen=True)
class PixelCounts:
    """Counts of pixels and slices.

    levels  (P, C, 2, 256): pixels of each patient, channel and class (REST of the head, TUMOUR) at each grey level
    tumour  (H, W): slices with tumour at a pixel
    head    (H, W): slices with the head at a pixel
    """

    levels: NDArray[np.int64]
    tumour: NDArray[np.int64]
    head: NDArray[np.int64]


def count_pixels(pack: Pack) -> PixelCounts:
    """Count the pixels of `pack`, one slice at a time. Patients are in the order of `pack.cases`."""
    _, height, width, channels = pack.images.shape
    levels = np.zeros((len(pack.cases), channels, 2, 256), np.int64)
    tumour, head = (np.zeros((height, width), np.int64) for _ in range(2))
    for patient, case in enumerate(pack.cases):
        rows = pack.rows([case])
        thresholds = [otsu_threshold(histogram) for histogram in pack.histograms[rows].sum(0, dtype=np.int64)]
        for row in rows:
            image, mask = np.asarray(pack.images[row]), pack.masks[row].astype(bool)
            inside = segment_head(image, thresholds)
            tumour += mask
            head += inside
            for kind, region in ((REST, inside & ~mask), (TUMOUR, mask)):
                levels[patient, :, kind] += _histograms_in(image, region)
    return PixelCounts(levels, tumour, head)


def _histograms_in(image: Pixels, region: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Histograms (C, 256) of the pixels of an image in a region (H, W)."""
    counts = [cv2.calcHist([image], [c], region.view(np.uint8), [256], [0, 256]) for c in range(image.shape[2])]
    return np.asarray(counts, np.int64).reshape(-1, 256)


def segment_head(image: Pixels, thresholds: Sequence[int]) -> NDArray[np.bool_]:
    """Return the pixels (H, W) where any channel (H, W, C) exceeds its threshold, with holes filled."""
    bright = np.zeros(image.shape[:2], np.uint8)
    for channel, level in enumerate(thresholds):
        bright |= image[..., channel] > level
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(bright, outlines, -1, 1, cv2.FILLED)
    return bright.astype(bool)


def otsu_threshold(histogram: NDArray[np.int64]) -> int:
    """Return the last level of the lower class in Otsu's split of a histogram (256,) (Otsu 1979).

    The result is 255, which no pixel exceeds, if all pixels have one level.
    """
    below = np.cumsum(histogram)
    weight = below * (below[-1] - below).astype(float)
    values = np.cumsum(histogram * np.arange(256))
    between = (values[-1] * (below / below[-1]) - values) ** 2 / np.where(weight > 0, weight, np.inf)
    return int(between.argmax()) if between.any() else 255
