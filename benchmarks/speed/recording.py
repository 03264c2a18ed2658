"""The cost of tracking: the epochs of a fold recorded in MLflow, against the same loop without recording."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from bench.tracking import connect, open_run
from benchmarks.speed.figure import SpeedFigure
from benchmarks.speed.problem import SpeedProblem

EPOCH_SECONDS = 5.0  # a short epoch of LGG on a GPU
EPOCHS_PER_TURN = 10
Record = Callable[[Mapping[str, float], int], None]


def measure(problem: SpeedProblem) -> list[SpeedFigure]:
    """Compare the seconds of an epoch of 5 s with and without recording, in a new SQLite store."""
    recorded: list[float] = []
    unrecorded: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        store = connect(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        with open_run(store, "speed", "speed", {}) as run, run.child("fold 0") as fold:
            record_epochs(fold.metrics)
            for _ in range(problem.repeats):
                recorded.append(record_epochs(fold.metrics))
                unrecorded.append(record_epochs(lambda values, step: None))
    cost = median(recorded) - median(unrecorded)
    return [
        SpeedFigure(
            "track",
            "no tracking",
            "s/epoch",
            tuple(EPOCH_SECONDS + s for s in recorded),
            tuple(EPOCH_SECONDS + s for s in unrecorded),
            gate=1.02,
            at_most=True,
            note=f"{1000 * cost:.1f} ms an epoch, {cost / EPOCH_SECONDS:.2%} of {EPOCH_SECONDS:.0f} s",
        )
    ]


def record_epochs(record: Record) -> float:
    """Record what `bench run` records and return the seconds per epoch. No training takes place."""
    started = time.perf_counter()
    for epoch in range(1, EPOCHS_PER_TURN + 1):
        row = {"train/loss": 1 / epoch, "train/lr": 1e-3, "train/images_per_second": 500.0, "val/dice": 0.8}
        record(row, epoch)
    return (time.perf_counter() - started) / EPOCHS_PER_TURN
