"""The result of a run in words: a headline for the terminal, a model card for MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bench.formatting import decimal, markdown_escaped

CARD: Mapping[str, tuple[str, float, int]] = {  # logged name: label, unit, digits
    "dice_median": ("median Dice", 1, 3),
    "dice_p5": ("5th percentile", 1, 3),
    "dice_under_half": ("patients under 0.5", 1, 0),
    "dice_positive_slices": ("Dice of slices with tumour", 1, 3),
    "dice_global": ("globally pooled Dice", 1, 3),
    "hd95": ("HD95 in pixels", 1, 1),
    "hd95_mm": ("HD95 in mm", 1, 1),
    "missed_slices": ("missed slices", 1, 0),
    "false_positive_patients": ("false-positive patients", 1, 0),
    "average_precision": ("average precision", 1, 3),
    "sensitivity": ("sensitivity", 1, 3),
    "slice_sensitivity": ("sensitivity for slices", 1, 3),
    "slice_specificity": ("specificity for slices", 1, 3),
    "brier": ("Brier score", 1, 3),
    "ece": ("calibration error", 1, 3),
}
CARD_COSTS: Mapping[str, tuple[str, float, int]] = {
    "cost/parameters": ("million parameters", 1e6, 1),
    "cost/flops": ("GFLOPs per slice", 1e9, 2),
    "cost/latency_p50_ms": ("ms per slice", 1, 1),
    "cost/images": ("slices seen", 1, 0),
    "cost/device_seconds": ("training device-seconds", 1, 0),
    "cost/peak_memory_mb": ("peak MB", 1, 0),
}


def model_card(title: str, facts: Mapping[str, object], values: Mapping[str, float]) -> str:
    """Return the run's description for MLflow, in Markdown; `values` are scores and costs by logged name."""
    score, name = ("AUROC of slices", "auroc") if "auroc" in values else ("per-patient Dice", "dice")
    mean, low, high = (decimal(values.get(f"{name}{end}", math.nan)) for end in ("", "_low", "_high"))
    lines = [f"**{markdown_escaped(title)}**: {score} **{mean}** (95% interval {low} to {high}), out of fold"]
    items = {**facts, "Results": _listed(values, CARD), "Cost": _listed(values, CARD_COSTS)}
    return "\n".join([*lines, "", *(f"- {k}: {markdown_escaped(str(v))}" for k, v in items.items() if v)])


def _listed(values: Mapping[str, float], labels: Mapping[str, tuple[str, float, int]]) -> str:
    known = {name: label for name, label in labels.items() if not math.isnan(values.get(name, math.nan))}
    return ", ".join(f"{label} {decimal(values[n] / unit, digits)}" for n, (label, unit, digits) in known.items())


def headline(values: Mapping[str, float]) -> str:
    """Return the scores of a run in one or two lines."""

    def score(name: str, digits: int = 3) -> str:
        return decimal(values.get(name, math.nan), digits)

    if "auroc" in values:
        undefined = math.isnan(values["patient_specificity"])
        by_patient = f"{score('patient_specificity')} and {score('patient_auroc')}"
        return (
            f"AUROC {score('auroc')} (95% interval {score('auroc_low')} to {score('auroc_high')}), "
            f"average precision {score('average_precision')}, sensitivity {score('sensitivity')}, "
            f"specificity {score('specificity')}, accuracy {score('accuracy')}\n"
            f"by patient: sensitivity {score('patient_sensitivity')}, specificity and AUROC "
            f"{'undefined: no negative patients' if undefined else by_patient}"
        )
    millimetres = f" ({score('hd95_mm', 1)} mm)" if "hd95_mm" in values else ""
    return (
        f"Dice {score('dice')} (95% interval {score('dice_low')} to {score('dice_high')}), "
        f"median {score('dice_median')}, HD95 {score('hd95', 1)} px{millimetres}, "
        f"missed slices {score('missed_slices', 0)}, pooled over all pixels {score('dice_global')}"
    )
