"""Honest benchmarks of 2D medical image segmentation, tracked in MLflow."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# Libraries read these when they are imported, so they are set before any of them is.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
