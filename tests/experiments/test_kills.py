"""Commands that are killed or interrupted at any moment, and then repeated."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
import yaml

from bench.experiments.search.storage import COUNTED, load_study, open_storage
from bench.experiments.suite import DONE, run_suite
from bench.experiments.suite_file import read_suite
from bench.tracking import Store, Tag, search_runs
from tests.experiments.search.fakes import BASE, SPACE
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


def kill_when(words: list[str], moment: Callable[[], bool]) -> None:
    """Run `bench` and kill it and its workers at a moment before its end."""
    process = psutil.Popen([sys.executable, "-m", "bench", *words])
    while not moment():
        assert process.poll() is None
        time.sleep(0.01)
    family = [*process.children(recursive=True), process]
    for member in family:
        member.kill()
    psutil.wait_procs(family)


def _count_trials(file: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            return int(database.execute("select count(*) from trials").fetchone()[0])
    except sqlite3.OperationalError:  # it does not exist yet
        return 0


def test_a_search_that_is_killed_three_times_has_exactly_eight_trials(store: Store, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({"base": BASE, "space": SPACE}))
    words = ["search", "plan.yaml", "--name", "s", "--trials", "8", "--inner", "2", "--sampler", "random"]
    words += ["--quiet", "--tracking-uri", store.uri]
    file = tmp_path / "mlruns" / "optuna.db"
    for trials in (1, 3, 6):
        kill_when(words, lambda count=trials: _count_trials(file) >= count)
    subprocess.run([sys.executable, "-m", "bench", *words], check=True, timeout=300)
    with open_storage(f"sqlite:///{tmp_path / 'mlruns' / 'optuna.db'}") as storage:
        states = [trial.state for trial in load_study(storage, "s")[0].trials]
    assert sum(state in COUNTED for state in states) == 8
    (study,) = search_runs(store, {Tag.KIND: "study"})
    trials = search_runs(store, {Tag.KIND: "trial"})
    assert Counter(run.info.status for run in trials) == Counter({"FINISHED": 8, "KILLED": len(states) - 8})
    assert {int(run.data.tags[Tag.TRIAL]) for run in trials} == set(range(len(states)))
    assert study.info.status == "FINISHED"


def test_a_suite_with_two_workers_that_is_killed_completes_each_cell_once(store: Store, tmp_path: Path) -> None:
    entries = {name: {"seed": number} for number, name in enumerate("abc")}
    base = BASE | {"train": {"epochs": 4, "batch_size": 4}, "checkpoint_every": 0}
    (tmp_path / "three.yaml").write_text(yaml.safe_dump({"base": base, "entries": entries}))
    words = ["suite", "three.yaml", "--workers", "2", "--quiet", "--tracking-uri", store.uri]
    for moment in ("epoch-*.state", "result.state"):
        kill_when(words, lambda at=moment: any((tmp_path / "mlruns").glob(f"unfinished/*/*/{at}")))
    found = run_suite(read_suite(tmp_path / "three.yaml"), uri=store.uri, quiet=True)
    assert [cell.state for cell in found] == [DONE] * 3
    runs = search_runs(store, {})
    assert Counter((run.data.tags[Tag.KIND], run.info.status) for run in runs) == {
        ("cv", "FINISHED"): 3,
        ("fold", "FINISHED"): 9,
    }
