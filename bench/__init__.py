"""Honest benchmarks of 2D medical image segmentation, tracked in MLflow.

`run`, `leaderboard`, `compare` and `predict` do what the commands of these names do, and raise a `BenchError` for
what the user must fix. They are imported when they are first used, so that `import bench` is quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import Leaderboard as Leaderboard
    from bench.api import compare as compare
    from bench.api import leaderboard as leaderboard
    from bench.api import predict as predict
    from bench.api import run as run
    from bench.errors import BenchError as BenchError

__version__ = "0.1.0"
__all__ = ["BenchError", "Leaderboard", "__version__", "compare", "leaderboard", "predict", "run"]

# Libraries read these when they are imported, so they are set before any of them is.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    return getattr(import_module("bench.errors" if name == "BenchError" else "bench.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
