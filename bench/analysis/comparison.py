"""Two runs patient by patient, and in plain words what may be claimed of them. Pure: it reads no store.

Differences are A - B. Wins and effect sizes speak for A where A is better, also on metrics that are better low.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bench import registry
from bench.analysis.claims import (
    MetricScale,
    Side,
    caveats,
    claim,
    healthy_say,
)
from bench.analysis.score_facts import digits_of
from bench.analysis.strata import terciles
from bench.errors import BadSetting
from bench.stats import Interval, Paired, Procedure, corrected_resampled, interval, paired

ROPE = {"": 0.01, "pixels": 1.0, "slices": 0.1}  # by the metric's unit: a mean difference that counts for nothing


SHOWN = 5  # patients who gain and lose most


@dataclass(frozen=True)
class GroupDifference:
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
    scale: MetricScale
    patients: pd.DataFrame
    undefined: tuple[str, ...]
    healthy: str
    means: tuple[float, float]
    paired: Paired
    losses: float
    rank_biserial: float
    d_z: float
    procedure: Procedure
    strata: tuple[GroupDifference, ...]
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


def compare_cases(
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


def scale_of(primary: str) -> MetricScale:
    """How this metric is read. Raises `BenchError` for one that is unknown, or neither better high nor low."""
    facts = registry.metric[primary].facts
    if facts.get("higher") is None:
        raise BadSetting(f"'{primary}' is neither better high nor low. Choose --primary dice.")
    unit = facts.get("unit", "")
    return MetricScale(primary, facts["higher"], unit, ROPE.get(unit, 0.01), digits_of(primary))


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Favourable less unfavourable share of the rank sum (Kerby 2014); NaN where no pair differs."""
    d = differences[differences != 0]
    ranks = stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum()) if d.size else math.nan


def d_z(differences: NDArray[np.float64]) -> float:
    """Cohen's d of paired differences; NaN where they do not spread."""
    spread = differences.std(ddof=1) if differences.size > 1 else 0.0
    return float(differences.mean() / spread) if spread > 1e-12 else math.nan


def _joined(a: pd.DataFrame, b: pd.DataFrame, primary: str, groups: pd.DataFrame | None) -> pd.DataFrame:
    table = a[["case", "fold"]].assign(a=a[primary], tumour_pixels=a["tp"] + a["fn"])
    table = table.merge(b[["case", primary]].rename(columns={primary: "b"}), on="case", validate="1:1")
    table["difference"] = np.round(table["a"] - table["b"], 12)  # smaller is rounding
    if groups is not None:
        table = table.join(groups, on="case")
    return table[["case", "fold", "a", "b", "difference", "tumour_pixels", *([] if groups is None else groups)]]


def _procedure(patients: pd.DataFrame, folds: int, scale: MetricScale) -> Procedure:
    means = patients.groupby("fold")["difference"].mean()
    found = corrected_resampled(means, test_share=1 / max(folds, 2), rope=scale.rope)
    return found if scale.higher else replace(found, better=found.worse, worse=found.better)


def _strata(patients: pd.DataFrame, kinds: Sequence[str], scale: MetricScale) -> Iterator[GroupDifference]:
    for kind, labels in (("tumour size", _sizes(patients["tumour_pixels"])), *((k, patients[k]) for k in kinds)):
        if labels.nunique() > 1:
            for name, members in patients.groupby(labels, observed=True):
                yield _group_difference(kind, str(name), members, scale)


def _sizes(pixels: pd.Series[int]) -> pd.Series[str]:
    ends, codes = terciles(pixels)
    names = ["no tumour", f"small, to {ends[0]:,.0f} pixels", f"middle, to {ends[1]:,.0f}", "large"]
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(names), ordered=True), index=pixels.index)


def _group_difference(kind: str, name: str, members: pd.DataFrame, scale: MetricScale) -> GroupDifference:
    d = members["difference"]
    wins = float((scale.sign * d > 0).mean())
    means = float(members["a"].mean()), float(members["b"].mean())
    return GroupDifference(kind, name, len(members), *means, float(d.mean()), interval(d), wins)


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _defined(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
