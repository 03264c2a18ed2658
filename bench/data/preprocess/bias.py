"""Correct the smooth bias field that a receiver coil adds to a scan."""

from __future__ import annotations

from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field

from bench.data.preprocess._channels import each_channel, to_grey_levels
from bench.data.source import Pixels
from bench.errors import BadSetting
from bench.registry import preprocessing

MIN_TISSUE = 0.02  # share of a slice
MIN_CONTRAST = 10  # grey levels between the means of tissue and background


@preprocessing
def n4(
    image: Pixels,
    *,
    shrink: Annotated[int, Field(ge=1, le=16)] = 4,
    levels: Annotated[int, Field(ge=1, le=6)] = 2,
    iterations: Annotated[int, Field(ge=1)] = 50,
) -> Pixels:
    """N4: divide by the smooth field that most sharpens the histogram of the tissue (Tustison et al. 2010).

    In 2D, slice by slice, since the distance between slices is unknown. The field is fitted to tissue (above
    Otsu's threshold) on a grid `shrink` times coarser, with up to `iterations` on each of `levels` levels. The
    knots of the spline span the whole slice on the first level; each further level halves their distance. With
    three levels or more the field also follows large tumours and removes their contrast, so the default is two.
    The mean of the tissue is kept. A slice with little tissue, or little contrast to the background, is returned
    unchanged. Raises `BadSetting` if SimpleITK is not installed.
    """
    itk = _import_simpleitk()
    return each_channel(lambda channel: _correct(itk, channel, shrink, [iterations] * levels), image)


def _import_simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise BadSetting(
            "preprocessing 'n4' needs SimpleITK: pip install 'medseg-bench[n4]', or leave n4 out."
        ) from None
    return SimpleITK


def _correct(itk: Any, channel: Pixels, shrink: int, iterations: list[int]) -> Pixels:
    level, above = cv2.threshold(channel, 0, 1, cv2.THRESH_OTSU)
    tissue = above > 0
    if not MIN_TISSUE <= tissue.mean() < 1:
        return channel
    if channel[tissue].mean() - channel[~tissue].mean() < MIN_CONTRAST:
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
