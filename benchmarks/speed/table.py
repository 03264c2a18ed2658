"""Speed figures as a table for the terminal."""

from __future__ import annotations

from statistics import median

from rich.markup import escape
from rich.table import Table

from benchmarks.speed.figure import SpeedFigure


def make_table(figures: list[SpeedFigure]) -> Table:
    """Return one row per figure: median and range of each side, their ratio, and its gate."""
    table = Table(title="Speed: median (lowest to highest turn), ours / theirs")
    for column in ("figure", "peer", "unit", "ours", "theirs", "ratio", "gate", "met", "note"):
        table.add_column(column, justify="right" if column in ("ours", "theirs", "ratio") else "left")
    for f in figures:
        ratio = "" if f.ratio is None else f"{f.ratio:.3f}" if f.at_most else f"{f.ratio:.2f}"
        gate = "" if f.gate is None else f"{'<=' if f.at_most else '>='} {f.gate:g}"
        met = {None: "", True: "yes", False: "NO"}[f.met]
        table.add_row(f.name, f.peer, f.unit, _spread(f.ours), _spread(f.theirs), ratio, gate, met, escape(f.note))
    return table


def _spread(values: tuple[float, ...]) -> str:
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})" if values else ""
