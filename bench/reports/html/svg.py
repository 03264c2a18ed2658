"""SVG as text: elements, and a plot with its axes. Whatever is shown or named is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bench.formatting import plain
from bench.reports.dataset.figures import HUES

Floats = NDArray[np.float64]


COLOURS = HUES[:6]  # the last of them is grey


DASHES = ("none", "7 3", "2 3", "9 3 2 3")  # as far as colours do not reach


INK, FAINT, RULE = "#1c2430", "#5b6472", "#e6eaf0"


def said(text: object) -> str:
    """A text as HTML and SVG may hold it, in elements and attributes."""
    return escape(plain(str(text)))


def tag(name: str, *inside: str, **attributes: object) -> str:
    """An element around markup; attributes that are None are left out, `data_row` is written data-row."""
    told = "".join(
        f' {key.strip("_").replace("_", "-")}="{_value(v)}"' for key, v in attributes.items() if v is not None
    )
    return f"<{name}{told}>{''.join(inside)}</{name}>" if inside else f"<{name}{told}/>"


def text(x: float, y: float, words: object, **attributes: object) -> str:
    return tag("text", said(words), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def drawing(width: float, height: float, label: str, *inside: str) -> str:
    """A picture of its own size, in a box that scrolls where there is less room."""
    attributes = {"width": width, "height": height, "viewBox": f"0 0 {width:g} {height:g}"}
    return f'<div class="wide">{tag("svg", *inside, role="img", aria_label=label, **attributes)}</div>'


def shortened(name: str, length: int = 30) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def stroke(row: int) -> dict[str, object]:
    """What tells the lines of rows apart."""
    return {
        "stroke": COLOURS[row % len(COLOURS)],
        "stroke_dasharray": DASHES[row // len(COLOURS) % len(DASHES)],
        "data_row": row,
    }


@dataclass(frozen=True)
class AxisScale:
    """From values to pixels, in a straight line."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, count: int = 6, *, whole: bool = False) -> Floats:
        values = np.asarray(
            MaxNLocator(count, steps=[1, 2, 5, 10], integer=whole).tick_values(self.low, self.high)
        )
        slack = 1e-9 * (self.high - self.low)
        return values[(values >= self.low - slack) & (values <= self.high + slack)]


@dataclass(frozen=True)
class Plot:
    """Axes with grid lines and names; `x` and `y` place what is drawn on them."""

    x: AxisScale
    y: AxisScale

    def frame(self, x_name: str, y_name: str, *, whole: bool = False) -> str:
        x, y = self.x, self.y
        parts = [line(x.start, y.start, x.stop, y.start, stroke=FAINT)]
        for value in x.ticks(whole=whole):
            parts += [text(x(value), y.start + 17, f"{value:g}", text_anchor="middle", class_="tick")]
        for value in y.ticks():
            parts += [
                line(x.start, y(value), x.stop, y(value), stroke=RULE),
                text(x.start - 8, y(value) + 4, f"{value:g}", text_anchor="end", class_="tick"),
            ]
        middle = (y.start + y.stop) / 2
        turned = f"rotate(-90 {x.start - 42:g} {middle:g})"
        parts += [
            text((x.start + x.stop) / 2, y.start + 38, x_name, text_anchor="middle"),
            text(x.start - 42, middle, y_name, text_anchor="middle", transform=turned),
        ]
        return "".join(parts)

    def curve(self, x: Sequence[float] | Floats, y: Sequence[float] | Floats, **attributes: object) -> str:
        """A line through all points that are defined; a single one is a dot."""
        points = [(self.x(a), self.y(b)) for a, b in zip(x, y, strict=True) if np.isfinite(a + b)]
        if len(points) == 1:
            ((across, down),) = points
            return tag("circle", cx=across, cy=down, r=3, **attributes | {"fill": attributes.get("stroke")})
        told = " ".join(f"{_value(a)},{_value(b)}" for a, b in points)
        return tag("polyline", points=told, fill="none", **attributes)


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else said(value)
