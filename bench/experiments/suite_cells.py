"""The cells of a suite as the store knows them: done, failed, missing or running, and what a run would cost.

A cell is recognised in the store by its fingerprint and data, so adding an entry to a file runs that entry alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.board import Board
from bench.analysis.leaderboard import build_boards
from bench.config import RunConfig
from bench.errors import BenchError
from bench.experiments.suite_file import Cell, Parts, Suite
from bench.tracking import Run, Store, read_records, search_runs
from bench.tracking.resume import is_active
from bench.tracking.tags import Tag
from bench.training.cross_validation import estimate_seconds
from bench.training.experiment import resolve

DONE, FAILED, MISSING, RUNNING = "done", "failed", "missing", "running"


@dataclass(frozen=True)
class CellState:
    """A cell, its state, and the run that the state comes from."""

    cell: Cell
    state: str
    run: Run | None


@dataclass(frozen=True)
class Estimate:
    """The seconds that a cell would take, None if it would not be run, or the problem that it would fail with."""

    found: CellState
    seconds: float | None = None
    problem: str = ""


def states(suite: Suite, store: Store) -> list[CellState]:
    """Return the state of each cell."""
    return [cell_state(cell, store) for cell in suite.cells]


def cell_state(cell: Cell, store: Store) -> CellState:
    """Return 'done' if any run of all folds has finished; otherwise the newest run decides.

    An interrupted run counts as missing, as nothing is wrong with the cell.
    """
    runs = cell_runs(cell, store)
    for run in runs:
        if run.info.status == "FINISHED":
            return CellState(cell, DONE, run)
    if not runs:
        return CellState(cell, MISSING, None)
    status = runs[0].info.status
    if status == "RUNNING" and is_active(store, runs[0]):
        return CellState(cell, RUNNING, runs[0])
    return CellState(cell, MISSING if status in ("RUNNING", "KILLED") else FAILED, runs[0])


def cell_runs(cell: Cell, store: Store) -> list[Run]:
    """Return the runs of a cell that were to train all folds, the newest first."""
    return [r for r in search_runs(store, identity(cell)) if Tag.ONLY not in r.data.tags]


def identity(cell: Cell) -> dict[str, str]:
    """Return the tags by which the runs of a cell are recognised."""
    return {Tag.FINGERPRINT: cell.fingerprint, Tag.DATA: cell.data.key}


def to_run(found: CellState, retry: bool) -> bool:
    """Return whether a suite should run the cell; with `retry`, failed cells too."""
    return found.state == MISSING or (retry and found.state == FAILED)


def estimates(suite: Suite, store: Store, *, retry: bool = False, threads: int | None = None) -> list[Estimate]:
    """Time a training step and a prediction of each cell to run, on this machine with so many threads."""
    return [_estimate(s, threads) if to_run(s, retry) else Estimate(s) for s in states(suite, store)]


def _estimate(found: CellState, threads: int | None) -> Estimate:
    config = found.cell.what
    if isinstance(config, Parts):
        return Estimate(found, 0.0)  # nothing is trained
    try:
        config = config.model_copy(update={"threads": config.threads or threads})
        return Estimate(found, estimate_seconds(resolve(config)))
    except BenchError as error:
        return Estimate(found, problem=str(error))


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Return when the last task ends if each in turn goes to the worker that is free first."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def progress(cell: Cell, store: Store) -> str:
    """Return how far a running cell is, such as 'folds done: 1, epoch 3 of 20'."""
    run = next((r for r in cell_runs(cell, store) if r.info.status == "RUNNING"), None)
    if run is None or not isinstance(cell.what, RunConfig):
        return ""
    folds = search_runs(store, {"mlflow.parentRunId": run.info.run_id})
    done = sum(fold.info.status == "FINISHED" for fold in folds)
    running = [fold.info.run_id for fold in folds if fold.info.status == "RUNNING"]
    epochs = max((len(store.client.get_metric_history(r, "train/loss")) for r in running), default=0)
    return f"folds done: {done}, epoch {epochs} of {cell.what.train.epochs}"


def suite_boards(found: Sequence[CellState], store: Store) -> list[Board]:
    """Return the boards of a suite's own finished runs; leaky runs are on none."""
    ids = {s.run.info.run_id for s in found if s.run is not None and s.state == DONE}
    keys = {s.cell.data.key for s in found}
    return build_boards([r for key in keys for r in read_records(store, tags={Tag.DATA: key}) if r.run_id in ids])
