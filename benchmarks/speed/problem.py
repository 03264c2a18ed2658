"""What the figures are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench import registry
from bench.data.pack import Pack, load_or_pack
from bench.data.source import Source
from bench.device import find_device

BATCH = 16


@dataclass(frozen=True)
class SpeedProblem:
    """A data set as files and as a pack, and how long to measure."""

    source: Source
    pack: Pack
    repeats: int
    images: int  # a turn
    device: torch.device = torch.device("cpu")  # noqa: RUF009, it cannot change
    quick: bool = False  # only to see that it works

    def batches(self, seed: int) -> list[NDArray[np.int64]]:
        """Rows of random slices, drawn with replacement: as many a turn however small the data set is."""
        rows = self.rows(self.images, seed)
        return [rows[at : at + BATCH] for at in range(0, self.images, BATCH)]

    def rows(self, count: int, seed: int) -> NDArray[np.int64]:
        """Random slices, drawn with replacement."""
        return np.random.default_rng(seed).integers(0, len(self.pack.index), count)


def problem(
    folder: Path | None = None, *, repeats: int = 7, quick: bool = False, device: str = "cpu"
) -> SpeedProblem:
    """The data of `folder`, or a phantom whose patients are as large as those of LGG, or tiny ones if `quick`."""
    size = {"patients": 2, "size": 64, "slices": 6} if quick else {"patients": 6, "size": 256, "slices": 33}
    choice = ("lgg", {"folder": folder}) if folder else ("phantom", size | {"institutions": 1})
    source = registry.dataset[choice[0]].bind(choice[1])()
    found = find_device(device)
    batches = 2 if quick else 32 if found.type == "cpu" else 256
    return SpeedProblem(source, load_or_pack(source), repeats, batches * BATCH, found, quick)
