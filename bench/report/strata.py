"""Where a model is good and where not: mean scores of patients who have something in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.comparison import terciles

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stratum:
    """Patients who have something in common, and the mean score of each row over them."""

    kind: str
    name: str
    n: int
    means: Floats


def strata(scores: Floats, groups: pd.DataFrame) -> list[Stratum]:
    """From scores (rows, patients) and what patients have in common, a column a kind.

    A kind that does not tell patients apart is left out, and so are patients with undefined scores.
    """
    known = np.isfinite(scores).all(0)
    scores, groups = scores[:, known], groups.iloc[np.flatnonzero(known)]
    return [
        Stratum(str(kind), str(name), len(members), scores[:, groups.index.get_indexer(members.index)].mean(1))
        for kind in groups
        if groups[kind].nunique() > 1
        for name, members in groups.groupby(groups[kind], observed=True)
    ]


def sizes(pixels: pd.Series[int]) -> pd.Series[str]:
    """Thirds of the patients with tumour, by its pixels; equal sizes stay together, in the smaller third."""
    ends, thirds = terciles(pixels)
    names = ["none", f"small, to {ends[0]:,.0f} px", f"middle, to {ends[1]:,.0f} px", "large"]
    return pd.Series(pd.Categorical([names[at] for at in thirds], names, ordered=True), pixels.index)
