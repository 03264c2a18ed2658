"""Servers that lose answers, say nothing, or are gone for a while: nothing is created twice, and commands end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock

from bench.errors import BadSetting, StoreError
from bench.tracking import Run, Store, Tag, connect, open_run, read_table, search_runs
from bench.tracking.databases import LIVELINESS
from bench.tracking.heartbeat import GRACE, sign_of_life
from bench.tracking.resume import find_resumable, is_active, workspace_folder
from tests.servers import free_port, losing_proxy

TAGS = {Tag.DATA: "d", Tag.FINGERPRINT: "f", Tag.CODE: "c", Tag.KIND: "cv"}


class Server:
    """MLflow's server on a store of the test, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlruns' / 'mlflow.db'}", "--workers", "1"]
        words += ["--artifacts-destination", str(self.folder / "files"), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(600):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            time.sleep(0.1)
        raise TimeoutError

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")  # restored at the end: `connect` sets them for a server
        monkeypatch.delenv(name)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    running = Server(tmp_path)
    yield running
    running.kill()


class Forgetful(BaseHTTPRequestHandler):
    """Passes requests on, and loses the first answer to each path that ends with one of `lose`."""

    protocol_version = "HTTP/1.1"
    behind: int
    lose: list[str]

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = http.client.HTTPConnection("127.0.0.1", self.behind)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        content = answer.read()
        server.close()
        if lost := [end for end in self.lose if self.path.endswith(end)]:
            self.lose.remove(lost[0])
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = pass_on

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def forgetful(server: Server) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that loses answers, and the list of the paths to lose."""
    lose: list[str] = []
    handler = type("Handler", (Forgetful,), {"behind": server.port, "lose": lose})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{proxy.server_address[1]}", lose
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.slow
def test_what_is_created_is_created_once_though_the_answer_is_lost(forgetful, tmp_path):
    uri, lose = forgetful
    (tmp_path / "segmenter").mkdir()
    (tmp_path / "segmenter" / "model.json").write_text("{}")
    store = connect(uri)
    experiment = store.experiment("lgg")
    lose += ["runs/create", "runs/create"]
    with open_run(store, "mine", "lgg", TAGS) as run:
        lose += ["runs/create", "mlflow/logged-models"]
        with run.child("fold 0") as fold:
            fold.model(tmp_path / "segmenter", 3)
    assert lose == []
    runs = store.client.search_runs([experiment])
    assert {r.info.run_id for r in runs} == {run.run_id, fold.run_id}
    assert {r.info.status for r in runs} == {"FINISHED"}
    (model,) = store.client.search_logged_models([experiment])
    assert (model.status, model.source_run_id) == ("READY", fold.run_id)
    (output,) = store.client.get_run(fold.run_id).outputs.model_outputs
    assert output.model_id == model.model_id


@pytest.mark.slow
def test_a_run_loses_nothing_when_every_third_connection_is_closed(server, tmp_path):
    with losing_proxy(server.port) as port:
        store = connect(f"http://127.0.0.1:{port}")
        with open_run(store, "mine", "lgg", TAGS) as run:
            for number in range(3):
                with run.child(f"fold {number}") as fold:
                    for step in range(5):
                        fold.metrics({"loss": step}, step)
                    fold.table("cases", pd.DataFrame({"case": ["a"]}))
    store = connect(server.uri)
    runs = search_runs(store, {})
    assert [each.info.status for each in runs] == ["FINISHED"] * 4
    for fold in (each for each in runs if each.info.run_id != run.run_id):
        history = store.client.get_metric_history(fold.info.run_id, "loss")
        assert [metric.value for metric in history] == [0, 1, 2, 3, 4]
        assert read_table(store, fold, "cases")["case"].tolist() == ["a"]


def started(store: Store, **tags: str) -> Run:
    return store.client.create_run(store.experiment("lgg"), tags=TAGS | tags)


def remote(store: Store) -> Store:
    """The same store as if it were a server: its folder is not visible."""
    return Store("http://somewhere:5000", store.client)


def heartbeat_of(age: float, machine: str = "another") -> str:
    return f"{time.time() - age:.0f} {machine}"


@pytest.mark.parametrize(
    ("age", "machine", "workspace", "active"),
    [
        (0, "another", False, True),  # no workspace here: another machine, or a cache that was emptied
        (0, "another", True, True),  # interrupted here, resumed elsewhere
        (0, "own", False, True),
        (0, "own", True, False),  # its lock would be visible
        (GRACE + 5, "another", False, False),
        (GRACE + 5, "own", False, False),
    ],
)
def test_a_run_on_a_server_is_active_while_its_heartbeat_is_young(
    store, tmp_path, monkeypatch, age, machine, workspace, active
):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    mine = sign_of_life().split()[1]
    past = time.time() - age
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: past)
        run = started(store, **{Tag.HEARTBEAT: heartbeat_of(0, mine if machine == "own" else machine)})
    if workspace:
        workspace_folder(remote(store), run.info.run_id).mkdir(parents=True)
    assert is_active(remote(store), run) == active
    assert not is_active(store, run), "a store on this machine has locks"


def test_a_lock_that_is_held_counts_more_than_an_old_heartbeat(store, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    run = started(store, **{Tag.HEARTBEAT: heartbeat_of(2 * GRACE)})
    workspace = workspace_folder(remote(store), run.info.run_id)
    workspace.mkdir(parents=True)
    with FileLock(workspace / "lock"):
        assert is_active(remote(store), run)


def test_the_refusal_says_when_a_run_that_was_killed_elsewhere_can_be_resumed(store, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    run = started(store, **{Tag.HEARTBEAT: heartbeat_of(0)})
    with pytest.raises(BadSetting, match=r"killed \d s ago, repeat the command in 1\d\d s"):
        find_resumable(remote(store), TAGS, {})
    later = time.time() + GRACE + 1
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(BadSetting, match="was interrupted, and code has changed"):
        find_resumable(remote(store), TAGS, {})
    assert store.client.get_run(run.info.run_id).info.status == "RUNNING"


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_server_that_says_nothing_is_given_up_in_one_line(scheme, monkeypatch):
    if scheme == "postgresql":
        pytest.importorskip("psycopg")
    monkeypatch.setitem(LIVELINESS, "connect_timeout", 2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StoreError, match=r"cannot be used: .*Give another --tracking-uri") as caught:
            connect(uri)
    assert "\n" not in str(caught.value)


def test_a_slow_server_is_announced(store, monkeypatch, capsys):
    class Slow(ThreadingHTTPServer):
        daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(0.2)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, *_: Any) -> None: ...

    monkeypatch.setattr("bench.tracking.store.SLOW", 0.1)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "7")
    slow = Slow(("127.0.0.1", 0), Handler)
    Thread(target=slow.serve_forever, daemon=True).start()
    connect(f"http://127.0.0.1:{slow.server_address[1]}")
    slow.shutdown()
    slow.server_close()
    assert "s for one answer. A run makes hundreds of requests" in capsys.readouterr().err


PHANTOM = ("dataset.patients=6", "dataset.size=32", "dataset.slices=6", "model.base=2", "model.depth=1")


def start_run(uri: str) -> subprocess.Popen[str]:
    words = [w for s in (*PHANTOM, "dataset.name=phantom", "checkpoint_every=0") for w in ("--set", s)]
    words += ["--folds", "3", "--epochs", "6", "--batch-size", "4", "--name", "mine", "--tracking-uri", uri]
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "run", *words, "--quiet", "--set", "device=cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not list(folder.rglob("epoch-*.state")):
        time.sleep(0.05)
    assert process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["returns", "stays away", "hangs"])
def test_a_run_survives_a_server_that_is_killed_or_hangs(server, tmp_path, monkeypatch, how):
    """It returns after 20 seconds, or only for the next command."""
    if how != "returns":  # seconds instead of minutes
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    process = start_run(server.uri)
    wait_for_checkpoint(tmp_path / "cache", process)
    if how == "hangs":
        os.killpg(server.process.pid, signal.SIGSTOP)
    else:
        server.kill()
    if how == "returns":
        time.sleep(20)
        server.start()
    _, errors = process.communicate(timeout=400)
    if how != "returns":
        assert (process.returncode, errors.count("Traceback")) == (2, 0)
        assert "error: the server at" in errors
        if how == "hangs":
            os.killpg(server.process.pid, signal.SIGCONT)
        else:
            server.start()
        process = start_run(server.uri)
        _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    store = connect(server.uri)
    (parent,) = search_runs(store, {Tag.KIND: "cv"})
    folds = search_runs(store, {Tag.KIND: "fold"})
    assert [run.info.status for run in (parent, *folds)] == ["FINISHED"] * 4
    for fold in folds:
        history = store.client.get_metric_history(fold.info.run_id, "train/loss")
        assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]
    assert len(store.client.search_logged_models([parent.info.experiment_id])) == 3
