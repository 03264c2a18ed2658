"""One pass over all slices: which pixels are head, where tumours lie, and the grey levels of both."""

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
class Census:
    """Counts of pixels and slices.

    levels  (P, C, 2, 256): pixels of each patient and channel, REST of the head and TUMOUR, at each grey level
    tumour  (H, W): slices with tumour at a pixel
    head    (H, W): slices with the head at a pixel
    """

    levels: NDArray[np.int64]
    tumour: NDArray[np.int64]
    head: NDArray[np.int64]


def census(pack: Pack) -> Census:
    """Count the slices of `pack`, read one at a time; patients come in the order of `pack.cases`."""
    _, height, width, channels = pack.images.shape
    levels = np.zeros((len(pack.cases), channels, 2, 256), np.int64)
    tumour, head = (np.zeros((height, width), np.int64) for _ in range(2))
    for patient, case in enumerate(pack.cases):
        rows = pack.rows([case])
        dark = [otsu(histogram) for histogram in pack.histograms[rows].sum(0, dtype=np.int64)]
        for row in rows:
            image, mask = np.asarray(pack.images[row]), pack.masks[row].astype(bool)
            inside = head_of(image, dark)
            tumour += mask
            head += inside
            for kind, where in ((REST, inside & ~mask), (TUMOUR, mask)):
                levels[patient, :, kind] += _histograms(image, where)
    return Census(levels, tumour, head)


def _histograms(image: Pixels, where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixels (C, 256) of an image at each grey level, counted where `where` is true."""
    counted = [cv2.calcHist([image], [c], where.view(np.uint8), [256], [0, 256]) for c in range(image.shape[2])]
    return np.asarray(counted, np.int64).reshape(-1, 256)


def head_of(image: Pixels, dark: Sequence[int]) -> NDArray[np.bool_]:
    """Pixels (H, W) where any channel of an image (H, W, C) is brighter than its `dark`, and all they enclose."""
    bright = np.zeros(image.shape[:2], np.uint8)
    for channel, level in enumerate(dark):
        bright |= image[..., channel] > level
    outlines, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(bright, outlines, -1, 1, cv2.FILLED)
    return bright.astype(bool)


def otsu(histogram: NDArray[np.int64]) -> int:
    """The level that best parts a histogram (256,) in two, the last of the lower part (Otsu 1979).

    255 where all pixels have one level: nothing is above it.
    """
    below = np.cumsum(histogram)
    weight = below * (below[-1] - below).astype(float)
    values = np.cumsum(histogram * np.arange(256))
    apart = (values[-1] * (below / below[-1]) - values) ** 2 / np.where(weight > 0, weight, np.inf)
    return int(apart.argmax()) if apart.any() else 255
