"""What tracking costs: the epochs of a fold recorded in MLflow, against the same loop unrecorded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from benchmarks.speed.figure import SpeedFigure
from benchmarks.speed.problem import SpeedProblem

EPOCH = 5.0  # seconds: a short epoch of LGG on a GPU
EPOCHS = 10  # a turn
Record = Callable[[Mapping[str, float], int], None]


def figures(given: SpeedProblem) -> list[SpeedFigure]:
    """Seconds of an epoch of 5 s with what `bench run` records of it, in a fresh SQLite store, and without."""
    from bench.tracking import connect, open_run

    recorded: list[float] = []
    unrecorded: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        store = connect(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        with open_run(store, "speed", "speed", {}) as run, run.child("fold 0") as fold:
            record_epochs(fold.metrics)
            for _ in range(given.repeats):
                recorded.append(record_epochs(fold.metrics))
                unrecorded.append(record_epochs(lambda values, step: None))
    cost = median(recorded) - median(unrecorded)
    return [
        SpeedFigure(
            "track",
            "no tracking",
            "s/epoch",
            tuple(EPOCH + s for s in recorded),
            tuple(EPOCH + s for s in unrecorded),
            gate=1.02,
            at_most=True,
            note=f"{1000 * cost:.1f} ms an epoch, {cost / EPOCH:.2%} of {EPOCH:.0f} s",
        )
    ]


def record_epochs(record: Record) -> float:
    """Seconds an epoch that it takes to record what `bench run` does; of the epoch itself nothing is run."""
    started = time.perf_counter()
    for epoch in range(1, EPOCHS + 1):
        row = {"train/loss": 1 / epoch, "train/lr": 1e-3, "train/images_per_second": 500.0, "val/dice": 0.8}
        record(row, epoch)
    return (time.perf_counter() - started) / EPOCHS
