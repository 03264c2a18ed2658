"""Boards as text: terminal, Markdown, CSV, JSON. Nothing is computed here."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from bench.analysis.board import Board, BoardRow
from bench.analysis.ranking import BEHIND, MEAN_ONLY, TIED
from bench.analysis.score_facts import digits_of
from bench.formatting import (
    NAMES,
    SYNTHETIC,
    between,
    decimal,
    duration,
    markdown_escaped,
    p_value,
    plain,
    signed,
)
from bench.reports.html_document import escaped
from bench.structures import structure_column
from bench.text_table import MORE, TextColumn, print_columns
from bench.types import RunRecord


@dataclass(frozen=True)
class Column:
    """A column of a board: its heading, the text of a cell, its meaning, and the field with its number, if any.

    A terminal that is too narrow lacks the columns with the largest `drop`, and those of None unless it shows all.
    """

    heading: str
    cell: Callable[[BoardRow], str]
    meaning: str
    field: str = ""
    drop: int | None = 2

    @property
    def number(self) -> bool:
        """Whether the column holds numbers."""
        return bool(self.field)


def _score(name: str, heading: str, meaning: str, digits: int = 3) -> Column:
    return Column(heading, lambda r: decimal(r.scores.get(name, math.nan), digits), meaning, name)


LEADERBOARD = "`bench leaderboard --wide` prints all columns."
FIXED = 3  # columns that are always shown: rank, run and score
RANK = Column("#", lambda r: str(r.rank), "rank by the first score", "rank")
RUN = Column("run", lambda r: r.name + (SYNTHETIC if r.synthetic else ""), "name of the run")
ID = Column("id", lambda r: r.run_id[:8], "start of the newest run's id")
SCORES: Mapping[str, tuple[Column, ...]] = {
    "segmentation": (
        _score("dice_median", "median", "of Dice over patients"),
        _score("hd95", "HD95 px", "2D, a missed slice counts as the image diagonal", 1),
        _score("missed_slices", "missed", "tumour slices without a prediction", 0),
        _score("dice_under_half", "<0.5", "patients with Dice under 0.5", 0),
        _score("dice_p5", "p5", "5th percentile of Dice over patients"),
        _score("dice_positive_slices", "pos. slices", "Dice on slices with tumour"),
        _score("slice_sensitivity", "sens.", "share of a patient's tumour slices with a prediction"),
        _score("slice_specificity", "spec.", "share of a patient's empty slices without a prediction"),
    ),
    "presence": (
        _score("average_precision", "AP", "average precision"),
        _score("sensitivity", "sens.", "share of tumour slices classified as tumour"),
        _score("specificity", "spec.", "share of empty slices classified as empty"),
        _score("accuracy", "accuracy", "share of slices classified correctly"),
        _score("missed_slices", "missed", "tumour slices classified as empty", 0),
        _score("false_positive_slices", "false", "empty slices classified as tumour", 0),
        _score("brier", "Brier", "mean squared error of the probability"),
        _score("ece", "ECE", "expected calibration error"),
    ),
}
FALSE_POSITIVES = _score("false_positive_patients", "FP patients", "patients without tumour, with a prediction", 0)
MILLIMETRES = _score("hd95_mm", "HD95 mm", "2D, a missed slice counts as the image diagonal", 1)
COSTS = (
    Column("seeds x folds", lambda r: f"{r.seeds} x {r.folds}", "that the row averages", "seeds"),
    Column("weights", lambda r: r.weights, "initial weights of training"),
    Column("budget", lambda r: r.budget, "slices seen in training a fold, and their size"),
    Column("epochs", lambda r: decimal(r.epochs, 1).removesuffix(".0"), "per fold", "epochs"),
    Column("params M", lambda r: decimal(r.parameters / 1e6, 1), "millions of parameters", "parameters"),
    Column("GFLOPs", lambda r: decimal(r.flops / 1e9, 2), "forward pass of one slice", "flops"),
    Column("device-s", lambda r: decimal(r.device_seconds, 0), "training, x GPUs or threads", "device_seconds"),
    Column("peak MB", lambda r: decimal(r.peak_memory_mb, 0), "memory in training", "peak_memory_mb"),
    Column("ms p50", lambda r: decimal(r.latency_p50_ms, 1), "one slice, median latency", "latency_p50_ms"),
    Column("ms p95", lambda r: decimal(r.latency_p95_ms, 1), "one slice, 95th percentile", "latency_p95_ms"),
    Column("trials", lambda r: str(r.searched), "of the hyperparameter search", "searched"),
    Column("wall", lambda r: duration(r.wall_seconds), "time of the whole run", "wall_seconds"),
    Column("on", lambda r: r.hardware, "hardware"),
    Column("split", lambda r: r.split[:8], "hash of the folds"),
)


def score_columns(board: Board) -> tuple[Column, ...]:
    """Return the columns of ranks, scores and their uncertainty, which have different headings."""
    name = board.primary
    digits = digits_of(name)
    headline = board.rules.headline
    first = Column(NAMES.get(name, name), lambda r: decimal(r.score, digits), board.rules.meaning, "score")
    dice = () if name == headline else (_score(headline, NAMES[headline], ""),)
    false_positives = (FALSE_POSITIVES,) if board.counts_healthy else ()
    millimetres = (MILLIMETRES,) if any("hd95_mm" in row.scores for row in board.rows) else ()
    compared = _comparison_columns(board, digits)
    others = [
        replace(column, meaning=column.meaning.replace("tumour", board.noun))
        for column in (*SCORES[board.task], *millimetres, *false_positives)
        if column.field != name
    ]
    return (RANK, RUN, first, *compared, *dice, *structure_columns(board), *others, ID)


def structure_columns(board: Board) -> tuple[Column, ...]:
    """Return the columns of the Dice of each structure, of two or three."""
    return tuple(
        _score(
            structure_column(board.rules.headline, s), f"{NAMES['dice']} {s}", f"mean over patients, of {s} alone"
        )
        for s in board.structures
        if len(board.structures) <= 3
    )


def cost_columns(board: Board) -> tuple[Column, ...]:
    """Return the columns of training and inference costs."""
    return (RANK, RUN, *COSTS, ID)


def board_columns(board: Board) -> tuple[Column, ...]:
    """Return score columns, then cost columns, without repeating any."""
    return (*score_columns(board)[:-1], *cost_columns(board)[2:])


def _comparison_columns(board: Board, digits: int) -> tuple[Column, ...]:
    value, change = partial(decimal, digits=digits), partial(signed, digits=digits)
    paired = "paired by patient" if board.rules.by_patient else "over all slices"
    test = f"{board.rules.test} test, Holm corrected over all pairs"
    verdict = (
        f"{TIED} if the interval of the difference contains 0, else {BEHIND}; {MEAN_ONLY} if the {test}, "
        "does not confirm it"
    )
    letters = "rows without a common letter can be distinguished, and so can all rows that are farther apart"

    def difference(r: BoardRow) -> str:
        return "–" if r.rank == 1 else between(r.difference_low, r.difference_high, change)

    own = Column(
        "95% interval", lambda r: between(r.low, r.high, value), "of the score, over patients and seeds", "low", 1
    )
    if len(board.rows) == 1:
        return (own,)
    return (
        own,
        Column("vs leader", lambda r: change(r.difference), f"difference, {paired}", "difference", None),
        Column("vs leader, 95%", difference, f"95% interval of the difference, {paired}", "difference_low", 0),
        Column("verdict", lambda r: r.verdict, verdict, drop=0),
        Column("p", lambda r: p_value(r.p), f"{test}, against the leader", "p", None),
        Column("letters", lambda r: r.letters, letters, drop=None),
        Column(
            "P(1st)", lambda r: decimal(r.first, 2), "probability of leading over resampled patients", "first", 3
        ),
        Column("ranks", lambda r: f"{r.rank_low}–{r.rank_high}", "95% interval of the rank", "rank_low", 3),
    )


def legend(columns: Sequence[Column]) -> str:
    """Explain the headings in one line."""
    explained = [f"{c.heading}: {c.meaning}" for c in columns if c.meaning and c not in (RANK, RUN, ID)]
    return "; ".join(explained) + "."


def print_board(screen: Console, board: Board, *, wide: bool = False, more: str = MORE) -> None:
    """Print the columns of a board that fit the terminal, or all of them, and what they mean.

    `more` says how to see the columns that are left out.
    """
    columns = board_columns(board)
    texts = [
        TextColumn(
            column.heading,
            [column.cell(row) for row in board.rows],
            number=column.number,
            drop=column.drop,
            fixed=at < FIXED,
        )
        for at, column in enumerate(columns)
    ]
    shown = print_columns(screen, board.title, texts, wide=wide, more=more)
    for line in (legend([columns[at] for at in shown]), *board.notes):
        screen.print(Text(plain(line)))


def board_markdown(boards: Sequence[Board]) -> str:
    """Return boards as Markdown, each with its title: scores, then costs."""
    parts = []
    for board in boards:
        parts.append(f"**{markdown_escaped(board.title)}**")
        for columns in (score_columns(board), cost_columns(board)):
            rule = "|".join("---:" if c.number else "---" for c in columns)
            rows = ["| " + " | ".join(markdown_escaped(c.cell(row)) for c in columns) + " |" for row in board.rows]
            head = "| " + " | ".join(markdown_escaped(c.heading) for c in columns) + " |"
            parts += ["\n".join((head, f"|{rule}|", *rows)), markdown_escaped(legend(columns))]
        parts += [markdown_escaped(note) for note in board.notes]
    return "\n\n".join(parts) + "\n" if parts else ""


def board_html(board: Board) -> str:
    """Return a board as an HTML table without style, for a notebook."""
    columns = board_columns(board)
    head = "".join(f'<th scope="col" title="{escaped(c.meaning)}">{escaped(c.heading)}</th>' for c in columns)
    rows = ("".join(f"<td>{escaped(c.cell(row))}</td>" for c in columns) for row in board.rows)
    body = "".join(f"<tr>{cells}</tr>" for cells in rows)
    notes = "".join(f"<p>{escaped(note)}</p>" for note in (legend(columns), *board.notes))
    return (
        f"<table><caption>{escaped(board.title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{notes}"
    )


def frame_markdown(frame: pd.DataFrame) -> str:
    """Return a table of texts as Markdown; empty columns are left out."""
    frame = frame[[name for name in frame.columns if frame[name].astype(str).str.len().any()]]
    lines = [f"| {' | '.join(map(markdown_escaped, frame.columns))} |", f"|{'---|' * len(frame.columns)}"]
    lines += [f"| {' | '.join(markdown_escaped(str(v)) for v in row)} |" for row in frame.to_numpy(object)]
    return "\n".join(lines)


def board_rows(boards: Sequence[Board]) -> list[dict[str, object]]:
    """Return all rows as plain values at full precision; `board` numbers the boards."""
    rows: list[dict[str, object]] = []
    for number, b in enumerate(boards, 1):
        shared = {"board": number, "task": b.task, "primary": b.primary, "post_hoc": b.post_hoc}
        shared |= {"structure": b.structure} if b.structure else {}
        rows += [{**shared, "left_out": len(b.left_out), **row.flat()} for row in b.rows]
    return rows


def board_csv(boards: Sequence[Board]) -> str:
    """Return `board_rows` as CSV."""
    out, rows = io.StringIO(), board_rows(boards)
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(out, list(names) or ["board"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    return out.getvalue()


def case_rows(boards: Sequence[Board], records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the scores of every patient by each run behind the rows; an empty table without any."""
    by_id = {record.run_id: record for record in records}
    parts = []
    for number, row in ((number, row) for number, board in enumerate(boards, 1) for row in board.rows):
        for record in (by_id[run_id] for run_id in row.runs):
            own: dict[str, int | str] = {"board": number, "rank": row.rank, "name": row.name}
            own |= {"run_id": record.run_id, "seed": record.settings.get("run.seed", "")}
            parts.append(record.cases.assign(**own)[[*own, *record.cases]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def cases_csv(boards: Sequence[Board], records: Sequence[RunRecord]) -> str:
    """Return `case_rows` as CSV, to six digits."""
    rows = case_rows(boards, records)
    return "" if rows.empty else rows.to_csv(index=False, float_format="%.6g")


def board_values(board: Board) -> dict[str, Any]:
    """Return a board as plain values, with its notes and its rows at full precision."""
    values = asdict(board) | {"notes": board.notes, "rows": [row.flat() for row in board.rows]}
    return {k: v for k, v in values.items() if k != "structure" or v}


def _cell(value: object) -> object:
    """Quote a text that a spreadsheet would run as a formula, and keep it on one line."""
    if not isinstance(value, str):
        return value
    return f"'{plain(value)}" if value[:1] in ("=", "+", "-", "@") else plain(value)
