"""A board as an HTML table that sorts by its headings, with the cells of `bench.reports.tables`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bench.analysis.board import Board, BoardRow
from bench.analysis.score_facts import lower_is_better
from bench.reports.html_document import escaped
from bench.reports.tables import RANK, RUN, Column, board_columns


def sortable_table(board: Board) -> str:
    """Return the board as HTML; `data-value` holds a number at full precision and is empty if it is undefined."""
    columns = board_columns(board)
    head = "".join(_heading(c, _largest_first(board, c.field)) for c in columns)
    rows = ("".join(_cell(c, row, values) for c in columns) for row in board.rows for values in [row.flat()])
    body = "".join(f"<tr>{cells}</tr>" for cells in rows)
    table = f'<table class="board"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def name_cell(name: str) -> str:
    """Return the heading of a table row: its name, shortened by the browser if it is too long."""
    return f'<th scope="row"><span class="name" data-tip="{escaped(name)}">{escaped(name)}</span></th>'


def _largest_first(board: Board, field: str) -> bool:
    """Whether the largest values of a column are the best."""
    return board.higher_is_better if field in ("score", "low") else not lower_is_better(field)


def _heading(column: Column, largest_first: bool) -> str:
    direction = "down" if largest_first else "up"
    kind = f' data-number="yes" data-first="{direction}"' if column.number else ' class="words"'
    order = ' aria-sort="ascending"' if column is RANK else ""
    tip = f' data-tip="{escaped(column.meaning)}"' if column.meaning else ""
    return f'<th scope="col"{kind}{order}{tip}><button type="button">{escaped(column.heading)}</button></th>'


def _cell(column: Column, row: BoardRow, values: Mapping[str, Any]) -> str:
    text = escaped(column.cell(row))
    if column is RUN:
        return name_cell(column.cell(row))
    if not column.number:
        return f'<td class="words">{text}</td>'
    value = float(values.get(column.field, math.nan))
    return f'<td data-value="{"" if math.isnan(value) else repr(value)}">{text}</td>'
