"""The terminal: progress and messages on standard error, results on standard output.

Progress is a bar on a terminal and in a notebook, elsewhere a line now and then; with --quiet only results are
shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import nan
from threading import local
from time import monotonic
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from bench.formatting import NAMES, duration, plain
from bench.types import Watch

FIRST = 10.0  # seconds until the first line of progress where there is no terminal
REFRESH = 0.5  # seconds between updates of a notebook


def console() -> Console:
    """Return standard output, without colours and bold letters if `NO_COLOR` is set.

    Where it is not a terminal it has the width `COLUMNS`, by default 200.
    """
    plain_text = bool(os.environ.get("NO_COLOR"))
    screen = Console(highlight=False, color_system=None if plain_text else "auto")
    if not screen.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        screen.width = 200
    return screen


def print_text(text: str) -> None:
    """Print a sentence: wrapped between words on a terminal, on one line elsewhere."""
    screen = console()
    screen.print(Text(plain(text)), soft_wrap=not screen.is_terminal)


def progress_line(what: str, done: float, of: float, unit: str, seconds: float) -> str:
    """Return 'evaluating: 3 of 12 patients, 6 min 00 s left' for 3 patients done in 120 seconds."""
    left = f", {duration(seconds / done * (of - done))} left" if done else ""
    return f"{what}: {done:.0f} of {of:.0f} {unit}{left}"


class _Count(MofNCompleteColumn):
    """How many are done of how many; nothing for what cannot be counted."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


class _Own(local):
    """The bar of one thread: parallel folds have one each."""

    task: TaskID | None = None
    started = due = 0.0


class Display(Watch):
    """Shows the progress of a command. Use it as a context manager."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(table_column=Column(ratio=1)),
            _Count(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            expand=True,
            console=self.console,
            transient=True,
            speed_estimate_period=300,  # a patient may take a minute
            disable=quiet or not self.console.is_terminal,
        )
        self._own = _Own()
        self._cell: Any = None  # the part of a notebook's output that shows the bars

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self._cell is not None:
            self._cell.update(Text(""))

    def say(self, text: str) -> None:
        """Print one line, unless quiet."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def bar(self, done: int, of: int, what: str, unit: str = "slices") -> None:
        """Show progress from the first to the last step."""
        if self._own.task is None:
            self._start(what, of, unit)
        self._advance(completed=done)
        if done >= of:
            self._close()

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Show on a terminal that something without steps to count is being done."""
        task = self.progress.add_task(what, total=None, note="")
        try:
            yield
        finally:
            self.progress.remove_task(task)

    def reading(self, done: int, of: int) -> None:
        self.bar(done, of, "reading", "runs")

    def scoring(self, done: int, of: int) -> None:
        self.bar(done, of, "scoring", "patients")

    def packing(self, done: int, of: int) -> None:
        self.bar(done, of, "packing")

    def fold(self, number: int, of: int, images: int) -> None:
        self._close()
        self._start(f"fold {number} of {of}", images, "images")

    def images(self, count: int) -> None:
        self._advance(advance=count)

    def epoch(self, number: int, of: int, loss: float, score: float) -> None:
        if self._own.task is not None:
            text = f"epoch {number}/{of}, loss {loss:.3f}, validation {score:.3f}"
            self.progress.update(self._own.task, note=text)
            if self.verbose:
                self.say(f"  {text}")

    def scored(self, number: int, values: Mapping[str, float]) -> None:
        self._close()
        name = "dice" if "dice" in values else "auroc"
        self.say(
            f"fold {number}: test {NAMES[name]} {values.get(name, nan):.3f} over {values['patients']:.0f} patients"
        )

    def _start(self, what: str, of: int, unit: str) -> None:
        self._own.task = self.progress.add_task(what, total=of, unit=unit, note=unit)
        self._own.started = monotonic()
        self._own.due = self._own.started + (0 if self.console.is_jupyter else FIRST)

    def _advance(self, **change: float) -> None:
        """Update the bar of this thread; without a terminal, refresh the notebook, or print a line when due."""
        own = self._own
        if own.task is None:
            return
        self.progress.update(own.task, **change)  # type: ignore[arg-type]
        if (now := monotonic()) < own.due or self.quiet or self.console.is_terminal:
            return
        if self.console.is_jupyter:
            own.due = now + REFRESH
            if self._cell is None:
                from IPython.display import display

                self._cell = display(self.progress, display_id=True)
            self._cell.update(self.progress)
            return
        seconds = now - own.started
        own.due = now + max(FIRST, seconds / 20)  # a run of ten hours prints about a hundred lines
        task = next(task for task in self.progress.tasks if task.id == own.task)
        unit = ", ".join(dict.fromkeys((task.fields["unit"], task.fields["note"])))
        self.say(progress_line(task.description, task.completed, task.total or 0, unit, seconds))

    def _close(self) -> None:
        if self._own.task is not None:
            self.progress.remove_task(self._own.task)
            self._own.task = None
