"""What a dataset function returns, and the checks that its readers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import DataError

Pixels = NDArray[np.uint8]

MAX_SIDE = 4096  # pixels; a header that claims more is refused before memory is allocated


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


class BadFile(DataError):
    """One file that cannot be used. `code` names the problem, `path` the file."""

    def __init__(self, code: str, path: Path, sentence: str) -> None:
        super().__init__(f"{path} {sentence}")
        self.code, self.path = code, path

    def __reduce__(self) -> tuple[Any, ...]:  # pickle would call an exception of three arguments with one
        return BadFile, (self.code, self.path, str(self).removeprefix(f"{self.path} "))


def format_shape(shape: tuple[int, ...]) -> str:
    """Return a shape as text, such as '256x256'."""
    return "x".join(map(str, shape))


def by_name(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return `{name: file}`. Raises `DataError` for two files of one name."""
    named: dict[str, Path] = {}
    for name, path in files:
        if name in named:
            raise DataError(f"{named[name]} and {path} have the same name. Keep one of them.")
        named[name] = path
    return named


def check_mask_size(image: Pixels, mask: NDArray[Any], path: Path) -> None:
    """Raise `BadFile` if a mask (..., H, W), read from `path`, differs in size from its image (..., H, W, C)."""
    if mask.shape != image.shape[:-1]:
        sizes = f"{format_shape(mask.shape)}, its image {format_shape(image.shape[:-1])}"
        raise BadFile("mask-size", path, f"is {sizes}. Save both with the same size.")


def to_binary_mask(mask: Pixels, path: Path) -> Pixels:
    """Return a mask of {0, 255} or {0, 1} as 0 and 1. Raises `BadFile`, naming `path`, for other values."""
    high = mask.max()
    if high not in (0, 1, 255) or not ((mask == 0) | (mask == high)).all():
        values = np.unique(mask)
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise BadFile("mask-values", path, f"holds the values {shown}. A mask holds 0 and 255, or 0 and 1.")
    return (mask > 0).astype(np.uint8)
