"""What the figures are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import registry
from bench.pack import Pack, Source, packed

BATCH = 16


@dataclass(frozen=True)
class Problem:
    """A data set as files and as a pack, and how long to measure."""

    source: Source
    pack: Pack
    repeats: int
    images: int  # a turn

    def batches(self, seed: int) -> list[NDArray[np.int64]]:
        """Rows of random slices, drawn with replacement: as many a turn however small the data set is."""
        rows = np.random.default_rng(seed).integers(0, len(self.pack.index), self.images)
        return [rows[at : at + BATCH] for at in range(0, self.images, BATCH)]


def problem(folder: Path | None = None, *, repeats: int = 7, quick: bool = False) -> Problem:
    """The data of `folder`, or a phantom whose patients are as large as those of LGG, or tiny ones if `quick`."""
    size = {"patients": 2, "size": 64, "slices": 6} if quick else {"patients": 6, "size": 256, "slices": 33}
    choice = ("lgg", {"folder": folder}) if folder else ("phantom", size | {"institutions": 1})
    source = registry.dataset[choice[0]].bind(choice[1])()
    return Problem(source, packed(source), repeats, 2 * BATCH if quick else 32 * BATCH)
