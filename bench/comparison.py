"""Two runs patient by patient, and in plain words what may be claimed of them. Pure: it reads no store.

Differences are A - B. Wins and effect sizes speak for A where A is better, also on metrics that are better low.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bench import registry
from bench.errors import BadSetting
from bench.leaderboard import digits_of
from bench.ranking import ALPHA
from bench.stats import Interval, Paired, Procedure, corrected_resampled, interval, paired
from bench.tables import between

ROPE = {"": 0.01, "pixels": 1.0, "slices": 0.1}  # by the metric's unit: a mean difference that counts for nothing
SHOWN = 5  # patients who gain and lose most
LEFT_OUT = 0.05  # share of patients without a score above which nothing is claimed: models choose who has one
SURE = 0.95  # the posterior probability at which training anew is said to change nothing


@dataclass(frozen=True)
class Scale:
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


@dataclass(frozen=True)
class Stratum:
    """Patients who have something in common: mean scores, mean difference with its interval, share that A wins."""

    kind: str
    name: str
    n: int
    a: float
    b: float
    difference: float
    interval: Interval
    wins: float


@dataclass(frozen=True)
class Comparison:
    """What the patients of two runs say.

    `patients` has a row for each whose score is defined in both: case, fold, a, b, difference, tumour_pixels and
    the groups that were given; `undefined` names the others who have tumour, of whom models choose who they are,
    and `healthy` tells of those who have none. `rank_biserial` is the matched-pairs correlation
    (Kerby 2014), `d_z` the mean difference in its own standard deviations (Cohen 1988).
    """

    a: Side
    b: Side
    scale: Scale
    patients: pd.DataFrame
    undefined: tuple[str, ...]
    healthy: str
    means: tuple[float, float]
    paired: Paired
    losses: float
    rank_biserial: float
    d_z: float
    procedure: Procedure
    strata: tuple[Stratum, ...]
    claim: str

    @property
    def ties(self) -> float:
        return max(0.0, 1 - self.paired.wins - self.losses)

    @property
    def gains(self) -> pd.DataFrame:
        """The patients for whom A is better by most."""
        return self._extremes(1)

    @property
    def falls(self) -> pd.DataFrame:
        """The patients for whom A is worse by most."""
        return self._extremes(-1)

    def _extremes(self, side: int) -> pd.DataFrame:
        order = self.patients.assign(gain=side * self.scale.sign * self.patients["difference"])
        order = order[order["gain"] > 0].sort_values(["gain", "case"], ascending=[False, True])
        return order.drop(columns="gain").head(SHOWN)

    def as_json(self) -> dict[str, Any]:
        """All of it in plain values; None for what is not defined."""
        told = asdict(self) | {"ties": self.ties, "patients": self.patients.to_dict("records")}
        defined: dict[str, Any] = _defined(told)
        return defined


def compared(
    cases_a: pd.DataFrame,
    cases_b: pd.DataFrame,
    *,
    sides: tuple[Side, Side],
    primary: str = "dice",
    groups: pd.DataFrame | None = None,
) -> Comparison:
    """Compare two tables with one row a patient: case, fold, `primary`, tp and fn.

    `groups` says what patients have in common: a column a kind, its index their names. Raises `BenchError`.
    """
    scale = scale_of(primary)
    for side, cases in zip(sides, (cases_a, cases_b), strict=True):
        if primary not in cases:
            raise BadSetting(f"run {side.name} has not scored {primary} of patients. Choose another --primary.")
    if unequal := set(cases_a["case"]) ^ set(cases_b["case"]):
        raise BadSetting(
            f"the runs did not test the same patients ({len(unequal)} in one only, such as {min(unequal)}). "
            "Run all folds of both."
        )
    table = _joined(cases_a, cases_b, primary, groups)
    known = np.isfinite(table[["a", "b"]].to_numpy(np.float64)).all(axis=1)
    patients, others = table[known], table[~known]
    undefined = tuple(sorted(others["case"][others["tumour_pixels"] > 0]))
    healthy = healthy_say(cases_a, cases_b, set(others["case"][others["tumour_pixels"] == 0]))
    if patients.empty:
        raise BadSetting(f"no patient has a {primary} in both runs. Choose another --primary.")
    d = patients["difference"].to_numpy(np.float64)
    wins, losses = (float((side * scale.sign * d > 0).mean()) for side in (1, -1))
    found = replace(paired(patients["a"], patients["b"]), wins=wins)
    procedure = _procedure(patients, table["fold"].nunique(), scale)
    notes = [*([healthy] if healthy else []), *caveats(*sides)]
    return Comparison(
        *sides,
        scale=scale,
        patients=patients.reset_index(drop=True),
        undefined=undefined,
        healthy=healthy,
        means=(float(patients["a"].mean()), float(patients["b"].mean())),
        paired=found,
        losses=losses,
        rank_biserial=rank_biserial(scale.sign * d),
        d_z=d_z(scale.sign * d),
        procedure=procedure,
        strata=tuple(_strata(patients, [] if groups is None else list(groups.columns), scale)),
        claim=claim(found, losses, procedure, scale, len(undefined), notes),
    )


def scale_of(primary: str) -> Scale:
    """How this metric is read. Raises `BenchError` for one that is unknown, or neither better high nor low."""
    facts = registry.metric[primary].facts
    if facts.get("higher") is None:
        raise BadSetting(f"'{primary}' is neither better high nor low. Choose --primary dice.")
    unit = facts.get("unit", "")
    return Scale(primary, facts["higher"], unit, ROPE.get(unit, 0.01), digits_of(primary))


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Favourable less unfavourable share of the rank sum (Kerby 2014); NaN where no pair differs."""
    d = differences[differences != 0]
    ranks = stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum()) if d.size else math.nan


def d_z(differences: NDArray[np.float64]) -> float:
    """Cohen's d of paired differences; NaN where they do not spread."""
    spread = differences.std(ddof=1) if differences.size > 1 else 0.0
    return float(differences.mean() / spread) if spread > 1e-12 else math.nan


def claim(
    found: Paired, losses: float, procedure: Procedure, scale: Scale, undefined: int = 0, notes: Sequence[str] = ()
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


def patients_say(found: Paired, losses: float, scale: Scale) -> tuple[str, str]:
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


def training_says(procedure: Procedure, ahead: str, scale: Scale) -> str:
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


def _joined(a: pd.DataFrame, b: pd.DataFrame, primary: str, groups: pd.DataFrame | None) -> pd.DataFrame:
    table = a[["case", "fold"]].assign(a=a[primary], tumour_pixels=a["tp"] + a["fn"])
    table = table.merge(b[["case", primary]].rename(columns={primary: "b"}), on="case", validate="1:1")
    table["difference"] = np.round(table["a"] - table["b"], 12)  # smaller is rounding
    if groups is not None:
        table = table.join(groups, on="case")
    return table[["case", "fold", "a", "b", "difference", "tumour_pixels", *([] if groups is None else groups)]]


def _procedure(patients: pd.DataFrame, folds: int, scale: Scale) -> Procedure:
    means = patients.groupby("fold")["difference"].mean()
    found = corrected_resampled(means, test_share=1 / max(folds, 2), rope=scale.rope)
    return found if scale.higher else replace(found, better=found.worse, worse=found.better)


def _strata(patients: pd.DataFrame, kinds: Sequence[str], scale: Scale) -> Iterator[Stratum]:
    for kind, labels in (("tumour size", _sizes(patients["tumour_pixels"])), *((k, patients[k]) for k in kinds)):
        if labels.nunique() > 1:
            for name, members in patients.groupby(labels, observed=True):
                yield _stratum(kind, str(name), members, scale)


def terciles(pixels: pd.Series[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The two sizes that part the patients with tumour into thirds, and every patient's third: 0 without tumour.

    Equal sizes stay together, in the smaller third.
    """
    ends = np.quantile(pixels[pixels > 0], [1 / 3, 2 / 3]) if (pixels > 0).any() else np.zeros(2)
    return ends, np.where(pixels > 0, 1 + np.searchsorted(ends, pixels), 0).astype(np.int64)


def _sizes(pixels: pd.Series[int]) -> pd.Series[str]:
    ends, codes = terciles(pixels)
    names = ["no tumour", f"small, to {ends[0]:,.0f} pixels", f"middle, to {ends[1]:,.0f}", "large"]
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(names), ordered=True), index=pixels.index)


def _stratum(kind: str, name: str, members: pd.DataFrame, scale: Scale) -> Stratum:
    d = members["difference"]
    wins = float((scale.sign * d > 0).mean())
    means = float(members["a"].mean()), float(members["b"].mean())
    return Stratum(kind, name, len(members), *means, float(d.mean()), interval(d), wins)


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _defined(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
