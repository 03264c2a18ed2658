"""No metric of a run is lost, whatever happens to the process or the store."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from bench.errors import StoreError
from bench.tracking import PARENT, MlflowRecorder, Store, open_run, replay, search_runs
from bench.tracking.outbox import Outbox
from bench.tracking.store import SHORT_TIMEOUTS, RetryingClient, short_timeouts
from bench.tracking.tags import Tag


class UnreliableClient:
    """A client that accepts no batch while it is `down`, and loses the store's answer while it is `deaf`.

    It is also a clock, on which each batch takes `seconds`.
    """

    def __init__(self, client: MlflowClient) -> None:
        self.client, self.down, self.deaf, self.tries = client, False, False, 0
        self.now = self.seconds = 0.0

    def clock(self) -> float:
        return self.now

    def log_batch(self, run_id: str, **what: Any) -> None:
        self.tries += 1
        self.now += self.seconds
        if self.down:
            raise MlflowException("no answer")
        self.client.log_batch(run_id, **what)
        if self.deaf:
            raise MlflowException("the answer was lost")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


@pytest.fixture
def client(store: Store) -> UnreliableClient:
    return UnreliableClient(store.client)


@pytest.fixture
def unreliable(store: Store, client: UnreliableClient) -> Store:
    return Store(store.uri, client)


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def run_id(store: Store) -> str:
    return store.client.create_run(store.experiment("lgg")).info.run_id


@pytest.fixture
def outbox(unreliable: Store, client: UnreliableClient, messages: list[str], tmp_path: Path) -> Outbox:
    return Outbox(unreliable, tmp_path / "unsent.jsonl", messages.append, client.clock)


def run_with(store: Store, messages: list[str], work: Callable[[MlflowRecorder], None]) -> None:
    with open_run(store, "mine", "lgg", {}, say=messages.append) as run:
        work(run)


def batch(step: int) -> list[Metric]:
    return [Metric("a", step / 10, 1000 + step, step), Metric("b", math.nan, 1000 + step, step)]


def history(store: Store, run_id: str, name: str = "a") -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in store.client.get_metric_history(run_id, name)]


def expected(*steps: int) -> list[tuple[int, float, int]]:
    return [(step, step / 10, 1000 + step) for step in steps]


KILLED = """
    import os, signal, sys
    from bench.tracking import connect, open_run
    with open_run(connect(sys.argv[1]), "mine", "lgg", {}) as run, run.child("fold 0") as fold:
        print(fold.run_id, flush=True)
        for epoch in range(1, 6):
            fold.metrics({"train/loss": 1 / epoch}, epoch)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_has_lost_no_finished_epoch(store):
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), store.uri], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == -signal.SIGKILL
    logged = history(store, child.stdout.strip(), "train/loss")
    assert [(step, value) for step, value, _ in logged] == [(epoch, 1 / epoch) for epoch in range(1, 6)]


def test_unsent_metrics_are_always_on_disk(outbox, run_id, client, store):
    """A process that is killed while the store is down loses nothing: another process sends them."""
    client.down = True
    for step in (1, 2, 3):
        outbox.send(run_id, batch(step))
        assert len(outbox.file.read_text().splitlines()) == step
    replay(store, outbox.file)
    assert history(store, run_id) == expected(1, 2, 3)
    assert not outbox.file.exists()


def test_a_run_continues_without_its_store_and_sends_metrics_later(unreliable, client, store, messages):
    with open_run(unreliable, "mine", "lgg", {}, say=messages.append) as run, run.child("fold 0") as fold:
        for epoch in range(1, 7):
            client.down = epoch in (2, 3, 4)
            fold.metrics({"train/loss": 1 / epoch}, epoch)
            assert run.outbox.file.exists() or not client.down
    assert [step for step, _, _ in history(store, fold.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert store.client.get_run(run.run_id).info.status == "FINISHED"
    assert not run.outbox.file.exists()
    kept, sent = messages  # one of each
    assert f"accepts no metrics (no answer): they are kept in {run.outbox.file}" in kept
    assert "accepts metrics again" in sent


def test_unsent_metrics_of_a_resumed_run_arrive_once(unreliable, client, store, messages):
    """A run that is interrupted while its store is down repeats some epochs; its unsent metrics are sent first."""

    def work(run: MlflowRecorder) -> None:
        with run.child("fold 0") as fold:
            fold.metrics({"train/loss": 0.1}, 1)
            client.down = True
            fold.metrics({"train/loss": 0.2}, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with(unreliable, messages, work)
    client.down = False
    (before,) = search_runs(store, {Tag.KIND: PARENT})
    resumed = open_run(unreliable, "mine", "lgg", {}, say=messages.append, resume=before)
    with resumed as run, run.child("fold 0") as fold:
        for step in (1, 2, 3):
            fold.metrics({"train/loss": 0.9}, step)
    logged = history(store, fold.run_id, "train/loss")
    assert [(step, value) for step, value, _ in logged] == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert not run.outbox.file.exists()


def test_metrics_keep_their_time_and_order(outbox, run_id, client, store):
    for step in (1, 2, 3, 4):
        client.down = step < 4
        outbox.send(run_id, batch(step))
    assert history(store, run_id) == expected(1, 2, 3, 4)
    assert [step for step, value, _ in history(store, run_id, "b") if math.isnan(value)] == [1, 2, 3, 4]
    assert store.client.get_run(run_id).data.metrics["a"] == 0.4


def test_a_batch_that_arrived_without_an_answer_is_not_logged_twice(outbox, run_id, client, store):
    for step in (1, 2, 3):
        client.deaf = step < 3
        outbox.send(run_id, batch(step))
    assert history(store, run_id) == expected(1, 2, 3)
    assert len(history(store, run_id, "b")) == 3


def test_a_store_that_fails_slowly_costs_at_most_a_tenth_of_the_time(outbox, run_id, client, store):
    client.down, client.seconds = True, 20.0  # as long as SQLite waits for a lock
    for step in range(1, 101):
        client.now += 10.0  # an epoch
        outbox.send(run_id, batch(step))
    assert client.tries * client.seconds <= 0.1 * client.now
    assert client.tries > 3
    client.down = False
    assert outbox.close() is None, "the end of a run does not wait for the pause to end"
    assert history(store, run_id) == expected(*range(1, 101))


def test_the_error_says_how_to_send_metrics_that_never_arrived(unreliable, client, store, messages, tmp_path):
    def work(run: MlflowRecorder) -> None:
        client.down = True
        run.metrics({"dice": 0.5, "hd95": math.inf}, 3)

    with pytest.raises(StoreError, match=r"2 metrics did not reach sqlite.* They are in .*unsent") as caught:
        run_with(unreliable, messages, work)
    (file,) = tmp_path.glob("bench-unsent-*.jsonl")
    (unsent,) = map(json.loads, file.read_text().splitlines())
    assert {m["key"]: m["step"] for m in unsent["metrics"]} == {"dice": 3, "hd95": 3}
    assert messages[-1] == f"{store.uri} could not record that run {unsent['run_id']} is FAILED"
    exec(str(caught.value).partition('python -c "')[2].removesuffix('"'))
    assert store.client.get_run(unsent["run_id"]).data.metrics["dice"] == 0.5
    assert not file.exists()


def test_a_failing_store_does_not_hide_the_error_that_ended_the_run(unreliable, client, messages):
    def work(run: MlflowRecorder) -> None:
        client.down = True
        run.metrics({"dice": 0.5})
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run_with(unreliable, messages, work)
    assert "python -c" in messages[1], "the message still says where the metrics are"


def test_a_failed_write_of_anything_else_ends_the_run(unreliable, client, messages):
    def work(run: MlflowRecorder) -> None:
        client.down = True
        run.tags({"a": "b"})

    with pytest.raises(StoreError, match=r"failed during run .*: no answer\. Fix the store"):
        run_with(unreliable, messages, work)


def test_metrics_are_kept_in_memory_if_the_disk_fails(unreliable, run_id, client, store, messages, tmp_path):
    outbox = Outbox(unreliable, tmp_path / "no folder" / "unsent.jsonl", messages.append, client.clock)
    client.down = True
    outbox.send(run_id, batch(1))
    assert "only in memory" in messages[0]
    assert "2 metrics did not reach" in outbox.close()
    assert "are lost" in outbox.close()
    client.down = False
    outbox.send(run_id, batch(2))
    assert history(store, run_id) == expected(1, 2)


def test_a_metric_name_that_mlflow_refuses_ends_the_run(store, messages, tmp_path):
    with pytest.raises(StoreError, match=r"refuses metrics of run .*dice@0\.5"):
        run_with(store, messages, lambda run: run.metrics({"dice@0.5": 1.0}))
    (file,) = tmp_path.glob("bench-unsent-*.jsonl")
    assert "dice@0.5" in file.read_text()


def test_a_missing_file_cannot_be_sent(store):
    with pytest.raises(StoreError, match=r"there is no file unsent\.jsonl"):
        replay(store, "unsent.jsonl")


def test_metrics_are_kept_while_a_database_fails(store, run_id, messages, tmp_path):
    """A missing table raises the same `OperationalError` as 'database is locked', without its 20 seconds."""
    outbox = Outbox(store, tmp_path / "unsent.jsonl", messages.append)
    with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as database:
        database.execute("ALTER TABLE metrics RENAME TO away")
        outbox.send(run_id, batch(1))
        assert "no such table: metrics" in messages[0]
        database.execute("ALTER TABLE away RENAME TO metrics")
    assert outbox.close() is None
    assert history(store, run_id) == expected(1)


def test_a_lost_server_costs_an_epoch_less_than_five_seconds(messages, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    outbox = Outbox(Store(uri, MlflowClient(uri)), tmp_path / "unsent.jsonl", messages.append)
    started = time.monotonic()
    outbox.send("0" * 32, batch(1))
    assert time.monotonic() - started < 5
    assert "Connection refused" in messages[0]
    assert outbox.file.exists()


def test_the_error_for_a_lost_server_says_what_to_do(messages, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # or it takes MLflow four minutes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}"
    gone = Store(uri, RetryingClient(MlflowClient(uri)))
    with pytest.raises(StoreError, match=r"http://me:\*\*\*@.* no longer .*refused.* Start it again") as caught:
        gone.client.get_run("0" * 32)
    assert "secret" not in str(caught.value)
    outbox = Outbox(gone, tmp_path / "unsent.jsonl", messages.append)
    MlflowRecorder(gone, "0" * 32, "0", outbox).end_early("FAILED")
    assert "could not record" in messages[0], "no exception hides what ended the run"


def test_a_silent_server_is_tried_twice_for_a_short_time(messages, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # set by the user: ours is 10
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        outbox = Outbox(Store(uri, MlflowClient(uri)), tmp_path / "unsent.jsonl", messages.append)
        started = time.monotonic()
        outbox.send("0" * 32, batch(1))
    assert 2 <= time.monotonic() - started < 10
    assert "timed out" in messages[0]


def test_short_timeouts_restore_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with short_timeouts():
        assert {name: os.environ[name] for name in SHORT_TIMEOUTS} == SHORT_TIMEOUTS | {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "33"
        }
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
