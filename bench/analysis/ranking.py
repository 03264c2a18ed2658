"""Rank models by their scores on the same patients, and estimate how certain each rank is.

Models are ranked by their mean. The uncertainty of a rank comes from resampling patients (and seeds) and from
paired tests that are corrected for the number of pairs. Pure: arrays in, `RankedModel`s out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bench.stats import Interval, holm, interval

Floats = NDArray[np.float64]
ALPHA = 0.05


@dataclass(frozen=True)
class RankedModel:
    """The rank of one model and how certain it is.

    `difference` is its mean minus the leader's, over the same patients. `p` is the Wilcoxon p-value of that
    difference, Holm-corrected over all pairs of models, since the leader was not known beforehand. Models of one
    `group` cannot be distinguished from the best model of the group (see `tie_groups`). `first` is the probability
    of being the best model on resampled patients, and `ranks` the interval of the rank.
    """

    rank: int
    mean: float
    interval: Interval
    difference: float
    difference_interval: Interval
    p: float
    group: int
    first: float
    ranks: tuple[int, int]


def rank_models(scores: Sequence[ArrayLike], *, higher: bool = True, resamples: int = 9999) -> list[RankedModel]:
    """Rank models by their mean score and return them in the order of `scores`.

    The scores of a model are (runs, patients) or (patients,), where runs are seeds of one configuration. The score
    of a patient is the mean of its runs; a resample draws patients and, with several runs, also runs. Intervals
    are BCa for single runs and percentiles of the resamples for several (Davison and Hinkley 1997). Raises
    `ValueError` for unequal patients or undefined scores.
    """
    runs = [np.atleast_2d(np.asarray(s, np.float64)) for s in scores]
    if len(counts := {r.shape[1] for r in runs}) > 1:
        raise ValueError(f"models were scored on unequal numbers of patients: {sorted(counts)}")
    if not all(np.isfinite(r).all() for r in runs):
        raise ValueError("a score is not defined: replace it or leave the patient out first")
    patients = np.stack([r.mean(0) for r in runs])
    means, leader = patients.mean(1), int(np.argmax(patients.mean(1) * (1 if higher else -1)))
    resampled = bootstrap_means(runs, resamples=resamples)

    def interval_of(model: int, reference: int | None) -> Interval:
        """Return the interval of a mean, or of its difference from the mean of a reference model."""
        if len(runs[model]) > 1 or (reference is not None and len(runs[reference]) > 1):
            values = resampled[model] if reference is None else resampled[model] - resampled[reference]
            return percentile_interval(values)
        values = patients[model] if reference is None else np.round(patients[model] - patients[reference], 12)
        return interval(values, resamples=resamples)

    p, rank_sums = wilcoxon_pairs(patients)
    intervals, differences = ([interval_of(m, other) for m in range(len(runs))] for other in (None, leader))
    return rank_from_resamples(means, resampled, p, intervals, differences, rank_sums=rank_sums, higher=higher)


def rank_from_resamples(
    means: Floats,
    resampled: Floats,
    p: Floats,
    intervals: Sequence[Interval],
    differences: Sequence[Interval],
    *,
    rank_sums: Floats | None = None,
    higher: bool = True,
    level: float = 0.95,
) -> list[RankedModel]:
    """Rank M models from their scores (M,), resampled scores (M, B) and uncorrected p-values (M, M).

    `rank_sums` (M, M) is positive where the test behind `p` found the first model's scores to be higher. By
    default the differences of the means decide that.
    """
    sign = 1 if higher else -1
    leader = int(np.argmax(sign * means))
    corrected = holm_pairs(p)
    rank = rank_columns(sign * means[:, None])[:, 0]
    resampled_ranks = rank_columns(sign * resampled)
    tail = (1 - level) / 2
    low, high = np.quantile(resampled_ranks, [tail, 1 - tail], axis=1, method="closest_observation")
    wins = (resampled_ranks == 1) / (resampled_ranks == 1).sum(0)  # models that share first place share the win
    direction = np.subtract.outer(means, means) if rank_sums is None else rank_sums
    group = tie_groups(sign * means, distinguish_pairs(means, resampled, corrected, direction))
    return [
        RankedModel(
            rank=int(rank[m]),
            mean=float(means[m]),
            interval=intervals[m],
            difference=float(means[m] - means[leader]),
            difference_interval=differences[m],
            p=float(corrected[m, leader]),
            group=int(group[m]),
            first=float(wins[m].mean()),
            ranks=(int(low[m]), int(high[m])),
        )
        for m in range(len(means))
    ]


def bootstrap_means(runs: Sequence[Floats], *, resamples: int = 9999, seed: int = 0) -> Floats:
    """Return resampled means (M, B): the same patients for all models, and runs of each model on their own."""
    rng = np.random.default_rng(seed)
    n = runs[0].shape[1]
    weight = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    means = np.empty((len(runs), resamples))
    for m, values in enumerate(runs):
        means[m] = ((values @ weight.T) * bootstrap_run_weights(rng, len(values), resamples).T).sum(0)
    return means


def bootstrap_run_weights(rng: np.random.Generator, runs: int, resamples: int) -> Floats:
    """Return the weight (B, runs) of each run in each resample.

    With several runs one fewer is drawn, as drawing all would underestimate their spread (Rao and Wu 1988).
    """
    count = max(1, runs - 1)
    return np.asarray(rng.multinomial(count, np.full(runs, 1 / runs), size=resamples) / count)


def wilcoxon_pairs(patients: Floats) -> tuple[Floats, Floats]:
    """Test all pairs of models on their scores (M, patients).

    Returns two-sided p-values (M, M), 1 for identical models, and signed-rank sums (M, M), positive where the
    first model's scores tend to be higher.
    """
    p, rank_sums = np.ones((len(patients), len(patients))), np.zeros((len(patients), len(patients)))
    for a, b in combinations(range(len(patients)), 2):
        d = np.round(patients[a] - patients[b], 12)  # smaller differences are rounding and would break ties
        if d.any():
            p[a, b] = p[b, a] = stats.wilcoxon(d).pvalue
            rank_sums[a, b] = np.sign(d[d != 0]) @ stats.rankdata(np.abs(d[d != 0]))
            rank_sums[b, a] = -rank_sums[a, b]
    return p, rank_sums


def distinguish_pairs(
    means: Floats, resampled: Floats, corrected: Floats, rank_sums: Floats, alpha: float = ALPHA
) -> NDArray[np.bool_]:
    """Return which pairs of models (M, M) can be distinguished.

    The corrected p-value must be below `alpha`, the interval of the difference of means must exclude 0, and both
    must point the same way, as in `bench compare`. Ranks alone would prefer a model that is slightly better in
    most patients and far worse in a few.
    """
    distinct = (corrected < alpha) & (rank_sums * np.subtract.outer(means, means) > 0)
    for a, b in np.argwhere(np.triu(distinct)):
        ends = percentile_interval(resampled[a] - resampled[b], 1 - alpha)
        distinct[a, b] = distinct[b, a] = not ends.low <= 0 <= ends.high
    return distinct


def distinguish_models(scores: Sequence[Floats], *, resamples: int = 9999) -> NDArray[np.bool_]:
    """Return which pairs (M, M) of models with scores (runs, patients) each can be distinguished."""
    patients = np.stack([runs.mean(0) for runs in scores])
    p, rank_sums = wilcoxon_pairs(patients)
    resampled = bootstrap_means(scores, resamples=resamples)
    return distinguish_pairs(patients.mean(1), resampled, holm_pairs(p), rank_sums)


def bootstrap_p_values(values: Floats, resampled: Floats, patients: int) -> Floats:
    """Return two-sided p-values (M, M) of all pairs of scores (M,) that are not means over patients.

    Computes a t-test whose standard error is the spread of the difference over resamples (M, B) of that many
    patients (Efron and Tibshirani 1993). Unlike a share of the resamples, its p-value can be as small as Holm's
    correction needs. 1 below two patients.
    """
    p = np.ones((len(values), len(values)))
    for a, b in combinations(range(len(values)) if patients > 1 else (), 2):
        error = float(np.std(resampled[a] - resampled[b])) * math.sqrt(patients / (patients - 1))
        gap = abs(values[a] - values[b])
        if gap > 1e-12:
            p[a, b] = p[b, a] = 2 * stats.t.sf(gap / error, patients - 1) if error > 0 else 2.0 ** (1 - patients)
    return p


def holm_pairs(p: Floats) -> Floats:
    """Return a symmetric matrix of p-values corrected for all its pairs (Holm 1979)."""
    above = np.triu_indices(len(p), 1)
    corrected = np.ones_like(p)
    corrected[above] = holm(p[above].tolist())
    return np.minimum(corrected, corrected.T)


def tie_groups(goodness: Floats, distinct: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number groups from 1: the best model and all not distinguished from it, then the same for the rest."""
    group = np.zeros(len(goodness), np.int64)
    number = 0
    while (remaining := np.flatnonzero(group == 0)).size:
        number += 1
        best = remaining[np.argmax(goodness[remaining])]
        group[remaining[~distinct[best, remaining]]] = number
        group[best] = number
    return group


def rank_columns(goodness: Floats) -> NDArray[np.int64]:
    """Rank each column of (M, B) from 1; values that are equal up to rounding share the better rank."""
    return np.asarray(stats.rankdata(-np.round(goodness, 12), method="min", axis=0).astype(np.int64))


def percentile_interval(values: Floats, level: float = 0.95) -> Interval:
    """Return the middle `level` of resampled values; NaN if any of them is undefined."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
