"""Opening a store: SQLite files, servers, experiments, and the errors for stores that cannot be used."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from threading import Timer

import pandas as pd
import pytest
from filelock import FileLock
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import StoreError
from bench.experiments.search.storage import open_storage
from bench.tracking import (
    Store,
    check_reachable,
    connect,
    connect_to_write,
    databases,
    open_run,
    read_records,
    store_uri,
    ui_command,
    without_password,
)
from bench.tracking.store import RetryingClient

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}


def test_store_uri_prefers_the_argument_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri() == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert store_uri() == "http://elsewhere"
    assert store_uri("sqlite:///other.db") == "sqlite:///other.db"


def test_the_same_experiment_is_used_again(store):
    assert store.experiment("lgg") == store.experiment("lgg")


def test_a_deleted_experiment_is_restored_without_its_deleted_runs(store):
    experiment, told = store.experiment("lgg"), []
    old = store.client.create_run(experiment).info.run_id
    store.client.delete_experiment(experiment)
    assert store.experiment("lgg", told.append) == experiment
    assert store.client.get_run(old).info.lifecycle_stage == "deleted"
    assert store.client.get_run(store.client.create_run(experiment).info.run_id).info.lifecycle_stage == "active"
    assert told == ["experiment lgg was deleted and is restored; its 1 earlier runs stay deleted"]


@pytest.mark.parametrize(
    "name", ["lgg", "/Users/me@x/lgg", "../../x", "..", "a/b", "a%20b;c?d=e#f", "é", "a" * 300]
)
def test_the_artifacts_of_every_experiment_lie_inside_the_store(store, name):
    run = store.client.create_run(store.experiment(name))
    store.client.log_text(run.info.run_id, "x", "table.csv")
    (table,) = store.folder.parent.rglob("table.csv")
    folder = table.relative_to(store.folder / "artifacts")
    assert folder.parts[1:3] == (run.info.run_id, "artifacts")
    assert (folder.parts[0] == name) == (name in ("lgg", "é"))


@pytest.mark.parametrize("folder", ["a b", "a%b", "a#b;c", "é+&"])
def test_a_store_lies_where_its_path_says(template, tmp_path, folder):
    shutil.copytree(template, tmp_path / folder)
    store = connect(f"sqlite:///{tmp_path / folder / 'mlflow.db'}")
    store.client.log_text(store.client.create_run(store.experiment("lgg")).info.run_id, "x", "table.csv")
    assert [path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("table.csv")] == [folder]
    assert [path.name for path in tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize(
    "uri", ["sqlite:///{}/a%20b/x.db", "sqlite+pysqlite:///{}/a?b=c/x.db", "sqlite:///:memory:"]
)
def test_a_path_that_urls_cannot_hold_is_refused(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="--tracking-uri"):
        connect(uri.format(tmp_path))
    with pytest.raises(StoreError, match="--storage"), open_storage(uri.format(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "postgresql://nobody@127.0.0.1:9/none", "nonsense://x", "postgresql://h:port/x"]
)
def test_a_store_that_cannot_be_used_is_reported_in_one_line(uri):
    with pytest.raises(StoreError, match=uri.partition("@")[0].replace("/", ".")) as caught:
        connect(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:9", "postgresql://me:s%40cret@127.0.0.1:9/x"])
def test_messages_do_not_show_passwords(uri):
    with pytest.raises(StoreError, match=r"//me:\*\*\*@127\.0\.0\.1:9") as caught:
        connect(uri)
    assert "cret" not in str(caught.value)
    address = Store(f"{uri}/a:b@c", None).address
    assert address == without_password(address) == without_password(uri) + "/a:b@c"


@pytest.mark.parametrize(
    ("uri", "driver", "way_out"),
    [
        ("postgresql://127.0.0.1:9/x", "psycopg", r"pip install 'medseg-bench\[postgres\]'"),
        ("mysql+pymysql://127.0.0.1:9/x", "pymysql", "pip install pymysql"),
    ],
)
def test_a_missing_driver_is_named_with_its_install_command(uri, driver, way_out, monkeypatch):
    monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    with pytest.raises(StoreError, match=rf"needs a driver \(.*{driver}.*\): {way_out}"):
        check_reachable(uri, "--storage")


def test_the_message_suggests_the_option_that_named_the_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreError, match=rf"no server answers at http://127\.0\.0\.1:{port} .*another --storage"):
        check_reachable(f"http://127.0.0.1:{port}", "--storage")


def test_the_reachability_check_does_not_create_a_sqlite_file(tmp_path):
    check_reachable(f"sqlite:///{tmp_path / 'mine.db'}", "--storage")
    assert not list(tmp_path.iterdir())


def test_the_ui_listens_on_the_host_and_reads_the_store(store):
    command, environment = ui_command(store, "127.0.0.1", 5123)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == store.uri
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_store_is_created_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "mlflow.db"

    def stop_half_way(uri):
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
            database.execute("CREATE TABLE datasets (half INTEGER)")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bench.tracking.store._make_database", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            connect(f"sqlite:///{file}")
    assert not file.exists()
    (tmp_path / ".mlflow.db.making").write_text("what a killed process leaves")
    assert connect(f"sqlite:///{file}").experiment("lgg")
    assert {path.name for path in tmp_path.iterdir()} <= {
        f"mlflow.db{end}" for end in ("", ".lock", "-wal", "-shm")
    }
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("leftover", ["mlflow.making", ".mlflow.sqlite.making", ".mlflow.db.making"])
def test_a_database_with_runs_survives_every_leftover(store, leftover):
    run = store.client.create_run(store.experiment("lgg"))
    (store.folder / leftover).touch()
    assert connect(store.uri).client.get_run(run.info.run_id)


def test_processes_find_what_another_has_created_at_the_same_moment():
    class Client:
        calls = 0

        def log_inputs(self):
            self.calls += 1
            if self.calls == 1:
                raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name")
            return "found"

    assert RetryingClient(Client(), pauses=(0,)).log_inputs() == "found"


def finished(store, name="mine"):
    with open_run(store, name, "lgg", TAGS) as run:
        run.table("cases", pd.DataFrame({"case": ["a"]}))
    return run.run_id


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_store_is_read_and_written_where_it_lies(store, tmp_path, move):
    old = finished(store)
    move(store.folder, tmp_path / "other place")
    before = sorted(tmp_path.joinpath("mlruns").rglob("*"))
    moved = connect(f"sqlite:///{tmp_path / 'other place' / 'mlflow.db'}")
    new = finished(moved)
    assert [record.run_id for record in read_records(moved)] == [new, old]
    tables = (tmp_path / "other place" / "artifacts" / "lgg").rglob("cases.csv")
    assert {table.parent.parent.name for table in tables} == {new, old}
    assert sorted(tmp_path.joinpath("mlruns").rglob("*")) == before


def test_a_store_in_use_under_another_path_is_only_read(store, tmp_path):
    old = finished(store)
    shutil.move(store.folder, tmp_path / "other")
    lock = tmp_path / "other" / "unfinished" / "some run" / "lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        moved = connect(f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}")
        assert [record.run_id for record in read_records(moved)] == [old]
        with pytest.raises(StoreError, match=r"in use under its former path.*another --tracking-uri"):
            finished(moved)


def test_a_read_only_store_is_read_and_refuses_to_be_written(store, monkeypatch):
    old = finished(store)
    monkeypatch.setattr("filelock.FileLock.acquire", raise_read_only)
    opened = connect(store.uri)
    assert opened.refusal
    assert [record.run_id for record in read_records(opened)] == [old]
    assert read_records(opened)[0].cases["case"].tolist() == ["a"]
    with pytest.raises(StoreError, match=r"mlflow\.db cannot be written to\. Give another --tracking-uri, such"):
        finished(opened)
    with pytest.raises(StoreError, match="does not exist, and its folder cannot be written to"):
        connect(f"sqlite:///{store.folder / 'none.db'}")


WRITING = ("rescore a", "ensemble a b", "cascade a b", "evaluate a --data .", "search --join a")


@pytest.mark.parametrize("command", WRITING)
def test_commands_that_log_runs_are_refused_at_once_by_a_read_only_store(store, command, monkeypatch):
    monkeypatch.setattr("filelock.FileLock.acquire", raise_read_only)
    result = CliRunner().invoke(app, [*command.split(), "--tracking-uri", store.uri])
    assert isinstance(result.exception, StoreError)
    assert re.search(r"mlflow\.db cannot be written to", str(result.exception))


def test_a_store_on_a_full_disk_is_read_and_a_new_one_says_why(store, monkeypatch):
    def fill(path, make):
        raise sqlite3.OperationalError("database or disk is full")

    old = finished(store)
    monkeypatch.setattr("bench.tracking.store.create_database", fill)
    assert [record.run_id for record in read_records(connect(store.uri))] == [old]
    with pytest.raises(StoreError, match="is on a full disk"):
        connect_to_write(store.uri)
    with pytest.raises(StoreError, match=r"none\.db cannot be used: database or disk is full"):
        connect(f"sqlite:///{store.folder / 'none.db'}")


def raise_read_only(*_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_store_on_a_full_disk_is_an_error_of_one_line():
    class Client:
        tracking_uri = "sqlite:///mlflow.db"

        def set_tag(self):
            raise MlflowException("(sqlite3.OperationalError) database or disk is full")

    with pytest.raises(StoreError, match=r"mlflow\.db cannot be written to .*disk is full.*Free some space"):
        RetryingClient(Client()).set_tag()


def test_a_postgresql_database_without_an_encoding_says_how_to_create_it(monkeypatch):
    def connect_to_ascii(uri):
        raise TypeError("cannot use a string pattern on a bytes-like object")

    monkeypatch.setattr("bench.tracking.store.create_engine", connect_to_ascii)
    with pytest.raises(StoreError, match="ENCODING 'UTF8'"):
        check_reachable("postgresql:///x", "--storage")


TOGETHER = """
    import sys
    from bench.tracking import connect, open_run
    print("ready", flush=True)
    input()
    with open_run(connect(sys.argv[1]), "mine", "lgg", {}) as run:
        run.data("lgg", "digest", {})
    print(run.experiment_id, run.client.get_run(run.run_id).inputs.dataset_inputs[0].dataset.digest)
"""


@pytest.mark.slow
def test_processes_that_create_store_experiment_and_data_set_together_share_them(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert set(run_together(TOGETHER, uri, processes=8)) == {"1 digest"}


def run_together(script, argument, processes):
    """Start scripts, which print 'ready' after their imports, and return what each prints when all are."""
    command = [sys.executable, "-c", textwrap.dedent(script), argument]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, text=True, **pipes) for _ in range(processes)]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * processes
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * processes, outputs
    return [out.strip() for out, _ in outputs]


STORAGE = """
    import sys
    from bench.experiments.search.storage import open_storage
    print("ready", flush=True)
    input()
    with open_storage(sys.argv[1]) as storage:
        print(storage.get_all_studies())
"""


@pytest.mark.slow
def test_processes_that_open_an_empty_database_together_all_succeed(postgres):
    assert run_together(STORAGE, postgres.create("empty"), processes=3) == ["[]"] * 3


@pytest.mark.slow
def test_a_store_on_a_server_that_restarts_continues_and_one_that_stays_away_ends(postgres, monkeypatch):
    store = connect(postgres.create("runs"))
    experiment = store.experiment("lgg")
    postgres.stop()
    Timer(3, postgres.start).start()
    run = store.client.create_run(experiment, run_name="kept")
    monkeypatch.setattr(databases, "WAIT", 0)
    postgres.stop()
    with pytest.raises(StoreError, match=r"the database at postgresql://.* no longer answers .* repeat"):
        store.client.set_tag(run.info.run_id, "key", "value")
    postgres.start()
    assert [found.info.run_name for found in store.client.search_runs([experiment])] == ["kept"]
