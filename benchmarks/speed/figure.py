"""The result of one speed comparison, and how to time several sides fairly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median

import cv2
import torch
from pydantic import TypeAdapter

Side = Callable[[], int]  # runs one turn and returns how many items it processed


@dataclass(frozen=True)
class SpeedFigure:
    """One comparison. `ours` and `theirs` hold one value per turn; without the peer, `theirs` is empty."""

    name: str
    peer: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    gate: float | None = None  # the ratio must be at least this; None: any ratio will do
    at_most: bool = False  # the ratio must be at most `gate` instead
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Median of ours over median of theirs; None without the peer."""
        return median(self.ours) / median(self.theirs) if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the ratio passes the gate; None without the peer or without a gate."""
        if self.ratio is None or self.gate is None:
            return None
        return self.ratio <= self.gate if self.at_most else self.ratio >= self.gate


def race(
    *sides: Side, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[tuple[float, ...], ...]:
    """Return the items per second of every side, one value per turn.

    The sides take turns, A B A B. A first turn of each side is not timed.
    """
    rates: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for _ in range(repeats):
        for side, side_rates in zip(sides, rates, strict=True):
            started = clock()
            items = side()
            side_rates.append(items / (clock() - started))
    return tuple(map(tuple, rates))


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch and OpenCV to one thread each, for the block only."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def dump(figures: list[SpeedFigure], machine: Mapping[str, str]) -> str:
    """Return JSON of the figures and of the machine that they were measured on."""
    rows = [asdict(f) | {"ratio": f.ratio, "met": f.met} for f in figures]
    return json.dumps({"machine": dict(machine), "figures": rows}, indent=1)


def load(text: str) -> list[SpeedFigure]:
    """Return the figures in a text that `dump` made."""
    return TypeAdapter(list[SpeedFigure]).validate_python(json.loads(text)["figures"])
