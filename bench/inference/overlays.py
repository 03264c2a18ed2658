"""Overlays: the outlines of truth and prediction on a patient's slices, as RGB pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from bench.data.pack import Pack, display_channel
from bench.formatting import decimal
from bench.masks import Mask
from bench.metrics.confusion import dice_of
from bench.plotting import SHARP
from bench.structures import colour_of

TRUTH, PREDICTION = "#00e5a0", "#ff8c1a"  # of a single structure; safe for colour-blind readers


def overlays(
    pack: Pack, cases: pd.DataFrame, predictions: Mapping[str, Mask], primary: str, *, sign: int = 1
) -> dict[str, NDArray[np.uint8]]:
    """Draw the best, the median and the worst patient on four slices each, by name.

    `sign` is -1 if a lower score is better.
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
    """Draw `count` slices of one patient, spread over those with a structure in truth or prediction (S, K, H, W).

    The rows are the scan, the scan with the truth, and the scan with truth and prediction.
    """
    rows = pack.rows([case])
    truth = pack.truth(rows)
    positive = np.flatnonzero((truth | prediction).any((1, 2, 3)))
    positive = positive if len(positive) else np.arange(len(rows))
    shown = positive[np.unique(np.linspace(0, len(positive) - 1, count + 2).round().astype(int)[1:-1])]
    channel = display_channel(pack.manifest.channels)
    bright = np.percentile(pack.images[rows][..., channel], 99.5)
    figure = Figure(figsize=(2.4 * len(shown), 8), dpi=SHARP, layout="constrained", facecolor="white")
    numbers = pack.index["slice"].to_numpy()[rows]
    axes = figure.subplots(3, len(shown), squeeze=False)
    for column, at in zip(axes.T, shown, strict=True):
        drawn = (None, None), (truth[at], None), (truth[at], prediction[at])
        for axis, (true, predicted) in zip(column, drawn, strict=True):
            outline(axis, pack.images[rows[at]][..., channel], bright, true, predicted)
        column[0].set_title(f"slice {numbers[at]}", fontsize=9)
    for axis, label in zip(axes[:, 0], ("scan", "truth", "prediction"), strict=True):
        axis.text(-0.04, 0.5, label, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=9)
    synthetic = " · SYNTHETIC" if pack.manifest.synthetic else ""
    figure.suptitle(f"{title}{synthetic}", fontsize=11)
    names = pack.structures.names
    lines = [Line2D([], [], color=TRUTH, label="truth"), Line2D([], [], color=PREDICTION, label="prediction")]
    if len(names) > 1:
        lines = [
            Line2D([], [], color="grey", linestyle=":", label="truth"),
            Line2D([], [], color="grey", label="prediction"),
            *(Line2D([], [], color=colour_of(k), label=name) for k, name in enumerate(names)),
        ]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=9)
    return pixels_of(figure)


def outline(
    axis: Axes, image: NDArray[np.uint8], bright: float, truth: Mask | None, prediction: Mask | None
) -> None:
    """Draw one slice with the outlines of its masks (K, H, W).

    Several structures have a colour each, and their truth is dotted.
    """
    axis.imshow(image, cmap="gray", vmin=0, vmax=max(bright, 1), interpolation="nearest")
    limits = axis.axis()
    height, width = image.shape
    for masks, alone, line in ((truth, TRUTH, "dotted"), (prediction, PREDICTION, "solid")):
        if masks is None:
            continue
        for k in np.flatnonzero(masks.any((1, 2))).tolist():
            # Padded, so that the outline of a mask at the border is closed.
            grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
            colour, style = (alone, "solid") if len(masks) == 1 else (colour_of(k), line)
            axis.contour(*grid, np.pad(masks[k], 1), [0.5], colors=colour, linewidths=1.4, linestyles=style)
    axis.axis(limits)
    axis.set_axis_off()


def side_by_side(
    image: NDArray[np.uint8], prediction: Mask, truth: Mask | None = None, *, names: Sequence[str] = ("tumour",)
) -> NDArray[np.uint8]:
    """Draw a slice, and beside it the slice with the outlines of prediction and truth (K, H, W)."""
    figure = Figure(figsize=(6, 3.1), dpi=SHARP, layout="constrained")
    plain, drawn = figure.subplots(1, 2)
    bright = float(np.percentile(image, 99.5))
    outline(plain, image, bright, None, None)
    outline(drawn, image, bright, truth, prediction)
    text = f"{int(prediction.any(0).sum())} pixels"
    if len(prediction) > 1:
        text = ", ".join(
            f"{int(mask.sum())} pixels of {name}" for name, mask in zip(names, prediction, strict=True)
        )
    elif truth is not None:
        tp = int((prediction & truth).sum())
        dice = dice_of(tp, int(prediction.sum()) - tp, int(truth.sum()) - tp)
        text += f" (orange); truth {int(truth.sum())} (green); Dice {decimal(float(dice))}"
    figure.suptitle(text, fontsize=9)  # over both, as it is wider than one
    return pixels_of(figure)


def pixels_of(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure as RGB pixels (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
