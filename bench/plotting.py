"""Axes of figures whose ticks can be read: whole numbers for counts, few and plain ones for logarithms."""

from __future__ import annotations

import math
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

SHARP = 200  # dots per inch of figures that are logged or on a page


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` round values from `low` to `high`, about equally far apart on a logarithmic axis.

    They are 1, 2 and 5 times powers of ten, or 1 and 3 times, or powers of ten with equal steps of the exponent;
    on an axis too short for three of them, numbers with equal steps. Raises `ValueError` unless 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"no logarithmic axis goes from {low} to {high}")
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 3)):
        ticks = [part * 10.0**power for power in powers for part in parts if low <= part * 10.0**power <= high]
        if len(ticks) < 3:
            ticks = [float(tick) for tick in MaxNLocator(most - 1).tick_values(low, high) if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    whole = [power for power in powers if low <= 10.0**power <= high]
    return [10.0**power for power in whole[:: math.ceil(len(whole) / most)]]


def set_log_ticks(axes: Axes, side: Literal["x", "y"], most: int = 6) -> None:
    """Label a logarithmic axis with plain numbers that do not touch."""
    axis, ends = (axes.xaxis, axes.get_xlim()) if side == "x" else (axes.yaxis, axes.get_ylim())
    axis.set_major_locator(FixedLocator(log_ticks(min(ends), max(ends), most)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def set_whole_ticks(axes: Axes, side: Literal["x", "y"]) -> None:
    """Label an axis that counts with whole numbers."""
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
