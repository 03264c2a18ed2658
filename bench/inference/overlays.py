"""What people look at: training curves, overlays, curves of classifiers. It draws; it computes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from bench.data.pack import Pack, shown_channel
from bench.formatting import decimal
from bench.masks import Mask
from bench.metrics.confusion import dice_of

TRUTH, PREDICTION = "#00e5a0", "#ff8c1a"  # told apart by the colour-blind as well


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


def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
