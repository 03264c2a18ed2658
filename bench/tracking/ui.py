"""MLflow's UI of a store: the command that serves it, and the view and description of an experiment in it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.tracking.tags import PARENT, Tag

if TYPE_CHECKING:
    from bench.tracking.store import Store

KEY = "leaderboard"
VIEW, DESCRIPTION = f"mlflow.sharedViewState.{KEY}", "mlflow.note.content"
NAME, CREATED, SOURCE = "attributes.`Run Name`", "runDateAndNestInfo", "attributes.`Source`"
WIDTHS = {  # pixels of the first columns, in their order: together with MLflow's menu they fill a screen of 1440
    NAME: 210,
    CREATED: 130,
    "metrics.`rank`": 65,
    "metrics.`dice`": 75,
    "metrics.`dice_low`": 80,
    "metrics.`dice_high`": 85,
    "params.`model.name`": 125,
    "params.`loss.name`": 110,
    "params.`model.encoder`": 110,
    SOURCE: 135,
}
LATER = (
    *(f"metrics.`{m}`" for m in ("rank_first", "dice_median", "dice_positive_slices", "hd95", "missed_slices")),
    *(f"metrics.`cost/{m}`" for m in ("parameters", "flops", "device_seconds", "latency_p50_ms")),
    "duration",
)
ALWAYS = (NAME, CREATED, "duration")  # columns that MLflow shows without being asked
GUIDE = """\
Cross-validated runs on the data set **{name}**. The view *Leaderboard* shows one row for each run, the best Dice
first: `bench ui` prints its address, and `bench leaderboard` prints the ranks with tests and ties.

- `rank`: among runs with the same data, folds and definitions of metrics; seeds of one configuration share it.
- `dice`: mean over patients of 2 TP / (2 TP + FP + FN), each scored by a model that has not seen the patient.
- `dice_low`, `dice_high`: ends of the 95% interval of that mean. Overlapping intervals do not show a tie.
- `missed_slices`: slices with a true structure and an empty prediction. `hd95` is in pixels.
- Source `bench import`: only scores and settings are here, no masks and no models.

A run holds its model card, the scores of every patient (`cases.csv`) and overlays; its folds are nested below it.
"""


def experiment_tags(name: str) -> dict[str, str]:
    """Return the tags that give the experiment `name` a saved view and a description."""
    return {VIEW: _leaderboard_view(), DESCRIPTION: GUIDE.format(name=name)}


def outdated(new: Mapping[str, str], logged: Mapping[str, str]) -> dict[str, str]:
    """Return the `new` tags to write: a description that is there stays, a view of another version does not."""
    return {k: v for k, v in new.items() if k not in logged or (k == VIEW and logged[k] != v)}


def leaderboards(store: Store) -> dict[str, str]:
    """Return `{experiment: path of its leaderboard in MLflow's UI}`."""
    return {
        e.name: f"/#/experiments/{e.experiment_id}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"
        for e in store.client.search_experiments()
        if VIEW in e.tags
    }


def ui_command(store: Store, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves MLflow's UI without a line per request, and its environment."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.client.tracking_uri]
    command += ["--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    return command, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}


def _leaderboard_view() -> str:
    """Return a saved view, as JSON, with our columns in our order, the best run first and no folds.

    Without it, MLflow's UI shows no metric columns. The format is not documented: this is what the UI of MLflow
    3.17 writes when a view is saved by hand.
    """
    order = (*WIDTHS, *LATER)
    state = {
        "searchFilter": f"tags.`{Tag.KIND}` = '{PARENT}'",
        "orderByKey": "metrics.`dice`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [column for column in order if column not in ALWAYS],
        "columnOrder": order,
        "columnWidths": WIDTHS,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
    }
    return json.dumps({"name": "Leaderboard", "createdAt": 1, "updatedAt": 1, "state": json.dumps(state)})
