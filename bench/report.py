"""What people look at: boards as tables, training curves, overlays. It draws; it computes nothing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from bench.leaderboard import Board, Row
from bench.masks import Mask
from bench.pack import Pack

TRUTH, PREDICTION = "#00e5a0", "#ff8c1a"  # told apart by the colour-blind as well
SYNTHETIC = " [synthetic]"
SYNTHETIC_WARNING = (
    "SYNTHETIC DATA: these are drawn phantoms, not patients. No score here says anything about real scans."
)

# Heading, what the cell says, whether numbers are to be aligned.
COLUMNS: tuple[tuple[str, Callable[[Row], str], bool], ...] = (
    ("#", lambda r: str(r.rank), True),
    ("run", lambda r: r.name + (SYNTHETIC if r.synthetic else ""), False),
    ("Dice", lambda r: _decimal(r.dice), True),
    ("95% interval", lambda r: f"{_decimal(r.low)}–{_decimal(r.high)}", True),
    ("median", lambda r: _decimal(r.median), True),
    ("p5", lambda r: _decimal(r.p5), True),
    ("<0.5", lambda r: str(r.under_half), True),
    ("HD95 px", lambda r: _decimal(r.hd95, 1), True),
    ("missed", lambda r: str(r.missed_slices), True),
    ("pos. slices", lambda r: _decimal(r.positive_slices), True),
    ("epochs", lambda r: f"{r.epochs:.4g}", True),
    ("params M", lambda r: _decimal(r.parameters / 1e6, 1), True),
    ("wall", lambda r: duration(r.wall_seconds), True),
    ("split", lambda r: r.split[:8], False),
    ("id", lambda r: r.run_id[:8], False),
)
LEGEND = (
    "Dice: mean over patients, out of fold; <0.5: patients under it; missed: tumour slices without a prediction; "
    "HD95: 2D, a missed slice counts the image diagonal; pos. slices: Dice on slices with tumour."
)


def board_table(board: Board) -> Table:
    """A board for the terminal."""
    title = Text(_plain(board.title), "table.title")
    table = Table(title=title, title_justify="left", caption=LEGEND, caption_justify="left")
    for heading, _, number in COLUMNS:
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in board.rows:
        table.add_row(*(Text(_plain(cell(row))) for _, cell, _ in COLUMNS))
    return table


def board_markdown(boards: Sequence[Board]) -> str:
    """Boards as Markdown, each under its title."""
    parts = []
    for board in boards:
        rule = "|".join("---:" if number else "---" for _, _, number in COLUMNS)
        rows = ["| " + " | ".join(_escaped(cell(row)) for _, cell, _ in COLUMNS) + " |" for row in board.rows]
        head = "| " + " | ".join(heading for heading, _, _ in COLUMNS) + " |"
        parts.append("\n".join((f"**{_escaped(board.title)}**", "", head, f"|{rule}|", *rows)))
    return "\n\n".join((*parts, LEGEND)) + "\n" if parts else ""


def board_csv(boards: Sequence[Board]) -> str:
    """All rows at full precision; boards are told apart by the columns data, split and patients."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*Row.__annotations__], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in asdict(row).items()} for b in boards for row in b.rows)
    return out.getvalue()


def board_json(boards: Sequence[Board]) -> str:
    """Boards with their rows at full precision; what is not defined is null."""
    plain = [
        asdict(b) | {"rows": [{k: _defined(v) for k, v in asdict(r).items()} for r in b.rows]} for b in boards
    ]
    return json.dumps(plain, indent=1, allow_nan=False)


def curves(history: pd.DataFrame, primary: str) -> NDArray[np.uint8]:
    """Training loss and validation score against epochs, as RGB pixels."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _line(left, history["epoch"], history["train/loss"], "training loss", "#4059ad")
    _line(
        right, history["epoch"], history[f"val/{primary}"], f"validation {primary} (mean over patients)", "#d1495b"
    )
    return _pixels(figure)


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
    """`count` slices of one patient, spread over those with tumour in truth or prediction."""
    rows = pack.rows([case])
    truth = pack.masks[rows].astype(bool)
    busy = np.flatnonzero(truth.any((1, 2)) | prediction.any((1, 2)))
    busy = busy if len(busy) else np.arange(len(rows))
    shown = busy[np.unique(np.linspace(0, len(busy) - 1, count + 2).round().astype(int)[1:-1])]
    channel = pack.manifest.channels.index("flair") if "flair" in pack.manifest.channels else 0
    bright = np.percentile(pack.images[rows][..., channel], 99.5)
    figure = Figure(figsize=(3 * len(shown), 3.5), layout="constrained", facecolor="white")
    numbers = pack.index["slice"].to_numpy()[rows]
    for axis, at in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        outline(axis, pack.images[rows[at]][..., channel], bright, truth[at], prediction[at])
        axis.set_title(f"slice {numbers[at]}", fontsize=9)
    synthetic = " · SYNTHETIC" if pack.manifest.synthetic else ""
    figure.suptitle(f"{title}{synthetic}", fontsize=11)
    lines = [Line2D([], [], color=TRUTH, label="truth"), Line2D([], [], color=PREDICTION, label="prediction")]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _pixels(figure)


def outline(axis: Axes, image: NDArray[np.uint8], bright: float, truth: Mask | None, prediction: Mask) -> None:
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


def side_by_side(image: NDArray[np.uint8], prediction: Mask) -> NDArray[np.uint8]:
    """A slice, and beside it the slice with the predicted outline, as RGB pixels."""
    figure = Figure(figsize=(6, 3.1), layout="constrained")
    plain, drawn = figure.subplots(1, 2)
    bright = float(np.percentile(image, 99.5))
    outline(plain, image, bright, None, np.zeros_like(prediction))
    outline(drawn, image, bright, None, prediction)
    drawn.set_title(f"{int(prediction.sum())} pixels", fontsize=9)
    return _pixels(figure)


def model_card(title: str, facts: Mapping[str, object], values: Mapping[str, float]) -> str:
    """What MLflow shows as the run's description, in Markdown."""
    lines = [f"**{_escaped(title)}**: per-patient Dice **{_decimal(values.get('dice', math.nan))}** "]
    lines[0] += f"(95% interval {_decimal(values.get('dice_low', math.nan))} to "
    lines[0] += f"{_decimal(values.get('dice_high', math.nan))}), out of fold"
    return "\n".join([*lines, "", *(f"- {k}: {_escaped(str(v))}" for k, v in facts.items())])


def duration(seconds: float) -> str:
    """3700 as '1 h 02 min', 75 as '1 min 15 s'."""
    if math.isnan(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _line(axis: Axes, x: pd.Series[int], y: pd.Series[float], title: str, colour: str) -> None:
    axis.plot(x, y, color=colour, marker="o" if len(x) < 12 else None, markersize=3)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _decimal(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _defined(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def _plain(text: str) -> str:
    """Without control characters, which could rewrite the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _escaped(text: str) -> str:
    for special in "\\`*_[]<>|":
        text = text.replace(special, f"\\{special}")
    return _plain(text)


def _cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula is quoted, and stays on one line."""
    if not isinstance(value, str):
        return value
    return f"'{_plain(value)}" if value[:1] in ("=", "+", "-", "@") else _plain(value)
