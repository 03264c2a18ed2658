"""Opening a store: SQLite files, servers, experiments, and the errors for stores that cannot be used."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
import uuid
from contextlib import closing

import pytest
from sqlalchemy import create_engine, text

from bench.errors import StoreError
from bench.tracking import Store, check_reachable, connect, store_uri, ui_command, without_password


def test_store_uri_prefers_the_argument_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri() == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert store_uri() == "http://elsewhere"
    assert store_uri("sqlite:///other.db") == "sqlite:///other.db"


def test_every_experiment_has_its_leaderboard_in_the_ui(store):
    store.experiment("lgg")
    assert list(store.views()) == ["lgg"]
    assert "viewStateShareKey=leaderboard" in store.views()["lgg"]


def test_the_same_experiment_is_used_again(store):
    assert store.experiment("lgg") == store.experiment("lgg")


def test_a_deleted_experiment_is_restored(store):
    experiment = store.experiment("lgg")
    store.client.delete_experiment(experiment)
    assert store.experiment("lgg") == experiment


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


def test_a_store_whose_creation_was_interrupted_is_created_again(tmp_path):
    file, marker, broken = (tmp_path / name for name in ("mlflow.db", "mlflow.making", "broken.db"))
    for half in (file, broken):
        with closing(sqlite3.connect(half)) as database:
            database.execute("CREATE TABLE datasets (half INTEGER)")
    with pytest.raises(StoreError, match="cannot be used"):
        connect(f"sqlite:///{broken}")
    marker.touch()
    assert connect(f"sqlite:///{file}").experiment("lgg")
    assert not marker.exists()
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


CONNECT = "import sys; from bench.tracking import connect; print(connect(sys.argv[1]).experiment('lgg'))"


@pytest.mark.slow
def test_processes_that_open_a_new_store_together_create_one(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONNECT, uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len({out.strip() for out, _ in outputs}) == 1


@pytest.fixture
def empty_database():
    """A new database of the PostgreSQL server that `POSTGRES_URL` names, such as postgresql://me:secret@host."""
    server = os.environ.get("POSTGRES_URL", "")
    if not server:
        pytest.skip("POSTGRES_URL does not name a PostgreSQL server on which databases may be created")
    name = f"bench_{uuid.uuid4().hex}"
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield f"{server}/{name}"
        connection.execute(text(f"DROP DATABASE {name}"))
    engine.dispose()


STORAGE = """
    import sys
    from bench.experiments.search.storage import open_storage
    print("ready", flush=True)
    input()
    with open_storage(sys.argv[1]) as storage:
        print(storage.get_all_studies())
"""


@pytest.mark.slow
def test_processes_that_open_an_empty_database_together_all_succeed(empty_database):
    command = [sys.executable, "-c", textwrap.dedent(STORAGE), empty_database]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for process in processes:  # all have imported what they need
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120) for process in processes]
    ends = [(process.returncode, out.strip()) for process, (out, _) in zip(processes, outputs, strict=True)]
    assert ends == [(0, "[]")] * 3, outputs
