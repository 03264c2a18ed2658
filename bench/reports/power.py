"""`bench power`: print how small a difference in Dice a study can detect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import pandas as pd

from bench.analysis.cohort import CohortSpread, measure_spread
from bench.analysis.power import MODELS, SEEDS, power_table
from bench.console import Display, console, print_text
from bench.formatting import SYNTHETIC_WARNING
from bench.text_table import print_frame
from bench.tracking import connect, read_records


@dataclass(frozen=True)
class PowerStudy:
    """A planned study, and the smallest differences that it detects (see `bench.analysis.power.power_table`)."""

    patients: int
    folds: int
    seeds: int
    models: int
    power: float
    lines: Sequence[str]  # the result in sentences
    table: pd.DataFrame


def study_power(
    uri: str | None = None,
    *,
    patients: int | None = None,
    folds: int | None = None,
    seeds: int = 1,
    models: int = 2,
    power: float = 0.8,
    structure: str | None = None,
) -> PowerStudy:
    """Return the smallest Dice difference that a study can detect, estimated from the runs in the store.

    Patients and folds are by default those of the runs, and Dice is the mean over structures. Raises `BenchError`.
    """
    with Display() as display:
        records = read_records(connect(uri), tick=display.reading)
        with display.doing("simulating studies"):
            cohort = measure_spread(records, structure)
            patients = cohort.patients if patients is None else patients
            folds = cohort.folds if folds is None else folds
            counts = {"seeds": (*SEEDS, seeds), "models": (*MODELS, models)}
            table = power_table(cohort, patients=patients, folds=folds, **counts, power=power)
    lines = summarise_power(cohort, table, patients=patients, folds=folds, seeds=seeds, models=models, power=power)
    return PowerStudy(patients, folds, seeds, models, power, lines, table)


def print_power(study: PowerStudy, *, wide: bool = False) -> None:
    """Print a study: sentences, then the columns of its table that fit the terminal, or all of them."""
    for line in study.lines:
        print_text(line)
    shown = study.table.map(lambda v: "> 1" if math.isinf(v) else f"{v:.3f}" if isinstance(v, float) else str(v))
    first = ["models", "seeds", f"{study.patients} patients", "from", "to", "after training again"]
    shown = shown[[*first, *(name for name in shown if name not in first)]]
    title = f"Smallest Dice difference detected in {_share(study.power)} studies"
    print_frame(console(), title, shown, fixed=3, wide=wide)


def summarise_power(
    cohort: CohortSpread, table: pd.DataFrame, *, patients: int, folds: int, seeds: int, models: int, power: float
) -> list[str]:
    """Return the result in sentences, with the data that it is based on."""
    seeds = seeds if cohort.seed_variance is not None else 1
    row = table[(table["models"] == models) & (table["seeds"] == seeds)].iloc[0]
    names = (f"{patients} patients", "from", "to", "after training again")
    gap, low, high, retrained = (_dice(row[name]) for name in names)
    compared = "two models" if models == 2 else f"any two of {models} models"
    typical = cohort.pair_at(0.5)
    training = f"{folds} folds, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
    lines = [
        f"With {patients} patients and {training}, {compared} must differ by {gap} Dice to be distinguished in "
        f"{_share(power)} studies; smaller differences are missed more often.",
        f"This holds for pairs like {' and '.join(typical.names)}, the median of {len(cohort.pairs)} pairs. Pairs "
        f"that vary less from patient to patient need {low}, pairs that vary more need {high}.",
        f"To claim that a recipe would be better again if it were retrained, the difference must be {retrained}.",
    ]
    if cohort.seed_variance is None:
        unknown = "The effect of more seeds is unknown, because no settings were run with two seeds."
        lines.append(f"{unknown} Run one of them again with another --seed.")
    else:
        share = f"{cohort.seed_share:.0%}"
        lines.append(f"Seeds cause {share} of the variance of a difference; more seeds reduce only this share.")
    lines.append(f"Estimated from {cohort.title}.")
    return [*lines, SYNTHETIC_WARNING] if cohort.synthetic else lines


def _dice(gap: float) -> str:
    return f"{gap:.3f}" if math.isfinite(gap) else "more than 1"


def _share(power: float) -> str:
    part = Fraction(power).limit_denominator(100)
    return f"{part.numerator} of {part.denominator}"
