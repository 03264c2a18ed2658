"""Predicted probabilities in hundredths: a byte a pixel, deflated; enough for every threshold that may be chosen.

A threshold is 0.01, 0.02 ... 0.99. A probability is kept as the number of them that it reaches, so that calling
at any of them gives the very mask that the probability itself would.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.errors import BadSetting, StoreError

THRESHOLDS = np.arange(1, 100) / 100
Hundredths = NDArray[np.uint8]


def hundredths(probability: NDArray[np.float32]) -> Hundredths:
    """How many of `THRESHOLDS` each probability reaches, as `probability >= threshold` has it: 0 to 99."""
    edges = np.concatenate(([-np.inf], THRESHOLDS, [np.inf])).astype(np.float32)
    near = np.minimum(probability * 100, 99).astype(np.uint8)  # at most one off, from rounding
    near += probability >= edges[near + 1]
    near -= probability < edges[near]
    return near


def reached(values: Hundredths, threshold: float) -> NDArray[np.bool_]:
    """Where the probability is at least the threshold. Raises `BadSetting` between hundredths."""
    number = round(threshold * 100)
    if not 1 <= number <= 99 or abs(number - threshold * 100) > 1e-6:
        raise BadSetting(
            f"threshold {threshold:g}: probabilities are kept in hundredths. Give 0.01, 0.02 ... or 0.99."
        )
    called: NDArray[np.bool_] = values >= number
    return called


class Probabilities(Mapping[str, Hundredths]):
    """Out-of-fold probabilities by patient, in hundredths, uint8 (S, H, W), held deflated."""

    def __init__(self, given: Iterable[tuple[str, Hundredths]] = ()) -> None:
        self.deflated = {case: (zlib.compress(values.tobytes(), 1), values.shape) for case, values in given}

    @classmethod
    def joined(cls, parts: Iterable[Probabilities]) -> Probabilities:
        """The patients of several, without inflating any."""
        whole = cls()
        for part in parts:
            whole.deflated |= part.deflated
        return whole

    def __getitem__(self, case: str) -> Hundredths:
        data, shape = self.deflated[case]
        return np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.deflated)

    def __len__(self) -> int:
        return len(self.deflated)


def save_probabilities(path: Path, probabilities: Probabilities, numbers: Mapping[str, list[int]]) -> None:
    """Write them with the slice numbers of each case."""
    data, shapes = zip(*probabilities.deflated.values(), strict=True)
    np.savez(
        path,
        deflated=np.frombuffer(b"".join(data), np.uint8),
        ends=np.cumsum([len(part) for part in data]),
        shapes=np.array(shapes),
        case=list(probabilities),
        slice=np.concatenate([numbers[case] for case in probabilities]),
    )


def load_probabilities(path: Path) -> tuple[pd.DataFrame, Probabilities]:
    """The index (case, slice) and the probabilities. Raises `StoreError`."""
    found = Probabilities()
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            parts = np.split(file["deflated"], file["ends"][:-1])
            for case, part, shape in zip(file["case"], parts, file["shapes"], strict=True):
                found.deflated[str(case)] = part.tobytes(), tuple(map(int, shape))
            index = pd.DataFrame({"case": np.repeat(file["case"], file["shapes"][:, 0]), "slice": file["slice"]})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"{path} holds no probabilities that can be read: {error}.") from None
    return index, found
