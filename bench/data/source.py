"""What a dataset function returns: which slices a folder holds, and how to read one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SliceFile:
    """One slice on disk. `mask` is None for an image without a reference mask.

    `position` is the index of the slice, from 0, in a file that holds several; else None.
    """

    case: str
    number: int
    institution: str
    image: Path
    mask: Path | None
    position: int | None = None


@dataclass(frozen=True)
class Source:
    """A dataset on disk, before its pixels are read.

    `read` returns an image uint8 (H, W, C) and a mask uint8 (H, W) of 0 and 1, or raises `DataError`.
    `notes` are sentences that the user must see, such as one about a duplicated folder that is not used.
    """

    name: str
    slices: tuple[SliceFile, ...]  # ordered by case, then by number
    read: Callable[[SliceFile], tuple[Pixels, Pixels]]
    channels: tuple[str, ...]
    licence: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    variant: str = ""  # settings that change what `read` returns, such as a resize
    extra_files: tuple[Path, ...] = ()  # files that `read` opens and no slice names, such as further channels
