"""SVG as text: elements, and a plot with axes. All texts and attributes are escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from bench.reports.html_document import escaped

Floats = NDArray[np.float64]
COLOURS = ("#4477AA", "#CC3311", "#228833", "#997700", "#AA3377", "#008080")  # each visible on white
DASHES = ("none", "7 3", "2 3", "9 3 2 3")  # distinguish rows once the colours are used up
INK, FAINT, RULE = "#1c2430", "#5b6472", "#e6eaf0"


def element(name: str, *children: str, **attributes: object) -> str:
    """Return an element around markup. Attributes that are None are left out; `data_row` is written data-row."""
    written = "".join(
        f' {key.strip("_").replace("_", "-")}="{_value(v)}"' for key, v in attributes.items() if v is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def text(x: float, y: float, content: object, **attributes: object) -> str:
    return element("text", escaped(content), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def svg_image(width: float, height: float, label: str, *children: str) -> str:
    """Return an image that fills the page up to 1.4 times its size; its box scrolls if the page is narrower."""
    size = f"width: 100%; min-width: {width:g}px; max-width: {1.4 * width:g}px"
    attributes = {"style": size, "viewBox": f"0 0 {width:g} {height:g}"}
    return f'<div class="wide">{element("svg", *children, role="img", aria_label=label, **attributes)}</div>'


def row_style(row: int) -> dict[str, object]:
    """Return the colour and dashes that distinguish the lines of a row."""
    return {
        "stroke": COLOURS[row % len(COLOURS)],
        "stroke_dasharray": DASHES[row // len(COLOURS) % len(DASHES)],
        "data_row": row,
    }


@dataclass(frozen=True)
class Axis:
    """One axis of a plot: a linear map from values to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, count: int = 6, *, whole: bool = False) -> Floats:
        locator = MaxNLocator(count, steps=[1, 2, 5, 10], integer=whole)
        values = np.asarray(locator.tick_values(self.low, self.high))
        slack = 1e-9 * (self.high - self.low)
        return values[(values >= self.low - slack) & (values <= self.high + slack)]


@dataclass(frozen=True)
class Plot:
    """Axes with grid lines and names; `x` and `y` map values to pixels."""

    x: Axis
    y: Axis

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
        rotation = f"rotate(-90 {x.start - 42:g} {middle:g})"
        parts += [
            text((x.start + x.stop) / 2, y.start + 38, x_name, text_anchor="middle"),
            text(x.start - 42, middle, y_name, text_anchor="middle", transform=rotation),
        ]
        return "".join(parts)

    def curve(self, x: Sequence[float] | Floats, y: Sequence[float] | Floats, **attributes: object) -> str:
        """Draw a line through all defined points; a single point is a dot."""
        points = [(self.x(a), self.y(b)) for a, b in zip(x, y, strict=True) if np.isfinite(a + b)]
        if len(points) == 1:
            ((across, down),) = points
            return element("circle", cx=across, cy=down, r=3, **attributes | {"fill": attributes.get("stroke")})
        coordinates = " ".join(f"{_value(a)},{_value(b)}" for a, b in points)
        return element("polyline", points=coordinates, fill="none", **attributes)


def _value(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escaped(value)
