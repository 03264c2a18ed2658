"""Checks that all readers share, and the error they raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.data.source import Pixels
from bench.errors import DataError

MAX_SIDE = 4096  # pixels; a header that claims more is refused before memory is allocated


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


def check_mask_size(image: Pixels, mask: Pixels, path: Path) -> None:
    """Raise `BadFile` if a mask (H, W), read from `path`, differs in size from its image (H, W, C)."""
    if mask.shape != image.shape[:2]:
        sizes = f"{format_shape(mask.shape)}, its image {format_shape(image.shape[:2])}"
        raise BadFile("mask-size", path, f"is {sizes}. Save both with the same size.")


def to_binary_mask(mask: Pixels, path: Path) -> Pixels:
    """Return a mask of {0, 255} or {0, 1} as 0 and 1. Raises `BadFile`, naming `path`, for other values."""
    high = mask.max()
    if high not in (0, 1, 255) or not ((mask == 0) | (mask == high)).all():
        values = np.unique(mask)
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise BadFile("mask-values", path, f"holds the values {shown}. A mask holds 0 and 255, or 0 and 1.")
    return (mask > 0).astype(np.uint8)
