"""Distances between the outlines of two masks, in pixels and in 2D.

The pixel spacing and the slice thickness are unknown, so millimetres and 3D distances would be guesses.
A slice with tumour is measured; one where nothing is predicted costs the image diagonal, sqrt(H² + W²), and is
never dropped. A prediction on a slice without tumour has no distance: it shows as a false-positive slice.
"""

from __future__ import annotations

from collections.abc import Callable
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


PAIRS_A_PIXEL = 16  # a distance transform of one pixel costs as much as trying 20 to 25 pairs (measured)


def surface(mask: Mask) -> Mask:
    """The pixels of `mask` with a background pixel among their 4 neighbours; outside the image is background."""
    inside = cv2.erode(mask.astype(np.uint8), CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    edge: Mask = mask & (inside == 0)
    return edge


def surface_distances(truth: Mask, prediction: Mask) -> Directed:
    """From each surface pixel of either mask (H, W) the distance to the other's surface. Neither may be empty."""
    left, top, width, height = cv2.boundingRect((truth | prediction).astype(np.uint8))
    # Both surfaces lie in this window and all around it is background: nothing outside can change a distance.
    window = np.s_[top : top + height, left : left + width]
    true, predicted = surface(truth[window]), surface(prediction[window])
    here, there = np.argwhere(true), np.argwhere(predicted)
    if len(here) * len(there) > PAIRS_A_PIXEL * true.size:  # ragged outlines
        return distance_transform_edt(~predicted)[true], distance_transform_edt(~true)[predicted]
    squared = cdist(here, there, "sqeuclidean")
    return np.sqrt(squared.min(1)), np.sqrt(squared.min(0))


def slice_hd95(truth: Mask, prediction: Mask) -> float:
    """95% Hausdorff distance of one slice (H, W), in pixels; the conventions are those of the module.

    The larger of the two directed 95th percentiles (Maier-Hein et al. 2024, Metrics Reloaded; so does MONAI).
    MedPy takes one percentile of both directions pooled, which hides a small far-off false positive.
    """
    return hd95(Stack(truth[None], prediction[None].astype(np.float32)))


def slice_assd(truth: Mask, prediction: Mask) -> float:
    """Average symmetric surface distance of one slice (H, W), in pixels: the mean of both directions pooled."""
    return assd(Stack(truth[None], prediction[None].astype(np.float32)))


@metric(higher=False, unit="pixels")
def hd95(stack: Stack) -> float:
    """95% Hausdorff distance, the mean over the slices with tumour; a missed slice counts the image diagonal.

    Pixels, 2D (Huttenlocher et al. 1993 for the distance; see `slice_hd95`). NaN where no slice has tumour.
    """
    return _mean_over_tumour(stack, lambda there, back: max(_percentile(there, 95), _percentile(back, 95)))


@metric(higher=False, unit="pixels")
def assd(stack: Stack) -> float:
    """Average symmetric surface distance, the mean over the slices with tumour; a missed one counts the diagonal.

    Pixels, 2D (Heimann et al. 2009). NaN where no slice has tumour.
    """
    return _mean_over_tumour(stack, lambda there, back: (there.sum() + back.sum()) / (there.size + back.size))


def _mean_over_tumour(stack: Stack, reduce: Callable[[Distances, Distances], float]) -> float:
    diagonal = hypot(*stack.truth.shape[1:])
    found = [reduce(*pair) if pair else diagonal for pair in _distances(stack)]
    return float(np.mean(found)) if found else np.nan


def _distances(stack: Stack) -> list[Directed | None]:
    """Of each slice with tumour the distances, None where it is missed: found once for all metrics of a stack."""
    if stack not in _found:
        present, called = stack.tp + stack.fn > 0, stack.tp + stack.fp > 0
        measured = iter(_measured(stack.truth[present & called], stack.prediction[present & called], stack.device))
        _found[stack] = [next(measured) if hit else None for hit in called[present]]
    return _found[stack]


def _measured(truth: Mask, prediction: Mask, device: str) -> list[Directed]:
    """`surface_distances` of each slice: one after the other on the CPU, all at once on anything else."""
    if device == "cpu":
        return [surface_distances(t, p) for t, p in zip(truth, prediction, strict=True)]
    from bench.metrics._surface_gpu import stack_distances  # PyTorch, which a CPU can do without

    return stack_distances(truth, prediction, device)


_found: WeakKeyDictionary[Stack, list[Directed | None]] = WeakKeyDictionary()  # an entry goes with its stack


def _percentile(values: Distances, q: float) -> float:
    """`np.percentile`, which takes longer to check its arguments than to answer for a hundred values."""
    ranked, at = np.sort(values), q / 100 * (len(values) - 1)
    below = ranked[int(at)]
    return float(below + (ranked[min(int(at) + 1, len(values) - 1)] - below) * (at % 1))
