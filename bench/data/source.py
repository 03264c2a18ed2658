from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def by_area(image: Pixels, side: int) -> Pixels:
    """An image (H, W, C) at `side` pixels square, each the mean of what it covers."""
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8).reshape(side, side, -1)  # OpenCV drops a single channel


@dataclass(frozen=True)
class SliceFile:
    """One slice on disk and whose it is. `mask` is None for a scan without a truth.

    `place` is that of a slice in a file that holds several, from 0.
    """

    case: str
    number: int
    institution: str
    image: Path
    mask: Path | None
    place: int | None = None


@dataclass(frozen=True)
class Source:
    """A data set found on disk, before its pixels are read.

    `read` gives an image uint8 (H, W, C) and a mask uint8 (H, W) of 0 and 1, or raises `DataError`.
    `notes` are things that a user must hear, such as a second copy of the tree that was left out.
    """

    name: str
    slices: tuple[SliceFile, ...]  # ordered by case, then by number
    read: Callable[[SliceFile], tuple[Pixels, Pixels]]
    channels: tuple[str, ...]
    licence: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    variant: str = ""  # whatever else `read` depends on, such as a resize
    beside: tuple[Path, ...] = ()  # files that `read` opens and no slice names, such as further channels
