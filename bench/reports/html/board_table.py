"""A board as a table that its headings sort: the very cells of `bench.reports.tables`, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bench.analysis.board import Board, Row
from bench.analysis.score_facts import higher_is_better, lower_is_better
from bench.reports.html.svg import said
from bench.reports.tables import WHO, Column, cost_columns, score_columns


def board_columns(board: Board) -> tuple[Column, ...]:
    """Scores, then costs, each once."""
    shown = score_columns(board)[:-1]
    return (*shown, *(column for column in cost_columns(board) if column not in WHO))


def sortable_table(board: Board) -> str:
    """The whole board; `data-value` holds a number at full precision, empty where it is not defined."""
    columns = board_columns(board)
    head = "".join(_heading(c, _rises(board, c.field)) for c in columns)
    body = "".join(
        f"<tr>{''.join(_cell(c, row, values) for c in columns)}</tr>"
        for row, values in ((row, row.flat()) for row in board.rows)
    )
    return (
        f'<div class="wide"><table class="board"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def name_cell(name: str) -> str:
    """The heading of a row of a table: its name, or as much of it as there is room for."""
    return f'<th scope="row"><span class="name" data-tip="{said(name)}">{said(name)}</span></th>'


def _rises(board: Board, field: str) -> bool:
    """Whether the best of a column are its largest."""
    return higher_is_better(board.task, board.primary) if field in ("score", "low") else not lower_is_better(field)


def _heading(column: Column, largest: bool) -> str:
    kind = f' data-number="yes" data-first="{"down" if largest else "up"}"' if column.number else ' class="words"'
    order = ' aria-sort="ascending"' if column is WHO[0] else ""
    tip = f' data-tip="{said(column.meaning)}"' if column.meaning else ""
    return f'<th scope="col"{kind}{order}{tip}><button type="button">{said(column.heading)}</button></th>'


def _cell(column: Column, row: Row, values: Mapping[str, Any]) -> str:
    words = said(column.cell(row))
    if column is WHO[1]:
        return name_cell(column.cell(row))
    if not column.number:
        return f'<td class="words">{words}</td>'
    value = float(values.get(column.field, math.nan))
    return f'<td data-value="{"" if math.isnan(value) else repr(value)}">{words}</td>'
