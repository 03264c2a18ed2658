"""Rank models by their scores on the same patients, and estimate how certain each rank is.

Models are ranked by their mean. The uncertainty of a rank comes from resampling patients (and seeds) and from
paired tests that are corrected for the number of pairs. Pure: arrays in, `RankedModel`s out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from bench.stats import Interval, interval, intervals_of_rows

LEADER, TIED, BEHIND = "leader", "tied with the leader", "behind"
MEAN_ONLY = "behind in the mean only"


@dataclass(frozen=True)
class RankedModel:
    """The rank of one model and how certain it is.

    `difference` is its mean minus the leader's, over the same patients. `p` is the Wilcoxon p-value of that
    difference, Holm-corrected over all pairs of models, since the leader was not known beforehand. `verdict` says
    in words what `difference_interval` and `p` show (see `verdict_of`). `letters` are the numbers of the first and
    the last letter of a model in a compact letter display (see `letter_ranges`), and `group` is the first. `first`
    is the probability of being the best model on resampled patients, and `ranks` the interval of the rank.
    """

    rank: int
    mean: float
    interval: Interval
    difference: float
    difference_interval: Interval
    p: float
    letters: tuple[int, int]
    first: float
    ranks: tuple[int, int]
    verdict: str

    @property
    def group(self) -> int:
        return self.letters[0]


def rank_models(scores: Sequence[ArrayLike], *, higher: bool = True, resamples: int = 9999) -> list[RankedModel]:
    """Rank models by their mean score and return them in the order of `scores`.

    The scores of a model are (runs, patients) or (patients,), where runs are seeds of one configuration. The score
    of a patient is the mean of its runs; a resample draws patients and, with several runs, also runs. Intervals
    of means are BCa for single runs and percentiles of the resamples for several (Davison and Hinkley 1997). Those
    of differences are percentiles. Raises `ValueError` for unequal patients or undefined scores.
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
    of_single = iter(intervals_of_rows(patients[single], resamples=resamples))  # BCa
    intervals = [
        next(of_single) if one else percentile_interval(row) for one, row in zip(single, resampled, strict=True)
    ]
    differences = resampled - resampled[leader]
    if patients.shape[1] < 2:  # one patient has no spread
        differences = np.full_like(differences, np.nan)
    p, rank_sums = wilcoxon_pairs(patients)
    return rank_from_resamples(
        means,
        resampled,
        p,
        intervals,
        [percentile_interval(row) for row in differences],
        rank_sums=rank_sums,
        higher=higher,
    )


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
    letters = letter_ranges(rank, distinct)
    return [
        RankedModel(
            rank=int(rank[m]),
            mean=float(means[m]),
            interval=intervals[m],
            difference=float(means[m] - means[leader]),
            difference_interval=differences[m],
            p=float(corrected[m, leader]),
            letters=letters[m],
            first=float(wins[m].mean()),
            ranks=(int(low[m]), int(high[m])),
            verdict=verdict_of(int(rank[m]), differences[m], bool(distinct[leader, m])),
        )
        for m in range(len(means))
    ]


def mean_interval(runs: Floats) -> Interval:
    """Return the interval of the mean of scores (runs, patients), as `rank_models` does; NaN is left out."""
    defined = runs[:, np.isfinite(runs).all(0)]
    if len(runs) == 1 or defined.shape[1] < 2:
        return interval(defined.mean(0))
    return percentile_interval(bootstrap_means([defined])[0])


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


def verdict_of(rank: int, difference: Interval, distinct: bool) -> str:
    """Return in words how a model stands to the leader, from the interval of its difference from the leader.

    It is tied if the interval contains 0, and behind if not. It is behind in the mean only if the test on ranks
    does not confirm that, so that the two are not `distinct`: then a few patients may explain the difference.
    """
    if rank == 1:
        return LEADER
    if distinct:
        return BEHIND
    return MEAN_ONLY if difference.low > 0 or difference.high < 0 else TIED


def letter_ranges(rank: NDArray[np.integer[Any]], distinct: Flags) -> list[tuple[int, int]]:
    """Return the numbers, from 1, of the first and last letter of each model in a compact letter display.

    A letter spans neighbouring ranks: from a model to the last that cannot be distinguished from it. Models
    without a common letter can be distinguished, and so can all models that are as far apart or farther. Letters
    never run backwards down the ranks (the rule of multiple range tests: no pair inside a tie is separated).
    """
    ranks = np.unique(rank)
    tied = [int(rank[(~distinct[rank == r]).any(0) | (rank == r)].max()) for r in ranks]
    ends = np.maximum.accumulate(tied)
    opens = np.concatenate([[True], np.diff(ends) > 0])
    starts, ends = ranks[opens], ends[opens]
    first, last = np.searchsorted(ends, rank), np.searchsorted(starts, rank, side="right") - 1
    return [(int(a) + 1, int(b) + 1) for a, b in zip(first, last, strict=True)]
