"""The data that the speed figures are measured on."""

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
    """A dataset as files and as a pack, and how long to measure."""

    source: Source
    pack: Pack
    repeats: int
    images: int  # per turn
    device: torch.device = torch.device("cpu")  # noqa: RUF009, it is immutable
    quick: bool = False  # tiny, to check that all of it runs

    def batches(self, seed: int) -> list[NDArray[np.int64]]:
        """Return the pack rows of one turn in batches. A turn is equally long however small the dataset is."""
        rows = self.rows(self.images, seed)
        return [rows[at : at + BATCH] for at in range(0, self.images, BATCH)]

    def rows(self, count: int, seed: int) -> NDArray[np.int64]:
        """Return pack rows of random slices, drawn with replacement."""
        return np.random.default_rng(seed).integers(0, len(self.pack.index), count)


def make_problem(
    folder: Path | None = None, *, repeats: int = 7, quick: bool = False, device: str = "cpu"
) -> SpeedProblem:
    """Load the LGG data in `folder`, or a phantom with patients as large as in LGG; tiny patients if `quick`."""
    size = {"patients": 2, "size": 64, "slices": 6} if quick else {"patients": 6, "size": 256, "slices": 33}
    name, settings = ("lgg", {"folder": folder}) if folder else ("phantom", size | {"institutions": 1})
    source = registry.dataset[name].bind(settings)()
    chosen = find_device(device)
    batches = 2 if quick else 32 if chosen.type == "cpu" else 256
    return SpeedProblem(source, load_or_pack(source), repeats, batches * BATCH, chosen, quick)
