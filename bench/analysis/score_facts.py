"""How a column of a board is read: digits, and whether low values are good."""

from __future__ import annotations

from bench import registry
from bench.structures import plain_column

DIGITS = {"": 3, "pixels": 1, "mm": 1, "slices": 2}  # shown after the point, by the unit of a score
COSTS = (
    *("epochs", "images", "parameters", "flops", "wall_seconds", "device_seconds", "peak_memory_mb"),
    *("latency_p50_ms", "latency_p95_ms"),
)
LOWER_IS_BETTER = (  # besides the metrics whose registry entry says so
    *(*COSTS, "rank", "p", "group", "rank_low", "rank_high", "dice_under_half", "false_positive_patients"),
)


def lower_is_better(column: str) -> bool:
    """Return whether the smallest values of a column are the best."""
    column = plain_column(column)
    facts = registry.metric[column].facts if column in registry.metric else {}
    return column in LOWER_IS_BETTER or facts.get("higher") is False


def digits_of(score: str) -> int:
    """Return how many digits after the point a score is shown with."""
    score = plain_column(score)
    unit = registry.metric[score].facts.get("unit", "") if score in registry.metric else ""
    return DIGITS.get(unit, 3)
