"""The tracking store: the only package that knows MLflow."""

from __future__ import annotations

from bench.tracking.outbox import replay
from bench.tracking.reader import (
    Run,
    download_model,
    download_models,
    find_folds,
    find_parent,
    find_run,
    read_masks,
    read_probabilities,
    read_records,
    read_settings,
    read_table,
    search_runs,
)
from bench.tracking.recorder import MlflowRecorder, log_failure, log_ranks, open_run
from bench.tracking.store import Store, check_reachable, connect, store_uri, without_password
from bench.tracking.tags import EVALUATION, FOLD, LEAKY, PARENT, Tag
from bench.tracking.ui import ui_command

__all__ = [
    "EVALUATION",
    "FOLD",
    "LEAKY",
    "PARENT",
    "MlflowRecorder",
    "Run",
    "Store",
    "Tag",
    "check_reachable",
    "connect",
    "download_model",
    "download_models",
    "find_folds",
    "find_parent",
    "find_run",
    "log_failure",
    "log_ranks",
    "open_run",
    "read_masks",
    "read_probabilities",
    "read_records",
    "read_settings",
    "read_table",
    "replay",
    "search_runs",
    "store_uri",
    "ui_command",
    "without_password",
]
