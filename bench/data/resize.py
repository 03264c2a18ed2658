"""Resizing of packed grey levels and masks. A single channel keeps its axis, which OpenCV drops."""

from __future__ import annotations

import cv2
import numpy as np

from bench.data.source import Pixels


def resize_image(image: Pixels, side: int) -> Pixels:
    """Resize an image (H, W, C) to `side` pixels square; each pixel is the mean of the area that it covers."""
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8).reshape(
        side, side, -1
    )


def resize_pair(image: Pixels, mask: Pixels, side: int | None) -> tuple[Pixels, Pixels]:
    """Resize an image by area and its mask (H, W) by nearest pixel. Return both unchanged if `side` is None."""
    if side is None:
        return image, mask
    # INTER_NEAREST_EXACT samples at pixel centres, as INTER_AREA does; INTER_NEAREST shifts by half a pixel.
    nearest = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
    return resize_image(image, side), np.asarray(nearest, np.uint8)
