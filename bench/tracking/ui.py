"""MLflow's own UI: the command that starts it, and the saved view that opens it on the leaderboard."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from bench.tracking.tags import PARENT, Tag

if TYPE_CHECKING:
    from bench.tracking.store import Store

VIEW = "leaderboard"
VIEW_COLUMNS = (
    *(f"params.`{p}`" for p in ("model.name", "model.encoder", "loss.name")),
    *(f"metrics.`{m}`" for m in ("rank", "rank_first", "dice", "dice_low", "dice_high")),
    *(f"metrics.`{m}`" for m in ("dice_median", "dice_positive_slices", "hd95", "missed_slices")),
    *(f"metrics.`cost/{m}`" for m in ("parameters", "flops", "device_seconds", "latency_p50_ms")),
)


def ui_command(store: Store, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves MLflow's UI on this store, and its environment."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    return command, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def leaderboard_view() -> str:
    """Return a saved view, as JSON, with our metric columns, the best run first and no folds.

    Without it, MLflow's UI shows no metric columns. The format is not documented: this is what the UI of MLflow
    3.17 writes when a view is saved by hand.
    """
    state = {
        "searchFilter": f"tags.`{Tag.KIND}` = '{PARENT}'",
        "orderByKey": "metrics.`dice`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(VIEW_COLUMNS),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
    }
    now = int(time.time() * 1000)
    return json.dumps({"name": "Leaderboard", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
