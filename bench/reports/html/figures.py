"""The figures of a board as SVG. They draw; what they show was computed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from bench.analysis.board import Board
from bench.analysis.calibration import Trust
from bench.analysis.score_facts import digits_of
from bench.analysis.significance import MeanRanks
from bench.formatting import NAMES, between, decimal, letter
from bench.reports.dataset.figures import HUES, SHADES
from bench.reports.html.svg import (
    COLOURS,
    FAINT,
    INK,
    RULE,
    AxisScale,
    Plot,
    drawing,
    line,
    said,
    shortened,
    stroke,
    tag,
    text,
)

Floats = NDArray[np.float64]


WIDTH, NAME, ROW = 1150, 240, 26  # pixels: a figure, its column of names, and the height of a row


TIE, RANKS, FIRST = WIDTH - 276, WIDTH - 210, WIDTH - 150


PANEL = 428  # how tall a figure with axes is


def score_name(board: Board) -> str:
    return NAMES.get(board.primary, board.primary)


def score_said(board: Board, value: float) -> str:
    """A score of the board, to as many digits as its unit is worth."""
    return decimal(value, digits_of(board.primary))


def rank_plot(board: Board) -> str:
    """Scores with their intervals in the order of ranks, whoever is tied with the leader shaded; ranks beside."""
    rows = board.rows
    ends = [value for row in rows for value in (row.low, row.high, row.score) if np.isfinite(value)] or [0.0, 1.0]
    margin = 0.06 * (max(ends) - min(ends)) or 0.05
    x = AxisScale(min(ends) - margin, max(ends) + margin, NAME + 20, WIDTH - 300)
    top, bottom = 34, 34 + ROW * len(rows)
    heads = ((NAME + 20, score_name(board)), (TIE - 8, "tie"), (RANKS - 26, "95% ranks"), (FIRST, "P(1st)"))
    parts = [text(at, 20, words, class_="heading") for at, words in heads]
    for value in x.ticks(7):
        parts.append(line(x(value), top, x(value), bottom, stroke=RULE))
        parts.append(text(x(value), bottom + 17, f"{value:g}", text_anchor="middle", class_="tick"))
    parts += [_standing(board, at, x, top + ROW * at + ROW / 2) for at in range(len(rows))]
    return drawing(WIDTH, bottom + 28, f"{score_name(board)} of each row with its 95% interval", *parts)


def _standing(board: Board, at: int, x: AxisScale, y: float) -> str:
    row, value = board.rows[at], partial(score_said, board)
    tip = f"{row.name}: {value(row.score)}, 95% interval {between(row.low, row.high, value)}"
    shade = 0.08 if row.group == board.rows[0].group else 0  # what is not seen still has a tip
    band = tag("rect", x=0, y=y - ROW / 2, width=WIDTH, height=ROW, fill=COLOURS[0], fill_opacity=shade)
    parts = [band, _name(row.name, at, 6, y + 4)]
    if np.isfinite(row.low + row.high):
        parts.append(line(x(row.low), y, x(row.high), y, stroke=COLOURS[0], stroke_width=2.5))
    if np.isfinite(row.score):
        parts.append(tag("circle", cx=x(row.score), cy=y, r=5, fill=COLOURS[0], stroke="#fff"))
    parts += [
        text(TIE, y + 4, letter(row.group), text_anchor="middle"),
        text(RANKS, y + 4, f"{row.rank_low}–{row.rank_high}", text_anchor="middle"),
    ]
    if np.isfinite(row.first):
        parts += [
            tag("rect", x=FIRST, y=y - 6, width=100, height=12, fill=RULE),
            tag("rect", x=FIRST, y=y - 6, width=100 * row.first, height=12, fill=COLOURS[0]),
            text(FIRST + 108, y + 4, decimal(row.first, 2)),
        ]
    return tag("g", *parts, data_row=at, data_tip=tip)


def rank_diagram(names: Sequence[str], found: MeanRanks) -> str:
    """Mean ranks on a line, the best on the left, and bars that join what cannot be told apart (Demsar 2006)."""
    count, order = len(names), np.argsort(found.ranks, kind="stable")
    x = AxisScale(1, count, NAME + 30, WIDTH - NAME - 30)
    axis, first = 40.0, 62.0
    shelf = first + 9 * len(found.bars) + 12
    half = (count + 1) // 2
    parts = [line(x.start, axis, x.stop, axis, stroke=INK)]
    for value in range(1, count + 1):
        parts.append(line(x(value), axis, x(value), axis - 6, stroke=INK))
        parts.append(text(x(value), axis - 12, value, text_anchor="middle", class_="tick"))
    for number, at in enumerate(order.tolist()):
        left = number < half
        down = shelf + 22 * (number if left else count - 1 - number)
        across, end = x(found.ranks[at]), NAME if left else WIDTH - NAME
        points = f"{across:.1f},{axis:g} {across:.1f},{down:g} {end},{down:g}"
        way = tag("polyline", points=points, fill="none", stroke=FAINT)
        dot = tag("circle", cx=across, cy=axis, r=4, fill=COLOURS[0])
        words = f"{shortened(names[at], 28)}  {found.ranks[at]:.2f}"
        label = text(end + (-6 if left else 6), down + 4, words, text_anchor="end" if left else "start")
        tip = f"{names[at]}: mean rank {found.ranks[at]:.2f}"
        parts.append(tag("g", way, dot, label, data_row=at, data_tip=tip))
    for number, bar in enumerate(found.bars):
        places, y = [x(found.ranks[at]) for at in bar], first + 9 * number
        tip = "not told apart: " + ", ".join(names[at] for at in bar)
        beads = [tag("circle", cx=place, cy=y, r=3.5, fill=INK) for place in places]  # it may pass others by
        rod = line(min(places), y, max(places), y, stroke=INK, stroke_width=3)
        parts.append(tag("g", rod, *beads, data_tip=tip))
    return drawing(WIDTH, shelf + 22 * half, "mean ranks of the rows over patients", *parts)


def training_curves(names: Sequence[str], histories: Sequence[Sequence[pd.DataFrame]]) -> str:
    """Validation scores against epochs: folds faint, and their mean as far as all of them have gone."""
    folds = {at: [_validation(history) for history in each] for at, each in enumerate(histories) if each}
    values = np.concatenate([v for each in folds.values() for _, v in each])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0, 1.0])
    last = max(int(x[-1]) for each in folds.values() for x, _ in each)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05
    epochs = AxisScale(1, last, 60, WIDTH - 300) if last > 1 else AxisScale(0, 2, 60, WIDTH - 300)
    plot = Plot(epochs, AxisScale(low - margin, high + margin, 380, 16))
    parts = [plot.frame("epoch", "validation score", whole=True)]
    for at, each in folds.items():
        faint = [plot.curve(x, y, **stroke(at), stroke_width=1, opacity=0.28) for x, y in each]
        shared = min(len(x) for x, _ in each)
        mean = np.mean([y[:shared] for _, y in each], axis=0)
        bold = plot.curve(each[0][0][:shared], mean, **stroke(at), stroke_width=2.4)
        parts.append(tag("g", *faint, bold, data_tip=names[at]))
    legend, height = _legend({at: names[at] for at in folds}, WIDTH - 276, 26)
    return drawing(WIDTH, max(PANEL, height), "validation scores while training", *parts, legend)


def _validation(history: pd.DataFrame) -> tuple[Floats, Floats]:
    name = next(column for column in history if str(column).startswith("val/"))
    return history["epoch"].to_numpy(np.float64), history[name].to_numpy(np.float64)


def heat_map(
    board: Board, cases: Sequence[str], homes: Sequence[str], scores: Floats, *, higher: bool, linked: bool
) -> str:
    """A cell for each row and patient; patients from the hardest to the easiest, their institutions above.

    Where `linked`, a cell shows its patient in the gallery.
    """
    means = np.array([np.nanmean(each) if np.isfinite(each).any() else np.nan for each in scores.T])
    order = np.lexsort((np.array(cases), means if higher else -means))  # NaN comes last
    wide = float(np.clip((WIDTH - NAME) / len(cases), 8, 30))
    swatches = {home: HUES[at % len(HUES)] for at, home in enumerate(sorted(set(homes)))}
    low, high = (0.0, 1.0) if _is_share(scores) else (float(np.nanmin(scores)), float(np.nanmax(scores)))
    top, labels = 30, 18 + 5.6 * min(max(map(len, cases)), 22)
    parts = []
    for number, column in enumerate(order.tolist()):
        x, case, home = NAME + wide * number, cases[column], homes[column]
        tip = f"{case} ({home}): mean {score_said(board, float(means[column]))}"
        parts.append(tag("rect", x=x, y=top - 12, width=wide, height=9, fill=swatches[home], data_tip=tip))
        for at, row in enumerate(board.rows):
            value = float(scores[at, column])
            tip = f"{case} ({home}) · {row.name} · {score_name(board)} {score_said(board, value)}"
            about = {"class_": "cell", "data_value": repr(value), "data_patient": case if linked else None}
            fill = _shade(value, low, high, higher)
            place = {"x": x, "y": top + 22 * at, "width": wide + 0.3, "height": 21}
            parts.append(tag("rect", **place, **about, fill=fill, data_tip=tip))
        down = top + 22 * len(board.rows) + 6
        turned = f"rotate(90 {x + wide / 2 - 3:.1f} {down})"
        parts.append(text(x + wide / 2 - 3, down, shortened(case, 22), class_="patient", transform=turned))
    names = [_name(row.name, at, 0, top + 22 * at + 15) for at, row in enumerate(board.rows)]
    foot = top + 22 * len(board.rows) + labels
    key = _key(low, high, higher, score_name(board), NAME, foot) + _homes(swatches, NAME + 330, foot)
    return drawing(
        max(WIDTH, NAME + wide * len(cases)), foot + 40, "score of each patient by each row", *names, *parts, key
    )


def _is_share(scores: Floats) -> bool:
    return bool(np.nanmin(scores) >= 0 and np.nanmax(scores) <= 1)


def _shade(value: float, low: float, high: float, higher: bool) -> str:
    """Dark is bad; white is not defined."""
    if not np.isfinite(value):
        return "#ffffff"
    share = (value - low) / (high - low or 1)
    return to_hex(colormaps[SHADES](share if higher else 1 - share))


def _key(low: float, high: float, higher: bool, name: str, x: float, y: float) -> str:
    steps = [
        tag("rect", x=x + 4.0 * at, y=y, width=4.4, height=12, fill=_shade(value, low, high, higher))
        for at, value in enumerate(np.linspace(low, high, 50))
    ]
    ends = [
        text(x, y + 28, f"{low:.3g}", class_="tick"),
        text(x + 200, y + 28, f"{high:.3g}", text_anchor="end", class_="tick"),
    ]
    return "".join((*steps, *ends, text(x + 100, y + 28, name, text_anchor="middle")))


def _homes(swatches: Mapping[str, str], x: float, y: float) -> str:
    parts = []
    for home, colour in swatches.items():
        parts.append(tag("rect", x=x, y=y, width=12, height=12, fill=colour))
        parts.append(text(x + 17, y + 10, shortened(home, 14)))
        x += 30 + 7.5 * min(len(home), 14)
    return "".join(parts)


def reliability_plot(names: Mapping[int, str], tables: Mapping[int, pd.DataFrame], unit: str) -> str:
    """The share of tumour against the probability of slices."""
    legend, height = _legend(names, 450, 30)
    return drawing(450 + NAME, max(PANEL, height), "reliability", _reliability(names, tables, unit), legend)


def trust_plot(names: Mapping[int, str], found: Mapping[int, Trust]) -> str:
    """The reliability of pixels, and beside it how Dice rises as fewer patients are kept, the surest."""
    lowest = min(float(each.kept.min()) for each in found.values())
    plot = Plot(AxisScale(0, 1, 490, 850), AxisScale(min(np.floor(lowest * 10) / 10, 0.9), 1, 380, 20))
    parts = [plot.frame("share of patients kept, the surest first", "mean Dice of those kept")]
    for at, each in found.items():
        curve = plot.curve(each.coverage, each.kept, **stroke(at), stroke_width=2)
        parts.append(tag("g", curve, data_row=at, data_tip=f"{names[at]}: AURC {each.aurc:.3f}"))
    legend, height = _legend(names, 876, 30)
    left = _reliability(names, {at: each.reliability for at, each in found.items()}, "pixels")
    return drawing(WIDTH, max(PANEL, height), "reliability, and Dice against coverage", left, *parts, legend)


def _reliability(names: Mapping[int, str], tables: Mapping[int, pd.DataFrame], unit: str) -> str:
    """Dots grow with what they stand for; on the dotted line is right."""
    plot = Plot(AxisScale(0, 1, 60, 420), AxisScale(0, 1, 380, 20))
    parts = [plot.frame("mean probability of a bin", f"share of {unit} with tumour")]
    parts.append(plot.curve([0, 1], [0, 1], stroke=FAINT, stroke_dasharray="2 4"))
    for at, table in tables.items():
        share = table[unit] / table[unit].max()
        dots = [
            tag("circle", cx=plot.x(x), cy=plot.y(y), r=float(2 + 4 * np.sqrt(size)), fill=stroke(at)["stroke"])
            for x, y, size in zip(table["probability"], table["share"], share, strict=True)
        ]
        curve = plot.curve(
            table["probability"].to_numpy(), table["share"].to_numpy(), **stroke(at), stroke_width=2
        )
        parts.append(tag("g", curve, *dots, data_row=at, data_tip=names[at]))
    return "".join(parts)


def _legend(names: Mapping[int, str], x: float, y: float) -> tuple[str, float]:
    """Names beside their lines, and how far down they reach."""
    parts = []
    for number, (at, name) in enumerate(names.items()):
        down = y + 20 * number
        swatch = line(x, down - 4, x + 26, down - 4, **stroke(at), stroke_width=2.5)
        parts.append(tag("g", swatch, text(x + 32, down, shortened(name)), data_row=at, data_tip=name))
    return "".join(parts), y + 20 * len(names)


def _name(name: str, at: int, x: float, y: float) -> str:
    return tag("text", said(shortened(name, 32)), x=x, y=y, data_row=at, data_tip=name)
