"""Group finished runs into boards and rank each: records in, boards out.

Rows are ranked together only if the same patients were tested on the same pixels under the same split and the
same metric convention; everything else is another board.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.analysis.board import Board, BoardRow
from bench.analysis.board_rows import CONFIGURATION, RUN, build_row, one_per_seed, row_key
from bench.analysis.filters import filter_records
from bench.analysis.score_facts import lower_is_better
from bench.analysis.structure_view import view_structure
from bench.analysis.task_rules import RULES, rules_of
from bench.errors import UnknownName, did_you_mean
from bench.tracking.tags import SHARED, Tag, task_name
from bench.types import RunRecord


def build_boards(
    records: Sequence[RunRecord],
    *,
    primary: str | None = None,
    sort: str | None = None,
    group_by: str = CONFIGURATION,
    where: Sequence[str] = (),
    pareto: str | None = None,
    structure: str | None = None,
) -> list[Board]:
    """Group comparable records and rank each group by its primary score; equal scores share a rank.

    `primary` is any score of the task (by default Dice, or AUROC for presence). `group_by` defines a row:
    `configuration`, `run`, or a setting such as loss.name, whose runs are averaged. `where` keeps runs that match
    conditions such as model=unet or parameters<5e6. `pareto` keeps rows that no other row beats in both score and
    that cost column. `sort` orders the rows by a column. `structure` ranks by the scores of that one alone.
    Raises `BenchError`.
    """
    records = view_structure(records, structure)
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in filter_records(records, where):
        groups.setdefault(_comparable(record), []).append(record)
    if records:
        _check_primary(primary, records)
        _check_group_by(group_by, records)
    made = (_build_board(task, group, primary, group_by) for (task, *_), group in groups.items())
    boards = [replace(board, structure=structure or "") for board in made]
    order = list(RULES)
    boards.sort(key=lambda b: (b.synthetic, b.post_hoc, order.index(b.task), -len(b.rows), b.title))
    for column in (pareto, sort):
        _check_column(column, boards)
    if pareto is not None:
        boards = [replace(board, rows=_pareto_front(board, pareto)) for board in boards]
    return [replace(board, rows=_sorted_rows(board, sort)) for board in boards] if sort else boards


def board_of_run(records: Sequence[RunRecord], run_id: str) -> Board:
    """Return the board of these records that holds the run."""
    return next(b for b in build_boards(records) if any(run_id in (*row.runs, *row.repeats) for row in b.rows))


def rank_metrics(board: Board) -> dict[str, dict[str, float]]:
    """Return the current rank of every run on a board, as metrics for MLflow's UI, by run id."""
    return {
        run: {"rank": row.rank, "rank_low": row.rank_low, "rank_high": row.rank_high, "rank_first": row.first}
        for row in board.rows
        for run in (*row.runs, *row.repeats)
    }


def _comparable(record: RunRecord) -> tuple[str, ...]:
    """Return what records of one board have in common; the task comes first."""
    tested = hashlib.sha256("\n".join(sorted(record.cases["case"])).encode()).hexdigest()
    shared = (record.tags[tag] for tag in SHARED)
    return (task_name(record.tags), *shared, tested, record.tags.get(Tag.POST_HOC, ""))


def _build_board(task: str, records: Sequence[RunRecord], primary: str | None, group_by: str) -> Board:
    rules = rules_of(task)
    score = primary if primary is not None and primary in rules.scores(records) else rules.headline
    rows: dict[str, list[RunRecord]] = {}
    for record in records:
        rows.setdefault(row_key(record, group_by), []).append(record)
    contenders = [one_per_seed(runs) for runs in rows.values()]
    left_out, ranked = rules.rank(contenders, score)
    of_rows = zip(contenders, ranked, rows.values(), strict=True)
    made = [build_row(runs, each, every, group_by) for runs, each, every in of_rows]
    tags = records[0].tags
    return Board(
        task=task,
        primary=score,
        dataset=tags[Tag.DATASET],
        data_key=tags[Tag.DATA],
        split_hash=tags[Tag.SPLIT],
        patients=len(records[0].cases),
        synthetic=tags.get(Tag.SYNTHETIC) == "true",
        post_hoc=Tag.POST_HOC in tags,
        left_out=left_out,
        rows=tuple(sorted(made, key=lambda row: (row.rank, row.name, row.run_id))),
    )


def _check_primary(primary: str | None, records: Sequence[RunRecord]) -> None:
    by_task = {task: [r for r in records if task_name(r.tags) == task] for task in RULES}
    scores = list(dict.fromkeys(s for task, group in by_task.items() for s in rules_of(task).scores(group)))
    if primary is not None and primary not in scores:
        known = ", ".join(scores)
        raise UnknownName(f"cannot rank by '{primary}'; there are {known}.{did_you_mean(primary, scores)}")


def _check_group_by(group_by: str, records: Sequence[RunRecord]) -> None:
    known = {CONFIGURATION, RUN}.union(*(record.settings for record in records))
    if group_by not in known:
        advice = f"Give configuration, run, or a setting such as model.name.{did_you_mean(group_by, known)}"
        raise UnknownName(f"cannot group by '{group_by}', which no run has. {advice}")


def _check_column(name: str | None, boards: Sequence[Board]) -> None:
    rows = [row.flat() for board in boards for row in board.rows]
    numbers = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, int | float))
    if name is not None and numbers and name not in numbers:
        raise UnknownName(f"no column '{name}'; there are {', '.join(numbers)}.{did_you_mean(name, numbers)}")


def _pareto_front(board: Board, cost: str) -> tuple[BoardRow, ...]:
    """Keep rows that no other row matches in score and cost while being better in one of the two."""
    sign = -1 if board.higher_is_better else 1
    points = np.array([(sign * row.score, _column(row, cost)) for row in board.rows], np.float64)

    def is_best(point: NDArray[np.float64]) -> bool:
        beaten = (points <= point).all(1) & (points < point).any(1)
        return not beaten.any() and not np.isnan(point).any()

    return tuple(row for row, point in zip(board.rows, points, strict=True) if is_best(point))


def _sorted_rows(board: Board, column: str) -> tuple[BoardRow, ...]:
    """Sort by a column, best first, rows without it last; equal rows stay in the order of their ranks."""
    own = column in ("score", "low", "high")
    low = lower_is_better(column) or (own and not board.higher_is_better)

    def badness(row: BoardRow) -> float:
        value = _column(row, column)
        return math.inf if math.isnan(value) else value if low else -value

    return tuple(sorted(board.rows, key=badness))


def _column(row: BoardRow, name: str) -> float:
    return float(row.flat().get(name, math.nan))
