from __future__ import annotations

import math
from collections.abc import Mapping

from bench.formatting import (
    decimal,
    markdown_escaped,
)

CARD: Mapping[str, tuple[str, float, int]] = {  # logged name: what it is called, its unit, digits
    "dice_median": ("median Dice", 1, 3),
    "dice_p5": ("5th percentile", 1, 3),
    "dice_under_half": ("patients under 0.5", 1, 0),
    "dice_positive_slices": ("Dice of slices with tumour", 1, 3),
    "dice_global": ("globally pooled Dice", 1, 3),
    "hd95": ("HD95 in pixels", 1, 1),
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
    "cost/flops": ("GFLOPs a slice", 1e9, 2),
    "cost/latency_p50_ms": ("ms a slice", 1, 1),
    "cost/images": ("slices seen", 1, 0),
    "cost/device_seconds": ("training device-seconds", 1, 0),
    "cost/peak_memory_mb": ("peak MB", 1, 0),
}


def model_card(title: str, facts: Mapping[str, object], values: Mapping[str, float]) -> str:
    """What MLflow shows as the run's description, in Markdown."""
    what, name = ("AUROC of slices", "auroc") if "auroc" in values else ("per-patient Dice", "dice")
    mean, low, high = (decimal(values.get(f"{name}{end}", math.nan)) for end in ("", "_low", "_high"))
    lines = [f"**{markdown_escaped(title)}**: {what} **{mean}** (95% interval {low} to {high}), out of fold"]
    told = {**facts, "Results": _told(values, CARD), "Cost": _told(values, CARD_COSTS)}
    return "\n".join([*lines, "", *(f"- {k}: {markdown_escaped(str(v))}" for k, v in told.items() if v)])


def _told(values: Mapping[str, float], names: Mapping[str, tuple[str, float, int]]) -> str:
    """What is known of these, in words."""
    known = {n: said for n, said in names.items() if not math.isnan(values.get(n, math.nan))}
    return ", ".join(f"{said} {decimal(values[n] / unit, digits)}" for n, (said, unit, digits) in known.items())


def headline(values: Mapping[str, float]) -> str:
    """The result of a run in a line or two, whichever its task was."""

    def said(name: str, digits: int = 3) -> str:
        return decimal(values.get(name, math.nan), digits)

    if "auroc" in values:
        undefined = math.isnan(values["patient_specificity"])
        others = f"{said('patient_specificity')} and {said('patient_auroc')}"
        return (
            f"AUROC {said('auroc')} (95% interval {said('auroc_low')} to {said('auroc_high')}), "
            f"average precision {said('average_precision')}, sensitivity {said('sensitivity')}, "
            f"specificity {said('specificity')}, accuracy {said('accuracy')}\n"
            f"of patients: sensitivity {said('patient_sensitivity')}, specificity and AUROC "
            f"{'undefined: no negative patients' if undefined else others}"
        )
    return (
        f"Dice {said('dice')} (95% interval {said('dice_low')} to {said('dice_high')}), "
        f"median {said('dice_median')}, HD95 {said('hd95', 1)} px, missed slices {said('missed_slices', 0)}, "
        f"pooled over all pixels {said('dice_global')}"
    )
