"""Records in, ranked rows out. Pure: it reads no store and draws no table.

Rows are ranked together only when the same patients were tested on the same pixels under the same split and the
same metric conventions; everything else is another board.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench import registry
from bench.analysis.board import Board, Row
from bench.analysis.filters import filter_records
from bench.analysis.ranking import RankedModel, bootstrap_p, drawn_runs, percentiles, rank_models, ranked_models
from bench.analysis.score_facts import (
    COSTS,
    HEADLINE,
    higher_is_better,
    lower_is_better,
)
from bench.errors import UnknownName, did_you_mean
from bench.metrics.aggregate import NOT_METRICS
from bench.metrics.classification import SCORES, Calls
from bench.stats import Interval
from bench.tracking.tags import IMPORTED
from bench.types import RunRecord

CONFIGURATION = "configuration"  # what makes a row: runs of one configuration, which differ in their seeds alone


RUN = "run"  # or every run by itself


Key = tuple[str, ...]


def build_boards(
    records: Sequence[RunRecord],
    *,
    primary: str | None = None,
    sort: str | None = None,
    group_by: str = CONFIGURATION,
    where: Sequence[str] = (),
    pareto: str | None = None,
) -> list[Board]:
    """Group comparable records and rank each group by its primary score; equal scores share a rank.

    `primary` is any score of patients (Dice by default), or of slices where presence was asked for (AUROC);
    `group_by` what makes a row: `configuration`, `run`, or a setting such as loss.name, over whose runs the score
    is then averaged; `where` keeps rows for which conditions such as model=unet or parameters<5e6 hold; `pareto`
    keeps rows than which no other is better as well as cheaper in that column; `sort` orders them by a column.
    Raises `BenchError`.
    """
    groups: dict[Key, list[RunRecord]] = {}
    for record in filter_records(records, where):
        groups.setdefault(_comparable(record), []).append(record)
    if records:
        _check_primary(primary, records)
        _check_group_by(group_by, records)
    made = [_board(task, group, primary, group_by) for (task, *_), group in groups.items()]
    made = sorted(made, key=lambda b: (b.synthetic, b.post_hoc, b.task == "presence", -len(b.rows), b.title))
    for column in (pareto, sort):
        _check_column(column, made)
    if pareto is not None:
        made = [replace(board, rows=_front(board, pareto)) for board in made]
    return [replace(board, rows=_ordered(board, sort)) for board in made] if sort else made


def board_of_run(records: Sequence[RunRecord], run_id: str) -> Board:
    """The board that a run stands on."""
    return next(b for b in build_boards(records) if any(run_id in (*row.runs, *row.repeats) for row in b.rows))


def rank_metrics(board: Board) -> dict[str, dict[str, float]]:
    """For every run on a board, where it stands now: as metrics for MLflow's UI."""
    return {
        run: {"rank": row.rank, "rank_low": row.rank_low, "rank_high": row.rank_high, "rank_first": row.first}
        for row in board.rows
        for run in (*row.runs, *row.repeats)
    }


def _board(task: str, records: Sequence[RunRecord], primary: str | None, group_by: str) -> Board:
    scored = SCORES if task == "presence" else _metrics(records)
    by = primary if primary is not None and primary in scored else HEADLINE[task]
    rows: dict[str, list[RunRecord]] = {}
    for record in records:
        rows.setdefault(_row_key(record, group_by), []).append(record)
    contenders = [_one_a_seed(runs) for runs in rows.values()]
    better = higher_is_better(task, by)
    if task == "presence":
        left_out: tuple[str, ...] = ()
        found = _presence_standings(contenders, by, higher=better)
    else:
        left_out, found = _patient_standings(contenders, by, higher=better)
    made = [
        _row(runs, standing, group_by, every)
        for every, runs, standing in zip(rows.values(), contenders, found, strict=True)
    ]
    tags = records[0].tags
    return Board(
        task=task,
        primary=by,
        dataset=tags["bench.dataset"],
        data_key=tags["bench.data"],
        split_hash=tags["bench.split"],
        patients=len(records[0].cases),
        synthetic=tags.get("bench.synthetic") == "true",
        post_hoc="bench.post_hoc" in tags,
        left_out=left_out,
        rows=tuple(sorted(made, key=lambda row: (row.rank, row.name, row.run_id))),
    )


def _patient_standings(
    contenders: Sequence[Sequence[RunRecord]], primary: str, *, higher: bool
) -> tuple[tuple[str, ...], list[RankedModel]]:
    """Patients for whom the score is undefined in any run, and the standings over all others.

    A run that has it for no patient comes last, and takes nobody else's patients away.
    """
    cases = sorted(contenders[0][0].cases["case"])
    scores = [
        np.stack([run.cases.set_index("case")[primary].reindex(cases).to_numpy(np.float64) for run in runs])
        if all(primary in run.cases for run in runs)
        else np.full((1, len(cases)), np.nan)
        for runs in contenders
    ]
    known = [not np.isnan(values).all(1).any() for values in scores]
    told = [values for values, some in zip(scores, known, strict=True) if some]
    defined = np.all([~np.isnan(values).any(0) for values in told], axis=0) if told else np.zeros(len(cases), bool)
    left_out = tuple(case for case, some in zip(cases, defined, strict=True) if not some)
    if not defined.any():
        return left_out, [_unknown(1) for _ in contenders]
    return left_out, _with_unknown(known, rank_models([values[:, defined] for values in told], higher=higher))


def _presence_standings(
    contenders: Sequence[Sequence[RunRecord]], primary: str, *, higher: bool, resamples: int = 999
) -> list[RankedModel]:
    """A score of slices is no mean over patients: whole patients are drawn, and the score is found anew."""
    rng = np.random.default_rng(0)
    cases = sorted(contenders[0][0].cases["case"])
    weight = rng.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=resamples)
    values, draws, score = [], np.empty((len(contenders), resamples)), SCORES[primary]
    for at, runs in enumerate(contenders):
        drawn = np.empty((len(runs), resamples))
        found = []
        for row, run in enumerate(runs):
            assert run.slices is not None  # `bench.tracking` reads them with every presence run
            calls = Calls.of(run.slices)
            place = pd.Index(cases).get_indexer(run.slices["case"])
            found.append(score(calls))
            drawn[row] = [score(calls.weighing(w[place].astype(np.float64))) for w in weight]
        taken = drawn_runs(rng, len(runs), resamples)
        draws[at] = (drawn * taken.T).sum(0)
        values.append(float(np.mean(found)))
    known = np.isfinite(values)
    if not known.any():
        return [_unknown(1) for _ in contenders]
    means, draws = np.array(values)[known], draws[known]
    draws = draws[:, np.isfinite(draws).all(0)]  # patients may be drawn for whom there is nothing to divide by
    leader = int(np.argmax(means if higher else -means))
    told = [runs for runs, some in zip(contenders, known, strict=True) if some]
    own = [_logged(runs, primary) or percentiles(d) for runs, d in zip(told, draws, strict=True)]
    differences = [percentiles(d - draws[leader]) for d in draws]
    if len(cases) < 2:  # a patient who is drawn again and again does not vary
        own = differences = [Interval(math.nan, math.nan)] * len(means)
    p = bootstrap_p(means, draws, len(cases))
    return _with_unknown(known, ranked_models(means, draws, p, own, differences, higher=higher))


def _logged(runs: Sequence[RunRecord], primary: str) -> Interval | None:
    """The interval that a single run has logged of its score."""
    ends = (f"{primary}_low", f"{primary}_high")
    if len(runs) > 1 or not all(end in runs[0].metrics for end in ends):
        return None
    return Interval(*(runs[0].metrics[end] for end in ends))


def _with_unknown(known: Iterable[bool], found: Sequence[RankedModel]) -> list[RankedModel]:
    """Those that are known in turn, the others last."""
    left = iter(found)
    return [next(left) if some else _unknown(len(found) + 1) for some in known]


def _unknown(rank: int) -> RankedModel:
    nan = math.nan
    return RankedModel(rank, nan, Interval(nan, nan), nan, Interval(nan, nan), nan, rank, nan, (rank, rank))


def _row(runs: Sequence[RunRecord], standing: RankedModel, group_by: str, every: Sequence[RunRecord]) -> Row:
    """`runs` are those of `every` that count."""
    first = runs[0]  # the newest
    seeds = sorted({run.settings.get("run.seed", "?") for run in runs})
    costs = {name: _mean(runs, f"cost/{name}") for name in COSTS}
    own = group_by in (CONFIGURATION, RUN) or len({run.name for run in runs}) == 1
    logged = sorted({n for run in runs for n in run.metrics if "/" not in n and not n.startswith("rank")})
    return Row(
        rank=standing.rank,
        name=first.name if own else _said(first, group_by) or "none",
        model=_common(runs, "model.name") or "?",
        encoder=_common(runs, "model.encoder"),
        loss=_common(runs, "loss.name") or "?",
        weights=_common(runs, "model.weights") or ("scratch" if _trained(first) else ""),
        score=standing.mean,
        low=standing.interval.low,
        high=standing.interval.high,
        difference=standing.difference,
        difference_low=standing.difference_interval.low,
        difference_high=standing.difference_interval.high,
        p=standing.p,
        group=standing.group,
        first=standing.first,
        rank_low=standing.ranks[0],
        rank_high=standing.ranks[1],
        seeds=len(seeds),
        folds=first.cases["fold"].nunique() if "fold" in first.cases else 0,
        patients=len(first.cases),
        budget=_budget(first),
        **costs,
        hardware=first.tags.get("env.device", ""),
        members=max(1 + _said(run, "ensemble.runs").count(",") for run in runs),
        searched=max(trials_behind(run.settings) for run in runs),
        seed=", ".join(seeds),
        data=first.tags["bench.data"][:8],
        split=first.tags["bench.split"],
        synthetic=first.tags.get("bench.synthetic") == "true",
        imported=any(IMPORTED in run.tags for run in runs),
        run_id=first.run_id,
        runs=tuple(run.run_id for run in runs),
        repeats=tuple(run.run_id for run in every if not any(run is one for one in runs)),
        scores={name: _mean(runs, name) for name in logged},
    )


def _budget(run: RunRecord) -> str:
    """Slices seen in a fold, to two digits, and how large: '24k x 64 px'. Nothing for a run made of others."""
    folds = run.cases["fold"].nunique() if "fold" in run.cases else 0
    images = run.metrics.get("cost/images", math.nan) / folds if folds else math.nan
    if math.isnan(images) or images == 0 or not _trained(run):
        return ""
    digits = max(0, math.floor(math.log10(images)) - 1)
    seen = round(images / 10**digits) * 10**digits
    side = _said(run, "input.patch.size") or _said(run, "input.image_size")
    return f"{f'{seen / 1000:g}k' if seen >= 1000 else seen} x {f'{side} px' if side else 'full size'}"


def _trained(run: RunRecord) -> bool:
    """Not made of other runs, whose cost it bears."""
    return "train.epochs" in run.settings


def _one_a_seed(records: Sequence[RunRecord]) -> list[RunRecord]:
    """One run of each configuration and seed, this store's newest: a repeated one would count as two seeds."""
    chosen: dict[Key, str] = {}
    for record in sorted(records, key=lambda run: IMPORTED in run.tags):  # the newest first
        chosen.setdefault((_row_key(record, CONFIGURATION), record.settings.get("run.seed", "")), record.run_id)
    return [record for record in records if record.run_id in chosen.values()]


def _row_key(record: RunRecord, group_by: str) -> str:
    """Records with one key are one row."""
    if group_by == RUN:
        return record.run_id
    if group_by == CONFIGURATION:
        own = {k: v for k, v in record.settings.items() if not k.startswith(("run.", "plan.", "dataset.folder"))}
        return str(sorted(own.items())) if own else record.run_id
    return str(record.settings.get(group_by, record.run_id))  # a run without the setting stands alone


def _comparable(record: RunRecord) -> Key:
    tested = hashlib.sha256("\n".join(sorted(record.cases["case"])).encode()).hexdigest()
    task = record.tags.get("bench.task", "segmentation")
    shared = (record.tags[f"bench.{k}"] for k in ("data", "split", "convention"))
    return (task, *shared, tested, record.tags.get("bench.post_hoc", ""))


def _metrics(records: Sequence[RunRecord]) -> list[str]:
    """Scores that every patient has, that are better high or low, and that do not flatter who finds nothing."""
    facts = {name: registry.metric[name].facts for name in registry.metric}
    neither = {name for name, said in facts.items() if said.get("higher") is None or not said.get("ranked", True)}
    return sorted({c for record in records for c in record.cases.columns} - {*NOT_METRICS, *neither})


def _check_primary(primary: str | None, records: Sequence[RunRecord]) -> None:
    there = [*_metrics([r for r in records if r.tags.get("bench.task") != "presence"]), *SCORES]
    if primary is not None and primary not in there:
        raise UnknownName(
            f"cannot rank by '{primary}'; there are {', '.join(dict.fromkeys(there))}."
            f"{did_you_mean(primary, there)}"
        )


def _check_group_by(group_by: str, records: Sequence[RunRecord]) -> None:
    there = {CONFIGURATION, RUN}.union(*(record.settings for record in records))
    if group_by not in there:
        raise UnknownName(
            f"cannot group by '{group_by}', which no run has. Give configuration, run, or a setting such as "
            f"model.name.{did_you_mean(group_by, there)}"
        )


def _check_column(name: str | None, made: Sequence[Board]) -> None:
    flat = [row.flat() for board in made for row in board.rows]
    there = dict.fromkeys(k for row in flat for k, v in row.items() if isinstance(v, int | float))
    if name is not None and there and name not in there:
        raise UnknownName(f"no column '{name}'; there are {', '.join(there)}.{did_you_mean(name, there)}")


def _front(board: Board, cost: str) -> tuple[Row, ...]:
    """Rows than which no other is at least as good and at least as cheap, and better in one of the two."""
    better = higher_is_better(board.task, board.primary)
    points: NDArray[np.float64] = np.array(
        [(-row.score if better else row.score, _column(row, cost)) for row in board.rows], np.float64
    )
    front = []
    for row, point in zip(board.rows, points, strict=True):
        beaten = (points <= point).all(1) & (points < point).any(1)
        if not beaten.any() and not np.isnan(point).any():
            front.append(row)
    return tuple(front)


def _ordered(board: Board, sort: str) -> tuple[Row, ...]:
    """By a column, best first; rows that are equal or do not have it stay in the order of their ranks."""
    own = sort in ("score", "low", "high")
    low = lower_is_better(sort) or (own and not higher_is_better(board.task, board.primary))

    def badness(row: Row) -> float:
        value = _column(row, sort)
        return math.inf if math.isnan(value) else value if low else -value

    return tuple(sorted(board.rows, key=badness))


def _column(row: Row, name: str) -> float:
    """NaN where the row does not have it."""
    return float(row.flat().get(name, math.nan))


def _mean(runs: Sequence[RunRecord], metric: str) -> float:
    return float(np.mean([run.metrics.get(metric, math.nan) for run in runs]))


def _common(runs: Sequence[RunRecord], setting: str) -> str:
    """The setting's value, or 'several'."""
    values = {_said(run, setting) for run in runs}
    return values.pop() if len(values) == 1 else "several"


def trials_behind(settings: Mapping[str, str]) -> int:
    """Trials of the search that found a run's settings, or of each search inside a nested one."""
    return max(int(settings.get(key) or 0) for key in ("run.searched", "search.trials"))


def _said(run: RunRecord, setting: str) -> str:
    value = run.settings.get(setting)
    return "" if value in (None, "None", "") else str(value)
