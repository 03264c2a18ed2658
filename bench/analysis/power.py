"""`bench power`: the smallest Dice gap that so many patients, folds and seeds can show, before GPU time is spent.

It hangs on how much two models differ from patient to patient, which runs in the store tell. Two claims are told
apart: that these models differ on new patients (Wilcoxon over patients), and that the recipes would differ again
when trained anew (corrected resampled t-test over folds), which needs far more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from bench.analysis.board import Board
from bench.analysis.leaderboard import build_boards
from bench.analysis.ranking import ALPHA
from bench.errors import BadSetting
from bench.types import RunRecord

PATIENTS = (22, 50, 110)  # columns of the table, beside the cohort


SEEDS = (1, 2, 3, 5)


MODELS = (2, 5, 10, 20)


PRECISION = 0.0005  # of a gap


TINY = 1e-12  # a variance of runs that do not differ


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two runs of unlike settings, and how much they differ from patient to patient."""

    names: tuple[str, str]
    residuals: Floats

    @property
    def variance(self) -> float:
        return float(self.residuals.var(ddof=1))


@dataclass(frozen=True)
class CohortSpread:
    """What comparable runs tell of the differences between two models.

    `pairs` rise in spread. `seed_variance` is that of a patient's Dice from seed to seed, None where no settings
    were run with two. `training` is by how much the means of folds typically vary more than their patients
    explain, as a share of the variance between patients.
    """

    title: str
    synthetic: bool
    patients: int
    folds: int
    pairs: tuple[Pair, ...]
    seed_variance: float | None
    training: float

    def at(self, quantile: float) -> Pair:
        """The pair than which such a share of the pairs spread less."""
        return self.pairs[round(quantile * (len(self.pairs) - 1))]

    @property
    def seed_share(self) -> float:
        """What seeds put into the variance of a typical difference between two single runs; 0 where unknown."""
        return min(1.0, 2 * (self.seed_variance or 0.0) / max(self.at(0.5).variance, TINY))

    def shrink(self, seeds: int) -> float:
        """The spread of differences between means of so many seeds, as a share of that between single runs.

        Only the seeds' part is divided by their number, and it is taken to be alike in all models.
        """
        return math.sqrt(1 - self.seed_share * (1 - 1 / seeds))


def residuals(a: ArrayLike, b: ArrayLike) -> Floats:
    """Differences of two runs on the same patients, less their mean."""
    d: Floats = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return d - float(d.mean())


def power(
    residuals: ArrayLike,
    gap: float,
    *,
    patients: int,
    tests: int = 1,
    alpha: float = ALPHA,
    simulations: int = 1000,
    seed: int = 0,
) -> float:
    """The share of simulated studies in which a gap is found: Wilcoxon's p (normal approximation) < alpha / tests.

    A study draws patients' residuals, turns their sign at random (either model may be the first) and adds the gap
    to each. `tests` is the number of comparisons; the first that Holm makes is the hardest.
    """
    return _found(_studies(residuals, patients, simulations, seed), gap, alpha / tests)


def smallest_gap(
    residuals: ArrayLike,
    *,
    patients: int,
    power: float = 0.8,
    tests: int = 1,
    alpha: float = ALPHA,
    simulations: int = 1000,
    seed: int = 0,
) -> float:
    """The gap that is found in a share `power` of studies, to 0.0005; infinite where even a gap of 1 is not."""
    studies = _studies(residuals, patients, simulations, seed)
    low, high = 0.0, 1.0
    if _found(studies, high, alpha / tests) < power:
        return math.inf
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if _found(studies, middle, alpha / tests) >= power else (middle, high)
    return high


def smallest_gap_anew(
    spread: float, *, folds: int, power: float = 0.8, tests: int = 1, alpha: float = ALPHA
) -> float:
    """The gap that the corrected resampled t-test finds in a share `power` of studies.

    `spread` is the standard deviation of the folds' mean differences, seeds averaged; as the test corrects the
    error of their mean, that of the noncentral t is 1. Infinite where it takes a gap of more than 1.
    """
    critical = float(stats.t.isf(alpha / tests / 2, folds - 1))
    error = spread * math.sqrt(1 / folds + 1 / (folds - 1))
    away = optimize.brentq(lambda x: stats.nct.sf(critical, folds - 1, x) - power, 0, 100 * critical)
    gap = float(away) * error
    return gap if gap <= 1 else math.inf


def cohort_spread(records: Sequence[RunRecord]) -> CohortSpread:
    """What the board of most folds, then patients, then rows tells of trained segmentation runs, real ones first.

    Raises `BadSetting` for fewer than two.
    """
    runs = {r.run_id: r for r in records if _trained_to_segment(r) and "dice" in r.cases}
    found = [board for board in build_boards(list(runs.values())) if len(board.rows) > 1]
    board = max(found, key=_informs, default=None)
    if board is None:
        raise BadSetting(
            "power is judged from finished segmentation runs of unlike settings on the same patients and split: "
            f"of {len(runs)} no two are. Make two, such as `bench run --model unet` and `--model resunet`."
        )
    row_of = {run: place for place, row in enumerate(board.rows) for run in row.runs}
    dice = pd.DataFrame({run: runs[run].cases.set_index("case")["dice"] for run in row_of})
    dice = dice.drop(index=list(board.left_out)).dropna(axis=1)
    fold = runs[board.rows[0].run_id].cases.set_index("case")["fold"].reindex(dice.index).to_numpy()
    folds = len(np.unique(fold))
    if folds < 2:
        raise BadSetting(f"the runs of {board.title} are of one fold alone. Run all folds, without --fold.")
    pairs, seeds, beyond = [], [], []
    for a, b in combinations(map(str, dice), 2):
        pair = Pair((runs[a].name, runs[b].name), residuals(dice[a], dice[b]))
        if row_of[a] != row_of[b]:
            pairs.append(pair)
            means = pd.Series(pair.residuals).groupby(fold).mean()
            beyond.append(float(means.var()) / max(pair.variance, TINY) - folds / len(dice))
        elif runs[a].settings.get("run.seed") != runs[b].settings.get("run.seed"):
            seeds.append(pair.variance / 2)
    return CohortSpread(
        title=board.title,
        synthetic=board.synthetic,
        patients=len(dice),
        folds=folds,
        pairs=tuple(sorted(pairs, key=lambda pair: pair.variance)),
        seed_variance=float(np.mean(seeds)) if seeds else None,
        training=max(0.0, float(np.median(beyond))),  # one model that fails in one fold is not typical
    )


def _informs(board: Board) -> tuple[bool, bool, int, int]:
    """How much a board tells: real patients, several folds, how many patients, how many rows."""
    return not board.synthetic, board.rows[0].folds > 1, board.patients, len(board.rows)


def power_table(
    known: CohortSpread,
    *,
    patients: int | None = None,
    folds: int | None = None,
    seeds: Sequence[int] = SEEDS,
    models: Sequence[int] = MODELS,
    power: float = 0.8,
) -> pd.DataFrame:
    """Smallest gaps by the number of models, all compared with all, and of seeds that are averaged.

    A column for each number of patients is of the typical pair, and `from` and `to` are of pairs that spread less
    and more (10th and 90th in a hundred) on `patients`, as is `trained anew`. More than one seed is there only
    where the runs tell what that brings. Raises `BadSetting`.
    """
    patients = known.patients if patients is None else patients
    folds = known.folds if folds is None else folds
    _check(patients, folds, seeds, models, power)
    spread = math.sqrt(known.at(0.5).variance * (folds / patients + known.training))
    rows = []
    for count in sorted(set(models)):
        tests = count * (count - 1) // 2
        cells = [(f"{n} patients", 0.5, n) for n in sorted({*PATIENTS, known.patients, patients})]
        cells += [("from", 0.1, patients), ("to", 0.9, patients)]
        one = {
            name: smallest_gap(known.at(quantile).residuals, patients=n, power=power, tests=tests)
            for name, quantile, n in cells
        }
        for each in sorted(set(seeds)) if known.seed_variance is not None else [1]:
            shrunk = {name: gap * known.shrink(each) for name, gap in one.items()}  # a test of ranks has no scale
            anew = smallest_gap_anew(spread * known.shrink(each), folds=folds, power=power, tests=tests)
            rows.append({"models": count, "seeds": each, **shrunk, "trained anew": anew})
    return pd.DataFrame(rows)


def _check(patients: int, folds: int, seeds: Sequence[int], models: Sequence[int], power: float) -> None:
    problems = {
        f"{folds} folds do not test every patient. Give --folds 2 or more.": folds < 2,
        f"{patients} patients cannot fill {folds} folds. Give more --patients or fewer --folds.": patients < folds,
        f"{min(seeds)} seeds train nothing. Give --seeds 1 or more.": min(seeds) < 1,
        "one model has nothing to be compared with. Give --models 2 or more.": min(models) < 2,
        f"a power of {power:g} is no goal. Give --power between 0.05 and 1, such as 0.8.": not ALPHA < power < 1,
    }
    for problem, found in problems.items():
        if found:
            raise BadSetting(problem)


def _trained_to_segment(record: RunRecord) -> bool:
    return record.tags.get("bench.task", "segmentation") == "segmentation" and "train.epochs" in record.settings


def _studies(residuals: ArrayLike, patients: int, simulations: int, seed: int) -> Floats:
    """Differences (simulations, patients) of two models that are equally good."""
    rng = np.random.default_rng(seed)
    either: Floats = np.concatenate((np.asarray(residuals), -np.asarray(residuals)))
    return either[rng.integers(len(either), size=(simulations, patients))]


def _found(studies: Floats, gap: float, alpha: float) -> float:
    p = stats.wilcoxon(studies + gap, axis=1, method="asymptotic", keepdims=True).pvalue
    return float((p < alpha).mean())
