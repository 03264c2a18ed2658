"""The parts of a data set that have one file of masks each in another tool: volumes, patients or slices."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.data.readers import itk
from bench.data.source import Source
from bench.formatting import file_stem


@dataclass(frozen=True)
class Unit:
    """What one file of masks may hold: some rows of a pack, all of one patient.

    `names` are those that the file may have, without suffix. `label` is the file of the true labels of a volume.
    """

    case: str
    names: tuple[str, ...]
    rows: NDArray[np.int64]
    label: Path | None = None


def whole_units(source: Source) -> list[Unit]:
    """Return the volumes of a data set, or else its patients; any tool accepts the last name of each."""
    rows = defaultdict[Path | str, list[int]](list)
    for row, entry in enumerate(source.slices):
        rows[entry.case if entry.position is None else entry.mask or entry.image].append(row)
    units = []
    for key, own in rows.items():
        case, label = source.slices[own[0]].case, key if isinstance(key, Path) else None
        name = case if label is None else label.name.removesuffix(itk.volume_suffix(label))
        units.append(Unit(case, tuple(dict.fromkeys((name, file_stem(name)))), np.array(own), label))
    return units


def slice_units(source: Source) -> list[Unit]:
    """Return the slices of a data set whose files hold one slice each."""
    units = []
    for row, entry in enumerate(source.slices):
        if entry.position is None:
            stems = [path.stem.removesuffix("_mask") for path in (entry.image, entry.mask) if path]
            units.append(Unit(entry.case, tuple(dict.fromkeys(stems)), np.array([row])))
    return units
