"""Predicted masks and probabilities by patient, (S, K, H, W) for K structures, held and saved compressed.

Masks are packed to bits. Probabilities are kept in hundredths, one byte per pixel, deflated: as a threshold is one
of 0.01, 0.02 ... 0.99, a probability is stored as the number of thresholds that it reaches, and applying any
threshold gives exactly the mask that the probability itself would.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from bench.errors import BadSetting, StoreError
from bench.structures import resolve_overlaps

THRESHOLDS = np.arange(1, 100) / 100
Mask = NDArray[np.bool_]
Hundredths = NDArray[np.uint8]


def to_hundredths(probability: NDArray[np.float32]) -> Hundredths:
    """Return how many of `THRESHOLDS` each probability reaches (`probability >= threshold`): 0 to 99."""
    edges = np.concatenate(([-np.inf], THRESHOLDS, [np.inf])).astype(np.float32)
    near = np.minimum(probability * 100, 99).astype(np.uint8)  # at most one off, by rounding
    near += probability >= edges[near + 1]
    near -= probability < edges[near]
    return near


def above_threshold(values: Hundredths, threshold: float, *, exclusive: bool) -> Mask:
    """Return where the probability of a structure reaches the threshold. Raises `BadSetting` between hundredths.

    Of several `exclusive` structures the most probable one is left, compared in hundredths.
    """
    number = round(threshold * 100)
    if not 1 <= number <= 99 or abs(number - threshold * 100) > 1e-6:
        raise BadSetting(
            f"threshold {threshold:g}: probabilities are kept in hundredths. Give 0.01, 0.02 ... or 0.99."
        )
    called: Mask = values >= number
    return resolve_overlaps(called, values) if exclusive else called


class Probabilities(Mapping[str, Hundredths]):
    """Out-of-fold probabilities by patient, in hundredths, uint8 (S, K, H, W), held deflated."""

    def __init__(self, values: Iterable[tuple[str, Hundredths]] = ()) -> None:
        self.deflated = {case: (zlib.compress(v.tobytes(), 1), v.shape) for case, v in values}

    def __getitem__(self, case: str) -> Hundredths:
        data, shape = self.deflated[case]
        return np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.deflated)

    def __len__(self) -> int:
        return len(self.deflated)

    @classmethod
    def joined(cls, parts: Iterable[Probabilities]) -> Probabilities:
        """Combine the patients of several, without inflating any."""
        whole = cls()
        for part in parts:
            whole.deflated |= part.deflated
        return whole


class Masks(Mapping[str, Mask]):
    """Predicted masks by patient, bool (S, K, H, W), held as bits, and their `probabilities` if known."""

    def __init__(
        self, masks: Iterable[tuple[str, Mask]], probabilities: Iterable[tuple[str, Hundredths]] = ()
    ) -> None:
        self.probabilities = Probabilities(probabilities)
        self.bits = {case: (np.packbits(mask.reshape(len(mask), -1), axis=1), mask.shape) for case, mask in masks}

    def __getitem__(self, case: str) -> Mask:
        return _unpack(*self.bits[case])

    def __iter__(self) -> Iterator[str]:
        return iter(self.bits)

    def __len__(self) -> int:
        return len(self.bits)

    @classmethod
    def joined(cls, parts: Iterable[Masks]) -> Masks:
        """Combine the patients of several, without unpacking any."""
        whole, every = cls(()), list(parts)
        for part in every:
            whole.bits |= part.bits
        whole.probabilities = Probabilities.joined(part.probabilities for part in every)
        return whole

    def of(self, cases: Iterable[str]) -> Masks:
        """Return those of some patients."""
        wanted, part = set(cases), Masks(())
        part.bits = {case: bits for case, bits in self.bits.items() if case in wanted}
        deflated = self.probabilities.deflated
        part.probabilities.deflated = {case: data for case, data in deflated.items() if case in wanted}
        return part

    def state(self) -> dict[str, Any]:
        """Return plain values for `bench.training.checkpoint.write_state`."""
        packed = {case: (bits.tobytes(), list(shape)) for case, (bits, shape) in self.bits.items()}
        deflated = {case: (data, list(shape)) for case, (data, shape) in self.probabilities.deflated.items()}
        return {"masks": packed, "probabilities": deflated}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Masks:
        """Restore what `state` returned."""
        masks = cls(())
        for case, (data, shape) in state["masks"].items():
            masks.bits[case] = np.frombuffer(data, np.uint8).reshape(shape[0], -1), tuple(shape)
        for case, (data, shape) in state["probabilities"].items():
            masks.probabilities.deflated[case] = data, tuple(shape)
        return masks


def save_masks(path: Path, masks: Masks, numbers: Mapping[str, list[int]]) -> None:
    """Write masks of one size as .npz, with the slice numbers of each case.

    The shape in the file is (N, H, W) for one structure and (N, K, H, W) for several; so it is for probabilities.
    """
    packed, shapes = zip(*masks.bits.values(), strict=True)
    bits = np.concatenate(packed)
    np.savez_compressed(
        path,
        bits=bits,
        shape=_in_file(np.array((len(bits), *shapes[0][1:]))),
        case=np.repeat(list(masks), [len(p) for p in packed]),
        slice=np.concatenate([numbers[case] for case in masks]),
    )


def load_masks(path: Path) -> tuple[pd.DataFrame, Mask]:
    """Return the index (case, slice) and the masks, bool (N, K, H, W), row by row. Raises `StoreError`."""
    with _open_npz(path, "masks") as file:
        masks = _unpack(file["bits"], tuple(map(int, _in_memory(file["shape"]))))
        return pd.DataFrame({"case": file["case"], "slice": file["slice"]}), masks


def save_probabilities(path: Path, probabilities: Probabilities, numbers: Mapping[str, list[int]]) -> None:
    """Write probabilities as .npz, with the slice numbers of each case."""
    data, shapes = zip(*probabilities.deflated.values(), strict=True)
    np.savez(
        path,
        deflated=np.frombuffer(b"".join(data), np.uint8),
        ends=np.cumsum([len(part) for part in data]),
        shapes=_in_file(np.array(shapes)),
        case=list(probabilities),
        slice=np.concatenate([numbers[case] for case in probabilities]),
    )


def load_probabilities(path: Path) -> tuple[pd.DataFrame, Probabilities]:
    """Return the index (case, slice) and the probabilities. Raises `StoreError`."""
    with _open_npz(path, "probabilities") as file:
        probabilities = Probabilities()
        parts = np.split(file["deflated"], file["ends"][:-1])
        for case, part, shape in zip(file["case"], parts, _in_memory(file["shapes"]), strict=True):
            probabilities.deflated[str(case)] = part.tobytes(), tuple(map(int, shape))
        cases = np.repeat(file["case"], file["shapes"][:, 0])
        return pd.DataFrame({"case": cases, "slice": file["slice"]}), probabilities


@contextmanager
def _open_npz(path: Path, name: str) -> Iterator[NpzFile]:
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            yield file
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StoreError(f"{path} holds no {name} that can be read: {error}.") from None


def _unpack(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> Mask:
    return np.unpackbits(bits, axis=1, count=math.prod(shape[1:])).reshape(shape).view(bool)


def _in_file(shapes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Leave out the number of structures, the second of (..., 4) sizes, if it is 1 everywhere."""
    return np.delete(shapes, 1, -1) if (shapes[..., 1] == 1).all() else shapes


def _in_memory(shapes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.insert(shapes, 1, 1, -1) if shapes.shape[-1] == 3 else shapes
