"""Noise, contrast and sharpness, by OpenCV. Borders are mirrored, or repeated by the median."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
from pydantic import AfterValidator, Field

from bench.data.preprocess._channels import each_channel, grey_levels
from bench.data.source import Pixels
from bench.registry import preprocessing


def odd(side: int) -> int:
    """The same number of pixels. Raises `ValueError` for an even one: a window has a pixel in its middle."""
    if side % 2 == 0:
        raise ValueError("a window has a pixel in its middle, so its side is odd")
    return side


Side = Annotated[int, Field(ge=3, le=99), AfterValidator(odd)]


Amount = Annotated[float, Field(gt=0)]


@preprocessing
def median(image: Pixels, *, size: Side = 3) -> Pixels:
    """The median of size x size pixels: takes single bright and dark pixels away, keeps edges (Tukey 1977)."""
    return each_channel(lambda channel: cv2.medianBlur(channel, size), image)


@preprocessing
def clahe(image: Pixels, *, clip: Amount = 3.0, tiles: Annotated[int, Field(ge=1, le=64)] = 8) -> Pixels:
    """Contrast-limited adaptive histogram equalisation over tiles x tiles regions (Zuiderveld 1994).

    `clip` is OpenCV's clipLimit: no grey level counts more than `clip` times its share of an even histogram, and
    what is cut off is shared out evenly: the larger, the more contrast, and the more noise. Black stays almost
    black, not quite.
    """
    return each_channel(lambda channel: cv2.createCLAHE(clip, (tiles, tiles)).apply(channel), image)


@preprocessing
def sharpen(image: Pixels, *, amount: Amount = 1.0) -> Pixels:
    """Laplacian sharpening: image - amount * Laplacian, cut to 0..255 (Gonzalez and Woods 2018, section 3.6).

    The Laplacian is that of the four neighbours: their sum, less four times the pixel.
    """

    def sharper(channel: Pixels) -> Pixels:
        edges = cv2.Laplacian(channel, cv2.CV_32F, ksize=1)
        return grey_levels(channel - amount * edges)

    return each_channel(sharper, image)


@preprocessing
def bilateral(
    image: Pixels, *, diameter: Side = 5, sigma_intensity: Amount = 25.0, sigma_space: Amount = 3.0
) -> Pixels:
    """The mean of near pixels that are also alike: smooths noise, keeps edges (Tomasi and Manduchi 1998).

    `sigma_intensity` is in grey levels, `sigma_space` and `diameter` (of the round window) are in pixels. In a
    dark scan 25 levels may be the contrast of all its tissue, which is then blurred as by a Gaussian.
    """

    def smoother(channel: Pixels) -> Pixels:
        grey = channel.astype(np.float32)  # of bytes, OpenCV 5 cuts the fraction off: half a level darker
        return grey_levels(cv2.bilateralFilter(grey, diameter, sigma_intensity, sigma_space))

    return each_channel(smoother, image)
