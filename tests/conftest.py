"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; more threads would only fight
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def lgg_folder() -> Path:
    """The real LGG slices, where `LGG_DIR` says they are."""
    folder = Path(os.environ.get("LGG_DIR", "/nonexistent"))
    if not folder.is_dir():
        pytest.skip("LGG_DIR does not name the folder of the real LGG data (see README, Data)")
    return folder
