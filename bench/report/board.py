"""A board as a table that its headings sort: the very cells of `bench.tables`, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from bench.leaderboard import LOWER_IS_BETTER, Board, Row, higher_is_better
from bench.report.svg import said
from bench.tables import WHO, Column, cost_columns, score_columns

FAR = 10**12  # so much more shows in any cell, whatever its unit


def board_columns(board: Board) -> tuple[Column, ...]:
    """Scores, then costs, each once."""
    shown = score_columns(board)[:-1]
    return (*shown, *(column for column in cost_columns(board) if column not in WHO))


def sortable_table(board: Board) -> str:
    """The whole board; `data-value` holds a number at full precision, empty where it is not defined."""
    columns = board_columns(board)
    numbers = [_numbers(columns, row) for row in board.rows]
    fields = [next((name for name, _ in found if name), "") for found in zip(*numbers, strict=True)]
    head = "".join(_heading(c, _falls(board, field)) for c, field in zip(columns, fields, strict=True))
    body = "".join(
        f"<tr>{''.join(_cell(c, row, value) for c, (_, value) in zip(columns, found, strict=True))}</tr>"
        for row, found in zip(board.rows, numbers, strict=True)
    )
    return (
        f'<div class="wide"><table class="board"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def name_cell(name: str) -> str:
    """The heading of a row of a table: its name, or as much of it as there is room for."""
    return f'<th scope="row"><span class="name" data-tip="{said(name)}">{said(name)}</span></th>'


def _numbers(columns: Iterable[Column], row: Row) -> list[tuple[str, float]]:
    """Name and value of the number that each cell was written from: the first whose change the cell shows."""
    values = {k: v for k, v in row.flat().items() if isinstance(v, int | float)}

    def changed(name: str) -> Row:
        change: dict[str, Any] = {name: values[name] + FAR}
        return replace(row, **change) if hasattr(row, name) else replace(row, scores={**row.scores, **change})

    others = {name: changed(name) for name in values}

    def behind(column: Column) -> tuple[str, float]:
        cell = column.cell(row)
        name = next((name for name, other in others.items() if column.number and column.cell(other) != cell), "")
        return name, float(values.get(name, math.nan))

    return [behind(column) for column in columns]


def _falls(board: Board, field: str) -> bool:
    """Whether the best of a column are its largest."""
    return higher_is_better(board.task, board.primary) if field == "score" else field not in LOWER_IS_BETTER


def _heading(column: Column, falls: bool) -> str:
    kind = f' data-number="yes" data-first="{"down" if falls else "up"}"' if column.number else ' class="words"'
    order = ' aria-sort="ascending"' if column is WHO[0] else ""
    tip = f' data-tip="{said(column.meaning)}"' if column.meaning else ""
    return f'<th scope="col"{kind}{order}{tip}><button type="button">{said(column.heading)}</button></th>'


def _cell(column: Column, row: Row, value: float) -> str:
    words = said(column.cell(row))
    if column is WHO[1]:
        return name_cell(column.cell(row))
    if not column.number:
        return f'<td class="words">{words}</td>'
    return f'<td data-value="{"" if math.isnan(value) else repr(value)}">{words}</td>'
