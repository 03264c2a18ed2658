"""Filters for noise, contrast and sharpness, from OpenCV. Borders are mirrored; the median repeats them."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from pydantic import AfterValidator, Field

from bench.data.preprocess._channels import each_channel, to_grey_levels
from bench.data.source import Pixels
from bench.registry import preprocessing


def check_odd(side: int) -> int:
    """Return the side of a window. Raises `ValueError` if it is even."""
    if side % 2 == 0:
        raise ValueError("a window is centred on a pixel, so its side must be odd")
    return side


Side = Annotated[int, Field(ge=3, le=99), AfterValidator(check_odd)]
Amount = Annotated[float, Field(gt=0)]


@preprocessing
def median(image: Pixels, *, size: Side = 3) -> Pixels:
    """Median of size x size pixels: removes single bright and dark pixels, keeps edges (Tukey 1977)."""
    return each_channel(lambda channel: cv2.medianBlur(channel, size), image)


@preprocessing
def clahe(image: Pixels, *, clip: Amount = 3.0, tiles: Annotated[int, Field(ge=1, le=64)] = 8) -> Pixels:
    """Contrast-limited adaptive histogram equalisation over tiles x tiles regions (Zuiderveld 1994).

    `clip` is OpenCV's clipLimit: no grey level counts more than `clip` times its share of a uniform histogram, and
    the excess is distributed evenly. A larger value gives more contrast and more noise. Black becomes slightly
    brighter.
    """
    return each_channel(lambda channel: cv2.createCLAHE(clip, (tiles, tiles)).apply(channel), image)


@preprocessing
def sharpen(image: Pixels, *, amount: Amount = 1.0) -> Pixels:
    """Laplacian sharpening: image - amount * Laplacian, clipped to 0..255 (Gonzalez and Woods 2018, section 3.6).

    The Laplacian is the sum of the four neighbours minus four times the pixel.
    """

    def sharpen_channel(channel: Pixels) -> Pixels:
        edges = cv2.Laplacian(channel, cv2.CV_32F, ksize=1)
        return to_grey_levels(channel - amount * edges)

    return each_channel(sharpen_channel, image)


@preprocessing
def bilateral(
    image: Pixels, *, diameter: Side = 5, sigma_intensity: Amount = 25.0, sigma_space: Amount = 3.0
) -> Pixels:
    """Mean of near and similar pixels: smooths noise, keeps edges (Tomasi and Manduchi 1998).

    `sigma_intensity` is in grey levels, `sigma_space` and `diameter` (of the round window) are in pixels. In a
    dark scan 25 levels may be the whole contrast of the tissue, which is then blurred as by a Gaussian.
    """

    def smooth_channel(channel: Pixels) -> Pixels:
        values = channel.astype(np.float32)  # OpenCV 5 truncates bytes: half a level darker
        return to_grey_levels(cv2.bilateralFilter(values, diameter, sigma_intensity, sigma_space))

    return each_channel(smooth_channel, image)
