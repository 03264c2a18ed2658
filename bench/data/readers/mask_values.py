"""From the values that a mask file stores to the structures that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from bench.data.source import BadFile, Bits, Pixels
from bench.errors import BadSetting
from bench.structures import Structures, join_bits, make_structures

MAX_VALUES = 256  # different ones in one file; more are those of an image
TOLERANCE = 1e-3  # from a whole number

Byte = Annotated[int, Field(ge=0, le=255)]
Colours = Annotated[dict[str, tuple[Byte, Byte, Byte]], Field(min_length=1)]
Value = Annotated[int, Field(ge=1, lt=2**32)]
Values = Annotated[dict[str, Value | tuple[Value, ...]], Field(min_length=1)]  # of each structure, by its name


def as_tuples(values: Values) -> dict[str, tuple[int, ...]]:
    """Return the values of each structure, a single one as a tuple of one."""
    return {name: (own,) if isinstance(own, int) else own for name, own in values.items()}


@dataclass
class LabelMap:
    """What the values of masks stand for. A structure without values is everything above 0.

    `setting` names where the values come from, and `show` writes a value as it is set there. With `complete`,
    every value other than 0 must belong to a structure. The values of each of the `files` masks are kept, since a
    structure that no mask holds is an error that shows only at the last of them.
    """

    structures: Structures
    files: int
    setting: str = "dataset.structures"
    show: Callable[[int], object] = int
    complete: bool = False
    seen: dict[Path, set[int]] = field(default_factory=dict)

    def read(self, stored: NDArray[Any], path: Path) -> Bits:
        """Return the structures (..., H, W) of stored values, as `join_bits` does. Raises `BenchError`."""
        labels, values = to_labels(stored, path)
        self.seen[path] = set(values)
        named = self.structures.values
        if named == ((),):
            return (labels > 0).astype(np.uint8)
        if self.complete and (unknown := self.seen[path].difference({0}, *named)):
            sentence = f"holds the value {min(unknown)}, which {self.setting} does not name. Fix one of them."
            raise BadFile("mask-values", path, sentence)
        occurring = sorted(set().union(*self.seen.values()))
        for name, own in zip(self.structures.names, named, strict=True):
            if len(self.seen) == self.files and not set(own) & set(occurring):
                key = self.setting if self.setting == "dataset.label" else f"{self.setting}.{name}"
                wanted, there = (_shorten(map(self.show, values)) for values in (own, occurring))
                raise BadSetting(f"{key} = {wanted} occurs in no mask. They hold {there}.")
        return join_bits(np.stack([np.isin(labels, own) for own in named], -3), self.structures)


def colour_map(colours: Colours, files: int) -> LabelMap:
    """Return the structures of colours; a colour is stored as the number 0xRRGGBB, and black is the background."""
    codes = {name: (int.from_bytes(bytes(levels)),) for name, levels in colours.items()}
    structures = make_structures(codes, setting="dataset.colours")
    return LabelMap(structures, files, "dataset.colours", lambda code: list(code.to_bytes(3)))


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
        raise BadFile(
            "mask-values",
            path,
            f"holds the values {values}. A mask holds 0 and 255, or 0 and 1; pairs reads other values if they "
            "are named: --set 'dataset.structures={liver: 1, kidneys: [2, 3]}'.",
        )
    return (mask > 0).astype(np.uint8)


def _shorten(values: Iterable[object]) -> str:
    """Return the first five values as text."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:5]) + ", ..." * (len(texts) > 5)
