"""What a sample says beyond itself: intervals of means, paired comparisons, corrected p-values.

Pure functions on arrays of one value a unit. A NaN is refused: which units are undefined, and what that means,
is the caller's to decide, never a silent deletion here. The order of the units changes nothing, and the same
seed gives the same interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A confidence interval. NaN where fewer than two units leave nothing to tell the spread from.

    A width of zero says that all units agree, not that the mean is certain.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Two measurements of the same units: `difference` is the mean of a - b, `interval` its interval.

    `p` is the two-sided Wilcoxon signed-rank p, `wins` the share of the n units where a > b (ties count for none).
    """

    difference: float
    interval: Interval
    p: float
    wins: float
    n: int


@dataclass(frozen=True)
class Summary:
    """One sample in a few numbers: its mean with an interval, its spread, its middle and its two tails."""

    n: int
    mean: float
    interval: Interval
    sd: float  # of the units, with n - 1; NaN below two units
    median: float
    p5: float
    p95: float


def interval(values: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0) -> Interval:
    """BCa bootstrap interval of the mean of independent units (Efron 1987)."""
    x = _finite(values)
    return _bca(x, np.ones_like(x), level, resamples, seed)


def clustered_interval(
    values: ArrayLike, clusters: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """BCa bootstrap interval of the mean of all rows, when rows of one cluster are not independent.

    Whole clusters are resampled (Field and Welsh 2007), so a large one weighs more. NaN below two clusters.
    """
    x = _finite(values)
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    if cluster.shape != x.shape:
        raise ValueError(f"{x.size} values need one cluster each, got {cluster.size}")
    sizes = np.bincount(cluster, minlength=len(names)).astype(np.float64)
    rising = np.argsort(x)  # added up in one order, so that not even rounding depends on the order of the rows
    sums = np.bincount(cluster[rising], weights=x[rising], minlength=len(names)).astype(np.float64)
    return _bca(sums, sizes, level, resamples, seed)


def clustered_statistic(
    statistic: Callable[[NDArray[np.float64]], float],
    clusters: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> Interval:
    """BCa bootstrap interval of any statistic of rows, when rows of one cluster are not independent.

    `statistic(weight)` has the weight (N,) of every row: how often its cluster was drawn. NaN below two clusters,
    and where a resample leaves the statistic undefined. Of percentiles where leaving out any cluster leaves it as
    it is, so that BCa has nothing to correct by.
    """
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        return Interval(np.nan, np.nan)

    def drawn(numbers: NDArray[np.float64]) -> float:
        return statistic(np.bincount(numbers.astype(int), minlength=len(names))[cluster].astype(np.float64))

    # It warns where all resamples agree, and divides by zero where leaving any cluster out changes nothing.
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(len(names), dtype=np.float64),),
            drawn,
            vectorized=False,
            confidence_level=level,
            n_resamples=resamples,
            method="BCa",
            rng=seed,
        )
    every = found.bootstrap_distribution
    if np.ptp(every) <= 1e-12:
        return Interval(float(every[0]), float(every[0]))
    ends = np.array((found.confidence_interval.low, found.confidence_interval.high))
    if np.isnan(ends).any() and not np.isnan(every).any():  # nothing to correct by: plain percentiles
        ends = np.quantile(every, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(ends[0]), float(ends[1]))


def paired(a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0) -> Paired:
    """Compare two measurements of the same units, in the same order (Wilcoxon 1945, equal pairs left out).

    p is 1 when all pairs are equal.
    """
    x, y = _finite(a), _finite(b)
    if x.shape != y.shape:
        raise ValueError(f"paired samples need the same units, got {x.size} and {y.size}")
    d = np.round(x - y, 12)  # smaller is rounding, which would break ties between ranks
    return Paired(
        difference=float(d.mean()) if d.size else np.nan,
        interval=interval(d, level=level, resamples=resamples, seed=seed),
        p=float(stats.wilcoxon(d).pvalue) if d.any() else 1.0,
        wins=float((d > 0).mean()) if d.size else np.nan,
        n=d.size,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being several, in the order given (Holm 1979)."""
    p = _finite(p_values)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("a p-value lies between 0 and 1")
    rising = np.argsort(p)
    corrected = np.empty_like(p)  # the smallest times n, the next times n - 1, none below the one before
    corrected[rising] = np.minimum(np.maximum.accumulate(p[rising] * np.arange(p.size, 0, -1)), 1)
    return [float(q) for q in corrected]


@dataclass(frozen=True)
class Procedure:
    """What folds say of two ways to train: `difference` of their means, with an interval and p that know that
    folds share training patients. `better` and `worse` are the posterior probabilities that the difference is
    beyond `rope` on either side, and `same` that it is within."""

    difference: float
    interval: Interval
    p: float
    better: float
    same: float
    worse: float
    n: int


def corrected_resampled(
    differences: ArrayLike, *, test_share: float, rope: float = 0.01, level: float = 0.95
) -> Procedure:
    """Differences of two procedures on each fold: the corrected resampled t-test (Nadeau and Bengio 2003) and,
    from the same Student distribution, the Bayesian correlated t-test (Corani and Benavoli 2015).

    Of several seeds on the same folds, give each fold's mean: they share its patients, and as differences of their
    own they would count for more than they know. Repeats on folds drawn anew may all be given. `test_share` is the
    share of patients that a fold tests, 1 / k: the correlation of its training sets. `rope` is the difference that
    counts for nothing. NaN below two folds.
    """
    d = _finite(differences)
    if not 0 < test_share < 1:
        raise ValueError(f"a fold tests a share of the patients between 0 and 1, not {test_share}")
    if d.size < 2:
        nan = np.nan
        return Procedure(float(d.mean()) if d.size else nan, Interval(nan, nan), nan, nan, nan, nan, d.size)
    mean = float(d.mean())
    deviation = np.sqrt((1 / d.size + test_share / (1 - test_share)) * d.var(ddof=1))
    if deviation <= 1e-12:  # all folds agree
        sure = float(mean > rope), float(abs(mean) <= rope), float(mean < -rope)
        return Procedure(mean, Interval(mean, mean), float(abs(mean) <= 1e-12), *sure, d.size)
    posterior = stats.t(d.size - 1, loc=mean, scale=deviation)
    low, high = posterior.interval(level)
    worse, better = float(posterior.cdf(-rope)), float(posterior.sf(rope))
    p = float(2 * stats.t.sf(abs(mean) / deviation, d.size - 1))
    return Procedure(mean, Interval(float(low), float(high)), p, better, 1 - better - worse, worse, d.size)


def summary(values: ArrayLike, *, level: float = 0.95, resamples: int = 9999, seed: int = 0) -> Summary:
    """Describe a sample; the percentiles interpolate linearly. Of no units, all but n is NaN."""
    x = _finite(values)
    p5, median, p95 = np.percentile(x, [5, 50, 95]) if x.size else (np.nan,) * 3
    return Summary(
        n=x.size,
        mean=float(np.sort(x).mean()) if x.size else np.nan,
        interval=interval(x, level=level, resamples=resamples, seed=seed),
        sd=float(x.std(ddof=1)) if x.size > 1 else np.nan,
        median=float(median),
        p5=float(p5),
        p95=float(p95),
    )


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"expected one value a unit, got an array of shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{(~np.isfinite(x)).sum()} of {x.size} values are not finite: decide what they mean first"
        )
    return x


def _bca(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], level: float, resamples: int, seed: int
) -> Interval:
    """Interval of sum(sums) / sum(sizes), where the pairs are resampled together."""
    if len(sums) < 2:
        return Interval(np.nan, np.nan)
    means = sums / sizes
    if np.ptp(means) <= 1e-12 * np.abs(means).max():  # the bootstrap has no spread to correct
        return Interval(float(means.min()), float(means.max()))
    order = np.lexsort((sizes, sums))  # the interval must not depend on the order of the units
    found = stats.bootstrap(
        (sums[order], sizes[order]),
        lambda total, size, axis: total.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=level,
        n_resamples=resamples,
        batch=1000,
        method="BCa",
        rng=seed,
    ).confidence_interval
    return Interval(float(found.low), float(found.high))
