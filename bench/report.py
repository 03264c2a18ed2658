"""What people look at: boards as tables, training curves, overlays. It draws; it computes nothing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

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

from bench.counts import dice_of
from bench.leaderboard import ROWS, Board, Row
from bench.masks import Mask
from bench.pack import Pack

TRUTH, PREDICTION = "#00e5a0", "#ff8c1a"  # told apart by the colour-blind as well
SYNTHETIC = " [synthetic]"
SYNTHETIC_WARNING = (
    "SYNTHETIC DATA: these are drawn phantoms, not patients. No score here says anything about real scans."
)

LEAKY_WARNING = (
    "LEAKY SPLIT: slices of one patient are on both sides. This shows what that does to a score; it is no result."
)

Columns = tuple[tuple[str, Callable[[Any], str], bool], ...]  # heading, what the cell says, whether to align right
FIRST: Columns = (
    ("#", lambda r: str(r.rank), True),
    ("run", lambda r: r.name + (SYNTHETIC if r.synthetic else ""), False),
)
LAST: Columns = (
    ("epochs", lambda r: f"{r.epochs:.4g}", True),
    ("params M", lambda r: _decimal(r.parameters / 1e6, 1), True),
    ("wall", lambda r: duration(r.wall_seconds), True),
    ("split", lambda r: r.split[:8], False),
    ("id", lambda r: r.run_id[:8], False),
)
SEGMENTATION: Columns = (
    *FIRST,
    ("Dice", lambda r: _decimal(r.dice), True),
    ("95% interval", lambda r: f"{_decimal(r.low)}–{_decimal(r.high)}", True),
    ("median", lambda r: _decimal(r.median), True),
    ("p5", lambda r: _decimal(r.p5), True),
    ("<0.5", lambda r: str(r.under_half), True),
    ("HD95 px", lambda r: _decimal(r.hd95, 1), True),
    ("missed", lambda r: str(r.missed_slices), True),
    ("pos. slices", lambda r: _decimal(r.positive_slices), True),
    *LAST,
)
PRESENCE: Columns = (
    *FIRST,
    ("AUROC", lambda r: _decimal(r.auroc), True),
    ("95% interval", lambda r: f"{_decimal(r.low)}–{_decimal(r.high)}", True),
    ("AP", lambda r: _decimal(r.average_precision), True),
    ("sens.", lambda r: _decimal(r.sensitivity), True),
    ("spec.", lambda r: _decimal(r.specificity), True),
    ("accuracy", lambda r: _decimal(r.accuracy), True),
    ("missed", lambda r: str(r.missed_slices), True),
    ("false", lambda r: str(r.false_positive_slices), True),
    ("Brier", lambda r: _decimal(r.brier), True),
    ("ECE", lambda r: _decimal(r.ece), True),
    *LAST,
)
LEGEND = {
    "segmentation": "Dice: mean over patients, out of fold; <0.5: patients under it; missed: tumour slices "
    "without a prediction; HD95: 2D, a missed slice counts the image diagonal; pos. slices: Dice on slices with "
    "tumour.",
    "presence": "Does a slice show tumour? All slices, out of fold; intervals over patients; AP: average "
    "precision; missed, false: slices with tumour not called, and without tumour called.",
}


def board_table(board: Board) -> Table:
    """A board for the terminal."""
    title = Text(_plain(board.title), "table.title")
    table = Table(title=title, title_justify="left", caption=LEGEND[board.task], caption_justify="left")
    columns = _columns(board)
    for heading, _, number in columns:
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in board.rows:
        table.add_row(*(Text(_plain(cell(row))) for _, cell, _ in columns))
    return table


def board_markdown(boards: Sequence[Board]) -> str:
    """Boards as Markdown, each under its title."""
    parts = []
    for board in boards:
        columns = _columns(board)
        rule = "|".join("---:" if number else "---" for _, _, number in columns)
        rows = ["| " + " | ".join(_escaped(cell(row)) for _, cell, _ in columns) + " |" for row in board.rows]
        head = "| " + " | ".join(heading for heading, _, _ in columns) + " |"
        parts.append("\n".join((f"**{_escaped(board.title)}**", "", head, f"|{rule}|", *rows)))
    legends = [LEGEND[task] for task in dict.fromkeys(board.task for board in boards)]
    return "\n\n".join((*parts, *legends)) + "\n" if parts else ""


def _columns(board: Board) -> Columns:
    return PRESENCE if board.task == "presence" else SEGMENTATION


def frame_markdown(frame: pd.DataFrame) -> str:
    """A table of texts as Markdown; columns that say nothing are left out."""
    told = [name for name in frame.columns if frame[name].astype(str).str.len().any()]
    lines = [f"| {' | '.join(map(_escaped, told))} |", f"|{'---|' * len(told)}"]
    lines += [f"| {' | '.join(_escaped(str(v)) for v in row)} |" for row in frame[told].itertuples(index=False)]
    return "\n".join(lines)


def board_csv(boards: Sequence[Board]) -> str:
    """All rows at full precision; boards are told apart by the columns task, data, split and patients."""
    out = io.StringIO()
    kinds = dict.fromkeys(ROWS[board.task] for board in boards) or [Row]
    fields = dict.fromkeys(name for kind in kinds for name in kind.__annotations__)
    writer = csv.DictWriter(out, ["task", *fields], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {"task": b.task} | {k: _cell(v) for k, v in asdict(row).items()} for b in boards for row in b.rows
    )
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
    _line(right, history["epoch"], history[f"val/{primary}"], f"validation {primary}", "#d1495b")
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
    """`count` slices of one patient, spread over those with tumour in truth or prediction.

    Side by side the scan, the truth on it, and the prediction beside the truth.
    """
    rows = pack.rows([case])
    truth = pack.masks[rows].astype(bool)
    busy = np.flatnonzero(truth.any((1, 2)) | prediction.any((1, 2)))
    busy = busy if len(busy) else np.arange(len(rows))
    shown = busy[np.unique(np.linspace(0, len(busy) - 1, count + 2).round().astype(int)[1:-1])]
    channel = pack.manifest.channels.index("flair") if "flair" in pack.manifest.channels else 0
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
    return _pixels(figure)


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
        "discrimination": _pixels(_discrimination(slices)),
        "confusion": _pixels(_confusion(confusion)),
        "reliability": _pixels(_reliability(reliability)),
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
        said += f" (orange); truth {int(truth.sum())} (green); Dice {_decimal(float(dice))}"
    drawn.set_title(said, fontsize=9)
    return _pixels(figure)


def model_card(title: str, facts: Mapping[str, object], values: Mapping[str, float]) -> str:
    """What MLflow shows as the run's description, in Markdown."""
    what, name = ("AUROC of slices", "auroc") if "auroc" in values else ("per-patient Dice", "dice")
    mean, low, high = (_decimal(values.get(f"{name}{end}", math.nan)) for end in ("", "_low", "_high"))
    lines = [f"**{_escaped(title)}**: {what} **{mean}** (95% interval {low} to {high}), out of fold"]
    return "\n".join([*lines, "", *(f"- {k}: {_escaped(str(v))}" for k, v in facts.items())])


def headline(values: Mapping[str, float]) -> str:
    """The result of a run in a line or two, whichever its task was."""

    def said(name: str, digits: int = 3) -> str:
        return _decimal(values.get(name, math.nan), digits)

    if "auroc" in values:
        undefined = math.isnan(values["patient_specificity"])
        others = f"{said('patient_specificity')} and {said('patient_auroc')}"
        return (
            f"AUROC {said('auroc')} (95% interval {said('auroc_low')} to {said('auroc_high')}), "
            f"average precision {said('average_precision')}, sensitivity {said('sensitivity')}, "
            f"specificity {said('specificity')}, accuracy {said('accuracy')}\n"
            f"of patients: sensitivity {said('patient_sensitivity')}, specificity and AUROC "
            f"{'undefined: no negative patients' if undefined else others}"
        )
    return (
        f"Dice {said('dice')} (95% interval {said('dice_low')} to {said('dice_high')}), "
        f"median {said('dice_median')}, HD95 {said('hd95', 1)} px, missed slices {said('missed_slices', 0)}, "
        f"pooled over all pixels {said('dice_global')}"
    )


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
