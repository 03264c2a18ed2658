"""Colours of the pages against WCAG 2.1: 4.5 for text (AA), 3 for the lines of figures."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from bench.reports.html.svg import COLOURS, FAINT, INK

HEX = r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b"
CSS = "".join((files("bench.reports") / name).read_text("utf-8") for name in ("document.css", "html/report.css"))
RULES = re.findall(r"([^{}]+)\{([^{}]*)\}", CSS)
BEHIND = ("#ffffff", "#f4f6f9")  # the page; tiles and the row under the mouse


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour in hexadecimal digits, as WCAG 2.1 defines it."""
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def texts() -> list[tuple[str, str, str]]:
    """Return selector, colour and background of every rule that colours text."""
    found = []
    for selector, body in RULES:
        own = re.findall(rf"background: ({HEX})", body)
        for colour in re.findall(rf"(?<![\w-])(?:color|fill): ({HEX})", body):
            found += [(selector.strip(), colour, behind) for behind in (own or BEHIND)]
    return found


def test_contrast_is_that_of_wcag():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)  # the known grey just below 4.5


@pytest.mark.parametrize(("selector", "colour", "behind"), texts())
def test_text_has_enough_contrast(selector, colour, behind):
    assert contrast(colour, behind) >= 4.5


@pytest.mark.parametrize("colour", [*COLOURS, FAINT, INK])
def test_lines_of_figures_have_enough_contrast(colour):
    assert contrast(colour, "#fff") >= 3
