"""No metric of a run is lost, whatever happens to the process or to the store."""

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
from bench.tracking import KIND, PARENT, MlflowRecorder, Store, open_run, replay, runs_with
from bench.tracking.outbox import BRIEF, Outbox, short_timeouts
from bench.tracking.store import RetryingClient


class Moody:
    """The client of a store that takes no batch while it is `down`, or takes it and does not say so (`deaf`).

    It is a clock as well, on which each batch takes `seconds`.
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
            raise MlflowException("nobody there")
        self.client.log_batch(run_id, **what)
        if self.deaf:
            raise MlflowException("the answer was lost")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


@pytest.fixture
def client(store: Store) -> Moody:
    return Moody(store.client)


@pytest.fixture
def moody(store: Store, client: Moody) -> Store:
    return Store(store.uri, client)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run_id(store: Store) -> str:
    return store.client.create_run(store.experiment("lgg")).info.run_id


@pytest.fixture
def outbox(moody: Store, client: Moody, said: list[str], tmp_path: Path) -> Outbox:
    return Outbox(moody, tmp_path / "unsent.jsonl", said.append, client.clock)


def train(store: Store, said: list[str], work: Callable[[MlflowRecorder], None]) -> None:
    with open_run(store, "mine", "lgg", {}, say=said.append) as run:
        work(run)


def at(step: int) -> list[Metric]:
    return [Metric("a", step / 10, 1000 + step, step), Metric("b", math.nan, 1000 + step, step)]


def history(store: Store, run_id: str, name: str = "a") -> list[tuple[int, float, int]]:
    return [(m.step, m.value, m.timestamp) for m in store.client.get_metric_history(run_id, name)]


def expected(*steps: int) -> list[tuple[int, float, int]]:
    return [(step, step / 10, 1000 + step) for step in steps]


# A process that dies

KILLED = """
    import os, signal, sys
    from bench.tracking import connect, open_run
    with open_run(connect(sys.argv[1]), "mine", "lgg", {}) as run, run.child("fold 0") as fold:
        print(fold.run_id, flush=True)
        for epoch in range(1, 6):
            fold.metrics({"train/loss": 1 / epoch}, epoch)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_after_an_epoch_has_lost_nothing(store):
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), store.uri], capture_output=True, text=True, timeout=120
    )
    assert child.returncode == -signal.SIGKILL
    found = history(store, child.stdout.strip(), "train/loss")
    assert [(step, value) for step, value, _ in found] == [(epoch, 1 / epoch) for epoch in range(1, 6)]


def test_what_waits_is_on_this_disk_all_the_while(outbox, run_id, client, store):
    """So a process that is killed while the store is away loses nothing either: another one sends it."""
    client.down = True
    for step in (1, 2, 3):
        outbox.send(run_id, at(step))
        assert len(outbox.file.read_text().splitlines()) == step
    replay(store, outbox.file)
    assert history(store, run_id) == expected(1, 2, 3)
    assert not outbox.file.exists()


# A store that goes away


def test_a_run_goes_on_without_its_store_and_catches_up(moody, client, store, said):
    with open_run(moody, "mine", "lgg", {}, say=said.append) as run, run.child("fold 0") as fold:
        for epoch in range(1, 7):
            client.down = epoch in (2, 3, 4)
            fold.metrics({"train/loss": 1 / epoch}, epoch)
            assert run.outbox.file.exists() or not client.down
    assert [step for step, _, _ in history(store, fold.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert store.client.get_run(run.run_id).info.status == "FINISHED"
    assert not run.outbox.file.exists()
    waiting, arrived = said  # each said once
    assert f"takes no metrics (nobody there): they wait in {run.outbox.file}" in waiting
    assert "takes metrics again" in arrived


def test_what_waited_for_a_run_that_goes_on_arrives_once(moody, client, store, said):
    """Broken off while its store was away, it makes some epochs again: those that wait are sent first."""

    def work(run: MlflowRecorder) -> None:
        with run.child("fold 0") as fold:
            fold.metrics({"train/loss": 0.1}, 1)
            client.down = True
            fold.metrics({"train/loss": 0.2}, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(moody, said, work)
    client.down = False
    (before,) = runs_with(store, {KIND: PARENT})
    with open_run(moody, "mine", "lgg", {}, say=said.append, again=before) as run, run.child("fold 0") as fold:
        for step in (1, 2, 3):
            fold.metrics({"train/loss": 0.9}, step)
    found = history(store, fold.run_id, "train/loss")
    assert [(step, value) for step, value, _ in found] == [(1, 0.1), (2, 0.2), (3, 0.9)]
    assert not run.outbox.file.exists()


def test_metrics_keep_the_time_and_the_order_in_which_they_were_made(outbox, run_id, client, store):
    for step in (1, 2, 3, 4):
        client.down = step < 4
        outbox.send(run_id, at(step))
    assert history(store, run_id) == expected(1, 2, 3, 4)
    assert [step for step, value, _ in history(store, run_id, "b") if math.isnan(value)] == [1, 2, 3, 4]
    assert store.client.get_run(run_id).data.metrics["a"] == 0.4


def test_a_batch_that_arrived_without_an_answer_is_not_doubled(outbox, run_id, client, store):
    for step in (1, 2, 3):
        client.deaf = step < 3
        outbox.send(run_id, at(step))
    assert history(store, run_id) == expected(1, 2, 3)
    assert len(history(store, run_id, "b")) == 3


def test_a_store_that_is_slow_to_fail_costs_a_tenth_of_the_time(outbox, run_id, client, store):
    client.down, client.seconds = True, 20.0  # as long as SQLite waits for a lock
    for step in range(1, 101):
        client.now += 10.0  # an epoch
        outbox.send(run_id, at(step))
    assert client.tries * client.seconds <= 0.1 * client.now
    assert client.tries > 3
    client.down = False
    assert outbox.close() is None, "the end of a run waits for no pause"
    assert history(store, run_id) == expected(*range(1, 101))


def test_what_never_arrived_is_in_a_file_and_the_error_says_how_to_send_it(moody, client, store, said, tmp_path):
    def work(run: MlflowRecorder) -> None:
        client.down = True
        run.metrics({"dice": 0.5, "hd95": math.inf}, 3)

    with pytest.raises(StoreError, match=r"2 metrics did not reach sqlite.* They are in .*unsent") as caught:
        train(moody, said, work)
    (file,) = tmp_path.glob("bench-unsent-*.jsonl")
    (batch,) = map(json.loads, file.read_text().splitlines())
    assert {m["key"]: m["step"] for m in batch["metrics"]} == {"dice": 3, "hd95": 3}
    assert said[-1] == f"{store.uri} could not be told that run {batch['run_id']} is FAILED"
    exec(str(caught.value).partition('python -c "')[2].removesuffix('"'))
    assert store.client.get_run(batch["run_id"]).data.metrics["dice"] == 0.5
    assert not file.exists()


def test_the_error_that_ended_a_run_is_not_hidden_by_the_store(moody, client, said):
    def work(run: MlflowRecorder) -> None:
        client.down = True
        run.metrics({"dice": 0.5})
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        train(moody, said, work)
    assert "python -c" in said[1], "where the metrics are is said all the same"


def test_another_write_that_fails_is_one_sentence(moody, client, said):
    def work(run: MlflowRecorder) -> None:
        client.down = True
        run.tags({"a": "b"})

    with pytest.raises(StoreError, match=r"failed in the middle of run .*: nobody there\. See to it"):
        train(moody, said, work)


def test_without_a_disk_metrics_wait_in_memory_and_it_is_said(moody, run_id, client, store, said, tmp_path):
    outbox = Outbox(moody, tmp_path / "no folder" / "unsent.jsonl", said.append, client.clock)
    client.down = True
    outbox.send(run_id, at(1))
    assert "only in memory" in said[0]
    assert "2 metrics did not reach" in outbox.close()
    assert "are lost" in outbox.close()
    client.down = False
    outbox.send(run_id, at(2))
    assert history(store, run_id) == expected(1, 2)


def test_a_name_that_the_store_never_takes_is_refused_at_once(store, said, tmp_path):
    with pytest.raises(StoreError, match=r"refuses metrics of run .*dice@0\.5"):
        train(store, said, lambda run: run.metrics({"dice@0.5": 1.0}))
    (file,) = tmp_path.glob("bench-unsent-*.jsonl")
    assert "dice@0.5" in file.read_text()


def test_a_file_that_is_not_there_cannot_be_sent(store):
    with pytest.raises(StoreError, match=r"there is no file unsent\.jsonl"):
        replay(store, "unsent.jsonl")


# Real stores


def test_a_database_that_fails_is_waited_for(store, run_id, said, tmp_path):
    """Its table goes missing: the same `OperationalError` as 'database is locked', without its 20 seconds."""
    outbox = Outbox(store, tmp_path / "unsent.jsonl", said.append)
    with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as database:
        database.execute("ALTER TABLE metrics RENAME TO away")
        outbox.send(run_id, at(1))
        assert "no such table: metrics" in said[0]
        database.execute("ALTER TABLE away RENAME TO metrics")
    assert outbox.close() is None
    assert history(store, run_id) == expected(1)


def test_a_server_that_is_gone_costs_an_epoch_next_to_nothing(said, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    outbox = Outbox(Store(uri, MlflowClient(uri)), tmp_path / "unsent.jsonl", said.append)
    started = time.monotonic()
    outbox.send("0" * 32, at(1))
    assert time.monotonic() - started < 5
    assert "Connection refused" in said[0]
    assert outbox.file.exists()


def test_a_server_that_is_lost_is_one_sentence_with_a_way_out(said, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # or it takes MLflow four minutes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}"
    gone = Store(uri, RetryingClient(MlflowClient(uri)))
    with pytest.raises(StoreError, match=r"http://me:\*\*\*@.* any more .*refused.* Start it again") as caught:
        gone.client.get_run("0" * 32)
    assert "secret" not in str(caught.value)
    MlflowRecorder(gone, "0" * 32, "0", Outbox(gone, tmp_path / "unsent.jsonl", said.append)).break_off("FAILED")
    assert "could not be told" in said[0], "and what went wrong is not hidden by it"


def test_a_server_that_does_not_answer_is_given_up_after_two_short_tries(said, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # as a user may: ours is 10
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        outbox = Outbox(Store(uri, MlflowClient(uri)), tmp_path / "unsent.jsonl", said.append)
        started = time.monotonic()
        outbox.send("0" * 32, at(1))
    assert 2 <= time.monotonic() - started < 10
    assert "timed out" in said[0]


def test_haste_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with short_timeouts():
        assert {name: os.environ[name] for name in BRIEF} == BRIEF | {"MLFLOW_HTTP_REQUEST_TIMEOUT": "33"}
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
