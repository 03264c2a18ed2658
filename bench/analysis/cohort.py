"""Measure how much comparable runs differ from patient to patient, fold to fold and seed to seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bench.analysis.board import Board
from bench.analysis.leaderboard import build_boards
from bench.analysis.structure_view import view_structure
from bench.errors import BadSetting
from bench.tracking.tags import is_derived, scored_by_slice
from bench.types import RunRecord

Floats = NDArray[np.float64]
TINY = 1e-12  # smallest variance that is divided by


@dataclass(frozen=True)
class Pair:
    """Two runs with different settings, and the residuals (patients,) of their Dice difference."""

    names: tuple[str, str]
    residuals: Floats

    @property
    def variance(self) -> float:
        return float(self.residuals.var(ddof=1))


@dataclass(frozen=True)
class CohortSpread:
    """The spread of Dice differences between the runs of one board.

    `pairs` are sorted by their variance. `seed_variance` is the variance of a patient's Dice between seeds, None
    if no settings were run with two seeds. `training` is the variance of fold means beyond what their patients
    explain, for a typical pair, as a share of the variance between patients.
    """

    title: str
    synthetic: bool
    patients: int
    folds: int
    pairs: tuple[Pair, ...]
    seed_variance: float | None
    training: float

    def pair_at(self, quantile: float) -> Pair:
        """Return the pair at this quantile of the variances."""
        return self.pairs[round(quantile * (len(self.pairs) - 1))]

    @property
    def seed_share(self) -> float:
        """The share of seeds in the variance of a typical difference between single runs; 0 if unknown."""
        return min(1.0, 2 * (self.seed_variance or 0.0) / max(self.pair_at(0.5).variance, TINY))

    def relative_spread(self, seeds: int) -> float:
        """Return the spread of differences between means over seeds, relative to that between single runs.

        Only the seeds' part of the variance is divided by their number, and it is assumed equal for all models.
        """
        return math.sqrt(1 - self.seed_share * (1 - 1 / seeds))


def residuals(a: ArrayLike, b: ArrayLike) -> Floats:
    """Return the differences of two runs on the same patients, minus their mean."""
    d = np.subtract(a, b, dtype=np.float64)
    return np.asarray(d - d.mean())


def measure_spread(records: Sequence[RunRecord], structure: str | None = None) -> CohortSpread:
    """Measure the spread on the most informative board of trained segmentation runs (see `_informativeness`).

    With `structure`, of its Dice alone. Raises `BenchError` without two comparable runs, or if they have a single
    fold.
    """
    records = view_structure(records, structure)
    trained = [r for r in records if not scored_by_slice(r.tags) and not is_derived(r.tags, r.settings)]
    runs = {r.run_id: r for r in trained if "dice" in r.cases}
    boards = [board for board in build_boards(list(runs.values())) if len(board.rows) > 1]
    board = max(boards, key=_informativeness, default=None)
    if board is None:
        needed = "finished segmentation runs with different settings on the same patients and split"
        example = "Make two, such as `bench run --model unet` and `--model resunet`."
        raise BadSetting(f"power is estimated from {needed}: no two of the {len(runs)} runs fit. {example}")
    row_of = {run: number for number, row in enumerate(board.rows) for run in row.runs}
    dice = pd.DataFrame({run: runs[run].cases.set_index("case")["dice"] for run in row_of})
    dice = dice.drop(index=list(board.left_out)).dropna(axis=1)
    fold = runs[board.rows[0].run_id].cases.set_index("case")["fold"].reindex(dice.index).to_numpy()
    folds = len(np.unique(fold))
    if folds < 2:
        raise BadSetting(f"the runs of {board.title} have a single fold. Run all folds, without --fold.")
    pairs, seed_variances, excesses = [], [], []
    for a, b in combinations(map(str, dice), 2):
        pair = Pair((runs[a].name, runs[b].name), residuals(dice[a], dice[b]))
        if row_of[a] != row_of[b]:
            pairs.append(pair)
            excesses.append(_fold_excess(pair, fold))
        elif runs[a].settings.get("run.seed") != runs[b].settings.get("run.seed"):
            seed_variances.append(pair.variance / 2)
    return CohortSpread(
        title=replace(board, structure=structure or "").title,
        synthetic=board.synthetic,
        patients=len(dice),
        folds=folds,
        pairs=tuple(sorted(pairs, key=lambda pair: pair.variance)),
        seed_variance=float(np.mean(seed_variances)) if seed_variances else None,
        training=max(0.0, float(np.median(excesses))),  # robust to one model that fails in one fold
    )


def _informativeness(board: Board) -> tuple[bool, bool, int, int]:
    """Return the order of preference: real patients, several folds, number of patients, number of rows."""
    return not board.synthetic, board.rows[0].folds > 1, board.patients, len(board.rows)


def _fold_excess(pair: Pair, fold: NDArray[np.int64]) -> float:
    """Return the variance of fold means beyond what patients explain, as a share of that between patients."""
    means = pd.Series(pair.residuals).groupby(fold).mean()
    return float(means.var()) / max(pair.variance, TINY) - len(means) / len(fold)
