"""What a comparison found, and how two sides are timed fairly."""

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

Side = Callable[[], int]  # does some work and says how many things that were


@dataclass(frozen=True)
class SpeedFigure:
    """One comparison: `ours` and `theirs` hold one value a turn; `theirs` is empty without the peer installed."""

    name: str
    peer: str
    unit: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    gate: float | None = None  # what the ratio must reach; None: nothing is promised here
    at_most: bool = False  # ... or must not exceed
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Median of ours over median of theirs; None without the peer."""
        return median(self.ours) / median(self.theirs) if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the ratio passes the gate; None without the peer, or without a gate."""
        if self.ratio is None or self.gate is None:
            return None
        return self.ratio <= self.gate if self.at_most else self.ratio >= self.gate


def race(
    *sides: Side, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[tuple[float, ...], ...]:
    """Things a second of every side, one value a turn: A B A B ..., after one turn each that is not timed."""
    rates: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for _ in range(repeats):
        for side, found in zip(sides, rates, strict=True):
            started = clock()
            things = side()
            found.append(things / (clock() - started))
    return tuple(map(tuple, rates))


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch and OpenCV on one thread each."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def dump(figures: list[SpeedFigure], machine: Mapping[str, str]) -> str:
    """JSON of the figures and of the machine they were measured on."""
    rows = [asdict(f) | {"ratio": f.ratio, "met": f.met} for f in figures]
    return json.dumps({"machine": dict(machine), "figures": rows}, indent=1)


def load(text: str) -> list[SpeedFigure]:
    """The figures that `dump` wrote."""
    return TypeAdapter(list[SpeedFigure]).validate_python(json.loads(text)["figures"])
