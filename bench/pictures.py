"""What people look at: training curves, overlays, curves of classifiers. It draws; it computes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bench.counts import dice_of
from bench.masks import Mask
from bench.pack import Pack, shown_channel
from bench.tables import decimal

TRUTH, PREDICTION = "#00e5a0", "#ff8c1a"  # told apart by the colour-blind as well


def curves(history: pd.DataFrame, primary: str) -> NDArray[np.uint8]:
    """Training loss and validation score against epochs, as RGB pixels."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _line(left, history["epoch"], history["train/loss"], "training loss", "#4059ad")
    _line(right, history["epoch"], history[f"val/{primary}"], f"validation {primary}", "#d1495b")
    return pixels_of(figure)


def overlays(
    pack: Pack, cases: pd.DataFrame, predictions: Mapping[str, Mask], primary: str, *, sign: int = 1
) -> dict[str, NDArray[np.uint8]]:
    """The best, the median and the worst patient, outlines of truth and prediction on four slices each.

    `sign` is -1 where a lower score is better.
    """
    ranked = cases.dropna(subset=[primary]).sort_values([primary, "case"], ascending=sign > 0, ignore_index=True)
    if ranked.empty:
        return {}
    chosen = {"worst": 0, "median": len(ranked) // 2, "best": len(ranked) - 1}
    return {
        name: overlay(
            pack,
            str(ranked["case"][place]),
            predictions[str(ranked["case"][place])],
            f"{name}: {ranked['case'][place]}, {primary} {ranked[primary][place]:.3f}",
        )
        for name, place in chosen.items()
    }


def overlay(pack: Pack, case: str, prediction: Mask, title: str, *, count: int = 4) -> NDArray[np.uint8]:
    """`count` slices of one patient, spread over those with tumour in truth or prediction.

    Side by side the scan, the truth on it, and the prediction beside the truth.
    """
    rows = pack.rows([case])
    truth = pack.masks[rows].astype(bool)
    busy = np.flatnonzero(truth.any((1, 2)) | prediction.any((1, 2)))
    busy = busy if len(busy) else np.arange(len(rows))
    shown = busy[np.unique(np.linspace(0, len(busy) - 1, count + 2).round().astype(int)[1:-1])]
    channel = shown_channel(pack.manifest.channels)
    bright = np.percentile(pack.images[rows][..., channel], 99.5)
    figure = Figure(figsize=(2.4 * len(shown), 8), layout="constrained", facecolor="white")
    numbers = pack.index["slice"].to_numpy()[rows]
    axes = figure.subplots(3, len(shown), squeeze=False)
    for column, at in zip(axes.T, shown, strict=True):
        drawn = (None, None), (truth[at], None), (truth[at], prediction[at])
        for axis, (true, predicted) in zip(column, drawn, strict=True):
            outline(axis, pack.images[rows[at]][..., channel], bright, true, predicted)
        column[0].set_title(f"slice {numbers[at]}", fontsize=9)
    for axis, said in zip(axes[:, 0], ("scan", "truth", "prediction"), strict=True):
        axis.text(-0.04, 0.5, said, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=9)
    synthetic = " · SYNTHETIC" if pack.manifest.synthetic else ""
    figure.suptitle(f"{title}{synthetic}", fontsize=11)
    lines = [Line2D([], [], color=TRUTH, label="truth"), Line2D([], [], color=PREDICTION, label="prediction")]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return pixels_of(figure)


def outline(
    axis: Axes, image: NDArray[np.uint8], bright: float, truth: Mask | None, prediction: Mask | None
) -> None:
    """Draw one slice with the outlines of its masks."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=max(bright, 1), interpolation="nearest")
    limits = axis.axis()
    height, width = image.shape
    for mask, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        if mask is not None and mask.any():
            # Padded, so that the outline of a mask at the border is closed along it.
            grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
            axis.contour(*grid, np.pad(mask, 1), [0.5], colors=colour, linewidths=1.4)
    axis.axis(limits)
    axis.set_axis_off()


def presence_pictures(
    slices: pd.DataFrame, confusion: pd.DataFrame, reliability: pd.DataFrame
) -> dict[str, NDArray[np.uint8]]:
    """ROC and precision-recall curves, the confusion matrix, and the reliability curve with its intervals."""
    return {
        "discrimination": pixels_of(_discrimination(slices)),
        "confusion": pixels_of(_confusion(confusion)),
        "reliability": pixels_of(_reliability(reliability)),
    }


def _discrimination(slices: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ordered = slices.sort_values("probability", ascending=False)["truth"].to_numpy(bool)
    last = np.append(np.diff(np.sort(slices["probability"].to_numpy())[::-1]) != 0, True)  # ties move together
    hits, alarms = (np.append(0, side.cumsum()[last]) for side in (ordered, ~ordered))
    positives, negatives = max(hits[-1], 1), max(alarms[-1], 1)
    left.plot(alarms / negatives, hits / positives, color="#4059ad")
    left.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    left.set(xlabel="1 - specificity", ylabel="sensitivity")
    left.set_title("ROC curve of slices", fontsize=10)
    right.plot(hits[1:] / positives, hits[1:] / (hits[1:] + alarms[1:]), color="#d1495b")
    right.axhline(ordered.mean(), color="0.7", linestyle=":")
    right.set(xlabel="sensitivity (recall)", ylabel="precision", ylim=(0, 1.02))
    right.set_title("Precision and recall; dotted: a guess", fontsize=10)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _confusion(table: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
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
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
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


def side_by_side(image: NDArray[np.uint8], prediction: Mask, truth: Mask | None = None) -> NDArray[np.uint8]:
    """A slice, and beside it the slice with the predicted outline and the true one, as RGB pixels."""
    figure = Figure(figsize=(6, 3.1), layout="constrained")
    plain, drawn = figure.subplots(1, 2)
    bright = float(np.percentile(image, 99.5))
    outline(plain, image, bright, None, None)
    outline(drawn, image, bright, truth, prediction)
    said = f"{int(prediction.sum())} pixels"
    if truth is not None:
        hits = int((prediction & truth).sum())
        dice = dice_of(hits, int(prediction.sum()) - hits, int(truth.sum()) - hits)
        said += f" (orange); truth {int(truth.sum())} (green); Dice {decimal(float(dice))}"
    figure.suptitle(said, fontsize=9)  # over both: it is wider than one of them
    return pixels_of(figure)


def _line(axis: Axes, x: pd.Series[int], y: pd.Series[float], title: str, colour: str) -> None:
    axis.plot(x, y, color=colour, marker="o" if len(x) < 12 else None, markersize=3)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
