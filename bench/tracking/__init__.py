"""The tracking store: the only package that knows MLflow.

A run of the suite is a parent run (one configuration: means, intervals, costs, out-of-fold tables) with a child
for every fold. Runs are addressed by explicit ids through `MlflowClient`; a run that `mlflow run` has opened is
adopted as the parent.
"""

from bench.tracking.history import (
    download_model,
    find_run,
    model_folders,
    parent_of,
    patients_of,
    read_table,
    records,
)
from bench.tracking.outbox import replay
from bench.tracking.recorder import MlflowRecorder, open_run
from bench.tracking.store import EVALUATION, FOLD, KIND, PARENT, Store, connect, store_uri, ui_command

__all__ = [
    "EVALUATION",
    "FOLD",
    "KIND",
    "PARENT",
    "MlflowRecorder",
    "Store",
    "connect",
    "download_model",
    "find_run",
    "model_folders",
    "open_run",
    "parent_of",
    "patients_of",
    "read_table",
    "records",
    "replay",
    "store_uri",
    "ui_command",
]
