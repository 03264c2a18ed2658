"""The box of non-zero pixels of each patient, which `input.crop` cuts every slice to, as nnU-Net does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.data.source import Pixels

Box: TypeAlias = tuple[slice, slice]  # rows and columns


def foreground_boxes(images: Pixels, patients: Sequence[str]) -> list[Box]:
    """Return for each slice of images (N, H, W, C) the smallest box with all non-zero pixels of its patient.

    All slices and channels of a patient count together. A patient without any such pixel has the whole slice.
    """
    brightest = {patient: np.zeros(images.shape[1:], np.uint8) for patient in patients}
    for image, patient in zip(images, patients, strict=True):
        np.maximum(brightest[patient], image, out=brightest[patient])
    inside = {patient: np.asarray(image.any(-1)) for patient, image in brightest.items()}
    boxes = {p: (_extent(np.asarray(i.any(1))), _extent(np.asarray(i.any(0)))) for p, i in inside.items()}
    return [boxes[patient] for patient in patients]


def scale_box(box: Box, shape: tuple[int, int], to: tuple[int, int]) -> Box:
    """Return a box of a slice of `shape` on a slice of another size, rounded outwards."""
    rows, columns = (
        slice(side.start * new // old, -(-side.stop * new // old))
        for side, old, new in zip(box, shape, to, strict=True)
    )
    return rows, columns


def _extent(occupied: NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(occupied)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, len(occupied))
