"""Distances between the outlines of two masks, in 2D: in pixels, and in millimetres where their size is known.

The distance between slices is often unknown, so 3D distances would be guesses. Only slices with tumour have a
distance. A missed slice counts the image diagonal, sqrt(H² + W²), and is never dropped. A prediction on a slice
without tumour counts as a false-positive slice instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import hypot
from typing import TypeAlias
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial.distance import cdist

from bench.registry import metric
from bench.types import Stack

Mask: TypeAlias = NDArray[np.bool_]
Distances: TypeAlias = NDArray[np.float64]
Directed: TypeAlias = tuple[Distances, Distances]  # from the truth to the prediction, and back

CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
PIXEL = np.ones(2)  # the spacing of rows and columns in pixels
PAIRS_PER_PIXEL = 16  # a distance transform costs per pixel as much as 20 to 25 pairs (measured)


def find_surface(mask: Mask) -> Mask:
    """Return the pixels of `mask` with a background pixel among their 4 neighbours or at the image border."""
    inside = cv2.erode(mask.astype(np.uint8), CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    edge: Mask = mask & (inside == 0)
    return edge


def surface_distances(truth: Mask, prediction: Mask, spacing: Distances = PIXEL) -> Directed:
    """Return the distance from each surface pixel of either mask (H, W), neither empty, to the other surface.

    spacing: (2,), the distance from row to row and from column to column.
    """
    left, top, width, height = cv2.boundingRect((truth | prediction).astype(np.uint8))
    # Both surfaces lie in this window and everything around it is background.
    window = np.s_[top : top + height, left : left + width]
    true, predicted = find_surface(truth[window]), find_surface(prediction[window])
    true_points, predicted_points = np.argwhere(true), np.argwhere(predicted)
    if len(true_points) * len(predicted_points) > PAIRS_PER_PIXEL * true.size:  # ragged outlines
        to_predicted, to_true = (distance_transform_edt(~mask, spacing) for mask in (predicted, true))
        return to_predicted[true], to_true[predicted]
    squared = cdist(true_points * spacing, predicted_points * spacing, "sqeuclidean")
    return np.sqrt(squared.min(1)), np.sqrt(squared.min(0))


@metric(higher=False, unit="pixels")
def hd95(stack: Stack) -> float:
    """95% Hausdorff distance, the mean over the slices with tumour; a missed slice counts the image diagonal.

    Pixels, 2D (Huttenlocher et al. 1993). The larger of the two directed 95th percentiles, as in Metrics Reloaded
    (Maier-Hein et al. 2024) and MONAI. MedPy takes one percentile of both directions pooled, which hides a small
    distant false positive. NaN where no slice has tumour.
    """
    return _mean_over_slices(stack, np.tile(PIXEL, (len(stack.truth), 1)), _larger_percentile)


@metric(higher=False, unit="pixels")
def assd(stack: Stack) -> float:
    """Average symmetric surface distance, the mean over the slices with tumour; a missed one counts the diagonal.

    Pixels, 2D: the mean of both directions pooled (Heimann et al. 2009). NaN where no slice has tumour.
    """
    return _mean_over_slices(stack, np.tile(PIXEL, (len(stack.truth), 1)), _pooled_mean)


@metric(higher=False, unit="mm", needs_spacing=True)
def hd95_mm(stack: Stack) -> float:
    """`hd95` in millimetres, for data with known spacing; a missed slice counts the diagonal in millimetres."""
    return _mean_over_slices(stack, stack.spacing, _larger_percentile)


@metric(higher=False, unit="mm", needs_spacing=True)
def assd_mm(stack: Stack) -> float:
    """`assd` in millimetres, for data with known spacing; a missed slice counts the diagonal in millimetres."""
    return _mean_over_slices(stack, stack.spacing, _pooled_mean)


def _larger_percentile(forth: Distances, back: Distances) -> float:
    return max(_percentile(forth, 95), _percentile(back, 95))


def _pooled_mean(forth: Distances, back: Distances) -> float:
    return float((forth.sum() + back.sum()) / (forth.size + back.size))


def _mean_over_slices(
    stack: Stack, spacing: Distances | None, reduce: Callable[[Distances, Distances], float]
) -> float:
    """Return the mean over the slices with tumour; NaN without any, or without `spacing` (S, 2)."""
    if spacing is None:
        return np.nan
    sizes = (spacing * stack.truth.shape[1:])[stack.tp + stack.fn > 0]
    measured = zip(_stack_distances(stack, spacing), sizes, strict=True)
    values = [reduce(*pair) if pair else hypot(*size) for pair, size in measured]
    return float(np.mean(values)) if values else np.nan


def _stack_distances(stack: Stack, spacing: Distances) -> list[Directed | None]:
    """Return the distances of each slice with tumour, None where it is missed; computed once per spacing."""
    known = _cache.setdefault(stack, {})
    if (key := spacing.tobytes()) not in known:
        truth, predicted = stack.tp + stack.fn > 0, stack.tp + stack.fp > 0
        both = truth & predicted
        slices = stack.truth[both], stack.prediction[both], spacing[both]
        if stack.device == "cpu":
            measured: Iterator[Directed] = map(surface_distances, *slices)
        else:
            from bench.metrics._surface_gpu import stack_distances  # PyTorch, which the CPU path does not need

            measured = iter(stack_distances(*slices, device=stack.device))
        known[key] = [next(measured) if hit else None for hit in predicted[truth]]
    return known[key]


# The distances of a stack by the bytes of their spacing; an entry is freed with its stack.
_cache: WeakKeyDictionary[Stack, dict[bytes, list[Directed | None]]] = WeakKeyDictionary()


def _percentile(values: Distances, q: float) -> float:
    """Return `np.percentile`, faster: for a hundred values NumPy spends most of its time checking arguments."""
    ascending, position = np.sort(values), q / 100 * (len(values) - 1)
    below = ascending[int(position)]
    above = ascending[min(int(position) + 1, len(values) - 1)]
    return float(below + (above - below) * (position % 1))
