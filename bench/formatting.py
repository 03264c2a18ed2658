"""Numbers, names and lists as text, for the terminal, Markdown and pages alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable


def plain(text: str) -> str:
    """Without control characters, which could rewrite the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


SYNTHETIC = " [synthetic]"


SYNTHETIC_WARNING = (
    "SYNTHETIC DATA: these are drawn phantoms, not patients. No score here says anything about real scans."
)


LEAKY_WARNING = (
    "LEAKY SPLIT: slices of one patient are on both sides. This shows what that does to a score; it is no result."
)


NAMES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "assd": "ASSD", "auroc": "AUROC", "ece": "ECE"}


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


def decimal(value: float, digits: int = 3) -> str:
    """A number to so many digits, a dash where it is not defined."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:+.{digits}f}"


def between(low: float, high: float, said: Callable[[float], str] = decimal) -> str:
    """Both ends of an interval."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{said(low)} to {said(high)}"


def p_value(p: float) -> str:
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def letter(group: int) -> str:
    """1 is A, 2 is B, 27 is AA."""
    name = ""
    while group:
        group, rest = divmod(group - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


def markdown_escaped(text: str) -> str:
    for special in "\\`*_[]<>|":
        text = text.replace(special, f"\\{special}")
    return plain(text)


def listing(names: Iterable[object], most: int = 5) -> str:
    """'a, b, c and 12 more'."""
    texts = [str(n) for n in names]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
