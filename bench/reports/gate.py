"""`bench gate`: whether a candidate run is worse than a baseline by more than a margin, for use in CI.

Nothing is trained or predicted. Patients are paired; what counts is the whole 95% interval of their mean
difference, so that noise does not fail a build. Of fewer than six patients nothing is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.analysis.claims import LEFT_OUT, Side
from bench.analysis.comparison import compare_cases, scale_of
from bench.errors import BadSetting
from bench.formatting import SYNTHETIC_WARNING, between, plain
from bench.tracking import connect, read_table
from bench.tracking.selection import comparable_pair

FEWEST = 6  # patients: five on one side have p = 2 / 2**5 by their ranks, and an interval that is too narrow


TAKES = "The gate takes segmentation runs, which are scored patient by patient."


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate is worse by more than the margin, and a sentence that says on what grounds."""

    worse: bool
    said: str


def gate(
    baseline: str, candidate: str, *, margin: float | None = None, primary: str = "dice", uri: str | None = None
) -> Verdict:
    """Judge two finished runs on the same data and split.

    `margin` is in the unit of `primary`, by default what counts for nothing (0.01 Dice, 1 pixel). Raises
    `BenchError` where nothing can be said: other data, too few patients, or too many without a score.
    """
    scale = scale_of(primary)
    margin = scale.rope if margin is None else margin
    if not 0 <= margin < math.inf:
        raise BadSetting(f"the margin {margin:g} is refused: give 0 or more, such as --margin {scale.rope:g}.")
    store = connect(uri)
    runs = comparable_pair(store, candidate, baseline, TAKES)
    tables = read_table(store, runs[0], "cases"), read_table(store, runs[1], "cases")
    names = [plain(f"{run.info.run_name} ({run.info.run_id[:8]})") for run in runs]
    found = compare_cases(*tables, sides=(Side(names[0]), Side(names[1])), primary=primary)
    difference, ends = found.paired.difference, found.paired.interval
    if found.paired.n < FEWEST:
        some = "1 patient settles" if found.paired.n == 1 else f"{found.paired.n} patients settle"
        raise BadSetting(f"{some} nothing: it takes {FEWEST}. Run more patients.")
    if (missing := len(found.undefined)) > LEFT_OUT * (found.paired.n + missing):
        who = "1 patient with tumour has" if missing == 1 else f"{missing} patients with tumour have"
        raise BadSetting(f"{who} no {primary} in one of the runs. Choose another --primary.")
    best = max(scale.sign * ends.low, scale.sign * ends.high)  # what the interval still allows, in favour
    worse, shown = best < -margin, between(ends.low, ends.high, lambda value: scale.said(value, "+"))
    said = (
        f"{'FAILED' if worse else 'passed'}: {names[0]} against {names[1]}, mean {primary} "
        f"{scale.said(difference, '+')} over {found.paired.n} patients (95% interval {shown}), which is "
        f"{'' if worse else 'not shown to be '}worse by more than {margin:g}."
    )
    said += f" {found.healthy} A is the candidate." * bool(found.healthy)
    synthetic = runs[0].data.tags.get("bench.synthetic") == "true"
    return Verdict(worse, f"{said} {SYNTHETIC_WARNING}" if synthetic else said)
