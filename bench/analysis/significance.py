"""Who can be told from whom, patient by patient: mean ranks, Friedman's test, and the bars of a diagram."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeanRanks:
    """The mean over patients of each row's rank, Friedman's p that all are alike (NaN below three rows), and bars:
    rows of which no two can be told apart. Two rows share a bar exactly where they cannot.
    """

    ranks: Floats
    friedman: float
    bars: tuple[tuple[int, ...], ...]


def mean_ranks(scores: Floats, told: NDArray[np.bool_], *, higher: bool) -> MeanRanks:
    """From scores (rows, patients), all defined, and which rows can be told apart (rows, rows).

    Patients' equal scores share the mean of their ranks.
    """
    rounded = np.round(scores, 12)
    ranks = stats.rankdata(-rounded if higher else rounded, axis=0).mean(1)
    differ = len(scores) > 2 and bool((np.ptp(rounded, axis=0) > 0).any())
    friedman = float(stats.friedmanchisquare(*rounded).pvalue) if differ else math.nan
    return MeanRanks(ranks, friedman, tuple(bars(~told)))


def bars(tied: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """The largest sets of two rows or more that are tied pair by pair (Bron and Kerbosch 1973), in order."""
    near = [set(np.flatnonzero(row).tolist()) - {at} for at, row in enumerate(tied)]

    def grown(members: set[int], others: set[int], seen: set[int]) -> Iterator[tuple[int, ...]]:
        if not others | seen:
            yield tuple(sorted(members))
            return
        pivot = max(others | seen, key=lambda one: len(near[one] & others))
        for one in sorted(others - near[pivot]):
            yield from grown(members | {one}, others & near[one], seen & near[one])
            others, seen = others - {one}, seen | {one}

    return sorted(bar for bar in grown(set(), set(range(len(tied))), set()) if len(bar) > 1)
