"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.servers import Postgres, running_postgres

if TYPE_CHECKING:
    from bench.tracking import Store

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; more threads would only fight
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and output outside of a terminal depends on it


@pytest.fixture(scope="session")
def lgg_folder() -> Path:
    """The real LGG slices, where `LGG_DIR` says they are."""
    folder = Path(os.environ.get("LGG_DIR", "/nonexistent"))
    if not folder.is_dir():
        pytest.skip("LGG_DIR does not name the folder of the real LGG data (see CONTRIBUTING.md)")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for a whole test module, which asks for it with `pytest.mark.usefixtures("cache")`."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(folder))
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        yield folder


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of the module's own."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: making one takes seconds, copying it none."""
    from bench.tracking import connect

    folder = tmp_path_factory.mktemp("template")
    connect(f"sqlite:///{folder / 'mlflow.db'}")
    return folder


@pytest.fixture
def store(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of the test's own, in a folder of its own."""
    from bench.tracking import connect

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template, tmp_path / "mlruns")
    return connect(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
