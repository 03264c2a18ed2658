"""Plain values that several layers share: no torch, no MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench.errors import DataError, LeakageError


@dataclass(frozen=True)
class Epoch:
    """One pass over the training slices; `loss` is the mean over steps, `seconds` is wall time.

    `how` names the execution of its steps (`bench.training.step`), `parts` counts the micro-batches per batch.
    """

    number: int
    loss: float
    lr: float
    images: int
    seconds: float
    how: str = "eager"
    parts: int = 1


@dataclass(frozen=True)
class CaseScore:
    """The scores of one patient by metric name, NaN where a metric is undefined.

    `counts` are the pixels tp, fp, fn, tn of the whole stack, for pooled metrics. `slices` has one row per slice.
    """

    case: str
    values: Mapping[str, float]
    counts: Mapping[str, int]
    slices: pd.DataFrame


@dataclass(frozen=True)
class FoldResult:
    """The result of one fold: its test patients, scored once, and what that cost."""

    fold: int
    scores: tuple[CaseScore, ...]
    thresholds: tuple[float, ...]  # of each structure
    best_epoch: int
    best_score: float
    epochs: int
    images: int
    seconds: float  # of training
    earlier_seconds: float  # spent by interrupted processes before this one
    peak_memory: int  # bytes, of the GPU if there is one, otherwise of the process


@dataclass(frozen=True)
class RunRecord:
    """A finished run as the leaderboard reads it, with one row per patient in `cases`."""

    run_id: str
    name: str
    cases: pd.DataFrame  # case, fold, one column per metric, tp, fp, fn, tn
    settings: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    slices: pd.DataFrame | None = None  # case, slice, truth, probability, called; presence runs only


class Recorder(Protocol):
    """Where a run is logged: `bench.tracking` writes to MLflow, tests write to memory."""

    def settings(self, values: Mapping[str, Any]) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def table(self, name: str, rows: pd.DataFrame) -> None: ...
    def image(self, name: str, pixels: NDArray[np.uint8]) -> None: ...
    def files(self, folder: Path, into: str) -> None: ...
    def model(self, folder: Path, channels: int) -> None: ...
    def child(self, name: str, tags: Mapping[str, str] = ...) -> AbstractContextManager[Self]: ...


class Watch:
    """Receives progress for a live display; silent by default. Parallel folds call it from their threads."""

    def say(self, text: str) -> None: ...
    def packing(self, done: int, of: int) -> None: ...
    def fold(self, number: int, of: int, images: int) -> None: ...
    def images(self, count: int) -> None: ...
    def epoch(self, number: int, of: int, loss: float, score: float) -> None: ...
    def scored(self, number: int, values: Mapping[str, float]) -> None: ...


SILENT = Watch()


class SliceCounts:
    """Pixel counts of one case, four numbers per slice: int64 (S,) each.

    A metric whose argument has this annotation is computed without copying pixels from the device.
    """

    def __init__(
        self, tp: NDArray[np.int64], fp: NDArray[np.int64], fn: NDArray[np.int64], tn: NDArray[np.int64]
    ) -> None:
        self.tp, self.fp, self.fn, self.tn = tp, fp, fn, tn


@dataclass(eq=False)
class Stack(SliceCounts):
    """One structure of one case as a metric sees it; compared and hashed by identity, and never changed.

    truth, prediction: bool (S, H, W); probability: float32 (S, H, W). `prediction` is `called`, where a
    pixel cannot belong to two structures, or else probability >= threshold. `device` is where distances
    between outlines are computed. spacing: float64 (S, 2), millimetres from row to row and from column to column
    of each slice, None if unknown.
    """

    truth: NDArray[np.bool_]
    probability: NDArray[np.float32]
    threshold: float = 0.5
    device: str = "cpu"
    called: InitVar[NDArray[np.bool_] | None] = None
    spacing: NDArray[np.float64] | None = None
    prediction: NDArray[np.bool_] = field(init=False)

    def __post_init__(self, called: NDArray[np.bool_] | None) -> None:
        self.prediction = self.probability >= self.threshold if called is None else called
        tp = _pixels(self.prediction & self.truth)
        fp, fn = _pixels(self.prediction) - tp, _pixels(self.truth) - tp
        super().__init__(tp, fp, fn, self.truth[0].size - tp - fp - fn)


def _pixels(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count true pixels per slice, several times faster than `sum`, which widens every pixel to an integer."""
    return np.array([np.count_nonzero(mask) for mask in masks], np.int64)


@dataclass(frozen=True)
class Fold:
    """Three disjoint sets of patients: to train on, to choose by, and to score once."""

    number: int
    train: frozenset[str]
    val: frozenset[str]
    test: frozenset[str]

    def __post_init__(self) -> None:
        if shared := (self.train & self.val) | (self.train & self.test) | (self.val & self.test):
            raise LeakageError(f"fold {self.number} shares patients: {', '.join(sorted(shared))}.")
        for name in ("train", "val", "test"):
            if not getattr(self, name):
                raise DataError(f"fold {self.number} has no {name} patients. Use fewer folds or more patients.")

    def part(self, case: str) -> str | None:
        """Return 'train', 'val' or 'test'; None for a patient outside the fold."""
        return next((name for name in ("train", "val", "test") if case in getattr(self, name)), None)
