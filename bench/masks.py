"""Predicted masks as packed bits: eight pixels a byte, deflated, with the index that reads them back."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.errors import StoreError

Mask = NDArray[np.bool_]


def save_masks(path: Path, predictions: Mapping[str, Mask], numbers: Mapping[str, list[int]]) -> None:
    """Write `{case: bool (S, H, W)}` with the slice numbers of each case."""
    stack = np.concatenate(list(predictions.values()))
    np.savez_compressed(
        path,
        bits=np.packbits(stack.reshape(len(stack), -1), axis=1),
        shape=np.array(stack.shape),
        case=np.repeat(list(predictions), [len(p) for p in predictions.values()]),
        slice=np.concatenate([numbers[case] for case in predictions]),
    )


def load_masks(path: Path) -> tuple[pd.DataFrame, Mask]:
    """The index (case, slice) and the masks, bool (N, H, W), row by row. Raises `StoreError`."""
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            count, height, width = file["shape"]
            bits = np.unpackbits(file["bits"], axis=1, count=height * width)
            index = pd.DataFrame({"case": file["case"], "slice": file["slice"]})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"{path} holds no masks that can be read: {error}.") from None
    return index, bits.reshape(count, height, width).astype(bool)
