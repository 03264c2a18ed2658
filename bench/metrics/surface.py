"""Distances between the outlines of two masks, in pixels and in 2D.

The pixel spacing and the slice thickness are unknown, so millimetres and 3D distances would be guesses.
A slice with tumour is measured; one where nothing is predicted costs the image diagonal, sqrt(H² + W²), and is
never dropped. A prediction on a slice without tumour has no distance: it shows as a false-positive slice.
"""

from __future__ import annotations

from collections.abc import Callable
from math import hypot
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from bench.records import Stack
from bench.registry import metric

Mask: TypeAlias = NDArray[np.bool_]
Distances: TypeAlias = NDArray[np.float64]


def surface(mask: Mask) -> Mask:
    """The pixels of `mask` with a background pixel among their 4 neighbours; outside the image is background."""
    return mask & ~binary_erosion(mask)


def surface_distances(truth: Mask, prediction: Mask) -> tuple[Distances, Distances]:
    """From each surface pixel of either mask (H, W) the distance to the other's surface. Neither may be empty."""
    union = truth | prediction
    rows, columns = np.flatnonzero(union.any(1)), np.flatnonzero(union.any(0))
    # Both surfaces lie in this window and all around it is background: nothing outside can change a distance.
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    true, predicted = surface(truth[window]), surface(prediction[window])
    return distance_transform_edt(~predicted)[true], distance_transform_edt(~true)[predicted]


def slice_hd95(truth: Mask, prediction: Mask) -> float:
    """95% Hausdorff distance of one slice (H, W), in pixels; the conventions are those of the module.

    The larger of the two directed 95th percentiles (Maier-Hein et al. 2024, Metrics Reloaded; so does MONAI).
    MedPy takes one percentile of both directions pooled, which hides a small far-off false positive.
    """
    return _measure(truth, prediction, lambda there, back: max(np.percentile(there, 95), np.percentile(back, 95)))


def slice_assd(truth: Mask, prediction: Mask) -> float:
    """Average symmetric surface distance of one slice (H, W), in pixels: the mean of both directions pooled."""
    return _measure(truth, prediction, lambda there, back: np.concatenate([there, back]).mean())


@metric(higher=False, unit="pixels")
def hd95(stack: Stack) -> float:
    """95% Hausdorff distance, the mean over the slices with tumour; a missed slice counts the image diagonal.

    Pixels, 2D (Huttenlocher et al. 1993 for the distance; see `slice_hd95`). NaN where no slice has tumour.
    """
    return _mean_over_tumour(stack, slice_hd95)


@metric(higher=False, unit="pixels")
def assd(stack: Stack) -> float:
    """Average symmetric surface distance, the mean over the slices with tumour; a missed one counts the diagonal.

    Pixels, 2D (Heimann et al. 2009). NaN where no slice has tumour.
    """
    return _mean_over_tumour(stack, slice_assd)


def _measure(truth: Mask, prediction: Mask, reduce: Callable[[Distances, Distances], float]) -> float:
    if not truth.any():
        return np.nan
    if not prediction.any():
        return hypot(*truth.shape)
    return float(reduce(*surface_distances(truth, prediction)))


def _mean_over_tumour(stack: Stack, distance: Callable[[Mask, Mask], float]) -> float:
    found = [distance(t, p) for t, p in zip(stack.truth, stack.prediction, strict=True) if t.any()]
    return float(np.mean(found)) if found else np.nan
