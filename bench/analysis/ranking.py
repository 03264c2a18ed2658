"""Which of several models is best, and how sure that is. Pure: arrays in, `RankedModel`s out.

All are judged on the same patients, whose scores are paired. Means are ranked; what can be said of a rank comes
from drawing patients (and seeds) again and again, and from paired tests corrected for being many.
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
    """Where one model stands.

    `difference` is its mean less the leader's, over the same patients. `p` is Wilcoxon's of that difference, Holm
    corrected over all pairs of models, since who leads was not known before. Models of one `group` cannot be told
    from its best one (`apart`). `first` is the probability that the model is the best for patients drawn anew,
    `ranks` the interval of its rank.
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


def rank_models(
    scores: Sequence[ArrayLike], *, higher: bool = True, level: float = 0.95, resamples: int = 9999, seed: int = 0
) -> list[RankedModel]:
    """Rank models by their mean score, given (runs, patients) or (patients,) each, in the order given.

    Runs are seeds of one configuration: a patient's score is their mean, and a draw takes patients and, where
    there are several, runs. Intervals of single runs are BCa, of several percentiles of the draws (Davison and
    Hinkley 1997). Raises `ValueError` for unequal patients or undefined scores.
    """
    runs = [np.atleast_2d(np.asarray(s, np.float64)) for s in scores]
    if len({r.shape[1] for r in runs}) > 1:
        raise ValueError(f"models were judged on unequal patients: {sorted({r.shape[1] for r in runs})}")
    if not all(np.isfinite(r).all() for r in runs):
        raise ValueError("a score is not defined: decide first what that means")
    patients = np.stack([r.mean(0) for r in runs])
    means, leader = patients.mean(1), int(np.argmax(patients.mean(1) * (1 if higher else -1)))
    draws = drawn_means(runs, resamples=resamples, seed=seed)

    def bounds(own: int, other: int | None) -> Interval:
        several = len(runs[own]) > 1 or (other is not None and len(runs[other]) > 1)
        if several:
            values = draws[own] if other is None else draws[own] - draws[other]
            return percentiles(values, level)
        values = patients[own] if other is None else np.round(patients[own] - patients[other], 12)
        return interval(values, level=level, resamples=resamples, seed=seed)

    p, lean = wilcoxon(patients)
    return ranked_models(
        means,
        draws,
        p,
        [bounds(m, None) for m in range(len(runs))],
        [bounds(m, leader) for m in range(len(runs))],
        lean=lean,
        higher=higher,
        level=level,
    )


def ranked_models(
    means: Floats,
    draws: Floats,
    p: Floats,
    intervals: Sequence[Interval],
    differences: Sequence[Interval],
    *,
    lean: Floats | None = None,
    higher: bool = True,
    level: float = 0.95,
) -> list[RankedModel]:
    """Standings of M models from their scores (M,), those of drawn patients (M, B) and p-values (M, M).

    `lean` (M, M) is above 0 where the test of the p-values finds the first model's scores higher; as the means do
    by default.
    """
    sign = 1 if higher else -1
    leader = int(np.argmax(sign * means))
    corrected = holm_pairs(p)
    rank = ranks(sign * means[:, None])[:, 0]
    drawn = ranks(sign * draws)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=1, method="closest_observation")
    best = (drawn == 1) / (drawn == 1).sum(0)  # a first place that is shared is shared out
    told = distinguishable(means, draws, corrected, np.subtract.outer(means, means) if lean is None else lean)
    group = groups(sign * means, told)
    return [
        RankedModel(
            rank=int(rank[m]),
            mean=float(means[m]),
            interval=intervals[m],
            difference=float(means[m] - means[leader]),
            difference_interval=differences[m],
            p=float(corrected[m, leader]),
            group=int(group[m]),
            first=float(best[m].mean()),
            ranks=(int(low[m]), int(high[m])),
        )
        for m in range(len(means))
    ]


def drawn_means(runs: Sequence[Floats], *, resamples: int = 9999, seed: int = 0) -> Floats:
    """Means (M, B) of patients drawn with replacement, the same for all models, and of drawn runs of each."""
    rng = np.random.default_rng(seed)
    n = runs[0].shape[1]
    weight = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    means = np.empty((len(runs), resamples))
    for m, values in enumerate(runs):
        means[m] = ((values @ weight.T) * drawn_runs(rng, len(values), resamples).T).sum(0)
    return means


def drawn_runs(rng: np.random.Generator, runs: int, resamples: int) -> Floats:
    """The weight (B, runs) of each run in each draw.

    Of several one fewer is drawn, or few would seem to agree better than they do (Rao and Wu 1988).
    """
    count = max(1, runs - 1)
    weight: Floats = rng.multinomial(count, np.full(runs, 1 / runs), size=resamples) / count
    return weight


def wilcoxon(patients: Floats) -> tuple[Floats, Floats]:
    """Of all pairs of models, from scores (M, patients): two-sided p-values (M, M), 1 where two are the same, and
    the signed ranks' sum (M, M), above 0 where the first one's scores tend to be higher.
    """
    p, lean = np.ones((len(patients), len(patients))), np.zeros((len(patients), len(patients)))
    for a, b in combinations(range(len(patients)), 2):
        d = np.round(patients[a] - patients[b], 12)  # smaller is rounding, which would break ties between ranks
        if d.any():
            p[a, b] = p[b, a] = stats.wilcoxon(d).pvalue
            lean[a, b] = np.sign(d[d != 0]) @ stats.rankdata(np.abs(d[d != 0]))
            lean[b, a] = -lean[a, b]
    return p, lean


def distinguishable(
    means: Floats, draws: Floats, corrected: Floats, lean: Floats, alpha: float = ALPHA
) -> NDArray[np.bool_]:
    """Which pairs (M, M) can be told apart: by the corrected p of their ranks, and by the interval of the
    difference of their means, which does not hold 0. Both point one way, as `bench compare` wants it.

    Ranks alone would call a model better that is a little better in most patients and far worse in a few.
    """
    told = (corrected < alpha) & (lean * np.subtract.outer(means, means) > 0)
    for a, b in np.argwhere(np.triu(told)):
        ends = percentiles(draws[a] - draws[b], 1 - alpha)
        told[a, b] = told[b, a] = not ends.low <= 0 <= ends.high
    return told


def bootstrap_p(values: Floats, draws: Floats, patients: int) -> Floats:
    """Two-sided p-values (M, M) of all pairs, of scores (M,) that are no means over patients.

    A t-test whose error is the spread of the difference over draws (M, B) of so many patients (Efron and
    Tibshirani 1993): it can be as small as Holm's correction asks, which a share of the draws cannot. 1 below two
    patients.
    """
    p = np.ones((len(values), len(values)))
    for a, b in combinations(range(len(values)) if patients > 1 else (), 2):
        error = float(np.std(draws[a] - draws[b])) * math.sqrt(patients / (patients - 1))
        gap = abs(values[a] - values[b])
        if gap > 1e-12:
            p[a, b] = p[b, a] = 2 * stats.t.sf(gap / error, patients - 1) if error > 0 else 2.0 ** (1 - patients)
    return p


def holm_pairs(p: Floats) -> Floats:
    """A symmetric matrix of p-values, corrected for all its pairs (Holm 1979)."""
    above = np.triu_indices(len(p), 1)
    corrected = np.ones_like(p)
    corrected[above] = holm(p[above].tolist())
    return np.minimum(corrected, corrected.T)


def distinguishable_models(scores: Sequence[Floats], *, resamples: int = 9999) -> NDArray[np.bool_]:
    """`apart`, of models with scores (runs, patients) each, as `standings` has it."""
    patients = np.stack([runs.mean(0) for runs in scores])
    p, lean = wilcoxon(patients)
    return distinguishable(patients.mean(1), drawn_means(scores, resamples=resamples), holm_pairs(p), lean)


def groups(goodness: Floats, told: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tie groups from 1: the best model and all that cannot be told from it, then the same among the rest."""
    group = np.zeros(len(goodness), np.int64)
    number = 0
    while (left := np.flatnonzero(group == 0)).size:
        number += 1
        head = left[np.argmax(goodness[left])]
        group[left[~told[head, left]]] = number
        group[head] = number
    return group


def ranks(goodness: Floats) -> NDArray[np.int64]:
    """Ranks from 1 down each column of (M, B); equal values (to rounding) share the better rank."""
    found = stats.rankdata(-np.round(goodness, 12), method="min", axis=0).astype(np.int64)
    return np.asarray(found)


def percentiles(values: Floats, level: float = 0.95) -> Interval:
    """The middle `level` of drawn values; undefined where any draw is."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
