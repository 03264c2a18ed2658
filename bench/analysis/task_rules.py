"""How runs of each task are ranked: by which scores, over patients or slices, and in which words.

`rules_of` is the only place where the analysis distinguishes segmentation from presence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from bench import registry
from bench.analysis import ranking
from bench.analysis.pairs import bootstrap_p_values, percentile_interval
from bench.analysis.ranking import RankedModel
from bench.metrics.aggregate import NOT_METRICS
from bench.metrics.classification import HIGHER, SCORES, Calls
from bench.stats import Interval
from bench.types import RunRecord

Contenders = Sequence[Sequence[RunRecord]]  # for each row of a board, its runs: one per seed
RESAMPLES = 999


class TaskRules(Protocol):
    """What differs between boards of different tasks."""

    name: str
    headline: str  # the score that ranks by default
    label: str  # added to the title of a board
    by_patient: bool  # whether every patient has scores of its own
    meaning: str  # of the ranking score, in a legend
    pairing: str  # how rows are compared
    test: str  # of the p-values

    def scores(self, records: Sequence[RunRecord]) -> list[str]:
        """Return the scores that may rank these records."""

    def higher_is_better(self, score: str) -> bool:
        """Return in which direction a score improves."""

    def rank(self, contenders: Contenders, score: str) -> tuple[tuple[str, ...], list[RankedModel]]:
        """Return the patients left out as the score is undefined for them, and one result per contender."""


class SegmentationRules:
    """Scores of patients: paired, tested by Wilcoxon, ranked by their mean."""

    name = "segmentation"
    headline = "dice"
    label = ""
    by_patient = True
    meaning = "mean over patients, out of fold"
    pairing, test = "patient by patient", "Wilcoxon"

    def scores(self, records: Sequence[RunRecord]) -> list[str]:
        facts = {name: registry.metric[name].facts for name in registry.metric}
        unranked = {n for n, fact in facts.items() if fact.get("higher") is None or not fact.get("ranked", True)}
        plain = {c for record in records for c in record.cases.columns if not c.endswith("]")}
        return sorted(plain - {*NOT_METRICS, *unranked})

    def higher_is_better(self, score: str) -> bool:
        return score not in registry.metric or bool(registry.metric[score].facts.get("higher"))

    def rank(self, contenders: Contenders, score: str) -> tuple[tuple[str, ...], list[RankedModel]]:
        """A row without the score for any patient comes last, and excludes no patient from the others."""
        cases = sorted(contenders[0][0].cases["case"])
        values = [
            np.stack([run.cases.set_index("case")[score].reindex(cases).to_numpy(np.float64) for run in runs])
            if all(score in run.cases for run in runs)
            else np.full((1, len(cases)), np.nan)
            for runs in contenders
        ]
        scored = [not np.isnan(each).all(1).any() for each in values]
        kept = [each for each, ok in zip(values, scored, strict=True) if ok]
        defined = np.all([~np.isnan(each).any(0) for each in kept], axis=0) if kept else np.zeros(len(cases), bool)
        left_out = tuple(case for case, ok in zip(cases, defined, strict=True) if not ok)
        if not defined.any():
            return left_out, [_unranked(1) for _ in contenders]
        ranked = ranking.rank_models([each[:, defined] for each in kept], higher=self.higher_is_better(score))
        return left_out, _with_unranked(scored, ranked)


class PresenceRules:
    """Scores over all slices, not means over patients: patients are resampled and the score computed again."""

    name = "presence"
    headline = "auroc"
    label = " · presence of tumour"
    by_patient = False
    meaning = "all slices, out of fold"
    pairing, test = "over all slices", "bootstrap"

    def scores(self, records: Sequence[RunRecord]) -> list[str]:
        return list(SCORES)

    def higher_is_better(self, score: str) -> bool:
        return score in HIGHER

    def rank(self, contenders: Contenders, score: str) -> tuple[tuple[str, ...], list[RankedModel]]:
        rng, higher = np.random.default_rng(0), self.higher_is_better(score)
        cases = sorted(contenders[0][0].cases["case"])
        weights = rng.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=RESAMPLES)
        values, draws = [], np.empty((len(contenders), RESAMPLES))
        for row, runs in enumerate(contenders):
            drawn = np.empty((len(runs), RESAMPLES))
            own = []
            for number, run in enumerate(runs):
                assert run.slices is not None  # `bench.tracking` reads them with every presence run
                calls = Calls.from_table(run.slices)
                place = pd.Index(cases).get_indexer(run.slices["case"])
                own.append(SCORES[score](calls))
                drawn[number] = [SCORES[score](calls.with_weights(w[place].astype(np.float64))) for w in weights]
            draws[row] = (drawn * ranking.bootstrap_run_weights(rng, len(runs), RESAMPLES).T).sum(0)
            values.append(float(np.mean(own)))
        scored = np.isfinite(values)
        if not scored.any():
            return (), [_unranked(1) for _ in contenders]
        means, draws = np.array(values)[scored], draws[scored]
        draws = draws[:, np.isfinite(draws).all(0)]  # in a draw without positives the score may be undefined
        leader = int(np.argmax(means if higher else -means))
        kept = [runs for runs, ok in zip(contenders, scored, strict=True) if ok]
        drawn_of = zip(kept, draws, strict=True)
        intervals = [_logged_interval(runs, score) or percentile_interval(d) for runs, d in drawn_of]
        differences = [percentile_interval(d - draws[leader]) for d in draws]
        if len(cases) < 2:  # a single patient has no spread
            intervals = differences = [Interval(math.nan, math.nan)] * len(means)
        p = bootstrap_p_values(means, draws, len(cases))
        ranked = ranking.rank_from_resamples(means, draws, p, intervals, differences, higher=higher)
        return (), _with_unranked(scored, ranked)


RULES: dict[str, TaskRules] = {rules.name: rules for rules in (SegmentationRules(), PresenceRules())}


def rules_of(task: str) -> TaskRules:
    """Return the rules of a task by its name, the value of the tag `bench.task`."""
    return RULES[task]


def _logged_interval(runs: Sequence[RunRecord], score: str) -> Interval | None:
    """Return the interval that a single run has logged for its score."""
    ends = (f"{score}_low", f"{score}_high")
    if len(runs) > 1 or not all(end in runs[0].metrics for end in ends):
        return None
    return Interval(*(runs[0].metrics[end] for end in ends))


def _with_unranked(scored: Iterable[bool], ranked: Sequence[RankedModel]) -> list[RankedModel]:
    """Put rows without a score last."""
    remaining = iter(ranked)
    return [next(remaining) if ok else _unranked(len(ranked) + 1) for ok in scored]


def _unranked(rank: int) -> RankedModel:
    nan = math.nan
    nowhere = Interval(nan, nan)
    return RankedModel(rank, nan, nowhere, nan, nowhere, nan, (0, 0), nan, (rank, rank), "no score")
