"""What `bench suite` prints: the state of its cells, its boards, and its scores beside published ones."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.live import Live
from rich.table import Table

from bench.analysis.board import Board
from bench.analysis.leaderboard import build_boards
from bench.analysis.task_rules import rules_of
from bench.config import RunConfig
from bench.console import Display, console, print_text
from bench.errors import BenchError
from bench.experiments.suite import DONE, RUNNING, CellState, Report, cell_runs, states, to_run
from bench.experiments.suite_file import Cell, Parts, PublishedScore, Suite
from bench.formatting import NAMES, duration
from bench.reports.tables import board_markdown, board_values, frame_markdown, print_board
from bench.text_table import frame_table, print_frame
from bench.tracking import LEAKY, Run, Store, is_finished, read_records, search_runs
from bench.tracking.tags import Tag, task_name
from bench.training.cross_validation import estimate_time
from bench.training.experiment import resolve

NOTE = (
    "same definition: our run by the metric with the published definition; per patient: mean Dice over "
    "patients (AUROC over slices for presence), 95% interval; –: not run, or none of our metrics has this "
    "definition. A LEAKY row is no result: slices of its test patients were used for training."
)


@dataclass(frozen=True)
class Estimate:
    """The seconds that a cell would take, None if it would not be run, or the problem that it would fail with."""

    found: CellState
    seconds: float | None = None
    problem: str = ""


def print_plan(suite: Suite, store: Store, *, retry: bool, workers: int, threads: int | None) -> None:
    """Print which cells would be run and how long they would take; train nothing."""
    table, text = plan_table(estimates(suite, store, retry=retry, threads=threads), workers)
    print_frame(console(), f"{suite.title} · budget {suite.budget}", table, wide=True)
    print_text(text)


def plan_table(found: Sequence[Estimate], workers: int) -> tuple[pd.DataFrame, str]:
    """Return one row per cell with its training time, and a sentence about all of them."""
    rows = [
        {
            **{k: v for k, v in _row(e.found).items() if k in ("entry", "state", "epochs")},
            "training": "–" if e.seconds is None else duration(e.seconds),
            "problem": e.problem,
        }
        for e in found
    ]
    seconds = [e.seconds for e in found if e.seconds is not None]
    failing = sum(bool(e.problem) for e in found)
    text = (
        f"{len(seconds)} cells to run: {duration(sum(seconds))} of training, "
        f"about {duration(makespan(seconds, workers))} with {workers} worker{'s' * (workers > 1)}"
    )
    return pd.DataFrame(rows), text + f"; {failing} more cannot be estimated, and would fail" * bool(failing)


@contextmanager
def live_report(suite: Suite, store: Store) -> Iterator[Report]:
    """Yield a reporter for `run_suite` that prints; a terminal also shows a live table of all cells."""
    screen = console()
    current = {s.cell.name: s.state for s in states(suite, store)}

    def table() -> Table:
        at = {c.name: progress(c, store) if current[c.name] == RUNNING else "" for c in suite.cells}
        rows = [{"entry": name, "state": current[name], "at": text} for name, text in at.items()]
        return frame_table(suite.title, pd.DataFrame(rows), screen.width)

    def report(cell: Cell, state: str, text: str) -> None:
        current[cell.name] = state
        screen.print(text, markup=False)

    if not screen.is_terminal:
        yield report
        return
    with Live(get_renderable=table, console=screen, refresh_per_second=0.5):
        yield report


def print_suite(suite: Suite, found: Sequence[CellState], boards: Sequence[Board], *, wide: bool = False) -> None:
    """Print cells, boards and published scores: the columns that fit the terminal, or all of them."""
    screen = console()
    title = f"{suite.title} · budget {suite.budget}: {state_counts(found)}"
    print_frame(screen, title, cell_table(found), fixed=2, wide=wide)
    for board in boards:
        print_board(screen, board, wide=wide)
    if suite.published:
        print_frame(screen, "beside the published figures", published_table(suite, found), wide=wide)
        print_text(NOTE)


def suite_json(suite: Suite, found: Sequence[CellState], boards: Sequence[Board]) -> dict[str, Any]:
    """Return the suite as plain values: its cells, the rows of its boards, and published scores."""
    return {
        "title": suite.title,
        "budget": suite.budget,
        "counts": Counter(s.state for s in found),
        "cells": [_values(s) for s in found],
        "boards": [board_values(board) for board in boards],
        "published": [
            {**published.model_dump(), "ours": _our_score(published, found)} for published in suite.published
        ],
    }


def page(suite: Suite, found: Sequence[CellState], boards: Sequence[Board], command: str) -> str:
    """Return the suite as Markdown, with the command that prints it."""
    parts = [
        f"# {suite.title}",
        f"Budget `{suite.budget}`: {state_counts(found)}. Printed by:",
        f"```sh\n{command}\n```",
    ]
    machine = [s.run for s in found if s.run is not None and Tag.DEVICE in s.run.data.tags]
    if machine:
        tags = machine[0].data.tags
        parts.append(f"On {tags[Tag.DEVICE]}; bench {tags[Tag.BENCH_VERSION]}, torch {tags[Tag.TORCH_VERSION]}.")
    parts += ["## Cells", frame_markdown(cell_table(found)), "## Leaderboard", board_markdown(boards).strip()]
    if suite.published:
        parts += ["## Beside the published figures", frame_markdown(published_table(suite, found)), NOTE]
    return "\n\n".join(parts) + "\n"


def cell_table(found: Sequence[CellState]) -> pd.DataFrame:
    """Return one row per cell: entry, state, run, score with interval, time, and the problem of a failed cell."""
    return pd.DataFrame([_row(s) for s in found])


def state_counts(found: Sequence[CellState]) -> str:
    """Return '3 done, 1 missing', in order of appearance."""
    return ", ".join(f"{count} {state}" for state, count in Counter(s.state for s in found).items())


def published_table(suite: Suite, found: Sequence[CellState]) -> pd.DataFrame:
    """Return one row per published score: the score, ours under the same definition, ours per patient."""
    runs = {s.cell.name: s.run for s in found if s.state == DONE}
    rows = []
    for published in suite.published:
        run, ours = runs.get(published.entry), _our_score(published, found)
        rows.append(
            {
                "entry": published.entry,
                "score": published.what,
                "published": f"{published.value:.4g}",
                "same definition": "–" if ours is None else f"{ours:.4f} ({published.metric})",
                "per patient": "–" if run is None else _score(run),
                "where": published.where,
            }
        )
    return pd.DataFrame(rows)


def _our_score(published: PublishedScore, found: Sequence[CellState]) -> float | None:
    """Return our score with the definition of a published one; None if there is none, or it was not run."""
    runs = [s.run for s in found if s.state == DONE and s.cell.name == published.entry]
    return runs[0].data.metrics.get(published.metric or "") if runs and runs[0] is not None else None


def _row(found: CellState) -> dict[str, str]:
    run, values = found.run, _values(found)
    return {
        "entry": values["entry"],
        "state": values["state"],
        "score": "" if run is None or found.state != DONE else _score(run),
        "problem": values["problem"],
        "time": "" if run is None else duration(values["wall_seconds"]),
        "epochs": "" if values["epochs"] is None else str(values["epochs"]),
        "run": "" if run is None else run.info.run_id[:8],
    }


def _values(found: CellState) -> dict[str, Any]:
    """Return the state of a cell as plain values; scores are those of a finished run."""
    run, done = found.run, found.state == DONE
    metrics = run.data.metrics if run is not None else {}
    return {
        "entry": found.cell.name,
        "state": found.state,
        "run_id": None if run is None else run.info.run_id,
        "scores": {k: v for k, v in metrics.items() if done and "/" not in k},
        "epochs": found.cell.what.train.epochs if isinstance(found.cell.what, RunConfig) else None,
        "wall_seconds": metrics.get("cost/wall_seconds", math.nan),
        "problem": "" if run is None or done else run.data.tags.get(Tag.ERROR, run.info.status),
    }


def _score(run: Run) -> str:
    """Return 'Dice 0.812 [0.790, 0.830]', marked LEAKY if it is."""
    name = rules_of(task_name(run.data.tags)).headline
    value, low, high = (run.data.metrics.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high"))
    leaky = "LEAKY " if run.data.tags.get(Tag.KIND) == LEAKY else ""
    return f"{leaky}{NAMES[name]} {value:.3f} [{low:.3f}, {high:.3f}]"


def estimates(suite: Suite, store: Store, *, retry: bool = False, threads: int | None = None) -> list[Estimate]:
    """Time a training step and a prediction of each cell to run, on this machine with so many threads."""
    found, made = states(suite, store), list[Estimate]()
    with Display() as display:
        for state in found:
            made.append(_estimate(state, threads) if to_run(state, retry) else Estimate(state))
            display.bar(len(made), len(found), "timing", "cells")
    return made


def _estimate(found: CellState, threads: int | None) -> Estimate:
    config = found.cell.what
    if isinstance(config, Parts):
        return Estimate(found, 0.0)  # nothing is trained
    try:
        config = config.model_copy(update={"threads": config.threads or threads})
        return Estimate(found, estimate_time(resolve(config)).seconds)
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
    done = sum(is_finished(fold) for fold in folds)
    running = [fold.info.run_id for fold in folds if fold.info.status == "RUNNING"]
    epochs = max((len(store.client.get_metric_history(r, "train/loss")) for r in running), default=0)
    return f"folds done: {done}, epoch {epochs} of {cell.what.train.epochs}"


def suite_boards(found: Sequence[CellState], store: Store) -> list[Board]:
    """Return the boards of a suite's own finished runs; leaky runs are on none."""
    ids = {s.run.info.run_id for s in found if s.run is not None and s.state == DONE}
    keys = {s.cell.data.key for s in found}
    return build_boards([r for key in keys for r in read_records(store, tags={Tag.DATA: key}) if r.run_id in ids])
