"""State in words what a comparison of two runs shows, and no more than its numbers support."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial

import pandas as pd

from bench.analysis.pairs import ALPHA
from bench.formatting import between
from bench.stats import FoldComparison, PairedComparison

# share of patients: beyond it nothing is claimed, as a model's predictions decide who has a score
MAX_UNDEFINED = 0.05
SURE = 0.95  # posterior probability from which two ways of training are called equal


@dataclass(frozen=True)
class MetricScale:
    """How to read a metric: which direction is better, and which mean difference (`rope`) is negligible."""

    metric: str
    higher: bool
    unit: str
    rope: float
    digits: int

    @property
    def sign(self) -> int:
        return 1 if self.higher else -1

    def format(self, value: float, form: str = "") -> str:
        """Return a number as text, with enough digits that only zero looks like zero."""
        leading = -math.floor(math.log10(abs(value))) if value else 0
        return f"{value:{form}.{max(self.digits, leading)}f}"

    def favoured(self, difference: float) -> str:
        """Return the run that a difference A - B favours: A, B or '' for none."""
        return "A" if self.sign * difference > 0 else "B" if difference else ""


@dataclass(frozen=True)
class Side:
    """One of the two runs: images seen in training and initial weights ('' for random, None if unknown)."""

    name: str
    run_id: str = ""
    images: float = math.nan
    weights: str | None = ""
    derived: bool = False  # made from other runs, which carry its training cost
    post_hoc: bool = False  # changed after its test scores were seen


def claim(
    paired: PairedComparison,
    losses: float,
    procedure: FoldComparison,
    scale: MetricScale,
    undefined: int = 0,
    notes: Sequence[str] = (),
) -> str:
    """State the conclusion of a comparison, followed by `notes`.

    `losses` is the share of patients where B is better, `undefined` the number with tumour but without a score.
    """
    amount = " ".join(filter(None, (scale.format(abs(paired.difference)), scale.unit)))
    direction = "higher" if paired.difference > 0 else "lower"
    score = f"A scores {amount} {direction} than B" if paired.difference else "A and B score the same"
    low_is_good = "" if scale.higher else ", where lower is better"
    ends = between(paired.interval.low, paired.interval.high, partial(scale.format, form="+"))
    if undefined > MAX_UNDEFINED * (paired.n + undefined):
        conclusion, training = "too many other patients have no score to conclude anything", []
    else:
        conclusion, better = conclude_from_patients(paired, losses, scale)
        training = [conclude_from_folds(procedure, better, scale)]
    parts = [
        f"On these {paired.n} patients {score} in mean {scale.metric}{low_is_good} (95% interval of A - B {ends}; "
        f"Wilcoxon p {_p(paired.p)}; A is better in {paired.wins:.0%} and B in {losses:.0%} of them): "
        f"{conclusion}.",
        *training,
    ]
    if undefined:
        patients = "1 more patient is" if undefined == 1 else f"{undefined} more patients are"
        parts.append(f"{patients} left out, as {scale.metric} is undefined in at least one run.")
    return " ".join((*parts, *notes))


def conclude_from_patients(paired: PairedComparison, losses: float, scale: MetricScale) -> tuple[str, str]:
    """Return what holds for these trained models on patients like these, and the better run: A, B or ''."""
    low, high = paired.interval.low, paired.interval.high
    ahead = scale.favoured(paired.difference)
    if math.isnan(low) or math.isnan(high):
        return "too few patients to conclude anything", ""
    if max(abs(low), abs(high)) < scale.rope:
        negligible = f"differences below {scale.rope:g} are negligible"
        return f"they are equal in practice on patients like these, as {negligible}", ""
    if low <= 0 <= high:
        disagree = "ranks favour one run and the mean does not, so neither is called better"
        return "no difference is shown" if paired.p >= ALPHA else disagree, ""
    if ahead != scale.favoured(scale.sign * (paired.wins - losses)):
        return f"{ahead} is better in the mean, but not in most patients", ""
    if paired.p >= ALPHA:
        doubt = "but by rank no difference is shown: a few patients may explain it"
        return f"{ahead} is better in the mean, {doubt}", ""
    return f"{ahead}'s models are better on patients like these", ahead


def conclude_from_folds(procedure: FoldComparison, better: str, scale: MetricScale) -> str:
    """Return what holds for the two ways of training; `better` is the run with the better models: A, B or ''."""
    if math.isnan(procedure.p):
        return "One fold cannot show what would hold after training again."
    difference = scale.format(procedure.difference, "+")
    head = f"Over {procedure.n} folds the difference is {difference} (p {_p(procedure.p)})"
    if procedure.same >= SURE:
        return f"{head}: after training again, they would most likely differ by less than {scale.rope:g}."
    if procedure.p >= ALPHA and better:
        return f"{head}: it is not shown that {better} would also be better after training again."
    if procedure.p >= ALPHA:
        return f"{head}: it is not shown which would be better after training again."
    if better and better == scale.favoured(procedure.difference):
        return f"{head}: {better} is expected to be better after training again, too."
    return f"{head}, but patients do not confirm it: it is not shown which would be better after training again."


def describe_healthy(a: pd.DataFrame, b: pd.DataFrame, cases: Set[str], noun: str) -> str:
    """Return in how many of these patients without tumour (`noun`) each run predicts it; '' for no patients."""
    if not cases:
        return ""
    alarms = [int((run["fp"][run["case"].isin(cases)] > 0).sum()) for run in (a, b)]
    patients = f"1 patient without {noun} is" if len(cases) == 1 else f"{len(cases)} patients without {noun} are"
    return f"{patients} left out: A predicts {noun} in {alarms[0]} of them, B in {alarms[1]}."


def list_caveats(a: Side, b: Side) -> list[str]:
    """Return sentences on what else differs between two runs and may explain their scores."""
    unequal = []
    ratio = a.images / b.images if a.images > 0 and b.images > 0 else 1.0
    if max(ratio, 1 / ratio) > 1.1:
        unequal.append(f"{'A' if ratio > 1 else 'B'} saw {max(ratio, 1 / ratio):.1f} times as many images")
    if None not in (a.weights, b.weights) and a.weights != b.weights:
        unequal.append(f"A started from {a.weights or 'random'} weights and B from {b.weights or 'random'} ones")
    caveats = [f"Budgets differ, which may explain the difference: {'; '.join(unequal)}."] if unequal else []
    for name, side in (("A", a), ("B", b)):
        if side.derived:
            parts = "their cost and initial weights are part of its budget"
            caveats.append(f"{name} is derived from other runs: {parts}.")
        if side.post_hoc:
            caveats.append(f"{name} was changed after its test scores were seen, which may make it look too good.")
    return caveats


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"
