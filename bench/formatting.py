"""Numbers, names and lists as text, for the terminal, Markdown and pages alike."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

SYNTHETIC = " [synthetic]"
SYNTHETIC_WARNING = (
    "SYNTHETIC DATA: these are generated phantoms, not patients. No score here says anything about real scans."
)
LEAKY_WARNING = (
    "LEAKY SPLIT: slices of one patient are on both sides. This shows how that inflates a score; it is no result."
)
NAMES = {
    **{"dice": "Dice", "iou": "IoU", "hd95": "HD95", "assd": "ASSD", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"},
    **{"auroc": "AUROC", "ece": "ECE"},
}


def plain(text: str) -> str:
    """Replace control characters, which could rewrite the terminal, by question marks."""
    return "".join(c if c.isprintable() else "?" for c in text)


def duration(seconds: float) -> str:
    """Return 3700 as '1 h 02 min' and 75 as '1 min 15 s'."""
    if math.isnan(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with so many digits after the point, a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def list_thresholds(thresholds: Iterable[float]) -> str:
    """Return the thresholds of structures as text, such as '0.50, 0.43'."""
    return ", ".join(f"{threshold:.2f}" for threshold in thresholds)


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign, a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:+.{digits}f}"


def between(low: float, high: float, form: Callable[[float], str] = decimal) -> str:
    """Return both ends of an interval, a dash if either is NaN."""
    return "–" if math.isnan(low) or math.isnan(high) else f"{form(low)} to {form(high)}"


def p_value(p: float) -> str:
    """Return a p-value with three digits, never as 0.000."""
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def letter(group: int) -> str:
    """Return 1 as A, 2 as B, 27 as AA."""
    name = ""
    while group:
        group, rest = divmod(group - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


def markdown_escaped(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return plain(re.sub(r"[\\`*_\[\]<>|]", r"\\\g<0>", text))


def file_stem(name: str) -> str:
    """Return a name with '_' for whatever file systems or other tools may refuse."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII)


def join_and(items: Iterable[object]) -> str:
    """Join all items, of which there is at least one, as '0, 2 and 3'."""
    *rest, last = map(str, items)
    return f"{', '.join(rest)} and {last}" if rest else last


def join_first(items: Iterable[object], most: int = 5) -> str:
    """Join at most this many items as 'a, b, c', and count the others as in 'a, b, c and 12 more'."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def to_json(value: object) -> str:
    """Return plain values as JSON. Numbers that JSON does not have (NaN and infinity) are null."""
    return json.dumps(finite_or_none(value), indent=1, allow_nan=False, default=_plain_value)


def finite_or_none(value: Any) -> Any:
    """Return the values with None for every number that is undefined or infinite."""
    if isinstance(value, Mapping):
        return {str(key): finite_or_none(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain_value(value: Any) -> Any:
    """Return a number of NumPy as one of Python, and anything else, such as a path, as text."""
    return finite_or_none(value.item()) if hasattr(value, "item") else str(value)
