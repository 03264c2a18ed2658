"""`bench gate`: judge for CI whether a candidate run is worse than a baseline by more than a margin.

Patients are paired. A candidate fails only if the whole 95% interval of the mean difference is beyond the margin,
so that noise does not fail a build. Nothing is trained or predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.analysis.claims import MAX_UNDEFINED, Side
from bench.analysis.comparison import compare_cases, scale_of
from bench.errors import BadSetting
from bench.formatting import SYNTHETIC_WARNING, between, plain
from bench.stats import Interval
from bench.structures import noun_of
from bench.tracking import connect, read_table, run_label
from bench.tracking.selection import comparable_pair
from bench.tracking.tags import Tag

MIN_PATIENTS = 6  # five that agree have p = 2 / 2**5 in the rank test, and their interval is too narrow
SEGMENTATION_ONLY = "The gate compares segmentation runs, which are scored per patient."


@dataclass(frozen=True)
class GateResult:
    """Whether the candidate is worse by more than the margin, a sentence with the numbers, and the numbers.

    `difference` is candidate - baseline in the mean of `metric` over patients, and `interval` its 95% interval.
    """

    worse: bool
    message: str
    baseline: str
    candidate: str
    metric: str
    margin: float
    difference: float
    interval: Interval
    patients: int


def gate(
    baseline: str,
    candidate: str,
    *,
    margin: float | None = None,
    primary: str = "dice",
    structure: str | None = None,
    uri: str | None = None,
) -> GateResult:
    """Compare two finished runs on the same data and split.

    `margin` is in the unit of `primary`, by default the largest difference without practical meaning (0.01 Dice, 1
    pixel or mm). `structure` is the only one that counts; by default the mean over structures does. Raises
    `BenchError` if the data differ, patients are too few, or too many of them have no score.
    """
    scale = scale_of(primary)
    margin = scale.rope if margin is None else margin
    if not 0 <= margin < math.inf:
        raise BadSetting(f"the margin {margin:g} is not allowed. Use 0 or more, such as --margin {scale.rope:g}.")
    store = connect(uri)
    runs = comparable_pair(store, candidate, baseline, SEGMENTATION_ONLY)
    tables = read_table(store, runs[0], "cases"), read_table(store, runs[1], "cases")
    names = [plain(run_label(run)) for run in runs]
    sides, noun = (Side(names[0]), Side(names[1])), noun_of(tables[0].columns, structure)
    comparison = compare_cases(*tables, sides=sides, primary=primary, structure=structure)
    primary = comparison.scale.metric
    paired, interval = comparison.paired, comparison.paired.interval
    if paired.n < MIN_PATIENTS:
        patients = "1 patient is" if paired.n == 1 else f"{paired.n} patients are"
        raise BadSetting(f"{patients} too few to judge: at least {MIN_PATIENTS} are needed. Run more patients.")
    if (missing := len(comparison.undefined)) > MAX_UNDEFINED * (paired.n + missing):
        patients = f"1 patient with {noun} has" if missing == 1 else f"{missing} patients with {noun} have"
        raise BadSetting(f"{patients} no {primary} in one of the runs. Choose another --primary.")
    best_case = max(scale.sign * interval.low, scale.sign * interval.high)
    worse = best_case < -margin
    ends = between(interval.low, interval.high, lambda value: scale.format(value, "+"))
    message = (
        f"{'FAILED' if worse else 'passed'}: {names[0]} against {names[1]}, mean {primary} "
        f"{scale.format(paired.difference, '+')} over {paired.n} patients (95% interval {ends}), which is "
        f"{'' if worse else 'not shown to be '}worse by more than {margin:g}."
    )
    if comparison.healthy:
        message += f" {comparison.healthy} A is the candidate."
    synthetic = runs[0].data.tags.get(Tag.SYNTHETIC) == "true"
    return GateResult(
        worse,
        f"{message} {SYNTHETIC_WARNING}" if synthetic else message,
        baseline=names[1],
        candidate=names[0],
        metric=primary,
        margin=margin,
        difference=paired.difference,
        interval=interval,
        patients=paired.n,
    )
