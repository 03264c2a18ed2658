"""A data set of a few slices in memory: what the core is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bench.pack import Pack, transient

CHANNELS = ("pre", "flair", "post")


def pack_of(images: np.ndarray, masks: np.ndarray, cases: Sequence[str], institutions: Sequence[str] = ()) -> Pack:
    """A pack of these slices; the slices of each case are numbered from 1."""
    whole = transient(images, CHANNELS[: images.shape[-1]], masks)
    names = pd.Series(cases)
    numbers = names.groupby(names).cumcount() + 1
    where = list(institutions) or ["DU"] * len(names)
    return replace(whole, index=whole.index.assign(case=names, slice=numbers, institution=where))


def tiny_pack(cases: int = 4, slices: int = 5, size: int = 32, channels: int = 3, seed: int = 0) -> Pack:
    """Noise with one bright square a slice, which the mask marks; the first slice of each case has none."""
    rng = np.random.default_rng(seed)
    count = cases * slices
    images = rng.integers(0, 80, (count, size, size, channels), np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    for row in range(count):
        if row % slices:
            top, left = rng.integers(0, size - 8, 2)
            masks[row, top : top + 8, left : left + 8] = 1
    images[masks.astype(bool)] += 120
    return pack_of(images, masks, [f"P{case}" for case in range(cases) for _ in range(slices)])
