"""`bench suite`: which cells of a benchmark file are done, failed or missing, and running them.

A cell is found again in the store by its fingerprint and data, so that adding an entry runs that entry alone.

Cells are spread over the workers of a launcher (`bench.experiments.launch`), and what they find goes to one store. A cell
whose worker is lost is run again: from its last checkpoint where workers share the folder of the store (or
BENCH_CACHE, with a server), else from its start. A SQLite store serves the processes of one machine; with workers
on several machines, or where 'database is locked' is ever said, move to a server (`mlflow server`, then
`--tracking-uri http://...`).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from bench.analysis.board import Board
from bench.analysis.leaderboard import build_boards
from bench.config import RunConfig
from bench.console import console
from bench.derived.cascade import cascade
from bench.errors import BenchError
from bench.experiments.launch import InProcess, Launcher, WorkItem, spread
from bench.experiments.run import execute
from bench.experiments.suite_file import Cell, Parts, Suite
from bench.tracking import Run, Store, connect, note_failure, records, runs_with
from bench.tracking.resume import abandon, is_active, workspace_of
from bench.training.cross_validation import estimate_seconds
from bench.training.experiment import resolve

DONE, FAILED, MISSING, RUNNING = "done", "failed", "missing", "running"


@dataclass(frozen=True)
class State:
    """A cell, what became of it, and the run that says so."""

    cell: Cell
    state: str
    run: Run | None


Told = Callable[[Cell, str, str], None]  # hears of a cell, its state and a sentence on it


def states(suite: Suite, store: Store) -> list[State]:
    """What the store says of each cell, by fingerprint and data."""
    return [_state(cell, store) for cell in suite.cells]


def run_suite(
    suite: Suite,
    *,
    uri: str | None = None,
    retry: bool = False,
    fresh: bool = False,
    launcher: Launcher | None = None,
    retries: int = 2,
    max_failures: int | None = None,
    told: Told | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> list[State]:
    """Run what is missing (and with `retry` what has failed); a bad cell does not stop the rest.

    With `fresh`, what was interrupted or has failed is given up, and all that is not done starts anew.
    Cells run one after another in this process, or wherever the `launcher` has workers; one that is lost is run
    again up to `retries` times. After `max_failures` no other is begun. `told` hears of each cell, its state and a
    sentence.
    """
    os.environ.pop("MLFLOW_RUN_ID", None)  # `mlflow run` has opened one for the whole: each cell opens its own
    store, say = connect(uri), told or _say
    failed = 0
    if fresh:
        retry = True
        begun = [run for found in states(suite, store) if found.state != DONE for run in _runs(found.cell, store)]
        abandon(store, begun)

    def tasks(cells: Sequence[Cell]) -> Iterator[WorkItem]:
        for number, cell in enumerate(cells, 1):
            if max_failures is None or failed < max_failures:
                say(cell, RUNNING, f"[{number}/{len(cells)}] {suite.title}: {cell.name}")
                yield WorkItem(cell.name, run_cell, (suite, cell.name, store.uri, retry, quiet, verbose))

    for kind in (RunConfig, Parts):  # cascades once their parts are known
        wanted = [s.cell for s in states(suite, store) if _wanted(s, retry) and isinstance(s.cell.what, kind)]
        cells = {cell.name: cell for cell in wanted if _ready(suite, cell, store, say)}
        with closing(spread(tasks(list(cells.values())), launcher or InProcess(), retries=retries)) as events:
            for event in events:
                cell = cells[event.task.name]
                if event.what == "lost":
                    _end(suite, cell, store, "KILLED", event.said)
                    say(cell, RUNNING, f"{cell.name} has lost its worker ({event.said}) and starts again")
                    continue
                if event.what == "given up":
                    _end(suite, cell, store, "FAILED", f"its worker was lost {retries + 1} times: {event.said}")
                found = _state(cell, store)
                failed += found.state == FAILED
                say(cell, found.state, _sentence(found))
    return states(suite, store)


def run_cell(suite: Suite, name: str, uri: str, retry: bool, quiet: bool, verbose: bool) -> None:
    """Run one cell, and note in the store what goes wrong, whatever it is: the other cells are not to blame.

    Nothing is done where another process is at it, or has done it in the meantime.
    """
    store = connect(uri)
    cell = next(c for c in suite.cells if c.name == name)
    lock = workspace_of(store, f"cell-{cell.fingerprint}-{cell.data.key}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(lock, timeout=0):
        if not _wanted(_state(cell, store), retry):
            return
        before = _ends(cell, store)
        try:
            _run(suite, cell, store, quiet=quiet, verbose=verbose)
        except Exception as error:
            said = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
            if _ends(cell, store) == before:  # refused before a run was opened
                _note(suite, cell, store, said)


@dataclass(frozen=True)
class Estimate:
    """What a cell would take: its seconds, None where it is not run, or why that cannot be told."""

    found: State
    seconds: float | None = None
    problem: str = ""


def estimates(suite: Suite, store: Store, *, retry: bool = False, threads: int | None = None) -> list[Estimate]:
    """A step and a prediction of each cell that would be run, timed on this machine with so many threads."""
    return [_estimate(s, threads) if _wanted(s, retry) else Estimate(s) for s in states(suite, store)]


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of these ends, if each in turn goes to the worker that is free first."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def whereabouts(cell: Cell, store: Store) -> str:
    """How far a cell at work has come, such as 'folds done: 1, epoch 3 of 20'."""
    run = next((r for r in _runs(cell, store) if r.info.status == "RUNNING"), None)
    if run is None or not isinstance(cell.what, RunConfig):
        return ""
    folds = runs_with(store, {"mlflow.parentRunId": run.info.run_id})
    done = sum(fold.info.status == "FINISHED" for fold in folds)
    running = [fold.info.run_id for fold in folds if fold.info.status == "RUNNING"]
    epochs = max((len(store.client.get_metric_history(r, "train/loss")) for r in running), default=0)
    return f"folds done: {done}, epoch {epochs} of {cell.what.train.epochs}"


def board_of(found: Sequence[State], store: Store) -> list[Board]:
    """The leaderboards of a suite's own runs; a leaky one is on none."""
    ids = {s.run.info.run_id for s in found if s.run is not None and s.state == DONE}
    keys = {s.cell.data.key for s in found}
    wanted = [r for key in keys for r in records(store, tags={"bench.data": key}) if r.run_id in ids]
    return build_boards(wanted)


def _run(suite: Suite, cell: Cell, store: Store, *, quiet: bool, verbose: bool) -> None:
    tags = suite.tags(cell)
    if isinstance(cell.what, RunConfig):
        execute(cell.what, uri=store.uri, tags=tags, quiet=quiet, verbose=verbose)
        return
    runs = {c.name: _state(c, store).run for c in suite.cells}
    gate, model = runs[cell.what.presence], runs[cell.what.segmentation]
    assert gate is not None  # they are done: `_ready`
    assert model is not None
    config = next(c.what for c in suite.cells if c.name == cell.what.segmentation)
    assert isinstance(config, RunConfig)
    folder = config.dataset.params.get("folder")
    data = Path(folder) if folder else None
    cascade(gate.info.run_id, model.info.run_id, data=data, name=cell.name, tags=tags, uri=store.uri)


def _ready(suite: Suite, cell: Cell, store: Store, say: Told) -> bool:
    """Whether all parts of a cascade are done."""
    needed = cell.what.model_dump().values() if isinstance(cell.what, Parts) else ()
    parts = [_state(part, store) for part in suite.cells if part.name in needed]
    lacking = [f"{part.cell.name} ({part.state})" for part in parts if part.state != DONE]
    if lacking:
        say(cell, MISSING, f"{cell.name} waits for {' and '.join(lacking)}")
    return not lacking


def _wanted(found: State, retry: bool) -> bool:
    return found.state == MISSING or (retry and found.state == FAILED)


def _note(suite: Suite, cell: Cell, store: Store, said: str) -> None:
    note_failure(store, cell.name, cell.data.dataset, _identity(cell) | suite.tags(cell), said)


def _end(suite: Suite, cell: Cell, store: Store, status: str, said: str) -> None:
    """End the run of a cell, and its folds, for a worker that is gone and cannot do it."""
    left = [r for r in _runs(cell, store) if r.info.status in ("RUNNING", "KILLED")]
    for run in left[:1]:
        folds = runs_with(store, {"mlflow.parentRunId": run.info.run_id})
        for each in (run, *(fold for fold in folds if fold.info.status == "RUNNING")):
            store.client.set_terminated(each.info.run_id, status)
        if status == "FAILED":
            store.client.set_tag(run.info.run_id, "bench.error", said)
    if status == "FAILED" and not left:
        _note(suite, cell, store, said)


def _say(cell: Cell, state: str, text: str) -> None:
    console().print(text, markup=False)


def _sentence(found: State) -> str:
    name = found.cell.name
    if found.state == FAILED and found.run is not None:
        return f"{name} failed: {found.run.data.tags.get('bench.error', found.run.info.status)}"
    return f"{name} is at work in another process" if found.state == RUNNING else f"{name} is {found.state}"


def _estimate(found: State, threads: int | None) -> Estimate:
    config = found.cell.what
    if isinstance(config, Parts):
        return Estimate(found, 0.0)  # nothing is trained
    try:
        own = config.threads or threads
        return Estimate(found, estimate_seconds(resolve(config.model_copy(update={"threads": own}))))
    except BenchError as error:
        return Estimate(found, problem=str(error))


def _identity(cell: Cell) -> dict[str, str]:
    return {"bench.fingerprint": cell.fingerprint, "bench.data": cell.data.key}


def _runs(cell: Cell, store: Store) -> list[Run]:
    """Its runs, whole cross-validations alone, the newest first."""
    return [r for r in runs_with(store, _identity(cell)) if "bench.only" not in r.data.tags]


def _ends(cell: Cell, store: Store) -> set[tuple[str, str, int | None]]:
    """How its runs have ended, and when: another set once one was opened, or gone on with."""
    runs = runs_with(store, _identity(cell))
    return {(run.info.run_id, run.info.status, run.info.end_time) for run in runs}


def _state(cell: Cell, store: Store) -> State:
    """Done if any run of the whole cross-validation has finished, else what the newest says.

    One that was interrupted is missing: nothing is wrong with it.
    """
    runs = _runs(cell, store)
    for run in runs:
        if run.info.status == "FINISHED":
            return State(cell, DONE, run)
    if not runs:
        return State(cell, MISSING, None)
    status = runs[0].info.status
    if status == "RUNNING" and is_active(store, runs[0]):
        return State(cell, RUNNING, runs[0])
    return State(cell, MISSING if status in ("RUNNING", "KILLED") else FAILED, runs[0])
