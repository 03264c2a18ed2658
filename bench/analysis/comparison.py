"""Compare two runs patient by patient, and state what the comparison shows. Pure: reads no store.

Differences are A - B. Wins and effect sizes are positive for A where A is better, even if lower values are better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

from bench import registry
from bench.analysis.claims import MetricScale, Side, claim, describe_healthy, list_caveats
from bench.analysis.score_facts import digits_of
from bench.analysis.strata import size_groups
from bench.errors import BadSetting
from bench.formatting import finite_or_none
from bench.stats import (
    FoldComparison,
    Interval,
    PairedComparison,
    compare_paired,
    corrected_resampled_t_test,
    interval,
)
from bench.structures import noun_of, select_structure, structure_column, structures_in

ROPE = {"": 0.01, "pixels": 1.0, "mm": 1.0, "slices": 0.1}  # largest negligible mean difference, by unit
STRUCTURE = "structure"  # a kind of group: all patients, scored by this structure alone
EXTREMES = 5  # patients shown with the largest gains, and with the largest losses


@dataclass(frozen=True)
class GroupDifference:
    """Patients who share a property, or one structure of all patients.

    Mean scores, mean difference with its interval, and the share of patients A wins.
    """

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
    """The comparison of two runs on the same patients.

    `patients` has one row per patient whose score is defined in both runs: case, fold, a, b, difference,
    tumour_pixels and the groups. `undefined` names the patients with tumour and without a score: a model's
    predictions decide who they are. `healthy` is a sentence on such patients without tumour. `losses` is the share
    of patients where B is better. `rank_biserial` is the matched-pairs correlation (Kerby 2014), `d_z` the mean
    difference in its standard deviations (Cohen 1988). `noun` is the structure that counts, or 'structure' for the
    mean over several.
    """

    a: Side
    b: Side
    scale: MetricScale
    patients: pd.DataFrame
    undefined: tuple[str, ...]
    healthy: str
    means: tuple[float, float]
    paired: PairedComparison
    losses: float
    rank_biserial: float
    d_z: float
    procedure: FoldComparison
    strata: tuple[GroupDifference, ...]
    claim: str
    noun: str

    @property
    def ties(self) -> float:
        return max(0.0, 1 - self.paired.wins - self.losses)

    def largest(self, side: int) -> pd.DataFrame:
        """Return the patients with the largest differences in favour of A (side 1) or B (side -1)."""
        order = self.patients.assign(gain=side * self.scale.sign * self.patients["difference"])
        order = order[order["gain"] > 0].sort_values(["gain", "case"], ascending=[False, True])
        return order.drop(columns="gain").head(EXTREMES)

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values, with None for NaN."""
        values = asdict(self) | {"ties": self.ties, "patients": self.patients.to_dict("records")}
        return dict(finite_or_none(values))


def compare_cases(
    cases_a: pd.DataFrame,
    cases_b: pd.DataFrame,
    *,
    sides: tuple[Side, Side],
    primary: str = "dice",
    structure: str | None = None,
    groups: pd.DataFrame | None = None,
) -> Comparison:
    """Compare two tables with one row per patient: case, fold, `primary`, tp and fn.

    `structure` is the only one that counts, if given. `groups` holds the groups of each patient: one column per
    kind, indexed by case. Raises `BenchError`.
    """
    scale = scale_of(primary)
    if structure is not None:
        scale = replace(scale, metric=structure_column(primary, structure))
    noun = noun_of(cases_a.columns, structure)
    cases_a, cases_b = select_structure(cases_a, structure), select_structure(cases_b, structure)
    for side, cases in zip(sides, (cases_a, cases_b), strict=True):
        if primary not in cases:
            raise BadSetting(f"run {side.name} has no {primary} per patient. Choose another --primary.")
    if unequal := set(cases_a["case"]) ^ set(cases_b["case"]):
        others = f"{len(unequal)} in only one run, such as {min(unequal)}"
        raise BadSetting(f"the runs did not test the same patients ({others}). Run all folds of both.")
    table = _join_scores(cases_a, cases_b, primary, groups)
    defined = np.isfinite(table[["a", "b"]].to_numpy(np.float64)).all(axis=1)
    patients, others = table[defined], table[~defined]
    undefined = tuple(sorted(others["case"][others["tumour_pixels"] > 0]))
    healthy = describe_healthy(cases_a, cases_b, set(others["case"][others["tumour_pixels"] == 0]), noun)
    if patients.empty:
        raise BadSetting(f"no patient has a {primary} in both runs. Choose another --primary.")
    d = patients["difference"].to_numpy(np.float64)
    wins, losses = (float((side * scale.sign * d > 0).mean()) for side in (1, -1))
    paired = replace(compare_paired(patients["a"], patients["b"]), wins=wins)
    procedure = _compare_folds(patients, table["fold"].nunique(), scale)
    notes = [*([healthy] if healthy else []), *list_caveats(*sides)]
    return Comparison(
        *sides,
        scale=scale,
        patients=patients.reset_index(drop=True),
        undefined=undefined,
        healthy=healthy,
        means=(float(patients["a"].mean()), float(patients["b"].mean())),
        paired=paired,
        losses=losses,
        rank_biserial=rank_biserial(scale.sign * d),
        d_z=d_z(scale.sign * d),
        procedure=procedure,
        strata=(
            *_compare_structures(cases_a, cases_b, primary, scale),
            *_compare_groups(patients, [] if groups is None else list(groups.columns), scale, noun),
        ),
        claim=claim(paired, losses, procedure, scale, len(undefined), notes),
        noun=noun,
    )


def scale_of(primary: str) -> MetricScale:
    """Return how to read a metric. Raises `BenchError` if it is unknown or has no better direction."""
    facts = registry.metric[primary].facts
    if facts.get("higher") is None:
        problem = f"neither high nor low values of '{primary}' are better"
        raise BadSetting(f"{problem}. Choose another --primary, such as dice.")
    unit = facts.get("unit", "")
    return MetricScale(primary, facts["higher"], unit, ROPE.get(unit, 0.01), digits_of(primary))


def rank_biserial(differences: NDArray[np.float64]) -> float:
    """Return the favourable minus the unfavourable share of the rank sum (Kerby 2014); NaN if no pair differs."""
    d = differences[differences != 0]
    ranks = scipy.stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum()) if d.size else math.nan


def d_z(differences: NDArray[np.float64]) -> float:
    """Return Cohen's d of paired differences; NaN if they have no spread."""
    spread = differences.std(ddof=1) if differences.size > 1 else 0.0
    return float(differences.mean() / spread) if spread > 1e-12 else math.nan


def _join_scores(a: pd.DataFrame, b: pd.DataFrame, primary: str, groups: pd.DataFrame | None) -> pd.DataFrame:
    table = a[["case", "fold"]].assign(a=a[primary], tumour_pixels=a["tp"] + a["fn"])
    table = table.merge(b[["case", primary]].rename(columns={primary: "b"}), on="case", validate="1:1")
    table["difference"] = np.round(table["a"] - table["b"], 12)  # smaller differences are rounding errors
    table = table[["case", "fold", "a", "b", "difference", "tumour_pixels"]]
    return table if groups is None else table.join(groups, on="case")


def _compare_folds(patients: pd.DataFrame, folds: int, scale: MetricScale) -> FoldComparison:
    means = patients.groupby("fold")["difference"].mean()
    compared = corrected_resampled_t_test(means, test_share=1 / max(folds, 2), rope=scale.rope)
    return compared if scale.higher else replace(compared, better=compared.worse, worse=compared.better)


def _compare_structures(
    a: pd.DataFrame, b: pd.DataFrame, primary: str, scale: MetricScale
) -> Iterator[GroupDifference]:
    """Compare the scores of each structure over the patients for whom both runs have one."""
    for structure in structures_in(a.columns):
        table = _join_scores(select_structure(a, structure), select_structure(b, structure), primary, None)
        if len(defined := table.dropna(subset=["difference"])):
            yield _compare_group(STRUCTURE, structure, defined, scale)


def _compare_groups(
    patients: pd.DataFrame, kinds: Sequence[str], scale: MetricScale, noun: str
) -> Iterator[GroupDifference]:
    sizes = size_groups(patients["tumour_pixels"], noun)
    for kind, names in ((f"{noun} size", sizes), *((k, patients[k]) for k in kinds)):
        for name, members in patients.groupby(names, observed=True) if names.nunique() > 1 else ():
            yield _compare_group(kind, str(name), members, scale)


def _compare_group(kind: str, name: str, members: pd.DataFrame, scale: MetricScale) -> GroupDifference:
    d = members["difference"]
    a, b, difference = (float(members[column].mean()) for column in ("a", "b", "difference"))
    wins = float((scale.sign * d > 0).mean())
    return GroupDifference(kind, name, len(members), a, b, difference, interval(d), wins)
