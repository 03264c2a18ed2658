"""Group patients by what they share, and average scores within each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.data.pack import Pack

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GroupMeans:
    """Patients who share a property, and the mean score of each row over them."""

    kind: str
    name: str
    n: int
    means: Floats


def groups_of(pack: Pack) -> pd.DataFrame:
    """Return the groups of each patient: institution and, if there is a FLAIR, the sequences that it replaces."""
    groups = pack.index.groupby("case")[["institution"]].first()
    if "flair" in pack.manifest.channels:
        groups["missing sequences"] = [_missing_sequences(pack, str(case)) for case in groups.index]
    return groups


def _missing_sequences(pack: Pack, case: str) -> str:
    """Return the channels that equal FLAIR in all slices: a single blank slice is equal in all channels."""
    volume, channels = pack.images[pack.rows([case])], pack.manifest.channels
    flair = volume[..., channels.index("flair")]
    same = [c for n, c in enumerate(channels) if c != "flair" and np.array_equal(volume[..., n], flair)]
    return " and ".join(same) or "none" if np.ptp(flair) else "none"


def size_groups(pixels: pd.Series[int], noun: str = "tumour") -> pd.Series[str]:
    """Divide patients with tumour (`noun`) into thirds by its pixels; equal sizes stay in the smaller third."""
    limits = np.quantile(pixels[pixels > 0], [1 / 3, 2 / 3]) if (pixels > 0).any() else np.zeros(2)
    thirds = np.where(pixels > 0, 1 + np.searchsorted(limits, pixels), 0)
    names = [f"no {noun}", f"small, to {limits[0]:,.0f} px", f"middle, to {limits[1]:,.0f} px", "large"]
    return pd.Series(pd.Categorical([names[third] for third in thirds], names, ordered=True), pixels.index)


def mean_by_group(scores: Floats, groups: pd.DataFrame) -> list[GroupMeans]:
    """Average scores (rows, patients) within the groups, of which each column is a kind.

    Leaves out a kind with a single group, and patients with an undefined score.
    """
    defined = np.isfinite(scores).all(0)
    scores, groups = scores[:, defined], groups.iloc[np.flatnonzero(defined)]
    return [
        GroupMeans(str(kind), str(name), len(members), scores[:, groups.index.get_indexer(members.index)].mean(1))
        for kind in groups
        if groups[kind].nunique() > 1
        for name, members in groups.groupby(groups[kind], observed=True)
    ]
