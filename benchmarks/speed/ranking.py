"""A board's ranks, p-values and intervals: ours as arrays, against one SciPy call for each pair and interval."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.analysis.ranking import rank_models
from benchmarks.speed.figure import SpeedFigure, race
from benchmarks.speed.problem import SpeedProblem

Scores = NDArray[np.float64]  # (rows, patients)
PATIENTS = 110
RESAMPLES = 9999


def measure(problem: SpeedProblem) -> list[SpeedFigure]:
    """Compare the rows ranked per second on a board of 60 rows, and measure ours alone on one of 500."""
    few, many, resamples = (3, 5, 99) if problem.quick else (60, 500, RESAMPLES)
    scores = draw_scores(many)

    def ours(rows: int) -> int:
        return len(rank_models(scores[:rows], resamples=resamples))

    def theirs() -> int:
        rank_one_by_one(scores[:few], resamples)
        return few

    sides = race(lambda: ours(few), theirs, repeats=problem.repeats)
    (alone,) = race(lambda: ours(many), repeats=problem.repeats)
    return [
        SpeedFigure("rank", "one SciPy call per pair", "rows/s", *sides, note=_describe(few)),
        SpeedFigure("rank", "", "rows/s", alone, (), note=_describe(many)),
    ]


def draw_scores(rows: int) -> Scores:
    """Draw the Dice of every patient by models that are about equally good."""
    rng = np.random.default_rng(0)
    logit = rng.normal(1.9, 0.95, PATIENTS) + rng.normal(0, 0.1, (rows, 1)) + rng.normal(0, 0.4, (rows, PATIENTS))
    return np.asarray(1 / (1 + np.exp(-logit)))


def rank_one_by_one(scores: Scores, resamples: int) -> tuple[Scores, Scores]:
    """Return the p-value of each pair, and the interval of each mean and of each difference to the best row."""
    p = [stats.wilcoxon(np.round(a - b, 12)).pvalue for a, b in combinations(scores, 2)]
    best = scores[scores.mean(1).argmax()]
    options = {"n_resamples": resamples, "batch": 1000, "vectorized": True, "rng": 0}
    ends = [
        stats.bootstrap((np.sort(row),), lambda x, axis: x.mean(axis), **options).confidence_interval
        for row in (*scores, *(scores - best)[(scores != best).any(1)])
    ]
    return np.array(p), np.array(ends)


def _describe(rows: int) -> str:
    return f"{rows} rows of {PATIENTS} patients"
