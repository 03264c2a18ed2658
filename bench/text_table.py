"""Tables of text that fit the terminal: numbers are never wrapped, and columns that do not fit are named below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.formatting import plain

MORE = "Add --wide for all columns."
GAP = 2  # spaces between columns
LEAST = 20  # characters to which words are narrowed to make room for columns of numbers
ROOMY = 32  # characters that words keep before columns are added that may be left out
NARROW = 8  # characters that words keep in the narrowest terminal


@dataclass(frozen=True)
class TextColumn:
    """A heading and its cells. Numbers are right-aligned and keep their width; words may be wrapped.

    A column with a larger `drop` is left out earlier, and of equal ones the last; None is shown only with all. One
    that is `fixed` is never left out, and starts every part of a table that is printed in parts.
    """

    heading: str
    cells: Sequence[str]
    number: bool = False
    drop: int | None = 0
    fixed: bool = False

    @property
    def widest(self) -> int:
        """The width of the longest cell, or of the longest word of the heading."""
        return max(len(text) for text in ("", *self.cells, *self.heading.split(" ")))

    @property
    def width(self) -> int:
        """The width that the column needs."""
        return self.widest if self.number else min(self.widest, LEAST)


def frame_columns(frame: pd.DataFrame, fixed: int = 1) -> list[TextColumn]:
    """Return the columns of a data frame, the first `fixed` of them fixed; numbers have four digits."""
    flat = frame.reset_index() if frame.index.name or frame.index.dtype == object else frame
    return [
        TextColumn(
            plain(str(name)),
            [plain(f"{v:.4g}" if isinstance(v, float) else str(v)) for v in values],
            number=pd.api.types.is_numeric_dtype(values) or all(_is_number(str(v)) for v in values),
            fixed=place < fixed,
        )
        for place, (name, values) in enumerate(flat.items())
    ]


def fit_columns(columns: Sequence[TextColumn], width: int) -> list[int]:
    """Return the places of the columns that fit the width, in their order; fixed ones always do.

    Columns are added in the order of `drop` until one does not fit, so that a wider table has all columns of a
    narrower one. Words make room for columns whose `drop` is 0.
    """
    places = [at for at, column in enumerate(columns) if column.drop is not None]
    order = sorted(places, key=lambda at: (not columns[at].fixed, columns[at].drop, at))
    kept: list[int] = []
    for at in order:
        roomy = sum(max(0, min(columns[place].widest, ROOMY) - columns[place].width) for place in (*kept, at))
        needed = _needed(columns, [*kept, at]) + (roomy if columns[at].drop else 0)
        if needed > width and not columns[at].fixed:
            break
        kept.append(at)
    return sorted(kept)


def split_columns(columns: Sequence[TextColumn], width: int) -> Iterator[list[int]]:
    """Yield the places of the columns of each part of a table that is printed in parts, each of which fits."""
    fixed = [at for at, column in enumerate(columns) if column.fixed]
    others = [at for at, column in enumerate(columns) if not column.fixed]
    while True:
        part: list[int] = []
        while others and (not part or _needed(columns, [*fixed, *part, others[0]]) <= width):
            part.append(others.pop(0))
        yield sorted([*fixed, *part])
        if not others:
            return


def print_columns(
    screen: Console, title: str, columns: Sequence[TextColumn], *, wide: bool = False, more: str = MORE
) -> list[int]:
    """Print the columns that fit, and the names of the others; all of them in several parts if `wide`.

    `more` says how to see the others. Returns the places of the columns that were printed.
    """
    parts = list(split_columns(columns, screen.width)) if wide else [fit_columns(columns, screen.width)]
    for number, places in enumerate(parts):
        screen.print(text_table("" if number else title, [columns[at] for at in places], screen.width))
    shown = sorted({at for places in parts for at in places})
    if left := [column.heading for at, column in enumerate(columns) if at not in shown]:
        screen.print(Text(plain(f"Not shown: {', '.join(left)}. {more}")))
    return shown


def print_frame(screen: Console, title: str, frame: pd.DataFrame, *, fixed: int = 1, wide: bool = False) -> None:
    """Print a data frame: its first columns are always shown, and its last ones are left out first."""
    print_columns(screen, title, frame_columns(frame, fixed), wide=wide)


def frame_table(title: str, frame: pd.DataFrame, width: int) -> Table:
    """Return the columns of a data frame that fit the width."""
    columns = frame_columns(frame)
    return text_table(title, [columns[at] for at in fit_columns(columns, width)], width)


def text_table(title: str, columns: Sequence[TextColumn], width: int) -> Table:
    """Return a table for the terminal, without markup. Words are wrapped at spaces and hyphens."""
    heading = Text(plain(title), "table.title") if title else None
    table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    texts = []
    for column, own in zip(columns, _widths(columns, width), strict=True):
        heading = Text(plain(column.heading))
        table.add_column(heading, justify="right" if column.number else "left", width=own, overflow="fold")
        cells = map(plain, column.cells)
        texts.append(["\n".join(wrap(cell, own)) if len(cell) > own else cell for cell in cells])
    for row in zip(*texts, strict=True):
        table.add_row(*map(Text, row))
    return table


def _widths(columns: Sequence[TextColumn], width: int) -> list[int]:
    """Return the width of each column: words, then headings, take the space that is left, or words give it up."""
    widths = [column.width for column in columns]
    free = width - _needed(columns, range(len(columns)))
    words = [(at, column) for at, column in enumerate(columns) if not column.number]
    for at, _ in words:
        given = max(0, min(-free, widths[at] - NARROW))
        widths[at] -= given
        free += given
    wishes = [(at, column.widest) for at, column in words]
    wishes += [(at, len(column.heading)) for at, column in enumerate(columns)]
    for at, wish in wishes:
        taken = max(0, min(free, wish - widths[at]))
        widths[at] += taken
        free -= taken
    return widths


def _needed(columns: Sequence[TextColumn], places: Sequence[int]) -> int:
    return sum(columns[at].width + GAP for at in places) - GAP


def _is_number(text: str) -> bool:
    return not text or text[:1] in "0123456789+-–<>"
