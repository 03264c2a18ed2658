"""The figures of a board as SVG. They only draw: all values are computed elsewhere."""

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
from bench.data.readers.patient_folders import UNKNOWN
from bench.formatting import NAMES, between, decimal
from bench.reports.dataset.figures import HUES, SHADES, shortened
from bench.reports.html.svg import COLOURS, FAINT, INK, RULE, Axis, Plot, element, line, row_style, svg_image, text
from bench.reports.html_document import escaped
from bench.stats import Interval
from bench.structures import colour_of

Floats = NDArray[np.float64]
WIDTH, NAME, ROW = 1150, 240, 26  # pixels: width of a figure, width of its column of names, height of a row
TIE, RANKS, FIRST = WIDTH - 276, WIDTH - 210, WIDTH - 150  # x of the columns beside the rank plot
PANEL = 428  # height of a figure with axes


def score_name(board: Board) -> str:
    return NAMES.get(board.primary, board.primary)


def format_score(board: Board, value: float) -> str:
    """Format a score of the board with the digits that its unit deserves."""
    return decimal(value, digits_of(board.primary))


def draw_rank_plot(board: Board) -> str:
    """Draw scores and their intervals in the order of ranks; rows tied with the leader are shaded."""
    rows = board.rows
    ends = [value for row in rows for value in (row.low, row.high, row.score) if np.isfinite(value)] or [0.0, 1.0]
    margin = 0.06 * (max(ends) - min(ends)) or 0.05
    x = Axis(min(ends) - margin, max(ends) + margin, NAME + 20, WIDTH - 300)
    top, bottom = 34, 34 + ROW * len(rows)
    heads = ((NAME + 20, score_name(board)), (TIE - 22, "letters"), (RANKS - 26, "95% ranks"), (FIRST, "P(1st)"))
    parts = [text(at, 20, heading, class_="heading") for at, heading in heads]
    for value in x.ticks(7):
        parts.append(line(x(value), top, x(value), bottom, stroke=RULE))
        parts.append(text(x(value), bottom + 17, f"{value:g}", text_anchor="middle", class_="tick"))
    parts += [_draw_rank_row(board, at, x, top + ROW * at + ROW / 2) for at in range(len(rows))]
    return svg_image(WIDTH, bottom + 28, f"{score_name(board)} of each row with its 95% interval", *parts)


def _draw_rank_row(board: Board, at: int, x: Axis, y: float) -> str:
    row, value = board.rows[at], partial(format_score, board)
    tip = f"{row.name}: {value(row.score)}, 95% interval {between(row.low, row.high, value)}"
    shade = 0.08 if row.tied else 0  # an invisible band still has a tooltip
    band = element("rect", x=0, y=y - ROW / 2, width=WIDTH, height=ROW, fill=COLOURS[0], fill_opacity=shade)
    parts = [band, _name(row.name, at, 6, y + 4)]
    if np.isfinite(row.low + row.high):
        parts.append(line(x(row.low), y, x(row.high), y, stroke=COLOURS[0], stroke_width=2.5))
    if np.isfinite(row.score):
        parts.append(element("circle", cx=x(row.score), cy=y, r=5, fill=COLOURS[0], stroke="#fff"))
    parts += [
        text(TIE, y + 4, row.letters, text_anchor="middle"),
        text(RANKS, y + 4, f"{row.rank_low}–{row.rank_high}", text_anchor="middle"),
    ]
    if np.isfinite(row.first):
        parts += [
            element("rect", x=FIRST, y=y - 6, width=100, height=12, fill=RULE),
            element("rect", x=FIRST, y=y - 6, width=100 * row.first, height=12, fill=COLOURS[0]),
            text(FIRST + 108, y + 4, decimal(row.first, 2)),
        ]
    return element("g", *parts, data_row=at, data_tip=tip)


def draw_structures(board: Board, dice: Mapping[str, Sequence[Interval]]) -> str:
    """Draw the Dice of each structure in its colour, with its intervals in `dice`, by row of the board."""
    names = board.structures
    x, top = Axis(0, 1, NAME + 20, WIDTH - 300), 34
    height = max(ROW, 10 * (len(names) + 1))
    bottom = top + height * len(board.rows)
    parts = [text(NAME + 20, 20, NAMES["dice"], class_="heading")]
    for value in x.ticks(7):
        parts.append(line(x(value), top, x(value), bottom, stroke=RULE))
        parts.append(text(x(value), bottom + 17, f"{value:g}", text_anchor="middle", class_="tick"))
    for k, name in enumerate(names):
        colour = colour_of(k)
        swatch = element("circle", cx=WIDTH - 270, cy=top + 20 * k + 10, r=5, fill=colour)
        parts += [swatch, text(WIDTH - 258, top + 20 * k + 14, shortened(name, 30))]
        for at, row in enumerate(board.rows):
            y = top + height * at + 10 * (k + 1)
            mean, low, high = row.scores.get(f"dice[{name}]", np.nan), dice[name][at].low, dice[name][at].high
            if not np.isfinite(mean):
                continue
            ends = np.isfinite(low + high)
            interval = [line(x(low), y, x(high), y, stroke=colour, stroke_width=2)] if ends else []
            tip = f"{row.name}: {name} {decimal(mean)}"
            tip += f", 95% interval {between(low, high, decimal)}" if ends else ""
            dot = element("circle", cx=x(mean), cy=y, r=4, fill=colour, stroke=INK)
            parts.append(element("g", *interval, dot, data_row=at, data_tip=tip))
    parts += [_name(row.name, at, 6, top + height * (at + 0.5) + 4) for at, row in enumerate(board.rows)]
    bottom = max(bottom + 28, top + 20 * len(names))
    return svg_image(WIDTH, bottom, "Dice of each structure in each row", *parts)


def draw_rank_diagram(names: Sequence[str], mean_ranks: MeanRanks) -> str:
    """Draw mean ranks on a line, best on the left, and bars that join indistinguishable rows (Demsar 2006)."""
    count, order = len(names), np.argsort(mean_ranks.ranks, kind="stable")
    x = Axis(1, count, NAME + 30, WIDTH - NAME - 30)
    axis, first_bar = 40.0, 62.0
    label_top = first_bar + 9 * len(mean_ranks.bars) + 12
    half = (count + 1) // 2
    parts = [line(x.start, axis, x.stop, axis, stroke=INK)]
    for value in range(1, count + 1):
        parts.append(line(x(value), axis, x(value), axis - 6, stroke=INK))
        parts.append(text(x(value), axis - 12, value, text_anchor="middle", class_="tick"))
    for number, at in enumerate(order.tolist()):
        left = number < half
        down = label_top + 22 * (number if left else count - 1 - number)
        across, end = x(mean_ranks.ranks[at]), NAME if left else WIDTH - NAME
        points = f"{across:.1f},{axis:g} {across:.1f},{down:g} {end},{down:g}"
        leader = element("polyline", points=points, fill="none", stroke=FAINT)
        dot = element("circle", cx=across, cy=axis, r=4, fill=COLOURS[0])
        caption = f"{shortened(names[at], 28)}  {mean_ranks.ranks[at]:.2f}"
        label = text(end + (-6 if left else 6), down + 4, caption, text_anchor="end" if left else "start")
        tip = f"{names[at]}: mean rank {mean_ranks.ranks[at]:.2f}"
        parts.append(element("g", leader, dot, label, data_row=at, data_tip=tip))
    for number, bar in enumerate(mean_ranks.bars):
        places, y = [x(mean_ranks.ranks[at]) for at in bar], first_bar + 9 * number
        tip = "indistinguishable: " + ", ".join(names[at] for at in bar)
        dots = [element("circle", cx=place, cy=y, r=3.5, fill=INK) for place in places]  # a bar crosses others
        bar_line = line(min(places), y, max(places), y, stroke=INK, stroke_width=3)
        parts.append(element("g", bar_line, *dots, data_tip=tip))
    return svg_image(WIDTH, label_top + 22 * half, "mean ranks of the rows over patients", *parts)


def draw_training_curves(names: Sequence[str], histories: Sequence[Sequence[pd.DataFrame]]) -> str:
    """Draw validation scores against epochs: folds faint, and their mean up to the last epoch of all folds."""
    folds = {row: [_validation_curve(fold) for fold in of_row] for row, of_row in enumerate(histories) if of_row}
    values = np.concatenate([scores for curves in folds.values() for _, scores in curves])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0, 1.0])
    last = max(int(x[-1]) for curves in folds.values() for x, _ in curves)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05
    epochs = Axis(1, last, 60, WIDTH - 300) if last > 1 else Axis(0, 2, 60, WIDTH - 300)
    plot = Plot(epochs, Axis(low - margin, high + margin, 380, 16))
    parts = [plot.frame("epoch", "validation score", whole=True)]
    for row, curves in folds.items():
        faint = [plot.curve(x, y, **row_style(row), stroke_width=1, opacity=0.28) for x, y in curves]
        shared = min(len(x) for x, _ in curves)
        mean = np.mean([y[:shared] for _, y in curves], axis=0)
        bold = plot.curve(curves[0][0][:shared], mean, **row_style(row), stroke_width=2.4)
        parts.append(element("g", *faint, bold, data_tip=names[row]))
    legend, height = _legend({row: names[row] for row in folds}, WIDTH - 276, 26)
    return svg_image(WIDTH, max(PANEL, height), "validation scores during training", *parts, legend)


def _validation_curve(history: pd.DataFrame) -> tuple[Floats, Floats]:
    name = next(column for column in history if str(column).startswith("val/"))
    return history["epoch"].to_numpy(np.float64), history[name].to_numpy(np.float64)


def known_institutions(institutions: Sequence[str]) -> list[str]:
    """Return the different institutions of patients in order; none if those of all are unknown."""
    return sorted(set(institutions)) if set(institutions) != {UNKNOWN} else []


def draw_heat_map(
    board: Board, cases: Sequence[str], institutions: Sequence[str], scores: Floats, *, linked: bool
) -> str:
    """Draw a cell for each row and patient, patients from the hardest to the easiest, known institutions on top.

    If `linked`, a click on a cell shows its patient in the gallery.
    """
    higher = board.higher_is_better
    means = np.array([np.nanmean(each) if np.isfinite(each).any() else np.nan for each in scores.T])
    order = np.lexsort((np.array(cases), means if higher else -means))  # NaN comes last
    wide = float(np.clip((WIDTH - NAME) / len(cases), 12, 30))
    swatches = {name: HUES[at % len(HUES)] for at, name in enumerate(known_institutions(institutions))}
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    top, labels = 30, 18 + 6.4 * min(max(map(len, cases)), 22)
    parts = []
    for number, column in enumerate(order.tolist()):
        x, case, institution = NAME + wide * number, cases[column], institutions[column]
        who = f"{case} ({institution})" if swatches else case
        if swatches:
            tip, colour = f"{who}: mean {format_score(board, float(means[column]))}", swatches[institution]
            parts.append(element("rect", x=x, y=top - 12, width=wide, height=9, fill=colour, data_tip=tip))
        for at, row in enumerate(board.rows):
            value = float(scores[at, column])
            tip = f"{who} · {row.name} · {score_name(board)} {format_score(board, value)}"
            data = {"data_value": repr(value), "data_patient": case if linked else None, "data_tip": tip}
            place = {"x": x, "y": top + 22 * at, "width": wide + 0.3, "height": 21}
            parts.append(element("rect", class_="cell", **place, **data, fill=_shade(value, low, high, higher)))
        down = top + 22 * len(board.rows) + 6
        rotation = f"rotate(90 {x + wide / 2 - 3:.1f} {down})"
        parts.append(text(x + wide / 2 - 3, down, shortened(case, 22), class_="patient", transform=rotation))
    names = [_name(row.name, at, 0, top + 22 * at + 15) for at, row in enumerate(board.rows)]
    foot = top + 22 * len(board.rows) + labels
    key = _colour_key(low, high, higher, score_name(board), NAME, foot) + _swatch_key(swatches, NAME + 330, foot)
    width = max(WIDTH, NAME + wide * len(cases))
    return svg_image(width, foot + 40, "score of each patient in each row", *names, *parts, key)


def _shade(value: float, low: float, high: float, higher: bool) -> str:
    """Return a colour: dark is bad, white is undefined."""
    if not np.isfinite(value):
        return "#ffffff"
    share = (value - low) / (high - low or 1)
    return to_hex(colormaps[SHADES](share if higher else 1 - share))


def _colour_key(low: float, high: float, higher: bool, name: str, x: float, y: float) -> str:
    steps = [
        element("rect", x=x + 4.0 * at, y=y, width=4.4, height=12, fill=_shade(value, low, high, higher))
        for at, value in enumerate(np.linspace(low, high, 50))
    ]
    first = text(x, y + 28, f"{low:.3g}", class_="tick")
    last = text(x + 200, y + 28, f"{high:.3g}", text_anchor="end", class_="tick")
    return "".join((*steps, first, last, text(x + 100, y + 28, name, text_anchor="middle")))


def _swatch_key(swatches: Mapping[str, str], x: float, y: float) -> str:
    parts = []
    for name, colour in swatches.items():
        parts.append(element("rect", x=x, y=y, width=12, height=12, fill=colour))
        parts.append(text(x + 17, y + 10, shortened(name, 14)))
        x += 30 + 7.5 * min(len(name), 14)
    return "".join(parts)


def draw_reliability(names: Mapping[int, str], tables: Mapping[int, pd.DataFrame], unit: str) -> str:
    """Draw the share of tumour against the probability of slices."""
    legend, height = _legend(names, 450, 30)
    return svg_image(450 + NAME, max(PANEL, height), "reliability", _reliability(names, tables, unit), legend)


def draw_trust(names: Mapping[int, str], trust: Mapping[int, Trust], noun: str = "tumour") -> str:
    """Draw the reliability of pixels, and the mean Dice of the patients kept against their share."""
    lowest = min(float(each.mean_dice.min()) for each in trust.values())
    plot = Plot(Axis(0, 1, 490, 850), Axis(min(np.floor(lowest * 10) / 10, 0.9), 1, 380, 20))
    parts = [plot.frame("share of patients kept, most confident first", "mean Dice of the patients kept")]
    for row, each in trust.items():
        curve = plot.curve(each.coverage, each.mean_dice, **row_style(row), stroke_width=2)
        parts.append(element("g", curve, data_row=row, data_tip=f"{names[row]}: AURC {each.aurc:.3f}"))
    legend, height = _legend(names, 876, 30)
    left = _reliability(names, {row: each.reliability for row, each in trust.items()}, "pixels", noun)
    return svg_image(WIDTH, max(PANEL, height), "reliability, and Dice against coverage", left, *parts, legend)


def _reliability(
    names: Mapping[int, str], tables: Mapping[int, pd.DataFrame], unit: str, noun: str = "tumour"
) -> str:
    """Draw reliability curves; larger dots represent more units, and the dotted line is perfect calibration."""
    plot = Plot(Axis(0, 1, 60, 420), Axis(0, 1, 380, 20))
    parts = [plot.frame("mean probability of a bin", f"share of {unit} with {noun}")]
    parts.append(plot.curve([0, 1], [0, 1], stroke=FAINT, stroke_dasharray="2 4"))
    for at, table in tables.items():
        share = table[unit] / table[unit].max()
        x, y, style = table["probability"].to_numpy(), table["share"].to_numpy(), row_style(at)
        dots = [
            element("circle", cx=plot.x(a), cy=plot.y(b), r=float(2 + 4 * np.sqrt(size)), fill=style["stroke"])
            for a, b, size in zip(x, y, share, strict=True)
        ]
        curve = plot.curve(x, y, **style, stroke_width=2)
        parts.append(element("g", curve, *dots, data_row=at, data_tip=names[at]))
    return "".join(parts)


def _legend(names: Mapping[int, str], x: float, y: float) -> tuple[str, float]:
    """Return names beside their lines, and the y below the last of them."""
    parts = []
    for number, (at, name) in enumerate(names.items()):
        down = y + 20 * number
        swatch = line(x, down - 4, x + 26, down - 4, **row_style(at), stroke_width=2.5)
        parts.append(element("g", swatch, text(x + 32, down, shortened(name, 30)), data_row=at, data_tip=name))
    return "".join(parts), y + 20 * len(names)


def _name(name: str, at: int, x: float, y: float) -> str:
    return element("text", escaped(shortened(name, 32)), x=x, y=y, data_row=at, data_tip=name)
