"""Compare rows patient by patient: mean ranks, Friedman's test, and the bars of a critical-difference diagram."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeanRanks:
    """The mean over patients of the rank of each row.

    `friedman` is the p-value of Friedman's test that all rows are equal (NaN below three rows). `bars` are sets of
    rows that cannot be distinguished; two rows share a bar exactly if they cannot be distinguished.
    """

    ranks: Floats
    friedman: float
    bars: tuple[tuple[int, ...], ...]


def mean_ranks(scores: Floats, distinct: NDArray[np.bool_], *, higher: bool) -> MeanRanks:
    """Rank rows within each patient, from defined scores (rows, patients) and distinguishable pairs (rows, rows).

    Equal scores of a patient share the mean of their ranks.
    """
    rounded = np.round(scores, 12)
    ranks = scipy.stats.rankdata(-rounded if higher else rounded, axis=0).mean(1)
    testable = len(scores) > 2 and bool((np.ptp(rounded, axis=0) > 0).any())
    friedman = float(scipy.stats.friedmanchisquare(*rounded).pvalue) if testable else math.nan
    return MeanRanks(ranks, friedman, tuple(maximal_cliques(~distinct)))


def maximal_cliques(tied: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Return the largest sets of at least two rows that are all tied with each other (Bron and Kerbosch 1973)."""
    neighbours = [set(np.flatnonzero(row).tolist()) - {number} for number, row in enumerate(tied)]

    def extend(members: set[int], candidates: set[int], excluded: set[int]) -> Iterator[tuple[int, ...]]:
        if not candidates | excluded:
            yield tuple(sorted(members))
            return
        pivot = max(candidates | excluded, key=lambda row: len(neighbours[row] & candidates))
        for row in sorted(candidates - neighbours[pivot]):
            yield from extend(members | {row}, candidates & neighbours[row], excluded & neighbours[row])
            candidates, excluded = candidates - {row}, excluded | {row}

    return sorted(clique for clique in extend(set(), set(range(len(tied))), set()) if len(clique) > 1)
