"""Boards as one HTML page: the tables of the report, without figures and patients."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from bench.analysis.board import Board
from bench.reports.html.board_table import sortable_table
from bench.reports.html_document import escaped, html_document
from bench.reports.tables import board_columns, legend

STYLE = (files("bench.reports.html") / "report.css").read_text("utf-8")
SCRIPT = (files("bench.reports.html") / "report.js").read_text("utf-8")


def boards_page(boards: Sequence[Board]) -> str:
    """Return a page with the sortable table of every board, its notes and the meaning of its columns."""
    return html_document(
        "Leaderboard",
        ["<h1>Leaderboard</h1>", *map(_section, boards), '<div id="tip" hidden></div>'],
        style=STYLE,
        script=SCRIPT,
    )


def board_notes(board: Board) -> str:
    """Return the notes of a board as a list; empty if there are none."""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in board.notes)
    return notes and f'<ul class="notes">{notes}</ul>'


def board_section(board: Board) -> str:
    """Return the table of a board, and what its headings mean below it."""
    meaning = escaped(legend(board_columns(board)))
    details = f"<details><summary>What the headings mean</summary><p>{meaning}</p></details>"
    return f"{sortable_table(board)}{details}"


def _section(board: Board) -> str:
    return f"<section><h2>{escaped(board.title)}</h2>{board_notes(board)}{board_section(board)}</section>"
