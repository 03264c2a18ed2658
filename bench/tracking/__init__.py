"""The tracking store: the only package that knows MLflow.

A run of the suite is a parent run (one configuration: means, intervals, costs, out-of-fold tables) with a child
for every fold. Runs are addressed by explicit ids through `MlflowClient`; a run that `mlflow run` has opened is
adopted as the parent.
"""

from __future__ import annotations

from bench.tracking.outbox import replay
from bench.tracking.reader import (
    Run,
    download_model,
    find_run,
    folds_of,
    masks_of,
    model_folders,
    parent_of,
    probabilities_of,
    read_table,
    records,
    runs_with,
    settings_of,
)
from bench.tracking.recorder import MlflowRecorder, note_failure, note_ranks, open_run
from bench.tracking.store import Store, check_reachable, connect, store_uri, without_password
from bench.tracking.tags import EVALUATION, FOLD, KIND, LEAKY, PARENT
from bench.tracking.ui import ui_command

__all__ = [
    "EVALUATION",
    "FOLD",
    "KIND",
    "LEAKY",
    "PARENT",
    "MlflowRecorder",
    "Run",
    "Store",
    "connect",
    "download_model",
    "find_run",
    "folds_of",
    "check_reachable",
    "masks_of",
    "model_folders",
    "note_failure",
    "note_ranks",
    "open_run",
    "parent_of",
    "probabilities_of",
    "read_table",
    "records",
    "replay",
    "runs_with",
    "settings_of",
    "store_uri",
    "ui_command",
    "without_password",
]
