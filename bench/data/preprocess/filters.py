"""Filters for noise, contrast and sharpness from OpenCV, and the N4 bias field correction from SimpleITK.

Channels are different scans, so every filter runs on each channel separately. Borders are mirrored; the median
repeats them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from bench.data.readers.itk import import_simpleitk
from bench.data.source import Pixels
from bench.registry import preprocessing

MIN_TISSUE = 0.02  # share of a slice that N4 needs
MIN_CONTRAST = 10  # grey levels between the means of tissue and background that N4 needs


def each_channel(change: Callable[[Pixels], Pixels], image: Pixels) -> Pixels:
    """Apply `change` to every channel (H, W) of an image (H, W, C)."""
    return np.stack([change(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])], axis=-1)


def to_grey_levels(values: NDArray[np.floating]) -> Pixels:
    """Round and clip to 0..255."""
    return values.round().clip(0, 255).astype(np.uint8)


def check_odd(side: int) -> int:
    """Return the side of a window. Raises `ValueError` if it is even."""
    if side % 2 == 0:
        raise ValueError("a window is centred on a pixel, so its side must be odd")
    return side


Side = Annotated[int, Field(ge=3, le=99), AfterValidator(check_odd)]
Amount = Annotated[float, Field(ge=1e-3, le=1e4)]


@preprocessing
def median(image: Pixels, *, size: Side = 3) -> Pixels:
    """Median of `size` x `size` pixels: removes single bright and dark pixels, keeps edges (Tukey 1977)."""
    return each_channel(lambda channel: cv2.medianBlur(channel, size), image)


@preprocessing
def clahe(image: Pixels, *, clip: Amount = 3.0, tiles: Annotated[int, Field(ge=1, le=64)] = 8) -> Pixels:
    """Contrast-limited adaptive histogram equalisation over `tiles` x `tiles` regions (Zuiderveld 1994).

    `clip` is OpenCV's clipLimit: no grey level counts more than `clip` times its share of a uniform histogram, and
    the excess is distributed evenly. A larger value gives more contrast and more noise. Black becomes slightly
    brighter.
    """
    return each_channel(lambda channel: cv2.createCLAHE(clip, (tiles, tiles)).apply(channel), image)


@preprocessing
def sharpen(image: Pixels, *, amount: Amount = 1.0) -> Pixels:
    """Laplacian sharpening: image - `amount` * Laplacian, clipped to 0..255 (Gonzalez and Woods 2018, 3.6).

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


@preprocessing
def n4(
    image: Pixels,
    *,
    shrink: Annotated[int, Field(ge=1, le=16)] = 4,
    levels: Annotated[int, Field(ge=1, le=6)] = 2,
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 50,
) -> Pixels:
    """N4: divide by the smooth field that most sharpens the histogram of the tissue (Tustison et al. 2010).

    In 2D, slice by slice, since the distance between slices is unknown. The field is fitted to tissue (above
    Otsu's threshold) on a grid `shrink` times coarser, with up to `iterations` on each of `levels` levels. The
    knots of the spline span the whole slice on the first level; each further level halves their distance. With
    three levels or more the field also follows large tumours and removes their contrast, so the default is two.
    The mean of the tissue is kept. A slice with little tissue, or little contrast to the background, is returned
    unchanged. Raises `BadSetting` if SimpleITK is not installed.
    """
    itk = import_simpleitk("preprocessing 'n4'", "n4", ", or leave n4 out")
    return each_channel(lambda channel: _correct(itk, channel, shrink, [iterations] * levels), image)


def _correct(itk: Any, channel: Pixels, shrink: int, iterations: list[int]) -> Pixels:
    level, above = cv2.threshold(channel, 0, 1, cv2.THRESH_OTSU)
    tissue = above > 0
    if not MIN_TISSUE <= tissue.mean() < 1 or channel[tissue].mean() - channel[~tissue].mean() < MIN_CONTRAST:
        return channel
    whole = itk.GetImageFromArray(channel.astype(np.float32))
    coarse = itk.BinShrink(whole, [shrink, shrink])
    mask = itk.Cast(coarse > level, itk.sitkUInt8)
    if itk.GetArrayViewFromImage(mask).mean() < MIN_TISSUE:  # specks that vanish in the mean of their neighbours
        return channel
    fit = itk.N4BiasFieldCorrectionImageFilter()
    fit.SetMaximumNumberOfIterations(iterations)
    fit.SetNumberOfThreads(1)  # slices already run in parallel threads
    fit.Execute(coarse, mask)
    corrected = channel / np.exp(itk.GetArrayFromImage(fit.GetLogBiasFieldAsImage(whole)))
    corrected *= channel[tissue].mean() / corrected[tissue].mean()
    return to_grey_levels(corrected)
