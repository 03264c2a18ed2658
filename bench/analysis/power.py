"""Estimate the smallest Dice gap that a study can detect, before GPU time is spent on it.

It depends on how much two models differ from patient to patient, which `bench.analysis.cohort` measures. Two
claims are distinguished: that these models differ on new patients (Wilcoxon over patients), and that they would
still differ after training again (corrected resampled t-test over folds), which needs a far larger gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike, NDArray

from bench.analysis.cohort import CohortSpread
from bench.analysis.pairs import ALPHA
from bench.errors import BadSetting

Floats = NDArray[np.float64]
PATIENTS = (22, 50, 110)  # columns of the table, besides the size of the cohort
SEEDS = (1, 2, 3, 5)
MODELS = (2, 5, 10, 20)
PRECISION = 0.0005  # of a gap


def simulate_studies(residuals: ArrayLike, patients: int, simulations: int = 1000, seed: int = 0) -> Floats:
    """Draw the differences (simulations, patients) between two equally good models.

    A study draws residuals of patients and flips their signs at random, as either model may be the first.
    """
    rng = np.random.default_rng(seed)
    both_signs: Floats = np.concatenate((np.asarray(residuals), -np.asarray(residuals)))
    return both_signs[rng.integers(len(both_signs), size=(simulations, patients))]


def detection_rate(studies: Floats, gap: float, tests: int = 1) -> float:
    """Return the share of studies where Wilcoxon's p (normal approximation) is below 0.05 / tests.

    The gap is added to each difference. `tests` is the number of comparisons: 0.05 / tests is the level of the
    first and strictest step of Holm.
    """
    p = scipy.stats.wilcoxon(studies + gap, axis=1, method="asymptotic", keepdims=True).pvalue
    return float((p < ALPHA / tests).mean())


def smallest_gap(
    residuals: ArrayLike, *, patients: int, power: float = 0.8, tests: int = 1, simulations: int = 1000
) -> float:
    """Return the gap that a share `power` of studies detects, to 0.0005; infinite if above 1."""
    studies = simulate_studies(residuals, patients, simulations)
    low, high = 0.0, 1.0
    if detection_rate(studies, high, tests) < power:
        return math.inf
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (low, middle) if detection_rate(studies, middle, tests) >= power else (middle, high)
    return high


def smallest_training_gap(spread: float, *, folds: int, power: float = 0.8, tests: int = 1) -> float:
    """Return the gap that the corrected resampled t-test detects in a share `power` of studies.

    `spread` is the standard deviation of the mean differences of folds, averaged over seeds. The test corrects the
    standard error of their mean, so the noncentral t has unit scale. Infinite if the gap is above 1.
    """
    critical = float(scipy.stats.t.isf(ALPHA / tests / 2, folds - 1))
    error = spread * math.sqrt(1 / folds + 1 / (folds - 1))
    noncentrality = scipy.optimize.brentq(
        lambda x: scipy.stats.nct.sf(critical, folds - 1, x) - power, 0, 100 * critical
    )
    gap = float(noncentrality) * error
    return gap if gap <= 1 else math.inf


def power_table(
    cohort: CohortSpread,
    *,
    patients: int | None = None,
    folds: int | None = None,
    seeds: Sequence[int] = SEEDS,
    models: Sequence[int] = MODELS,
    power: float = 0.8,
) -> pd.DataFrame:
    """Return the smallest detectable gaps: one row per number of models, compared in all pairs, and of seeds.

    Each column `N patients` is for the typical pair. With `patients`, `from` and `to` are for pairs with a smaller
    and a larger spread (10th and 90th percentile), and `after training again` is for the typical pair. There are
    rows for several seeds only if the cohort shows what seeds contribute. Raises `BadSetting`.
    """
    patients = cohort.patients if patients is None else patients
    folds = cohort.folds if folds is None else folds
    _check_study(patients, folds, seeds, models, power)
    typical = cohort.pair_at(0.5)
    fold_spread = math.sqrt(typical.variance * (folds / patients + cohort.training))
    columns = [(f"{n} patients", typical, n) for n in sorted({*PATIENTS, cohort.patients, patients})]
    columns += [("from", cohort.pair_at(0.1), patients), ("to", cohort.pair_at(0.9), patients)]
    rows = []
    for count in sorted(set(models)):
        tests = count * (count - 1) // 2
        smallest = partial(smallest_gap, power=power, tests=tests)
        gaps = {name: smallest(pair.residuals, patients=n) for name, pair, n in columns}
        for number in sorted(set(seeds)) if cohort.seed_variance is not None else [1]:
            factor = cohort.relative_spread(number)
            scaled = {name: gap * factor for name, gap in gaps.items()}  # a test on ranks does not depend on scale
            again = smallest_training_gap(fold_spread * factor, folds=folds, power=power, tests=tests)
            rows.append({"models": count, "seeds": number, **scaled, "after training again": again})
    return pd.DataFrame(rows)


def _check_study(patients: int, folds: int, seeds: Sequence[int], models: Sequence[int], power: float) -> None:
    possible = ALPHA < power < 1
    problems = {
        f"a study needs 2 or more folds, not {folds}. Give --folds 2 or more.": folds < 2,
        f"{patients} patients cannot fill {folds} folds. Give more --patients or fewer --folds.": patients < folds,
        f"a study needs at least one seed, not {min(seeds)}. Give --seeds 1 or more.": min(seeds) < 1,
        f"a comparison needs two models, not {min(models)}. Give --models 2 or more.": min(models) < 2,
        f"a power of {power:g} is out of range. Give --power between 0.05 and 1, such as 0.8.": not possible,
    }
    for problem, occurs in problems.items():
        if occurs:
            raise BadSetting(problem)
