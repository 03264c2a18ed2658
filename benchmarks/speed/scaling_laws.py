"""Laws fitted to the measured cost of an epoch, and their plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Line:
    """fixed + each * n seconds."""

    fixed: float
    each: float

    def at(self, n: float) -> float:
        return self.fixed + self.each * n

    def __str__(self) -> str:
        return f"{self.each:.3g} s × n {'+' if self.fixed >= 0 else '−'} {abs(self.fixed):.2g} s"


@dataclass(frozen=True)
class Power:
    """scale * n ** exponent seconds."""

    scale: float
    exponent: float

    def at(self, n: float) -> float:
        return self.scale * float(n**self.exponent)

    def __str__(self) -> str:
        return f"∝ n^{self.exponent:.2f}"


def fit_line(n: ArrayLike, seconds: ArrayLike) -> Line:
    """Fit a line by least squares of relative errors, since noise is proportional to the time."""
    x, y = np.asarray(n, float), np.asarray(seconds, float)
    each, fixed = np.polyfit(x, y, 1, w=1 / y)
    return Line(float(fixed), float(each))


def fit_power(n: ArrayLike, seconds: ArrayLike) -> Power:
    """Fit a power law by least squares of the logarithms."""
    exponent, scale = np.polyfit(np.log(np.asarray(n, float)), np.log(np.asarray(seconds, float)), 1)
    return Power(float(np.exp(scale)), float(exponent))


Law = Line | Power
AXES: dict[str, tuple[str, Callable[[ArrayLike, ArrayLike], Law]]] = {
    "slices": ("training slices", fit_line),
    "size": ("image side, pixels", fit_power),
    "folds": ("folds of a cross-validation", fit_line),
    "models": ("GFLOP per image, forward and backward", fit_power),
}


def fit_laws(frame: pd.DataFrame) -> dict[str, Law]:
    """Fit the law of each axis to its medians. `frame` is a table of `measure_scaling`."""
    parts = {axis: frame[frame["axis"] == axis] for axis in AXES}
    return {axis: fit(parts[axis]["value"], parts[axis]["seconds"]) for axis, (_, fit) in AXES.items()}


def plot(frame: pd.DataFrame) -> Figure:
    """Plot one panel per axis: medians, the range of turns, and the fitted law, which is also the title."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    for panel, (axis, law) in zip(figure.subplots(2, 2).flat, fit_laws(frame).items(), strict=True):
        _plot_axis(panel, frame[frame["axis"] == axis], axis, law)
    return figure


def _plot_axis(panel: Axes, rows: pd.DataFrame, axis: str, law: Law) -> None:
    smooth = np.geomspace(rows["value"].min(), rows["value"].max(), 50)
    panel.plot(smooth, [law.at(n) for n in smooth], "--", color="#888888", zorder=1)
    for marker, (model, part) in zip("osD^vP*Xhd" * 10, rows.groupby("model", sort=False), strict=False):
        spread = np.abs(part[["low", "high"]].to_numpy().T - part["seconds"].to_numpy())
        panel.errorbar(part["value"], part["seconds"], spread, fmt=marker, capsize=3, label=str(model))
    if isinstance(law, Power):
        panel.loglog()
        for scale in (panel.xaxis, panel.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_locator(NullLocator())
    else:
        panel.set_ylim(bottom=0)
    if axis != "models":
        panel.set_xticks(rows["value"], [f"{n:g}" for n in rows["value"]])
    panel.set_title(f"{axis}: {law}", fontsize=11)
    panel.set_xlabel(AXES[axis][0])
    panel.set_ylabel("seconds per epoch" + (" of all folds" if axis == "folds" else ""))
    panel.legend(fontsize=8, frameon=False)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
