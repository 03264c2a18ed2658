"""`bench suite`: run the cells of a benchmark file that are missing.

A cell is recognised in the store by its fingerprint and data, so adding an entry to a file runs that entry alone.
Cells are spread over the workers of a launcher (`bench.experiments.launch`), and all log to one store. A cell
whose worker is lost is run again: from its last checkpoint if the workers share the folder of the store (or
BENCH_CACHE, with a server), otherwise from the start. A SQLite store serves the processes of one machine. With
workers on several machines, or whenever 'database is locked' appears, use a server (`mlflow server`, then
`--tracking-uri http://...`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from bench.config import RunConfig
from bench.console import console
from bench.derived.cascade import cascade
from bench.errors import BenchError
from bench.experiments.launch import InProcess, Launcher, WorkItem, run_items
from bench.experiments.run import execute, print_finished
from bench.experiments.suite_file import Cell, Parts, Suite
from bench.tracking import Run, Store, connect_to_write, log_failure, search_runs
from bench.tracking.resume import abandon, is_active, is_ranked, workspace_folder
from bench.tracking.tags import Tag

DONE, FAILED, MISSING, RUNNING = "done", "failed", "missing", "running"
Report = Callable[[Cell, str, str], None]  # receives a cell, its state and a sentence


@dataclass(frozen=True)
class CellState:
    """A cell, its state, and the run that the state comes from."""

    cell: Cell
    state: str
    run: Run | None


def run_suite(
    suite: Suite,
    *,
    uri: str | None = None,
    retry: bool = False,
    fresh: bool = False,
    launcher: Launcher | None = None,
    retries: int = 2,
    max_failures: int | None = None,
    report: Report | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> list[CellState]:
    """Run what is missing (with `retry`, failed cells too); a failing cell does not stop the others.

    With `fresh`, interrupted and failed runs are abandoned, and every cell that is not done starts again.
    Cells run one after another in this process, or in parallel on the workers of `launcher`; a cell whose worker
    is lost is run again up to `retries` times. After `max_failures` no further cell is started.
    """
    os.environ.pop("MLFLOW_RUN_ID", None)  # `mlflow run` has opened one for the whole; each cell opens its own
    store = connect_to_write(uri)
    report = report or (lambda cell, state, text: console().print(text, markup=False))
    if fresh:
        retry = True
        unfinished = [s.cell for s in states(suite, store) if s.state != DONE]
        abandon(store, [run for cell in unfinished for run in cell_runs(cell, store)])
    failed = 0

    def tasks(cells: Sequence[Cell]) -> Iterator[WorkItem]:
        for number, cell in enumerate(cells, 1):
            if max_failures is None or failed < max_failures:
                report(cell, RUNNING, f"[{number}/{len(cells)}] {suite.title}: {cell.name}")
                yield WorkItem(cell.name, run_cell, (suite, cell.name, store.uri, retry, quiet, verbose))

    for kind in (RunConfig, Parts):  # cascades need their parts, so they come second
        wanted = [s.cell for s in states(suite, store) if to_run(s, retry) and isinstance(s.cell.what, kind)]
        cells = {cell.name: cell for cell in wanted if _has_parts(suite, cell, store, report)}
        with closing(run_items(tasks(list(cells.values())), launcher or InProcess(), retries=retries)) as events:
            for event in events:
                cell = cells[event.item.name]
                if event.kind == "lost":
                    _end_lost(suite, cell, store, "KILLED", event.reason)
                    report(cell, RUNNING, f"{cell.name} has lost its worker ({event.reason}) and starts again")
                    continue
                if event.kind == "given up":
                    problem = f"its worker was lost {retries + 1} times: {event.reason}"
                    _end_lost(suite, cell, store, "FAILED", problem)
                found = cell_state(cell, store)
                failed += found.state == FAILED
                report(cell, found.state, _sentence(found))
    return states(suite, store)


def states(suite: Suite, store: Store) -> list[CellState]:
    """Return the state of each cell."""
    return [cell_state(cell, store) for cell in suite.cells]


def cell_state(cell: Cell, store: Store) -> CellState:
    """Return 'done' if any run of all folds has finished; otherwise the newest run decides.

    An interrupted run counts as missing, as nothing is wrong with the cell.
    """
    runs = cell_runs(cell, store)
    for run in runs:
        if is_ranked(store, run):
            return CellState(cell, DONE, run)
    if not runs:
        return CellState(cell, MISSING, None)
    status = runs[0].info.status
    if status == "RUNNING" and is_active(store, runs[0]):
        return CellState(cell, RUNNING, runs[0])
    return CellState(cell, FAILED if status == "FAILED" else MISSING, runs[0])


def cell_runs(cell: Cell, store: Store) -> list[Run]:
    """Return the runs of a cell that were to train all folds, the newest first."""
    return [r for r in search_runs(store, identity(cell)) if Tag.ONLY not in r.data.tags]


def identity(cell: Cell) -> dict[str, str]:
    """Return the tags by which the runs of a cell are recognised."""
    return {Tag.FINGERPRINT: cell.fingerprint, Tag.DATA: cell.data.key}


def to_run(found: CellState, retry: bool) -> bool:
    """Return whether a suite should run the cell; with `retry`, failed cells too."""
    return found.state == MISSING or (retry and found.state == FAILED)


def run_cell(suite: Suite, name: str, uri: str, retry: bool, quiet: bool, verbose: bool) -> None:
    """Run one cell, and log any error in the store, so that the other cells still run.

    Nothing is done if another process is running the cell, or has finished it in the meantime.
    """
    store = connect_to_write(uri)
    cell = next(c for c in suite.cells if c.name == name)
    lock = workspace_folder(store, f"cell-{cell.fingerprint}-{cell.data.key}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(lock, timeout=0):
        if not to_run(cell_state(cell, store), retry):
            return
        before = _run_states(cell, store)
        try:
            _run(suite, cell, store, quiet=quiet, verbose=verbose)
        except Exception as error:
            problem = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
            if _run_states(cell, store) == before:  # refused before a run was opened
                _log_failure(suite, cell, store, problem)


def _run(suite: Suite, cell: Cell, store: Store, *, quiet: bool, verbose: bool) -> None:
    tags = suite.tags(cell)
    if isinstance(cell.what, RunConfig):
        print_finished(execute(cell.what, uri=store.uri, tags=tags, quiet=quiet, verbose=verbose))
        return
    parts = {c.name: cell_state(c, store) for c in suite.cells}
    gate, model = parts[cell.what.presence], parts[cell.what.segmentation]
    assert gate.run is not None  # `_has_parts` has checked that both are done
    assert model.run is not None
    assert isinstance(model.cell.what, RunConfig)
    folder = model.cell.what.dataset.params.get("folder")
    data = Path(folder) if folder else None
    cascade(gate.run.info.run_id, model.run.info.run_id, data=data, name=cell.name, tags=tags, uri=store.uri)


def _has_parts(suite: Suite, cell: Cell, store: Store, report: Report) -> bool:
    """Return whether all parts of a cascade are done; other cells have no parts."""
    names = cell.what.model_dump().values() if isinstance(cell.what, Parts) else ()
    parts = [cell_state(part, store) for part in suite.cells if part.name in names]
    lacking = [f"{part.cell.name} ({part.state})" for part in parts if part.state != DONE]
    if lacking:
        report(cell, MISSING, f"{cell.name} waits for {' and '.join(lacking)}")
    return not lacking


def _end_lost(suite: Suite, cell: Cell, store: Store, status: str, problem: str) -> None:
    """End the run of a cell, and its folds, on behalf of a worker that was lost."""
    open_runs = [r for r in cell_runs(cell, store) if r.info.status in ("RUNNING", "KILLED")]
    for run in open_runs[:1]:
        folds = search_runs(store, {"mlflow.parentRunId": run.info.run_id})
        for each in (run, *(fold for fold in folds if fold.info.status == "RUNNING")):
            store.client.set_terminated(each.info.run_id, status)
        if status == "FAILED":
            store.client.set_tag(run.info.run_id, Tag.ERROR, problem)
    if status == "FAILED" and not open_runs:
        _log_failure(suite, cell, store, problem)


def _log_failure(suite: Suite, cell: Cell, store: Store, problem: str) -> None:
    log_failure(store, cell.name, cell.data.dataset, identity(cell) | suite.tags(cell), problem)


def _run_states(cell: Cell, store: Store) -> set[tuple[str, str, int | None]]:
    """Return id, status and end of every run of a cell: this changes as soon as one is opened or resumed."""
    runs = search_runs(store, identity(cell))
    return {(run.info.run_id, run.info.status, run.info.end_time) for run in runs}


def _sentence(found: CellState) -> str:
    name = found.cell.name
    if found.state == FAILED and found.run is not None:
        return f"{name} failed: {found.run.data.tags.get(Tag.ERROR, found.run.info.status)}"
    return f"{name} is running in another process" if found.state == RUNNING else f"{name} is {found.state}"
