"""Commands that a signal ends at any moment."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml

from bench.tracking import Store, search_runs
from tests.experiments.search.fakes import BASE
from tests.fakes import run_and_end

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_in_the_middle_of_its_training(store: Store, tmp_path: Path, number: int) -> None:
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(BASE | {"train": {"epochs": 9999}, "checkpoint_every": 0}))
    words = ["run", "--quiet", "--config", "long.yaml", "--tracking-uri", store.uri]
    assert run_and_end(words, number, tmp_path / "mlruns" / "unfinished", "*/*/epoch-000003.state") == [130]
    assert [run.info.status for run in search_runs(store, {})] == ["KILLED", "KILLED"]  # and its first fold
