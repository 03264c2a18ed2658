"""Where a model is good and where not: mean scores of patients who have something in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.data.pack import Pack

Floats = NDArray[np.float64]


def groups_of(pack: Pack) -> pd.DataFrame:
    """What patients have in common: institution, and where there is a FLAIR to stand in, sequences it replaces."""
    groups = pack.index.groupby("case")[["institution"]].first()
    if "flair" in pack.manifest.channels:
        groups["missing sequences"] = [_missing(pack, str(case)) for case in groups.index]
    return groups


def _missing(pack: Pack, case: str) -> str:
    """Channels that are FLAIR in every slice of a patient: single slices may be blank, and so alike, in all."""
    volume, channels = pack.images[pack.rows([case])], pack.manifest.channels
    flair = volume[..., channels.index("flair")]
    same = [c for at, c in enumerate(channels) if c != "flair" and np.array_equal(volume[..., at], flair)]
    return " and ".join(same) or "none" if np.ptp(flair) else "none"


def terciles(pixels: pd.Series[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The two sizes that part the patients with tumour into thirds, and every patient's third: 0 without tumour.

    Equal sizes stay together, in the smaller third.
    """
    ends = np.quantile(pixels[pixels > 0], [1 / 3, 2 / 3]) if (pixels > 0).any() else np.zeros(2)
    return ends, np.where(pixels > 0, 1 + np.searchsorted(ends, pixels), 0).astype(np.int64)


@dataclass(frozen=True)
class GroupMeans:
    """Patients who have something in common, and the mean score of each row over them."""

    kind: str
    name: str
    n: int
    means: Floats


def strata(scores: Floats, groups: pd.DataFrame) -> list[GroupMeans]:
    """From scores (rows, patients) and what patients have in common, a column a kind.

    A kind that does not tell patients apart is left out, and so are patients with undefined scores.
    """
    known = np.isfinite(scores).all(0)
    scores, groups = scores[:, known], groups.iloc[np.flatnonzero(known)]
    return [
        GroupMeans(str(kind), str(name), len(members), scores[:, groups.index.get_indexer(members.index)].mean(1))
        for kind in groups
        if groups[kind].nunique() > 1
        for name, members in groups.groupby(groups[kind], observed=True)
    ]


def sizes(pixels: pd.Series[int]) -> pd.Series[str]:
    """Thirds of the patients with tumour, by its pixels; equal sizes stay together, in the smaller third."""
    ends, thirds = terciles(pixels)
    names = ["none", f"small, to {ends[0]:,.0f} px", f"middle, to {ends[1]:,.0f} px", "large"]
    return pd.Series(pd.Categorical([names[at] for at in thirds], names, ordered=True), pixels.index)
