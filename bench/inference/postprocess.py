"""Rules that clean a predicted mask without looking at the truth.

Pixels are connected by a shared edge in a slice, or by a shared face in the stack, never by corners.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy.ndimage import binary_fill_holes, generate_binary_structure, label

from bench.masks import Mask
from bench.settings import Settings

FACES = generate_binary_structure(3, 1)
EDGES = FACES & np.array([False, True, False])[:, None, None]  # within a slice


class Postprocess(Settings):
    """The rules that are applied to the mask of each patient, in this order."""

    fill_holes: bool = False  # of each slice
    min_size: int = Field(0, ge=0)  # pixels; smaller components of a slice are removed
    largest: bool = False  # keep only the largest component of the whole stack

    @property
    def descriptions(self) -> list[str]:
        """The active rules in words, for a title."""
        rules = {
            "holes filled": self.fill_holes,
            f"no component under {self.min_size} pixels": self.min_size > 1,
            "largest component": self.largest,
        }
        return [words for words, active in rules.items() if active]


def clean(mask: Mask, rules: Postprocess) -> Mask:
    """Return the masks of one patient, bool (S, K, H, W), each structure after these rules; empty ones stay empty.

    A hole that another structure fills stays: the mask of one structure never takes a pixel from another.
    """
    return np.stack(
        [_clean(mask[:, k], np.asarray(np.delete(mask, k, 1).any(1)), rules) for k in range(mask.shape[1])], 1
    )


def _clean(mask: Mask, others: Mask, rules: Postprocess) -> Mask:
    mask = fill_holes(mask) & ~(others & ~mask) if rules.fill_holes else mask
    mask = remove_small(mask, rules.min_size) if rules.min_size > 1 else mask
    return keep_largest(mask) if rules.largest else mask


def fill_holes(mask: Mask) -> Mask:
    """Add the background of each slice, in 2D, that is not connected to the border."""
    filled: Mask = binary_fill_holes(mask, EDGES)
    return filled


def remove_small(mask: Mask, size: int) -> Mask:
    """Remove the components of each slice, in 2D, that have fewer than `size` pixels."""
    components, _ = label(mask, EDGES)
    large: Mask = np.bincount(components.ravel()) >= size
    return mask & large[components]


def keep_largest(mask: Mask) -> Mask:
    """Keep only the component with the most pixels, in 3D; of equal ones, the first in the stack.

    Neighbouring slices are connected whatever their distance, which is unknown. brain-segmentation-pytorch, by the
    authors of the LGG data, does the same.
    """
    components, _ = label(mask, FACES)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # the background
    largest: Mask = mask & (components == sizes.argmax())
    return largest
