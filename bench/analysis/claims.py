from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial

import pandas as pd

from bench.analysis.ranking import ALPHA
from bench.formatting import between
from bench.stats import Paired, Procedure

LEFT_OUT = 0.05  # share of patients without a score above which nothing is claimed: models choose who has one


SURE = 0.95  # the posterior probability at which training anew is said to change nothing


@dataclass(frozen=True)
class MetricScale:
    """How a metric is read: which way is better, and which difference of means counts for nothing."""

    metric: str
    higher: bool
    unit: str
    rope: float
    digits: int

    @property
    def sign(self) -> int:
        return 1 if self.higher else -1

    def said(self, value: float, form: str = "") -> str:
        """A number as people read it; only zero looks like zero."""
        first = -math.floor(math.log10(abs(value))) if value else 0
        return f"{value:{form}.{max(self.digits, first)}f}"

    def better(self, difference: float) -> str:
        """Whom a difference A - B speaks for."""
        return "A" if self.sign * difference > 0 else "B" if difference else ""


@dataclass(frozen=True)
class Side:
    """One of the two runs: images seen in training, and the weights it started from: '' random, None not known."""

    name: str
    run_id: str = ""
    images: float = math.nan
    weights: str | None = ""
    derived: bool = False  # made of other runs, which bear its cost
    post_hoc: bool = False  # changed after its test scores were seen


def claim(
    found: Paired,
    losses: float,
    procedure: Procedure,
    scale: MetricScale,
    undefined: int = 0,
    notes: Sequence[str] = (),
) -> str:
    """What these numbers allow to be said, and no more."""
    amount = " ".join(filter(None, (scale.said(abs(found.difference)), scale.unit)))
    way = "higher" if found.difference > 0 else "lower"
    score = f"A scores {amount} {way} than B" if found.difference else "A and B score the same"
    low_is_good = "" if scale.higher else ", where low is good"
    ends = between(found.interval.low, found.interval.high, partial(scale.said, form="+"))
    if undefined > LEFT_OUT * (found.n + undefined):
        said, training = "too many others have no score for anything to be claimed", []
    else:
        said, ahead = patients_say(found, losses, scale)
        training = [training_says(procedure, ahead, scale)]
    parts = [
        f"On these {found.n} patients {score} in mean {scale.metric}{low_is_good} (95% interval of A - B {ends}; "
        f"Wilcoxon p {_p(found.p)}; A better in {found.wins:.0%}, B in {losses:.0%} of them): {said}.",
        *training,
    ]
    if undefined:
        parts.append(f"{undefined} more count for neither, as their {scale.metric} is not defined in both.")
    return " ".join((*parts, *notes))


def patients_say(found: Paired, losses: float, scale: MetricScale) -> tuple[str, str]:
    """What holds of these fitted models for patients like these, and whose are better: A, B or nobody's."""
    low, high = found.interval.low, found.interval.high
    ahead = scale.better(found.difference)
    if math.isnan(low) or math.isnan(high):
        return "so few patients settle nothing", ""
    if max(abs(low), abs(high)) < scale.rope:
        return f"in practice equal on patients like these, as less than {scale.rope:g} counts for nothing", ""
    if low <= 0 <= high and found.p >= ALPHA:
        return "they cannot be told apart", ""
    if low <= 0 <= high:
        return "by rank the differences lean one way, by mean they do not, so neither is called better", ""
    if ahead != scale.better(scale.sign * (found.wins - losses)):
        return f"{ahead} is better in the mean, but not in most patients", ""
    if found.p >= ALPHA:
        return f"{ahead} is better in the mean, which a few patients may have made: by rank it is not settled", ""
    return f"{ahead}'s models are better on patients like these", ahead


def training_says(procedure: Procedure, ahead: str, scale: MetricScale) -> str:
    """What holds of the two ways to train, given whose models are better: A, B or nobody's."""
    if math.isnan(procedure.p):
        return "One fold says nothing about training anew."
    difference = scale.said(procedure.difference, "+")
    head = f"Over {procedure.n} folds the difference is {difference} (p {_p(procedure.p)})"
    if procedure.same >= SURE:
        return f"{head}: trained anew, they would most likely differ by less than {scale.rope:g}."
    if procedure.p >= ALPHA and ahead:
        return f"{head}: whether training {ahead} anew would again give better models is not settled."
    if procedure.p >= ALPHA:
        return f"{head}: what training anew would give is not settled."
    if ahead and ahead == scale.better(procedure.difference):
        return f"{head}: training {ahead} anew may be expected to give better models again."
    return f"{head}, which the patients do not bear out: what training anew would give is not settled."


def healthy_say(a: pd.DataFrame, b: pd.DataFrame, cases: Set[str]) -> str:
    """In how many of these patients, who have no tumour, each run sees one; '' where there are none."""
    if not cases:
        return ""
    alarms = [int((run["fp"][run["case"].isin(cases)] > 0).sum()) for run in (a, b)]
    who = "1 patient without tumour counts" if len(cases) == 1 else f"{len(cases)} patients without tumour count"
    return f"{who} for neither: A predicts some in {alarms[0]} of them, B in {alarms[1]}."


def caveats(a: Side, b: Side) -> list[str]:
    """Sentences on what else differs between two runs, and may be all that their scores show."""
    unlike = []
    ratio = a.images / b.images if a.images > 0 and b.images > 0 else 1.0
    if max(ratio, 1 / ratio) > 1.1:
        unlike.append(f"{'A' if ratio > 1 else 'B'} saw {max(ratio, 1 / ratio):.1f} times as many images")
    if None not in (a.weights, b.weights) and a.weights != b.weights:
        unlike.append(f"A started from {a.weights or 'random'} weights and B from {b.weights or 'random'} ones")
    said = [f"Budgets differ, which may be all that this shows: {'; '.join(unlike)}."] if unlike else []
    for name, side in (("A", a), ("B", b)):
        if side.derived:
            said.append(f"{name} is made of other runs: what those cost and started from is part of its budget.")
        if side.post_hoc:
            said.append(f"{name} was changed after its test scores were seen, which may flatter it.")
    return said


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"
