"""A recorder that remembers in memory what a run would have logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


class MemoryRecorder:
    """Implements `bench.records.Recorder`; children are kept by name."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.values: dict[str, list[tuple[int, float]]] = {}
        self.labels: dict[str, str] = {}
        self.tables: dict[str, pd.DataFrame] = {}
        self.images: dict[str, np.ndarray] = {}
        self.paths: dict[str, dict[str, bytes]] = {}
        self.children: dict[str, MemoryRecorder] = {}

    def settings(self, values: Mapping[str, Any]) -> None:
        self.params |= values

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append((step, value))

    def tags(self, values: Mapping[str, str]) -> None:
        self.labels |= values

    def table(self, name: str, rows: pd.DataFrame) -> None:
        self.tables[name] = rows

    def image(self, name: str, pixels: np.ndarray) -> None:
        self.images[name] = pixels

    def files(self, folder: Path, into: str) -> None:
        self.paths[into] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def model(self, folder: Path, channels: int) -> None:
        self.files(folder, "model")

    @contextmanager
    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[MemoryRecorder]:
        self.children[name] = MemoryRecorder()
        self.children[name].tags(tags or {})
        yield self.children[name]

    def last(self, name: str) -> float:
        return self.values[name][-1][1]
