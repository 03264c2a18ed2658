"""What a run leaves in MLflow, and how it is read back."""

from __future__ import annotations

import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import uuid
from contextlib import closing

import mlflow
import numpy as np
import pandas as pd
import pytest
from sqlalchemy import create_engine, text

from bench.errors import BadSetting, StoreError, UnknownName
from bench.tracking import (
    Store,
    check_reachable,
    connect,
    find_run,
    note_ranks,
    open_run,
    read_table,
    records,
    runs_with,
    store_uri,
    ui_command,
    without_password,
)

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}


def test_the_store_is_the_one_given_then_the_environment_then_this_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri() == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert store_uri() == "http://elsewhere"
    assert store_uri("sqlite:///given.db") == "sqlite:///given.db"


def test_a_run_and_its_folds_are_read_back(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.settings({"model.name": "unet"})
        with run.child("fold 0", {"bench.fold": "0"}) as fold:
            fold.metrics({"train/loss": 0.5}, 1)
        run.table("cases", pd.DataFrame({"case": ["007", "b"], "dice": [0.5, math.nan]}))
        run.metrics({"dice": 0.5})
    (record,) = records(store)
    assert (record.name, record.settings["model.name"], record.metrics["dice"]) == ("mine", "unet", 0.5)
    assert record.cases["case"].tolist() == ["007", "b"]
    assert math.isnan(record.cases["dice"][1])
    child = store.client.search_runs([run.experiment_id], "tags.`bench.kind` = 'fold'")[0]
    assert child.data.tags["mlflow.parentRunId"] == run.run_id
    assert [m.step for m in store.client.get_metric_history(child.info.run_id, "train/loss")] == [1]


def test_the_slices_of_a_presence_run_are_read_with_it_and_no_others(store):
    slices = pd.DataFrame(
        {"case": ["007", "007"], "slice": [1, 2], "truth": [False, True], "called": [True, True]}
    )
    for name, task in (("outlines", "segmentation"), ("calls", "presence")):
        with open_run(store, name, "lgg", TAGS | {"bench.task": task}) as run:
            run.table("cases", pd.DataFrame({"case": ["007"]}))
            run.table("slices", slices)
    found = {record.name: record.slices for record in records(store)}
    assert found["outlines"] is None
    pd.testing.assert_frame_equal(found["calls"], slices)


def test_ranks_are_noted_on_runs_that_have_ended_the_last_one_counts(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.metrics({"dice": 0.5})
    note_ranks(store, {run.run_id: {"rank": 1, "rank_first": 0.75}})
    note_ranks(store, {run.run_id: {"rank": 2, "rank_first": math.nan}})
    values = store.client.get_run(run.run_id).data.metrics
    assert (values["rank"], values["dice"]) == (2, 0.5)
    assert math.isnan(values["rank_first"])
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("raised", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FAILED"), (ValueError, "FAILED")],
)
def test_a_run_ends_as_its_block_ends(store, raised, status):
    try:
        with open_run(store, "mine", "lgg", TAGS) as run, run.child("fold 0") as fold:
            fold.table("cases", pd.DataFrame({"case": ["a"]}))
            run.table("cases", pd.DataFrame({"case": ["a"]}))
            if raised:
                raise raised
    except (KeyboardInterrupt, SystemExit, ValueError):
        pass
    assert store.client.get_run(run.run_id).info.status == status
    assert store.client.get_run(fold.run_id).info.status == status
    assert read_table(store, store.client.get_run(fold.run_id), "cases")["case"].tolist() == ["a"]
    assert len(records(store)) == (0 if raised else 1)


def test_an_infinite_metric_cannot_win_a_sort(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.metrics({"a": math.inf, "b": math.nan, "c": 1.0})
    metrics = store.client.get_run(run.run_id).data.metrics
    assert math.isnan(metrics["a"])
    assert math.isnan(metrics["b"])
    assert metrics["c"] == 1


def test_the_run_that_mlflow_run_opened_becomes_the_parent(store, monkeypatch):
    opened = store.client.create_run(store.experiment("theirs"))
    store.client.log_param(opened.info.run_id, "model", "unet")  # as the launcher does for each -P
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    with open_run(store, "mine", "lgg", TAGS) as run:
        assert "MLFLOW_RUN_ID" not in os.environ  # or a child process would close the parent
        run.settings({"model.name": "unet"})
    assert run.run_id == opened.info.run_id
    found = store.client.get_run(run.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "mine")


def test_more_parameters_than_one_batch_takes(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.settings({f"p{i}": i for i in range(150)} | {"long": "x" * 9000})
    params = store.client.get_run(run.run_id).data.params
    assert len(params) == 151
    assert len(params["long"]) == 6000


def test_a_run_is_found_by_name_by_id_and_by_the_start_of_it(store):
    with open_run(store, "first", "lgg", TAGS) as run:
        pass
    for wanted in ("first", run.run_id, run.run_id[:8]):
        assert find_run(store, wanted).info.run_id == run.run_id
    with pytest.raises(UnknownName, match="Did you mean 'first'"):
        find_run(store, "frist")


@pytest.mark.parametrize("name", ["Anna's unet", 'a 5" disc'])
def test_a_name_may_have_quotes(store, name):
    with open_run(store, name, "lgg", TAGS) as run, run.child(f"{name} fold"):
        pass
    assert find_run(store, name).info.run_id == run.run_id
    assert [found.info.run_id for found in runs_with(store, {"mlflow.runName": name})] == [run.run_id]


def test_a_name_with_both_kinds_of_quotes_is_refused_in_a_sentence(store):
    with pytest.raises(BadSetting, match="has both kinds of quotes"):
        find_run(store, "Anna's 5\" disc")


def test_the_newest_of_runs_with_one_name_is_found(store):
    for _ in range(2):
        with open_run(store, "same", "lgg", TAGS) as run:
            pass
    assert find_run(store, "same").info.run_id == run.run_id


def test_a_lost_table_is_named(store):
    with open_run(store, "mine", "lgg", TAGS):
        pass
    with pytest.raises(StoreError, match=r"mine .* has lost its table cases.csv"):
        records(store)


def test_the_data_set_is_an_input_of_the_run(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.data("lgg", "abc123", {"patients": 88})
    (given,) = store.client.get_run(run.run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("lgg", "abc123")


def test_images_show_what_was_drawn(store):
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[1, 2] = (0, 229, 160)
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.image("overlays/best", pixels)
    path = store.client.download_artifacts(run.run_id, "overlays/best.png")
    assert (mlflow.artifacts.load_image(path).size) == (5, 4)
    assert np.array_equal(np.asarray(mlflow.artifacts.load_image(path).convert("RGB")), pixels)


def test_every_experiment_has_its_leaderboard_in_the_ui(store):
    store.experiment("lgg")
    assert list(store.views()) == ["lgg"]
    assert "viewStateShareKey=leaderboard" in store.views()["lgg"]


def test_the_same_experiment_is_used_again(store):
    assert store.experiment("lgg") == store.experiment("lgg")


def test_a_deleted_experiment_is_taken_back(store):
    made = store.experiment("lgg")
    store.client.delete_experiment(made)
    assert store.experiment("lgg") == made


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "postgresql://nobody@127.0.0.1:9/none", "nonsense://x", "postgresql://h:port/x"]
)
def test_a_store_that_cannot_be_used_is_one_sentence(uri):
    with pytest.raises(StoreError, match=uri.partition("@")[0].replace("/", ".")) as caught:
        connect(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:9", "postgresql://me:s%40cret@127.0.0.1:9/x"])
def test_a_password_is_not_shown(uri):
    with pytest.raises(StoreError, match=r"//me:\*\*\*@127\.0\.0\.1:9") as caught:
        connect(uri)
    assert "cret" not in str(caught.value)
    shown = Store(f"{uri}/a:b@c", None).address
    assert shown == without_password(shown) == without_password(uri) + "/a:b@c"


@pytest.mark.parametrize(
    ("uri", "driver", "way_out"),
    [
        ("postgresql://127.0.0.1:9/x", "psycopg", r"pip install 'medseg-bench\[postgres\]'"),
        ("mysql+pymysql://127.0.0.1:9/x", "pymysql", "pip install pymysql"),
    ],
)
def test_a_driver_that_is_not_installed_is_named_with_what_to_install(uri, driver, way_out, monkeypatch):
    monkeypatch.setitem(sys.modules, driver, None)  # as if it were not there
    with pytest.raises(StoreError, match=rf"needs a driver \(.*{driver}.*\): {way_out}"):
        check_reachable(uri, "--storage")


def test_the_option_that_named_a_database_is_the_way_out():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreError, match=rf"nobody answers at http://127\.0\.0\.1:{port} .*another --storage"):
        check_reachable(f"http://127.0.0.1:{port}", "--storage")


def test_what_is_no_server_is_not_knocked_at(tmp_path):
    check_reachable(f"sqlite:///{tmp_path / 'mine.db'}", "--storage")
    assert not list(tmp_path.iterdir())


def test_the_ui_listens_on_the_host_it_was_given(store):
    command, environment = ui_command(store, "127.0.0.1", 5123)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == store.uri
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


SLEEPER = """
    import signal, sys, time
    from bench.cli import _as_interrupt
    from bench.tracking import connect, open_run
    signal.signal(signal.SIGTERM, _as_interrupt)
    with open_run(connect(sys.argv[1]), "sleeper", "lgg", {}) as run:
        print(run.run_id, flush=True)
        time.sleep(60)
"""


def test_a_terminated_process_leaves_its_run_killed(store):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEPER), store.uri],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert store.client.get_run(run_id).info.status == "KILLED"


CONNECT = "import sys; from bench.tracking import connect; print(connect(sys.argv[1]).experiment('lgg'))"


def test_processes_that_meet_a_new_store_make_one(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CONNECT, uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    ends = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ends
    assert len({out.strip() for out, _ in ends}) == 1


def test_a_store_whose_maker_was_killed_is_made_anew(tmp_path):
    file, making, broken = (tmp_path / name for name in ("mlflow.db", "mlflow.making", "broken.db"))
    for half in (file, broken):
        with closing(sqlite3.connect(half)) as database:
            database.execute("CREATE TABLE datasets (half INTEGER)")
    with pytest.raises(StoreError, match="cannot be used"):
        connect(f"sqlite:///{broken}")
    making.touch()
    assert connect(f"sqlite:///{file}").experiment("lgg")
    assert not making.exists()
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.fixture
def empty_database():
    """A new database of the PostgreSQL server that `POSTGRES_URL` names, such as postgresql://me:secret@host."""
    server = os.environ.get("POSTGRES_URL", "")
    if not server:
        pytest.skip("POSTGRES_URL does not name a PostgreSQL server where databases may be made")
    name = f"bench_{uuid.uuid4().hex}"
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield f"{server}/{name}"
        connection.execute(text(f"DROP DATABASE {name}"))
    engine.dispose()


STORAGE = """
    import sys
    from bench.experiments.search.study import storage_at
    print("ready", flush=True)
    input()
    with storage_at(sys.argv[1]) as storage:
        print(storage.get_all_studies())
"""


def test_workers_that_meet_an_empty_database_of_a_server_all_open_it(empty_database):
    command = [sys.executable, "-c", textwrap.dedent(STORAGE), empty_database]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for process in started:  # all have imported what they need
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=120) for process in started]
    assert [(process.returncode, out.strip()) for process, (out, _) in zip(started, ends, strict=True)] == [
        (0, "[]")
    ] * 3, ends
