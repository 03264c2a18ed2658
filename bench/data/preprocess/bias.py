"""The smooth shading that a receiver coil lays over a scan, and its removal."""

from __future__ import annotations

from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field

from bench.data.preprocess._channels import each_channel, grey_levels
from bench.data.source import Pixels
from bench.errors import BadSetting
from bench.registry import preprocessing

LEAST_TISSUE = 0.02  # share of a slice


LEAST_CONTRAST = 10  # grey levels between the means of tissue and background


@preprocessing
def n4(
    image: Pixels,
    *,
    shrink: Annotated[int, Field(ge=1, le=16)] = 4,
    levels: Annotated[int, Field(ge=1, le=6)] = 2,
    iterations: Annotated[int, Field(ge=1)] = 50,
) -> Pixels:
    """N4: divides by the smooth field that most sharpens the tissue's histogram (Tustison et al. 2010).

    In 2D, slice by slice, since the distance between slices is unknown. The field is fitted to tissue (above
    Otsu's threshold) on a grid `shrink` times coarser, with up to `iterations` on each of `levels` levels; each
    level halves the distance of the spline's knots, the first has the whole slice between them. With three levels
    or more the field follows large tumours too and takes their contrast away, so two are the default. The mean of
    the tissue stays as it was. A slice with hardly any tissue, or hardly any contrast to the background, is
    returned unchanged. Raises `BadSetting` where SimpleITK is not installed.
    """
    itk = _simpleitk()
    return each_channel(lambda channel: _corrected(itk, channel, shrink, [iterations] * levels), image)


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise BadSetting(
            "preprocessing 'n4' needs SimpleITK: pip install 'medseg-bench[n4]', or leave n4 out."
        ) from None
    return SimpleITK


def _corrected(itk: Any, channel: Pixels, shrink: int, iterations: list[int]) -> Pixels:
    level, above = cv2.threshold(channel, 0, 1, cv2.THRESH_OTSU)
    tissue = above > 0
    if not LEAST_TISSUE <= tissue.mean() < 1:
        return channel
    if channel[tissue].mean() - channel[~tissue].mean() < LEAST_CONTRAST:
        return channel
    whole = itk.GetImageFromArray(channel.astype(np.float32))
    coarse = itk.BinShrink(whole, [shrink, shrink])
    mask = itk.Cast(coarse > level, itk.sitkUInt8)
    if itk.GetArrayViewFromImage(mask).mean() < LEAST_TISSUE:  # specks, gone in the mean of their neighbours
        return channel
    fit = itk.N4BiasFieldCorrectionImageFilter()
    fit.SetMaximumNumberOfIterations(iterations)
    fit.SetNumberOfThreads(1)  # slices are shared between threads already
    fit.Execute(coarse, mask)
    even = channel / np.exp(itk.GetArrayFromImage(fit.GetLogBiasFieldAsImage(whole)))
    even *= channel[tissue].mean() / even[tissue].mean()
    return grey_levels(even)
