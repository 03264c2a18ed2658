"""Writing runs: what is logged, how a run ends, and what a resumed run logs again."""

from __future__ import annotations

import math
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress

import mlflow
import numpy as np
import pandas as pd
import pytest

from bench.errors import StoreError
from bench.tracking import leaderboards, log_ranks, open_run, read_records, read_table
from bench.tracking.recorder import reopen

TAGS = {"bench.data": "d", "bench.split": "s", "bench.convention": "1", "bench.dataset": "lgg"}


def test_the_last_logged_rank_of_a_finished_run_counts(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.metrics({"dice": 0.5})
    log_ranks(store, {run.run_id: {"rank": 1, "rank_first": 0.75}})
    log_ranks(store, {run.run_id: {"rank": 2, "rank_first": math.nan}})
    values = store.client.get_run(run.run_id).data.metrics
    assert (values["rank"], values["dice"]) == (2, 0.5)
    assert math.isnan(values["rank_first"])
    assert store.client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("seconds", [0, 3600])
def test_ranks_are_current_after_the_clock_stood_still_or_was_set_back(store, monkeypatch, seconds):
    with open_run(store, "mine", "lgg", TAGS) as run:
        pass
    now = time.time()
    for ago, rank in ((0, 3), (seconds, 1), (seconds, 2)):
        monkeypatch.setattr(time, "time", lambda ago=ago: now - ago)
        log_ranks(store, {run.run_id: {"rank": rank, "rank_first": 1 / rank}})
        monkeypatch.undo()
        values = store.client.get_run(run.run_id).data.metrics
        assert (values["rank"], values["rank_first"]) == (rank, 1 / rank)


@pytest.mark.parametrize(
    ("raised", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FAILED"), (ValueError, "FAILED")],
)
def test_the_status_of_a_run_shows_how_its_block_ended(store, raised, status):
    caught = suppress(KeyboardInterrupt, SystemExit, ValueError)
    with caught, open_run(store, "mine", "lgg", TAGS) as run, run.child("fold 0") as fold:
        fold.table("cases", pd.DataFrame({"case": ["a"]}))
        run.table("cases", pd.DataFrame({"case": ["a"]}))
        if raised:
            raise raised
    assert store.client.get_run(run.run_id).info.status == status
    assert store.client.get_run(fold.run_id).info.status == status
    assert read_table(store, store.client.get_run(fold.run_id), "cases")["case"].tolist() == ["a"]
    assert len(read_records(store)) == (0 if raised else 1)


def test_an_infinite_metric_cannot_win_a_sort(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.metrics({"a": math.inf, "b": math.nan, "c": 1.0})
    metrics = store.client.get_run(run.run_id).data.metrics
    assert math.isnan(metrics["a"])
    assert math.isnan(metrics["b"])
    assert metrics["c"] == 1


def test_a_run_that_mlflow_run_opened_becomes_the_parent(store, monkeypatch):
    default = store.client.get_experiment_by_name("Default")  # `mlflow run` without --experiment-name
    opened = store.client.create_run(default.experiment_id)
    assert default.name not in leaderboards(store)  # `bench ui` does not open on an empty experiment
    store.client.log_param(opened.info.run_id, "model", "unet")  # as `mlflow run` does for each -P
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    with open_run(store, "mine", "lgg", TAGS) as run:
        assert "MLFLOW_RUN_ID" not in os.environ  # or a child process would close the parent
        run.settings({"model.name": "unet"})
    assert run.run_id == opened.info.run_id
    adopted = store.client.get_run(run.run_id)
    assert (adopted.info.status, adopted.info.run_name) == ("FINISHED", "mine")
    assert list(leaderboards(store)) == ["Default"]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda client, run_id: client.set_terminated(run_id), "already FINISHED"),
        (lambda client, run_id: client.set_tag(run_id, "bench.kind", "cv"), "a run of another command"),
        (lambda client, run_id: client.delete_run(run_id), "deleted"),
        (None, "not in sqlite:"),
    ],
)
def test_any_other_run_in_mlflow_run_id_is_refused_and_unchanged(store, monkeypatch, change, state):
    run_id = store.client.create_run(store.experiment("theirs"), run_name="theirs").info.run_id
    if change:
        change(store.client, run_id)
    before = store.client.get_run(run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id if change else "f" * 32)
    with (
        pytest.raises(StoreError, match=f"which is {state}.*unset MLFLOW_RUN_ID"),
        open_run(store, "my", "lgg", TAGS),
    ):
        pass
    assert store.client.get_run(run_id).to_dictionary() == before
    assert store.client.get_experiment_by_name("lgg") is None


def test_more_settings_than_fit_one_batch_are_logged(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.settings({f"p{i}": i for i in range(150)} | {"long": "x" * 9000})
    params = store.client.get_run(run.run_id).data.params
    assert len(params) == 151
    assert len(params["long"]) == 6000


def test_the_data_set_is_an_input_of_the_run(store):
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.data("lgg", "abc123", {"patients": 88})
    (logged,) = store.client.get_run(run.run_id).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("lgg", "abc123")


def test_a_logged_image_has_the_given_pixels(store):
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[1, 2] = (0, 229, 160)
    with open_run(store, "mine", "lgg", TAGS) as run:
        run.image("overlays/best", pixels)
    path = store.client.download_artifacts(run.run_id, "overlays/best.png")
    assert np.array_equal(np.asarray(mlflow.artifacts.load_image(path).convert("RGB")), pixels)


def test_a_resumed_run_does_not_log_settings_and_metrics_twice(store):
    with suppress(KeyboardInterrupt), open_run(store, "mine", "lgg", {}) as run:
        run.settings({"a": 1})
        with run.child("fold 0") as fold:
            for step in (1, 2):
                fold.metrics({"loss": step, "score": np.nan}, step)
            raise KeyboardInterrupt
    before = store.client.get_run(run.run_id)
    with open_run(store, "mine", "lgg", {}, resume=before) as run:
        assert store.client.get_run(run.run_id).info.status == "RUNNING"
        run.settings({"a": 2, "b": 3})
        with run.child("fold 0") as again, run.child("fold 1") as other:
            for step in (2, 3):
                again.metrics({"loss": 10 * step, "score": 0}, step)
    after = store.client.get_run(run.run_id)
    assert (run.run_id, again.run_id) == (before.info.run_id, fold.run_id) != (run.run_id, other.run_id)
    assert after.data.params == {"a": "1", "b": "3"}
    history = store.client.get_metric_history(fold.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1), (2, 2), (3, 30)]
    assert [m.step for m in store.client.get_metric_history(fold.run_id, "score")] == [1, 2, 3]
    for run_id in (run.run_id, fold.run_id, other.run_id):
        assert store.client.get_run(run_id).info.status == "FINISHED"


def test_a_resumed_run_does_not_log_its_model_twice(store, tmp_path):
    (tmp_path / "segmenter").mkdir()
    (tmp_path / "segmenter" / "model.json").write_text("{}")
    with open_run(store, "mine", "lgg", {}) as run:
        run.model(tmp_path / "segmenter", 3)
    with open_run(store, "mine", "lgg", {}, resume=store.client.get_run(run.run_id)) as again:
        again.model(tmp_path / "segmenter", 3)
    assert len(store.client.get_run(run.run_id).outputs.model_outputs) == 1


@pytest.mark.parametrize("step", ["log_model_artifacts", "finalize_logged_model", "log_outputs"])
def test_a_model_whose_logging_was_interrupted_is_logged_once(store, tmp_path, monkeypatch, step):
    (tmp_path / "segmenter").mkdir()
    (tmp_path / "segmenter" / "model.json").write_text("{}")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt), open_run(store, "mine", "lgg", {}) as run:
        patch.setattr(store.client, step, interrupted, raising=False)
        run.model(tmp_path / "segmenter", 3)
    with open_run(store, "mine", "lgg", {}, resume=store.client.get_run(run.run_id)) as again:
        again.model(tmp_path / "segmenter", 3)
    (model,) = store.client.search_logged_models([run.experiment_id])
    assert model.status == "READY"
    (output,) = store.client.get_run(run.run_id).outputs.model_outputs
    assert output.model_id == model.model_id


def test_a_reopened_run_has_no_error(store):
    with pytest.raises(ValueError, match="a bad day"), open_run(store, "mine", "lgg", {}) as run:
        raise ValueError("a bad day")
    assert "a bad day" in store.client.get_run(run.run_id).data.tags["bench.error"]
    reopen(store, store.client.get_run(run.run_id))
    assert "bench.error" not in store.client.get_run(run.run_id).data.tags


SLEEPER = """
    import signal, sys, time
    from bench.signals import interrupt_on_signals
    from bench.tracking import connect, open_run
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    interrupt_on_signals()
    with open_run(connect(sys.argv[1]), "sleeper", "lgg", {}) as run:
        print(run.run_id, flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_a_signal_ends_leaves_its_run_killed(store, number):
    """Its terminal is gone, as after a lost connection."""
    terminal, own = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEPER), store.uri], stdout=subprocess.PIPE, stderr=own, text=True
    )
    os.close(own)
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    os.close(terminal)
    child.send_signal(number)
    child.communicate(timeout=60)
    assert store.client.get_run(run_id).info.status == "KILLED"
