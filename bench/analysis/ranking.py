"""Rank models by their scores on the same patients, and estimate how certain each rank is.

Models are ranked by their mean. The uncertainty of a rank comes from resampling patients (and seeds) and from
paired tests that are corrected for the number of pairs. Pure: arrays in, `RankedModel`s out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.analysis.pairs import (
    Flags,
    Floats,
    distinguish_pairs,
    holm_pairs,
    percentile_interval,
    rank_columns,
    wilcoxon_pairs,
)
from bench.stats import Interval, intervals_of_rows


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
    single = np.array([len(each) == 1 for each in runs])
    differences = np.round(patients - patients[leader], 12), resampled - resampled[leader]
    p, rank_sums = wilcoxon_pairs(patients)
    return rank_from_resamples(
        means,
        resampled,
        p,
        _intervals(patients, resampled, single, resamples),
        _intervals(*differences, single & single[leader], resamples),
        rank_sums=rank_sums,
        higher=higher,
    )


def _intervals(values: Floats, resampled: Floats, single: Flags, resamples: int) -> list[Interval]:
    """Return the interval of the mean of each row (M, patients): BCa where `single`, else of the resamples."""
    of_single = iter(intervals_of_rows(values[single], resamples=resamples))
    return [
        next(of_single) if one else percentile_interval(row) for one, row in zip(single, resampled, strict=True)
    ]


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
    distinct = distinguish_pairs(means, resampled, corrected, direction, ranks=resampled_ranks)
    group = tie_groups(sign * means, distinct)
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
    if runs == 1:
        return np.ones((resamples, 1))
    return np.asarray(rng.multinomial(runs - 1, np.full(runs, 1 / runs), size=resamples) / (runs - 1))


def distinguish_models(scores: Sequence[Floats], *, resamples: int = 9999) -> Flags:
    """Return which pairs (M, M) of models with scores (runs, patients) each can be distinguished."""
    patients = np.stack([runs.mean(0) for runs in scores])
    p, rank_sums = wilcoxon_pairs(patients)
    resampled = bootstrap_means(scores, resamples=resamples)
    return distinguish_pairs(patients.mean(1), resampled, holm_pairs(p), rank_sums)


def tie_groups(goodness: Floats, distinct: Flags) -> NDArray[np.int64]:
    """Number groups from 1: the best model and all not distinguished from it, then the same for the rest."""
    group = np.zeros(len(goodness), np.int64)
    number = 0
    while (remaining := np.flatnonzero(group == 0)).size:
        number += 1
        best = remaining[np.argmax(goodness[remaining])]
        group[remaining[~distinct[best, remaining]]] = number
        group[best] = number
    return group
