"""Test all pairs of models, and rank models in each resample: arrays in, arrays out.

The results equal those of one SciPy call per pair, bit for bit, as the tests check; a board of 500 rows has
124,750 pairs.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import NDArray

from bench.stats import Interval, holm

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ranks = NDArray[np.unsignedinteger]
ALPHA = 0.05
FEW_PATIENTS = 50  # up to so many, SciPy's p-values are used; for more, both use the normal distribution


def wilcoxon_pairs(patients: Floats) -> tuple[Floats, Floats]:
    """Test all pairs of models on their scores (M, patients).

    Returns two-sided p-values (M, M), 1 for identical models, and signed-rank sums (M, M), positive where the
    first model's scores tend to be higher.
    """
    p, rank_sums = np.ones((len(patients), len(patients))), np.zeros((len(patients), len(patients)))
    for a in range(len(patients) - 1):
        d = np.round(patients[a] - patients[a + 1 :], 12)  # smaller differences are rounding and would break ties
        p[a, a + 1 :], rank_sums[a, a + 1 :] = _wilcoxon_rows(d)
    above = np.triu(np.ones_like(p, dtype=bool), 1)
    return np.where(above, p, p.T), np.where(above, rank_sums, -rank_sums.T)


def _wilcoxon_rows(d: Floats) -> tuple[Floats, Floats]:
    """Return p-values (P,) and signed-rank sums (P,) of differences (P, patients); 1 and 0 if none differs."""
    p, (sums, counts, ties, plain) = np.ones(len(d)), signed_ranks(d)
    if d.shape[1] > FEW_PATIENTS:
        some = counts > 0
        n = counts[some]
        spread = np.sqrt((n * (n + 1) * (2 * n + 1) - ties[some] / 2) / 24)
        p[some] = 2 * scipy.special.ndtr(-np.abs(sums[some] / 2) / spread)
        return p, sums
    for alike in (plain, ~plain & (counts > 0)):  # SciPy chooses one method for all rows of a call
        for rows in np.split(np.flatnonzero(alike), range(16, alike.sum(), 16)):  # permuting many takes memory
            p[rows] = scipy.stats.wilcoxon(d[rows], axis=1).pvalue if len(rows) else 1
    return p, sums


def signed_ranks(d: Floats) -> tuple[Floats, Floats, Floats, Flags]:
    """Rank the absolute values of each row of d (P, N), without zeros; equal ones share the mean of their ranks.

    Returns for each row the sum of the ranks with the signs of d, the number of values that are not zero, the sum
    of t^3 - t over sets of t equal values, and whether no values are equal or zero.
    """
    bits = d.view(np.uint64)  # those of absolute values sort as these do, twice as fast as SciPy ranks them
    order = np.sort(bits << 1 | bits >> 63, axis=1)
    size = order >> 1
    places = np.arange(d.shape[1])
    new = np.concatenate((np.ones((len(d), 1), bool), size[:, 1:] != size[:, :-1]), axis=1)
    last = np.concatenate((new[:, 1:], np.ones((len(d), 1), bool)), axis=1)
    first = np.maximum.accumulate(np.where(new, places, 0), axis=1)
    final = np.minimum.accumulate(np.where(last, places, d.shape[1])[:, ::-1], axis=1)[:, ::-1]
    defined = size > 0
    zeros = (~defined).sum(1)
    ranks = (first + final) / 2 + 1 - zeros[:, None]
    signs = defined * (1.0 - 2 * (order & 1))
    ties = (((final - first + 1.0) ** 2 - 1) * defined).sum(1)
    return (signs * ranks).sum(1), (d.shape[1] - zeros).astype(np.float64), ties, (ties == 0) & (zeros == 0)


def bootstrap_p_values(values: Floats, resampled: Floats, patients: int) -> Floats:
    """Return two-sided p-values (M, M) of all pairs of scores (M,) that are not means over patients.

    Computes a t-test whose standard error is the spread of the difference over resamples (M, B) of that many
    patients (Efron and Tibshirani 1993). Unlike a share of the resamples, its p-value can be as small as Holm's
    correction needs. 1 below two patients.
    """
    p = np.ones((len(values), len(values)))
    for a in range(len(values) - 1 if patients > 1 else 0):
        errors = np.std(resampled[a] - resampled[a + 1 :], axis=1) * math.sqrt(patients / (patients - 1))
        gaps = np.abs(values[a] - values[a + 1 :])
        with np.errstate(divide="ignore", invalid="ignore"):
            tested = 2 * scipy.stats.t.sf(gaps / errors, patients - 1)
        p[a, a + 1 :] = np.where(gaps > 1e-12, np.where(errors > 0, tested, 2.0 ** (1 - patients)), 1)
    return np.where(np.triu(np.ones_like(p, dtype=bool), 1), p, p.T)


def holm_pairs(p: Floats) -> Floats:
    """Return a symmetric matrix of p-values corrected for all its pairs (Holm 1979)."""
    above = np.triu_indices(len(p), 1)
    corrected = np.ones_like(p)
    corrected[above] = holm(p[above].tolist())
    return np.minimum(corrected, corrected.T)


def distinguish_pairs(
    means: Floats,
    resampled: Floats,
    corrected: Floats,
    rank_sums: Floats,
    alpha: float = ALPHA,
    *,
    ranks: Ranks | None = None,
) -> Flags:
    """Return which pairs of models (M, M) can be distinguished.

    The corrected p-value must be below `alpha`, the interval of the difference of means must exclude 0, and both
    must point the same way, as in `bench compare`. Ranks alone would prefer a model that is slightly better in
    most patients and far worse in a few. `ranks` are those of each resample (M, B), in either direction, if known.
    """
    distinct = (corrected < alpha) & (rank_sums * np.subtract.outer(means, means) > 0)
    ranks = rank_columns(resampled) if ranks is None else ranks
    for a, b in np.argwhere(np.triu(distinct)):
        distinct[a, b] = distinct[b, a] = _excludes_zero(resampled[a], resampled[b], ranks[a], ranks[b], alpha)
    return distinct


def _excludes_zero(a: Floats, b: Floats, ranks_a: Ranks, ranks_b: Ranks, alpha: float) -> bool:
    """Return whether the percentile interval of a - b, resampled scores (B,), excludes 0.

    The ranks mostly decide, without the differences and their order: how many differences lie on either side of 0
    must be clearly more or clearly fewer than the interval leaves out at an end.
    """
    above, below = np.count_nonzero(ranks_a < ranks_b), np.count_nonzero(ranks_a > ranks_b)
    outside = alpha / 2 * len(a)
    if len(a) - max(above, below) < outside - 2:
        return True
    if min(above, below) > outside + 3:
        return False
    ends = percentile_interval(a - b, 1 - alpha)
    return not ends.low <= 0 <= ends.high


def rank_columns(goodness: Floats) -> Ranks:
    """Rank each column of (M, B) from 1; values that are equal up to rounding share the better rank."""
    columns = np.ascontiguousarray(-np.round(goodness, 12).T)
    order = np.argsort(columns, axis=1)
    ascending = np.take_along_axis(columns, order, axis=1)
    number = np.arange(1, len(goodness) + 1, dtype=np.min_scalar_type(len(goodness)))  # small, to compare quickly
    places = np.ones(columns.shape, number.dtype)
    places[:, 1:] = np.where(ascending[:, 1:] != ascending[:, :-1], number[1:], 1)
    ranks = np.empty_like(places)
    np.put_along_axis(ranks, order, np.maximum.accumulate(places, axis=1), axis=1)
    return np.ascontiguousarray(ranks.T)


def percentile_interval(values: Floats, level: float = 0.95) -> Interval:
    """Return the middle `level` of resampled values; NaN if any of them is undefined."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
