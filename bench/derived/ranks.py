"""Ranks change whenever a run is added to a board, so they are written again to every run of the board."""

from __future__ import annotations

from bench.analysis.board import Board
from bench.analysis.leaderboard import board_of_run, rank_metrics
from bench.tracking import Store, log_ranks, read_records
from bench.tracking.tags import Tag


def update_ranks(store: Store, run_id: str) -> Board:
    """Rank the board of a finished run, log each run's rank as metrics, and return the board."""
    tags = store.client.get_run(run_id).data.tags
    board = board_of_run(read_records(store, tags={tag: tags[tag] for tag in (Tag.DATA, Tag.SPLIT)}), run_id)
    log_ranks(store, rank_metrics(board))
    return board
