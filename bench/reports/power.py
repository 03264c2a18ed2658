from __future__ import annotations

import math
from fractions import Fraction

import pandas as pd

from bench.analysis.power import (
    MODELS,
    SEEDS,
    CohortSpread,
    cohort_spread,
    power_table,
)
from bench.console import console, frame_table
from bench.formatting import SYNTHETIC_WARNING, plain
from bench.tracking import connect, records


def show_power(
    uri: str | None = None,
    *,
    patients: int | None = None,
    folds: int | None = None,
    seeds: int = 1,
    models: int = 2,
    power: float = 0.8,
) -> pd.DataFrame:
    """Print what a study of so many patients, folds and seeds can show, judged from the runs in the store.

    Patients and folds are by default those of the runs. Gives the table that it prints. Raises `BenchError`.
    """
    known = cohort_spread(records(connect(uri)))
    patients = known.patients if patients is None else patients
    folds = known.folds if folds is None else folds
    table = power_table(
        known, patients=patients, folds=folds, seeds=(*SEEDS, seeds), models=(*MODELS, models), power=power
    )
    for line in said(known, table, patients=patients, folds=folds, seeds=seeds, models=models, power=power):
        console().print(plain(line), markup=False, soft_wrap=True)
    shown = table.map(lambda v: "> 1" if math.isinf(v) else round(v, 3))
    console().print(frame_table(f"Smallest Dice gap that {_share(power)} studies find", shown))
    return table


def said(
    known: CohortSpread, table: pd.DataFrame, *, patients: int, folds: int, seeds: int, models: int, power: float
) -> list[str]:
    """The answer in sentences, and what it rests on."""
    seeds = seeds if known.seed_variance is not None else 1
    row = table[(table["models"] == models) & (table["seeds"] == seeds)].iloc[0]
    gap, low, high, anew = (_dice(row[name]) for name in (f"{patients} patients", "from", "to", "trained anew"))
    which = "two models" if models == 2 else f"any two of {models} models"
    typical = known.at(0.5)
    trained = f"{folds} folds, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
    lines = [
        f"With {patients} patients and {trained}, {which} must be {gap} Dice apart to be told from chance in "
        f"{_share(power)} studies; smaller gaps are missed more often.",
        f"That is for pairs like {' and '.join(typical.names)}, the middle one of {len(known.pairs)}; it takes "
        f"{low} where models differ less from patient to patient, {high} where they differ more.",
        f"To claim that a recipe would be better again when trained anew, it takes {anew}.",
    ]
    if known.seed_variance is None:
        lines.append(
            "What more seeds would bring is unknown, as no settings were run with two. Run one of them again with "
            "another --seed."
        )
    else:
        lines.append(f"Of a difference's variance {known.seed_share:.0%} is of seeds: no more shrinks with them.")
    lines.append(f"Judged from {known.title}.")
    return [*lines, SYNTHETIC_WARNING] if known.synthetic else lines


def _dice(gap: float) -> str:
    return f"{gap:.3f}" if math.isfinite(gap) else "more than 1"


def _share(power: float) -> str:
    part = Fraction(power).limit_denominator(100)
    return f"{part.numerator} of {part.denominator}"
