"""From the values that a mask file stores to a mask of 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from bench.data.source import BadFile, Pixels
from bench.errors import BadSetting

MAX_VALUES = 256  # different ones in one file; more are those of an image
TOLERANCE = 1e-3  # from a whole number

Byte = Annotated[int, Field(ge=0, le=255)]
Colours = Annotated[dict[str, tuple[Byte, Byte, Byte]], Field(min_length=1, max_length=1)]  # one structure today


@dataclass
class Foreground:
    """The stored value that is the foreground, everything above 0 if it is None, in masks of several values.

    `setting` is what the user set, and `show` writes a value as it is set. The values of each of the `files` masks
    are kept, since a value that no mask holds is an error that shows only at the last of them.
    """

    setting: str
    value: int | None
    files: int
    show: Callable[[int], object] = int
    seen: dict[Path, set[int]] = field(default_factory=dict)

    def select(self, stored: NDArray[Any], path: Path) -> Pixels:
        """Return 1 where `stored`, of any shape, is the foreground. Raises `BadFile` and `BadSetting`."""
        labels, values = to_labels(stored, path)
        self.seen[path] = set(values)
        if self.value is None:
            return (labels > 0).astype(np.uint8)
        occurring = sorted(set().union(*self.seen.values()))
        if len(self.seen) == self.files and self.value not in occurring:
            raise BadSetting(f"{self.setting} occurs in no mask. They hold {_shorten(map(self.show, occurring))}.")
        return np.asarray(labels == self.value, np.uint8)


def foreground_colour(colours: Colours, files: int) -> Foreground:
    """Return the colour of the foreground; a colour is stored as the number 0xRRGGBB."""
    ((name, levels),) = colours.items()
    setting = f"dataset.colours.{name} = {list(levels)}"
    return Foreground(setting, int.from_bytes(bytes(levels)), files, lambda code: list(code.to_bytes(3)))


def colour_codes(pixels: Pixels) -> NDArray[np.int32]:
    """Return the numbers 0xRRGGBB of colours (..., 3), or of grey pixels (..., 1)."""
    red, green, blue = np.moveaxis(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)).astype(np.int32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue, np.int32)


def to_labels(stored: NDArray[Any], path: Path) -> tuple[NDArray[Any], list[int]]:
    """Return stored values as whole numbers from 0, and those that occur. Raises `BadFile` if they are none."""
    values = np.sort(pd.unique(stored.ravel()))
    # Finite before rounding, since NaN compares as neither near nor far.
    whole = np.isfinite(values).all() and (np.abs(values - values.round()) <= TOLERANCE).all()
    if whole and values.dtype.kind == "f":
        stored, values = stored.round(), np.unique(values.round())
    if not whole or values.min() < 0 or len(values) > MAX_VALUES:
        raise BadFile(
            "mask-values",
            path,
            f"holds the values {_shorten(values)}. Labels are whole numbers from 0, at most {MAX_VALUES} of "
            "them; resample a mask by the nearest pixel and save it without scaling.",
        )
    return stored, [int(value) for value in values]


def to_binary_mask(mask: Pixels, path: Path) -> Pixels:
    """Return a mask of {0, 255} or {0, 1} as 0 and 1. Raises `BadFile`, naming `path`, for other values."""
    high = mask.max()
    if high not in (0, 1, 255) or not ((mask == 0) | (mask == high)).all():
        values = _shorten(np.unique(mask))
        raise BadFile("mask-values", path, f"holds the values {values}. A mask holds 0 and 255, or 0 and 1.")
    return (mask > 0).astype(np.uint8)


def _shorten(values: Iterable[object]) -> str:
    """Return the first five values as text."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:5]) + ", ..." * (len(texts) > 5)
