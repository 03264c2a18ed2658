"""Confidence intervals of means, paired comparisons and corrected p-values.

Pure functions on arrays with one value per unit. NaN raises `ValueError`: the caller decides what an undefined
unit means, and no unit is dropped silently. The order of the units does not matter, and a seed determines the
interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], float]
BLOCK = 100  # rows that are resampled at once, which bounds the memory


@dataclass(frozen=True)
class Interval:
    """A confidence interval; NaN for fewer than two units.

    A width of zero means that all units are equal, not that the mean is certain.
    """

    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """A comparison of two measurements, a and b, of the same n units.

    `difference` is the mean of a - b and `interval` its interval. `p` is the two-sided p-value of the Wilcoxon
    signed-rank test. `wins` is the share of units where a > b; a tie is no win.
    """

    difference: float
    interval: Interval
    p: float
    wins: float
    n: int


@dataclass(frozen=True)
class FoldComparison:
    """A comparison of two training procedures on n folds that share training patients.

    `difference` is the mean of the differences. `interval` and `p` account for the overlap of the training sets.
    `better` and `worse` are the posterior probabilities that the difference exceeds `rope` in either direction,
    `same` that it does not.
    """

    difference: float
    interval: Interval
    p: float
    better: float
    same: float
    worse: float
    n: int


def interval(values: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0) -> Interval:
    """Return the BCa bootstrap interval of the mean of independent units (Efron 1987)."""
    return intervals_of_rows(_finite(values)[None], level=level, resamples=resamples, seed=seed)[0]


def intervals_of_rows(
    rows: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> list[Interval]:
    """Return `interval` of each row (M, N); the units are drawn once for all rows."""
    x = np.asarray(rows, np.float64)
    _finite(x.ravel())
    return _intervals_of_means(x, np.ones_like(x), level, resamples, seed)


def clustered_interval(
    values: ArrayLike, clusters: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """Return the BCa bootstrap interval of the mean of all rows when rows of one cluster are dependent.

    Whole clusters are resampled (Field and Welsh 2007), so a large cluster weighs more. NaN below two clusters.
    """
    x = _finite(values)
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    if cluster.shape != x.shape:
        raise ValueError(f"{x.size} values need one cluster each, got {cluster.size}")
    sizes = np.bincount(cluster, minlength=len(names)).astype(np.float64)
    ascending = np.argsort(x)  # a fixed order of summation: rounding does not depend on the order of the rows
    sums = np.bincount(cluster[ascending], weights=x[ascending], minlength=len(names)).astype(np.float64)
    return _intervals_of_means(sums[None], sizes[None], level, resamples, seed)[0]


def clustered_statistic_interval(
    statistic: Statistic, clusters: ArrayLike, *, level: float = 0.95, resamples: int = 1999, seed: int = 0
) -> Interval:
    """Return the BCa bootstrap interval of any statistic of rows when rows of one cluster are dependent.

    `statistic(weight)` receives the weight (N,) of every row: how often its cluster was drawn. NaN below two
    clusters, and where a resample leaves the statistic undefined. Falls back to the percentile interval where
    leaving out any one cluster does not change the statistic: BCa then has no acceleration to estimate.
    """
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        return Interval(np.nan, np.nan)

    def of_drawn(numbers: NDArray[np.float64]) -> float:
        return statistic(np.bincount(numbers.astype(int), minlength=len(names))[cluster].astype(np.float64))

    # SciPy warns where all resamples agree, and divides by zero where leaving out any cluster changes nothing.
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        numbers = np.arange(len(names), dtype=np.float64)
        bootstrap = scipy.stats.bootstrap((numbers,), of_drawn, vectorized=False, **_bca(level, resamples, seed))
    replicates = bootstrap.bootstrap_distribution
    if np.ptp(replicates) <= 1e-12:
        return Interval(float(replicates[0]), float(replicates[0]))
    ends = np.array((bootstrap.confidence_interval.low, bootstrap.confidence_interval.high))
    if np.isnan(ends).any() and not np.isnan(replicates).any():
        ends = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(ends[0]), float(ends[1]))


def compare_paired(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> PairedComparison:
    """Compare two measurements of the same units, in the same order (Wilcoxon 1945, equal pairs left out).

    p is 1 when all pairs are equal.
    """
    x, y = _finite(a), _finite(b)
    if x.shape != y.shape:
        raise ValueError(f"paired samples need the same units, got {x.size} and {y.size}")
    d = np.round(x - y, 12)  # smaller differences are rounding errors and would break ties
    return PairedComparison(
        difference=float(d.mean()) if d.size else np.nan,
        interval=interval(d, level=level, resamples=resamples, seed=seed),
        p=float(scipy.stats.wilcoxon(d).pvalue) if d.any() else 1.0,
        wins=float((d > 0).mean()) if d.size else np.nan,
        n=d.size,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for multiple testing, in the same order (Holm 1979)."""
    p = _finite(p_values)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("a p-value lies between 0 and 1")
    ascending = np.argsort(p)
    corrected = np.empty_like(p)  # the smallest times n, the next times n - 1, none below the previous one
    corrected[ascending] = np.minimum(np.maximum.accumulate(p[ascending] * np.arange(p.size, 0, -1)), 1)
    return [float(q) for q in corrected]


def corrected_resampled_t_test(
    differences: ArrayLike, *, test_share: float, rope: float = 0.01, level: float = 0.95
) -> FoldComparison:
    """Compare two training procedures by their differences on each fold.

    Computes the corrected resampled t-test (Nadeau and Bengio 2003) and, from the same Student distribution, the
    Bayesian correlated t-test (Corani and Benavoli 2015). NaN below two folds.

    `test_share` is the share of patients that a fold tests, 1 / k: the correlation of the training sets. `rope` is
    the largest difference that does not matter in practice. Seeds on the same folds share their patients: pass the
    mean of each fold, not one difference per seed. Repeats on newly drawn folds may all be passed.
    """
    d = _finite(differences)
    if not 0 < test_share < 1:
        raise ValueError(f"a fold tests a share of the patients between 0 and 1, not {test_share}")
    if d.size < 2:
        nan = np.nan
        return FoldComparison(float(d.mean()) if d.size else nan, Interval(nan, nan), nan, nan, nan, nan, d.size)
    mean = float(d.mean())
    deviation = np.sqrt((1 / d.size + test_share / (1 - test_share)) * d.var(ddof=1))
    if deviation <= 1e-12:  # all folds agree
        probabilities = float(mean > rope), float(abs(mean) <= rope), float(mean < -rope)
        return FoldComparison(mean, Interval(mean, mean), float(abs(mean) <= 1e-12), *probabilities, d.size)
    posterior = scipy.stats.t(d.size - 1, loc=mean, scale=deviation)
    low, high = posterior.interval(level)
    worse, better = float(posterior.cdf(-rope)), float(posterior.sf(rope))
    p = float(2 * scipy.stats.t.sf(abs(mean) / deviation, d.size - 1))
    return FoldComparison(mean, Interval(float(low), float(high)), p, better, 1 - better - worse, worse, d.size)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"expected one value per unit, got an array of shape {x.shape}")
    if not np.isfinite(x).all():
        count = (~np.isfinite(x)).sum()
        raise ValueError(f"{count} of {x.size} values are not finite: replace them or leave them out first")
    return x


def _intervals_of_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], level: float, resamples: int, seed: int
) -> list[Interval]:
    """Return the BCa interval of the mean of each row, from the sum and the size (M, N) of each of its units."""
    if sums.shape[1] < 2:
        return [Interval(np.nan, np.nan)] * len(sums)
    means = sums / sizes
    found = [Interval(float(low), float(high)) for low, high in zip(means.min(1), means.max(1), strict=True)]
    spread = np.flatnonzero(np.ptp(means, axis=1) > 1e-12 * np.abs(means).max(1))  # BCa needs some
    order = np.lexsort((sizes, sums))  # the interval must not depend on the order of the units
    sums, sizes = (np.take_along_axis(each, order, 1) for each in (sums, sizes))
    units = np.arange(sums.shape[1], dtype=np.float64)
    for rows in np.split(spread, range(BLOCK, len(spread), BLOCK)) if len(spread) else ():
        of_drawn = partial(_pooled_means, sums[rows], sizes[rows])
        made = scipy.stats.bootstrap(
            (units,), of_drawn, vectorized=True, batch=1000, **_bca(level, resamples, seed)
        )
        for row, (low, high) in zip(rows, np.column_stack(made.confidence_interval), strict=True):
            found[row] = Interval(float(low), float(high))
    return found


def _pooled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], drawn: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """Return the means (M, ...) of the units drawn (..., N), which are positions in the rows (M, N).

    One row after another: NumPy's order of summation, and so its rounding, does not depend on the other rows.
    """
    places = drawn.astype(np.intp)
    means, buffer = np.empty((len(sums), *places.shape[:-1])), np.empty(places.shape)
    for row, (total, size) in enumerate(zip(sums, sizes, strict=True)):
        equal = bool((size == size[0]).all())
        count = size[0] * places.shape[-1] if equal else size.take(places).sum(axis)
        means[row] = total.take(places, out=buffer, mode="clip").sum(axis) / count
    return means


def _bca(level: float, resamples: int, seed: int) -> dict[str, Any]:
    return {"method": "BCa", "confidence_level": level, "n_resamples": resamples, "rng": seed}
