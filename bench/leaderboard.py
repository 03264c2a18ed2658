"""Records in, ranked rows out. Pure: it reads no store and draws no table.

Rows are ranked together only when the same patients were tested on the same pixels under the same split and
the same metric conventions; everything else is another board.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from bench import counts, registry
from bench.errors import UnknownName, did_you_mean
from bench.pack import Manifest
from bench.records import RunRecord
from bench.stats import interval

CONVENTION = "1"  # raise it when a metric changes its meaning: older rows then stand on another board
COUNTS = ("tp", "fp", "fn", "tn")
NOT_METRICS = ("case", "fold", "threshold", *COUNTS)


@dataclass(frozen=True)
class Row:
    """One run on a board. Scores are means over patients unless their name says otherwise."""

    rank: int
    name: str
    model: str
    encoder: str
    loss: str
    dice: float
    low: float  # ends of the 95% interval of the mean
    high: float
    median: float
    p5: float
    under_half: int  # patients with Dice under 0.5
    positive_slices: float  # Dice on slices with tumour
    hd95: float  # pixels
    missed_slices: int
    dice_global: float
    patients: int
    epochs: float  # of a fold, on average
    images: int
    parameters: int
    wall_seconds: float
    weights: str
    seed: str
    data: str
    split: str
    synthetic: bool
    run_id: str


@dataclass(frozen=True)
class PresenceRow:
    """One classifier on a board. Scores are over all slices, their intervals over patients."""

    rank: int
    name: str
    model: str
    encoder: str
    loss: str
    auroc: float
    low: float  # ends of the 95% interval of the AUROC
    high: float
    average_precision: float
    accuracy: float
    sensitivity: float
    specificity: float
    brier: float
    ece: float
    missed_slices: int
    false_positive_slices: int
    patients: int
    epochs: float
    images: int
    parameters: int
    wall_seconds: float
    weights: str
    seed: str
    data: str
    split: str
    synthetic: bool
    run_id: str


ROWS: Mapping[str, type[Row] | type[PresenceRow]] = {"segmentation": Row, "presence": PresenceRow}
HEADLINE = {"segmentation": "dice", "presence": "auroc"}
LOWER_IS_BETTER = (
    "hd95",
    "missed_slices",
    "false_positive_slices",
    "under_half",
    "brier",
    "ece",
    "parameters",
    "wall_seconds",
    "epochs",
    "images",
)


@dataclass(frozen=True)
class Board:
    """Rows that may be compared, and what they have in common."""

    task: str
    dataset: str
    data_key: str
    split_hash: str
    patients: int
    synthetic: bool
    rows: tuple[Row | PresenceRow, ...]

    @property
    def title(self) -> str:
        what = f"{self.dataset}{' (SYNTHETIC, not patients)' if self.synthetic else ''}"
        what += " · presence of tumour" if self.task == "presence" else ""
        return f"{what} · data {self.data_key[:8]} · split {self.split_hash} · {self.patients} patients"


def data_tags(manifest: Manifest) -> dict[str, str]:
    """What every run says of its data, so that `boards` knows which runs may be compared."""
    return {
        "bench.dataset": manifest.dataset,
        "bench.data": manifest.key,
        "bench.convention": CONVENTION,
        "bench.synthetic": str(manifest.synthetic).lower(),
    }


def summarise(cases: pd.DataFrame, *, with_interval: bool = True) -> dict[str, float]:
    """What a run's patients say together, from a table with one row a patient.

    A metric is averaged over the patients for whom it is defined, and `<metric>_undefined` counts the others;
    counts of slices are summed. Globally pooled scores stand under `<metric>_global`.
    """
    values: dict[str, float] = {"patients": len(cases)}
    for name in (c for c in cases.columns if c not in NOT_METRICS):
        column = cases[name].to_numpy(np.float64)
        defined = column[~np.isnan(column)]
        if _is_count(name):
            values[name] = float(defined.sum())
            continue
        values[name] = float(defined.mean()) if len(defined) else math.nan
        if len(defined) < len(column):
            values[f"{name}_undefined"] = len(column) - len(defined)
    dice = cases["dice"].dropna().to_numpy(np.float64) if "dice" in cases else np.array([])
    if len(dice):
        values |= {
            "dice_median": float(np.median(dice)),
            "dice_p5": float(np.percentile(dice, 5)),
            "dice_under_half": int((dice < 0.5).sum()),
        }
        if with_interval:
            ends = interval(dice)
            values |= {"dice_low": ends.low, "dice_high": ends.high}
    tp, fp, fn, tn = (int(cases[c].sum()) for c in COUNTS)
    pooled = {
        "dice": counts.dice_of(tp, fp, fn),
        "iou": counts.iou_of(tp, fp, fn),
        "precision": counts.precision_of(tp, fp),
        "recall": counts.recall_of(tp, fn),
        "specificity": counts.specificity_of(tn, fp),
        "accuracy": counts.accuracy_of(tp, fp, fn, tn),
    }
    return values | {f"{name}_global": float(value) for name, value in pooled.items()}


def boards(records: Sequence[RunRecord], *, sort: str | None = None) -> list[Board]:
    """Group comparable records and rank each group, best first; ties share a rank.

    They are ranked by `sort` where their task has such a column, else by its headline: Dice or AUROC. Raises
    `UnknownName` for a column that no board can be sorted by.
    """
    sortable = {task: _sortable(kind) for task, kind in ROWS.items()}
    every = list(dict.fromkeys(name for names in sortable.values() for name in names))
    if sort is not None and sort not in every:
        raise UnknownName(f"cannot sort by '{sort}'; there are {', '.join(every)}.{did_you_mean(sort, every)}")
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        groups.setdefault(_comparable(record), []).append(record)
    made = []
    for (task, *_), group in groups.items():
        by = sort if sort in sortable[task] else HEADLINE[task]
        ordered = sorted((_row(r, task) for r in group), key=lambda row: (_badness(row, by), row.name, row.run_id))
        badness = [_badness(row, by) for row in ordered]
        ranked = [replace(row, rank=badness.index(b) + 1) for row, b in zip(ordered, badness, strict=True)]
        tags = group[0].tags
        made.append(
            Board(
                task=task,
                dataset=tags["bench.dataset"],
                data_key=tags["bench.data"],
                split_hash=tags["bench.split"],
                patients=len(group[0].cases),
                synthetic=ranked[0].synthetic,
                rows=tuple(ranked),
            )
        )
    return sorted(made, key=lambda b: (b.synthetic, b.task == "presence", -len(b.rows), b.title))


def _sortable(kind: type[Row] | type[PresenceRow]) -> list[str]:
    return [name for name, type_ in kind.__annotations__.items() if type_ in ("float", "int") and name != "rank"]


def _comparable(record: RunRecord) -> tuple[str, ...]:
    tested = hashlib.sha256("\n".join(sorted(record.cases["case"])).encode()).hexdigest()
    task = record.tags.get("bench.task", "segmentation")
    return (task, *(record.tags[f"bench.{k}"] for k in ("data", "split", "convention")), tested)


def _badness(row: Row | PresenceRow, sort: str) -> float:
    value = float(getattr(row, sort))
    if math.isnan(value):
        return math.inf
    return value if sort in LOWER_IS_BETTER else -value


def _row(record: RunRecord, task: str) -> Row | PresenceRow:
    value, setting, tag = record.metrics, record.settings, record.tags
    nan = math.nan
    shared: dict[str, Any] = {
        "rank": 0,
        "name": record.name,
        "model": setting.get("model.name", "?"),
        "encoder": _said(setting.get("model.encoder")),
        "loss": setting.get("loss.name", "?"),
        "low": value.get(f"{HEADLINE[task]}_low", nan),
        "high": value.get(f"{HEADLINE[task]}_high", nan),
        "missed_slices": int(value.get("missed_slices", 0)),
        "patients": len(record.cases),
        "epochs": value.get("cost/epochs", nan),
        "images": int(value.get("cost/images", 0)),
        "parameters": int(value.get("cost/parameters", 0)),
        "wall_seconds": value.get("cost/wall_seconds", nan),
        "weights": _said(setting.get("model.weights")) or "scratch",
        "seed": setting.get("run.seed", "?"),
        "data": tag["bench.data"][:8],
        "split": tag["bench.split"],
        "synthetic": tag.get("bench.synthetic") == "true",
        "run_id": record.run_id,
    }
    if task == "presence":
        names = ("auroc", "average_precision", "accuracy", "sensitivity", "specificity", "brier", "ece")
        shared |= {name: value.get(name, nan) for name in names}
        return PresenceRow(**shared, false_positive_slices=int(value.get("false_positive_slices", 0)))
    return Row(
        **shared,
        dice=value.get("dice", nan),
        median=value.get("dice_median", nan),
        p5=value.get("dice_p5", nan),
        under_half=int(value.get("dice_under_half", 0)),
        positive_slices=value.get("dice_positive_slices", nan),
        hd95=value.get("hd95", nan),
        dice_global=value.get("dice_global", nan),
    )


def _said(value: str | None) -> str:
    return "" if value in (None, "None", "") else str(value)


def _is_count(name: str) -> bool:
    return name in registry.metric and registry.metric[name].facts.get("unit") == "slices"
