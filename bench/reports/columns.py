"""What the columns of boards mean."""

from __future__ import annotations

from bench.analysis.board import Board
from bench.analysis.task_rules import RULES
from bench.reports.tables import FALSE_POSITIVES, MILLIMETRES, board_columns


def explain_column(heading: str) -> list[str]:
    """Return what every column of this heading means, in boards of segmentation and of presence."""
    boards = [
        Board(task, rules.headline, "", "", "", 0, synthetic=False, post_hoc=False, left_out=(), rows=())
        for task, rules in RULES.items()
    ]
    columns = [column for board in boards for column in board_columns(board)] + [FALSE_POSITIVES, MILLIMETRES]
    meanings = dict.fromkeys(c.meaning for c in columns if c.heading.lower() == heading.lower() and c.meaning)
    return [f"{heading}, a column of the leaderboard: {meaning}" for meaning in meanings]
