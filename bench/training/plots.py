"""Training curves, and the curves of classifiers, as RGB pixels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bench.inference.overlays import pixels_of
from bench.plotting import SHARP


def curves(history: pd.DataFrame, primary: str) -> NDArray[np.uint8]:
    """Plot training loss and validation score against epochs."""
    figure = Figure(figsize=(7, 3.2), dpi=SHARP, layout="constrained")
    left, right = figure.subplots(1, 2)
    _line(left, history["epoch"], history["train/loss"], "training loss", "#4059ad")
    _line(right, history["epoch"], history[f"val/{primary}"], f"validation {primary}", "#d1495b")
    return pixels_of(figure)


def presence_pictures(
    slices: pd.DataFrame, confusion: pd.DataFrame, reliability: pd.DataFrame
) -> dict[str, NDArray[np.uint8]]:
    """Plot ROC and precision-recall curves, the confusion matrix, and the reliability curve with its intervals."""
    return {
        "discrimination": pixels_of(_discrimination(slices)),
        "confusion": pixels_of(_confusion(confusion)),
        "reliability": pixels_of(_reliability(reliability)),
    }


def _discrimination(slices: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(8, 3.8), dpi=SHARP, layout="constrained")
    left, right = figure.subplots(1, 2)
    ordered = slices.sort_values("probability", ascending=False)["truth"].to_numpy(bool)
    falling = np.sort(slices["probability"].to_numpy())[::-1]
    last = np.append(np.diff(falling) != 0, True)  # equal probabilities move together
    tp, fp = (np.append(0, side.cumsum()[last]) for side in (ordered, ~ordered))
    positives, negatives = max(tp[-1], 1), max(fp[-1], 1)
    left.plot(fp / negatives, tp / positives, color="#4059ad")
    left.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    left.set(xlabel="1 - specificity", ylabel="sensitivity")
    left.set_title("ROC curve of slices", fontsize=10)
    right.plot(tp[1:] / positives, tp[1:] / (tp[1:] + fp[1:]), color="#d1495b")
    right.axhline(ordered.mean(), color="0.7", linestyle=":")
    right.set(xlabel="sensitivity (recall)", ylabel="precision", ylim=(0, 1.02))
    right.set_title("Precision and recall; dotted: chance", fontsize=10)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _confusion(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(4.4, 3.6), dpi=SHARP, layout="constrained")
    axis = figure.subplots()
    cells = table.to_numpy()
    shares = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{cells[row, column]:,}\n{share:.1%}"
        axis.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    axis.set_xticks(range(len(table.columns)), [str(name) for name in table.columns])
    axis.set_yticks(range(len(table.index)), [str(name) for name in table.index])
    axis.set_ylabel("truth")
    axis.set_title("Slices, and shares of each row", fontsize=10)
    return figure


def _reliability(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(4.6, 4.2), dpi=SHARP, layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    errors = np.abs(table[["low", "high"]].to_numpy().T - table["share"].to_numpy())
    axis.errorbar(table["probability"], table["share"], errors, fmt="o-", color="#4059ad", capsize=2, markersize=4)
    axis.set(
        xlabel="mean probability of a bin", ylabel="share of slices with tumour", xlim=(0, 1), ylim=(-0.02, 1.02)
    )
    axis.set_title("Reliability; bars: 95% intervals over patients", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _line(axis: Axes, x: pd.Series[int], y: pd.Series[float], title: str, colour: str) -> None:
    axis.plot(x, y, color=colour, marker="o" if len(x) < 12 else None, markersize=3)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
