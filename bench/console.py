"""The terminal: progress bars and messages on standard error, results on standard output.

Bars are shown only on a terminal, and nothing but results with --quiet. rich honours `NO_COLOR`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from threading import local
from typing import Self

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bench.formatting import NAMES, plain
from bench.types import Watch


def console() -> Console:
    """Return standard output, 200 columns wide if it is not a terminal."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=200)


def frame_table(title: str, frame: pd.DataFrame) -> Table:
    """Return a data frame as a table: numbers right-aligned with four digits, text without markup."""
    table = Table(title=Text(plain(title), "table.title"), title_justify="left")
    flat = frame.reset_index() if frame.index.name or frame.index.dtype == object else frame
    for column in flat.columns:
        number = pd.api.types.is_numeric_dtype(flat[column])
        table.add_column(Text(plain(str(column))), justify="right" if number else "left", overflow="fold")
    for row in flat.itertuples(index=False):
        table.add_row(*(Text(plain(f"{v:.4g}" if isinstance(v, float) else str(v))) for v in row))
    return table


class _Own(local):
    task: TaskID | None = None  # the bar of this thread: parallel folds have one each


class Display(Watch):
    """Shows the progress of a run. Use it as a context manager."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._own = _Own()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """Print one line, unless quiet."""
        self.console.print(text, markup=False, soft_wrap=True)

    def bar(self, done: int, of: int, what: str, unit: str = "slices") -> None:
        """Show a bar from its first to its last step."""
        if self._own.task is None:
            self._own.task = self.progress.add_task(what, total=of, unit=unit)
        self.progress.update(self._own.task, completed=done)
        if done >= of:
            self._close()

    def packing(self, done: int, of: int) -> None:
        self.bar(done, of, "packing")

    def fold(self, number: int, of: int, images: int) -> None:
        self._close()
        self._own.task = self.progress.add_task(f"fold {number} of {of}", total=images, unit="images")

    def images(self, count: int) -> None:
        if self._own.task is not None:
            self.progress.advance(self._own.task, count)

    def epoch(self, number: int, of: int, loss: float, score: float) -> None:
        if self._own.task is not None:
            text = f"epoch {number}/{of}, loss {loss:.3f}, validation {score:.3f}"
            self.progress.update(self._own.task, unit=f"images · {text}")
            if self.verbose:
                self.say(f"  {text}")

    def scored(self, number: int, values: Mapping[str, float]) -> None:
        self._close()
        name = "dice" if "dice" in values else "auroc"
        self.say(
            f"fold {number}: test {NAMES[name]} {values.get(name, nan):.3f} over {values['patients']:.0f} patients"
        )

    def _close(self) -> None:
        if self._own.task is not None:
            self.progress.remove_task(self._own.task)
            self._own.task = None
