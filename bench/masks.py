"""Predicted masks as packed bits: eight pixels a byte, deflated, with the index that reads them back."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.errors import BadSetting, StoreError

Mask = NDArray[np.bool_]


class Masks(Mapping[str, Mask]):
    """Predicted masks by patient, bool (S, H, W), held as bits: an eighth of the memory that they are shown in.

    `probabilities` are what they were called from, where that is known.
    """

    def __init__(
        self, masks: Iterable[tuple[str, Mask]], probabilities: Iterable[tuple[str, Hundredths]] = ()
    ) -> None:
        self.probabilities = Probabilities(probabilities)
        self.bits = {case: (np.packbits(mask.reshape(len(mask), -1), axis=1), mask.shape) for case, mask in masks}

    @classmethod
    def joined(cls, parts: Iterable[Masks]) -> Masks:
        """The patients of several, without unpacking any."""
        whole, every = cls(()), list(parts)
        for part in every:
            whole.bits |= part.bits
        whole.probabilities = Probabilities.joined(part.probabilities for part in every)
        return whole

    def state(self) -> dict[str, Any]:
        """Plain values, for `bench.training.checkpoint.write_state`."""
        packed = {case: (bits.tobytes(), list(shape)) for case, (bits, shape) in self.bits.items()}
        deflated = {case: (data, list(shape)) for case, (data, shape) in self.probabilities.deflated.items()}
        return {"masks": packed, "probabilities": deflated}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Masks:
        """What `state` gave."""
        made = cls(())
        for case, (data, shape) in state["masks"].items():
            made.bits[case] = np.frombuffer(data, np.uint8).reshape(shape[0], -1), tuple(shape)
        for case, (data, shape) in state["probabilities"].items():
            made.probabilities.deflated[case] = data, tuple(shape)
        return made

    def of(self, cases: Iterable[str]) -> Masks:
        """Those of some patients alone."""
        wanted, part = set(cases), Masks(())
        part.bits = {case: bits for case, bits in self.bits.items() if case in wanted}
        kept = self.probabilities.deflated
        part.probabilities.deflated = {case: data for case, data in kept.items() if case in wanted}
        return part

    def __getitem__(self, case: str) -> Mask:
        bits, shape = self.bits[case]
        return _unpacked(bits, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)


def save_masks(path: Path, masks: Masks, numbers: Mapping[str, list[int]]) -> None:
    """Write masks of one size with the slice numbers of each case."""
    packed, shapes = zip(*masks.bits.values(), strict=True)
    bits = np.concatenate(packed)
    np.savez_compressed(
        path,
        bits=bits,
        shape=np.array((len(bits), *shapes[0][1:])),
        case=np.repeat(list(masks), [len(p) for p in packed]),
        slice=np.concatenate([numbers[case] for case in masks]),
    )


def load_masks(path: Path) -> tuple[pd.DataFrame, Mask]:
    """The index (case, slice) and the masks, bool (N, H, W), row by row. Raises `StoreError`."""
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            masks = _unpacked(file["bits"], tuple(file["shape"]))
            index = pd.DataFrame({"case": file["case"], "slice": file["slice"]})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"{path} holds no masks that can be read: {error}.") from None
    return index, masks


def _unpacked(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> Mask:
    count, height, width = shape
    return np.unpackbits(bits, axis=1, count=height * width).reshape(count, height, width).view(bool)


THRESHOLDS = np.arange(1, 100) / 100


Hundredths = NDArray[np.uint8]


def to_hundredths(probability: NDArray[np.float32]) -> Hundredths:
    """How many of `THRESHOLDS` each probability reaches, as `probability >= threshold` has it: 0 to 99."""
    edges = np.concatenate(([-np.inf], THRESHOLDS, [np.inf])).astype(np.float32)
    near = np.minimum(probability * 100, 99).astype(np.uint8)  # at most one off, from rounding
    near += probability >= edges[near + 1]
    near -= probability < edges[near]
    return near


def above_threshold(values: Hundredths, threshold: float) -> NDArray[np.bool_]:
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
