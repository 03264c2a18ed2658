from __future__ import annotations

from bench import registry
from bench.metrics.classification import HIGHER

HEADLINE = {"segmentation": "dice", "presence": "auroc"}


DIGITS = {"": 3, "pixels": 1, "slices": 2}  # that a score is worth, by its unit


COSTS = (
    *("epochs", "images", "parameters", "flops", "wall_seconds", "device_seconds", "peak_memory_mb"),
    *("latency_p50_ms", "latency_p95_ms"),
)


LOWER_IS_BETTER = (  # beside the metrics that are known to be
    *(*COSTS, "rank", "p", "group", "rank_low", "rank_high", "dice_under_half", "false_positive_patients"),
)


def higher_is_better(task: str, primary: str) -> bool:
    """Which way a score points."""
    if task == "presence":
        return primary in HIGHER
    return primary not in registry.metric or bool(registry.metric[primary].facts.get("higher"))


def lower_is_better(name: str) -> bool:
    """Whether the best of a column are its smallest."""
    metric = registry.metric[name].facts if name in registry.metric else {}
    return name in LOWER_IS_BETTER or metric.get("higher") is False


def digits_of(score: str) -> int:
    """Digits behind the point that a score is said with."""
    unit = registry.metric[score].facts.get("unit", "") if score in registry.metric else ""
    return DIGITS.get(unit, 3)
