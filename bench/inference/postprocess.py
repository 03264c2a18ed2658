"""Rules that clean a predicted mask without looking at the truth.

Pixels are neighbours that share an edge in a slice, or a face in the stack; corners join nothing.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy.ndimage import binary_fill_holes, generate_binary_structure, label

from bench.config import Settings
from bench.masks import Mask

FACES = generate_binary_structure(3, 1)


EDGES = FACES & np.array([False, True, False])[:, None, None]  # of the same slice alone


class Postprocess(Settings):
    """What is done to the mask of each patient, in this order."""

    fill_holes: bool = False  # of each slice
    min_size: int = Field(0, ge=0)  # components of a slice with fewer pixels are removed
    largest: bool = False  # component of the whole stack is kept alone

    @property
    def words(self) -> list[str]:
        """What is done, for a title."""
        said = {
            "holes filled": self.fill_holes,
            f"no component under {self.min_size} pixels": self.min_size > 1,
            "largest component": self.largest,
        }
        return [words for words, done in said.items() if done]


def cleaned(mask: Mask, rules: Postprocess) -> Mask:
    """The mask of one patient, bool (S, H, W), by these rules; an empty mask stays empty."""
    mask = filled(mask) if rules.fill_holes else mask
    mask = without_small(mask, rules.min_size) if rules.min_size > 1 else mask
    return largest(mask) if rules.largest else mask


def filled(mask: Mask) -> Mask:
    """With the background of each slice, in 2D, that cannot reach the border."""
    holes: Mask = binary_fill_holes(mask, EDGES)
    return holes


def without_small(mask: Mask, size: int) -> Mask:
    """Without the components of each slice, in 2D, that have fewer than `size` pixels."""
    components, _ = label(mask, EDGES)
    kept: Mask = np.bincount(components.ravel()) >= size
    return mask & kept[components]


def largest(mask: Mask) -> Mask:
    """The component with the most pixels alone, in 3D; of equals the one that comes first in the stack.

    Neighbouring slices hang together, whatever the unknown distance between them. brain-segmentation-pytorch, by
    the authors of the LGG data, does the very same.
    """
    components, _ = label(mask, FACES)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # the background
    only: Mask = mask & (components == sizes.argmax())
    return only
