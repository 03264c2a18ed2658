"""Structures: the named regions that a data set marks, such as the anterior and posterior hippocampus.

Masks and probabilities of K structures are arrays (S, K, H, W). Whatever is binary (metrics, losses, thresholds,
rules that clean a mask) is applied to each structure by itself. Most data sets have one structure: K = 1.

A column of a table that belongs to one structure has its name in brackets, `dice[anterior]`; the plain `dice` is
the mean over structures. With one structure there are only plain columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.errors import BadSetting, UnknownName, did_you_mean

V = TypeVar("V")

# For structures in pictures, safe for colour-blind readers on grey (Okabe and Ito 2008).
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2")
MOST = 32  # structures: a pixel of a pack has one bit for each


def colour_of(structure: int) -> str:
    """Return the colour of a structure by its position."""
    return COLOURS[structure % len(COLOURS)]


@dataclass(frozen=True)
class Structures:
    """The structures of a data set, by name.

    `values` are the numbers that stand for each structure in a label map, empty for a mask of one structure. If
    they are `exclusive`, a pixel belongs to at most one of them; otherwise they may overlap, as a tumour and its
    core do.
    """

    names: tuple[str, ...] = ("tumour",)
    values: tuple[tuple[int, ...], ...] = ((),)
    exclusive: bool = True

    def __len__(self) -> int:
        return len(self.names)

    @property
    def bits(self) -> type[np.unsignedinteger]:
        """The smallest type that has a bit for each structure."""
        return np.uint8 if len(self) <= 8 else np.uint16 if len(self) <= 16 else np.uint32

    @property
    def noun(self) -> str:
        """What a slice shows, in a sentence: the only structure, or 'a structure'."""
        return self.names[0] if len(self) == 1 else "a structure"

    def label_maps(self, masks: NDArray[np.bool_]) -> dict[str, NDArray[np.unsignedinteger]]:
        """Return masks (S, K, H, W) as label maps (S, H, W), each with the end of its file name.

        Exclusive structures share one map of the data set's own values; others have a map of 0 and 1 each.
        """
        if not self.exclusive:
            return {f"_{name}": masks[:, k].astype(np.uint8) for k, name in enumerate(self.names)}
        values = [own[0] if own else 1 for own in self.values]
        labels = np.zeros((len(masks), *masks.shape[2:]), np.min_scalar_type(max(values)))
        for k, value in enumerate(values):
            labels[masks[:, k]] = value
        return {"": labels}

    def image_maps(self, masks: NDArray[np.bool_]) -> dict[str, NDArray[np.unsignedinteger]]:
        """Return `label_maps` for image files: a single structure is 0 and 255, as most tools show and read it."""
        return self.label_maps(masks) if len(self) > 1 else {"": masks[:, 0].astype(np.uint8) * np.uint8(255)}


TUMOUR = Structures()  # of data sets that name none


def make_structures(
    values: Mapping[str, Sequence[int]], exclusive: bool | None = None, *, setting: str = "dataset.structures"
) -> Structures:
    """Return structures from their names and the values that stand for them; names become lower case.

    They are exclusive unless two share a value, or `exclusive` says otherwise. Raises `BadSetting`.
    """
    names = [re.sub(r"[^\w-]+", "_", name.strip().lower()).strip("_") for name in values]
    if not 1 <= len(names) <= MOST or not all(names) or len(set(names)) < len(names):
        raise BadSetting(
            f"{setting} names {', '.join(map(repr, values)) or 'nothing'}. Give 1 to {MOST} names that differ in "
            "letters or digits."
        )
    if empty := [name for name, own in values.items() if not own or min(own) < 1]:
        raise BadSetting(f"{setting}.{empty[0]} needs values above 0, such as 1 or [1, 2]; 0 is the background.")
    all_values = [value for own in values.values() for value in set(own)]
    overlap = len(set(all_values)) < len(all_values)
    if exclusive and overlap:
        raise BadSetting(f"two structures of {setting} share a value, so dataset.exclusive=true cannot be.")
    return Structures(
        tuple(names), tuple(tuple(own) for own in values.values()), not overlap if exclusive is None else exclusive
    )


def join_bits(masks: NDArray[np.bool_], structures: Structures) -> NDArray[np.unsignedinteger]:
    """Return masks (..., K, H, W) as one number for each pixel, (..., H, W): bit k is structure k."""
    bits = np.zeros((*masks.shape[:-3], *masks.shape[-2:]), structures.bits)
    for k in range(len(structures)):
        bits |= masks[..., k, :, :].astype(structures.bits) << structures.bits(k)
    return bits


def split_bits(bits: NDArray[np.unsignedinteger], count: int) -> NDArray[np.bool_]:
    """Return numbers (..., H, W) as the masks of `count` structures, bool (..., K, H, W)."""
    return np.stack([(bits >> bits.dtype.type(k) & bits.dtype.type(1)).astype(bool) for k in range(count)], -3)


def resolve_overlaps(called: NDArray[np.bool_], probability: NDArray[np.number]) -> NDArray[np.bool_]:
    """Leave, of the structures called at a pixel, the most probable one; of equal ones, the first.

    called, probability: (S, K, H, W). For exclusive structures.
    """
    if called.shape[1] == 1:
        return called
    best = np.where(called, probability.astype(np.float32), -1).argmax(1)
    chosen: NDArray[np.bool_] = called & (best[:, None] == np.arange(called.shape[1])[:, None, None])
    return chosen


def call_structures(
    probability: NDArray[np.float32], thresholds: Sequence[float], *, exclusive: bool
) -> NDArray[np.bool_]:
    """Return where each structure is predicted, (S, K, H, W): its probability reaches its threshold.

    Of several `exclusive` structures only the most probable one is left.
    """
    called = np.stack([probability[:, k] >= threshold for k, threshold in enumerate(thresholds)], 1)
    return resolve_overlaps(called, probability) if exclusive else called


def structure_column(name: str, structure: str) -> str:
    """Return the name of a column that belongs to one structure."""
    return f"{name}[{structure}]"


def per_structure(name: str, structures: Sequence[str], values: Iterable[V]) -> dict[str, V]:
    """Return one value of each structure by the name of its column; a single value by the plain `name`."""
    each = list(values)
    columns = [name] if len(each) == 1 else [structure_column(name, structure) for structure in structures]
    return dict(zip(columns, each, strict=True))


def plain_column(column: str) -> str:
    """Return the name of a column without the structure that it belongs to."""
    return column.partition("[")[0]


def structures_in(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the structures that a table of scores has columns for, in their order; none if it has only one."""
    found = (str(c).partition("[") for c in columns if str(c).endswith("]"))
    return tuple(dict.fromkeys(rest[:-1] for _, _, rest in found))


def noun_of(columns: Iterable[str], structure: str | None = None) -> str:
    """Return what a table of scores is about, as a word: `structure`, or 'structure' if there are several."""
    return structure or ("structure" if structures_in(columns) else TUMOUR.noun)


def unknown_structure(name: str, known: Sequence[str], alone: str) -> UnknownName:
    """Return the error that there is no such structure; `alone` is said where none has a name."""
    there = f"there is {', '.join(known)}" if known else alone
    return UnknownName(f"no structure '{name}'; {there}.{did_you_mean(name, known)}")


def select_structure(table: pd.DataFrame, structure: str | None) -> pd.DataFrame:
    """Return a table of scores as if `structure` were the only one: its columns under their plain names.

    Columns that belong to no structure stay; for None all columns do. Raises `UnknownName`.
    """
    if structure is None:
        return table
    known = structures_in(table.columns)
    if structure not in known:
        raise unknown_structure(structure, known, "the data have only one")
    plain = [c for c in table.columns if not str(c).endswith("]")]
    sources = [own if (own := structure_column(c, structure)) in table else c for c in plain]
    extra = [
        c for c in table.columns if str(c).endswith(f"[{structure}]") and str(c).partition("[")[0] not in plain
    ]
    return table[[*sources, *extra]].set_axis([*plain, *(str(c).partition("[")[0] for c in extra)], axis=1)
