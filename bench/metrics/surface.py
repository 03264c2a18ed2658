"""Distances between the outlines of two masks, in pixels and in 2D.

The pixel spacing and the slice thickness are unknown, so millimetres and 3D distances would be guesses. Only
slices with tumour have a distance. A missed slice counts the image diagonal, sqrt(H² + W²), and is never dropped.
A prediction on a slice without tumour counts as a false-positive slice instead.
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
PAIRS_PER_PIXEL = 16  # a distance transform costs per pixel as much as 20 to 25 pairs (measured)


def find_surface(mask: Mask) -> Mask:
    """Return the pixels of `mask` with a background pixel among their 4 neighbours or at the image border."""
    inside = cv2.erode(mask.astype(np.uint8), CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    edge: Mask = mask & (inside == 0)
    return edge


def surface_distances(truth: Mask, prediction: Mask) -> Directed:
    """Return the distance from each surface pixel of either mask (H, W), neither empty, to the other surface."""
    left, top, width, height = cv2.boundingRect((truth | prediction).astype(np.uint8))
    # Both surfaces lie in this window and everything around it is background.
    window = np.s_[top : top + height, left : left + width]
    true, predicted = find_surface(truth[window]), find_surface(prediction[window])
    true_points, predicted_points = np.argwhere(true), np.argwhere(predicted)
    if len(true_points) * len(predicted_points) > PAIRS_PER_PIXEL * true.size:  # ragged outlines
        return distance_transform_edt(~predicted)[true], distance_transform_edt(~true)[predicted]
    squared = cdist(true_points, predicted_points, "sqeuclidean")
    return np.sqrt(squared.min(1)), np.sqrt(squared.min(0))


@metric(higher=False, unit="pixels")
def hd95(stack: Stack) -> float:
    """95% Hausdorff distance, the mean over the slices with tumour; a missed slice counts the image diagonal.

    Pixels, 2D (Huttenlocher et al. 1993). The larger of the two directed 95th percentiles, as in Metrics Reloaded
    (Maier-Hein et al. 2024) and MONAI. MedPy takes one percentile of both directions pooled, which hides a small
    distant false positive. NaN where no slice has tumour.
    """
    return _mean_over_slices(stack, lambda forth, back: max(_percentile(forth, 95), _percentile(back, 95)))


@metric(higher=False, unit="pixels")
def assd(stack: Stack) -> float:
    """Average symmetric surface distance, the mean over the slices with tumour; a missed one counts the diagonal.

    Pixels, 2D: the mean of both directions pooled (Heimann et al. 2009). NaN where no slice has tumour.
    """
    return _mean_over_slices(stack, lambda forth, back: (forth.sum() + back.sum()) / (forth.size + back.size))


def _mean_over_slices(stack: Stack, reduce: Callable[[Distances, Distances], float]) -> float:
    diagonal = hypot(*stack.truth.shape[1:])
    values = [reduce(*pair) if pair else diagonal for pair in _stack_distances(stack)]
    return float(np.mean(values)) if values else np.nan


def _stack_distances(stack: Stack) -> list[Directed | None]:
    """Return the distances of each slice with tumour, None where it is missed; computed once per stack."""
    if stack not in _cache:
        truth, predicted = stack.tp + stack.fn > 0, stack.tp + stack.fp > 0
        both = truth & predicted
        masks = stack.truth[both], stack.prediction[both]
        if stack.device == "cpu":
            measured: Iterator[Directed] = map(surface_distances, *masks)
        else:
            from bench.metrics._surface_gpu import stack_distances  # PyTorch, which the CPU path does not need

            measured = iter(stack_distances(*masks, stack.device))
        _cache[stack] = [next(measured) if hit else None for hit in predicted[truth]]
    return _cache[stack]


_cache: WeakKeyDictionary[Stack, list[Directed | None]] = WeakKeyDictionary()  # an entry is freed with its stack


def _percentile(values: Distances, q: float) -> float:
    """Return `np.percentile`, faster: for a hundred values NumPy spends most of its time checking arguments."""
    ascending, position = np.sort(values), q / 100 * (len(values) - 1)
    below = ascending[int(position)]
    above = ascending[min(int(position) + 1, len(values) - 1)]
    return float(below + (above - below) * (position % 1))
