"""The tracking store: the only module that knows MLflow.

A run of the suite is a parent run (one configuration: means, intervals, costs, out-of-fold tables) with a child
for every fold. Runs are addressed by explicit ids through `MlflowClient`; a run that `mlflow run` has opened is
adopted as the parent.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import sqlite3
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlparse

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray

from bench.errors import StoreError, UnknownName, did_you_mean
from bench.records import RunRecord

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces tables and monitors

PARENT, FOLD, EVALUATION = "cv", "fold", "evaluation"  # values of the tag bench.kind
PARAM_LIMIT = 6000
VIEW = "leaderboard"
VIEW_COLUMNS = (
    *(f"params.`{p}`" for p in ("model.name", "model.encoder", "loss.name")),
    *(f"metrics.`{m}`" for m in ("dice", "dice_low", "dice_high", "dice_median", "dice_positive_slices")),
    *(f"metrics.`{m}`" for m in ("hd95", "missed_slices", "cost/parameters", "cost/wall_seconds")),
)


def store_uri(given: str | None = None) -> str:
    """The store to use: the one given, else `MLFLOW_TRACKING_URI`, else `mlruns/mlflow.db` in this folder."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns/mlflow.db').resolve()}"


@dataclass(frozen=True)
class Store:
    """An open tracking store."""

    uri: str
    client: MlflowClient

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, made if it is not there."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        try:
            made = str(self.client.create_experiment(name, artifact_location=self._artifacts(name)))
        except MlflowException:  # another process was faster
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)
        self.client.set_experiment_tag(made, f"mlflow.sharedViewState.{VIEW}", _leaderboard_view())
        return made

    def views(self) -> dict[str, str]:
        """`{experiment: path of its leaderboard in MLflow's UI}`."""
        return {
            e.name: f"/#/experiments/{e.experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
            for e in self.client.search_experiments()
            if f"mlflow.sharedViewState.{VIEW}" in e.tags
        }

    def _artifacts(self, name: str) -> str | None:
        path = _sqlite_path(self.uri)
        return None if path is None else (path.parent / "artifacts" / name).as_uri()


def connect(uri: str | None = None) -> Store:
    """Open the store; a SQLite one is created if it is not there. Raises `StoreError`."""
    uri = store_uri(uri)
    server, path = urlparse(uri), _sqlite_path(uri)
    if server.scheme in ("http", "https"):
        _knock(uri, server.hostname or "", server.port or (443 if server.scheme == "https" else 80))
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # two processes that meet a new database break it
                fresh = not path.exists()
                client = _client(uri)
                if fresh:
                    with closing(sqlite3.connect(path)) as database:
                        database.execute("PRAGMA journal_mode=WAL")  # readers and a writer side by side
        else:
            client = _client(uri)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise StoreError(
            f"the tracking store {uri} cannot be used: {reason} Give another --tracking-uri."
        ) from error
    return Store(uri, client)


class MlflowRecorder:
    """Writes one run. Implements `bench.records.Recorder`."""

    def __init__(self, store: Store, run_id: str, experiment_id: str) -> None:
        self.store, self.client = store, store.client
        self.run_id, self.experiment_id = run_id, experiment_id

    def settings(self, values: Mapping[str, Any]) -> None:
        params = [Param(k, str(v)[:PARAM_LIMIT]) for k, v in values.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """One batch. Infinity would win every descending sort in the UI, so it is written as NaN."""
        now = int(time.time() * 1000)
        finite = {k: float(v) if math.isfinite(v) else math.nan for k, v in values.items()}
        self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, step) for k, v in finite.items()])

    def tags(self, values: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in values.items()])

    def table(self, name: str, rows: pd.DataFrame) -> None:
        self.client.log_text(self.run_id, rows.to_csv(index=False), f"{name}.csv")

    def image(self, name: str, pixels: NDArray[np.uint8]) -> None:
        self.client.log_image(self.run_id, pixels, artifact_file=f"{name}.png")

    def files(self, folder: Path, into: str) -> None:
        self.client.log_artifacts(self.run_id, str(folder), into)

    def model(self, folder: Path, channels: int) -> None:
        """Log weights and description as one MLflow model, which loads through the registry without unpickling."""
        pixels = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, channels))
        probabilities = TensorSpec(np.dtype(np.float32), (-1, -1, -1))
        logged = self.client.create_logged_model(self.experiment_id, name="model", source_run_id=self.run_id)
        with tempfile.TemporaryDirectory() as workspace:
            target = Path(workspace) / "model"
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", ".*input example was not provided", UserWarning
                )  # the signature says it
                mlflow.pyfunc.save_model(
                    path=str(target),
                    loader_module="bench.serving",
                    data_path=str(folder),
                    mlflow_model=mlflow.models.Model(model_id=logged.model_id),
                    signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
                    pip_requirements=["medseg-bench"],
                )
            self.client.log_model_artifacts(logged.model_id, str(target))
        self.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        self.client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=0)])

    def data(self, name: str, digest: str, profile: Mapping[str, Any]) -> None:
        """State the data set that the run reads, as an MLflow input."""
        dataset = Dataset(name, digest, "local", json.dumps({"uri": name}), profile=json.dumps(profile))
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "cv")])])

    @contextmanager
    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Self]:
        """A run below this one; it ends as the block ends."""
        all_tags = {"bench.kind": FOLD, "mlflow.parentRunId": self.run_id, **(tags or {})}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=all_tags)
        child = type(self)(self.store, run.info.run_id, self.experiment_id)
        with _lifetime(child):
            yield child


@contextmanager
def open_run(store: Store, name: str, experiment: str, tags: Mapping[str, str]) -> Iterator[MlflowRecorder]:
    """A parent run: FINISHED, FAILED or KILLED as the block ends. Adopts the run that `mlflow run` has opened."""
    tags = {"bench.kind": PARENT, **tags}
    adopted = os.environ.pop("MLFLOW_RUN_ID", None)  # popped, or worker processes would close the parent
    if adopted:
        run = store.client.get_run(adopted)
        recorder = MlflowRecorder(store, adopted, run.info.experiment_id)
        recorder.tags({"mlflow.runName": name, **tags})
    else:
        experiment_id = store.experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment)
        run = store.client.create_run(experiment_id, run_name=name, tags=dict(tags))
        recorder = MlflowRecorder(store, run.info.run_id, experiment_id)
    with _lifetime(recorder), _system_metrics(recorder):
        yield recorder


def records(store: Store, *, kinds: Sequence[str] = (PARENT,)) -> list[RunRecord]:
    """All finished runs of these kinds, with their per-patient tables."""
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    found: list[RunRecord] = []
    for kind in kinds:
        token = None
        while True:
            page = store.client.search_runs(
                experiments,
                f"tags.`bench.kind` = '{kind}' and attributes.status = 'FINISHED'",
                max_results=1000,
                page_token=token,
            )
            found += [_record(store, run) for run in page]
            token = page.token
            if not token:
                break
    return found


def find_run(store: Store, wanted: str) -> Run:
    """The run with this id, the start of one, or this name (the newest). Raises `UnknownName`."""
    experiments = [e.experiment_id for e in store.client.search_experiments()]
    runs = list(store.client.search_runs(experiments, max_results=5000))
    for run in runs:  # newest first
        if wanted == run.info.run_name or (len(wanted) >= 6 and run.info.run_id.startswith(wanted)):
            return run
    names = {run.info.run_name for run in runs}
    raise UnknownName(
        f"no run '{wanted}' in {store.uri}.{did_you_mean(wanted, names)} `bench leaderboard` shows names and ids."
    )


def model_folders(store: Store, run: Run, into: Path, *, fold: int | None = None) -> list[Path]:
    """Download the models of a run, one a fold, as folders that `checkpoint.load_model` reads."""
    client, run_id = store.client, run.info.run_id
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`bench.kind` = '{FOLD}'"
    )
    owners = {int(r.data.tags["bench.fold"]): r for r in children if r.info.status == "FINISHED"}
    if run.data.tags.get("bench.kind") == FOLD:
        owners = {int(run.data.tags["bench.fold"]): run}
    if fold is not None:
        owners = {n: r for n, r in owners.items() if n == fold}
    folders = []
    for number, owner in sorted(owners.items()):
        outputs = owner.outputs.model_outputs if owner.outputs else []
        if outputs:
            local = download_model(store, outputs[0].model_id, into / str(number))
            folders.append(next(local.rglob("model.json")).parent)
    if not folders:
        which = "" if fold is None else f" of fold {fold}"
        raise StoreError(f"run {run.info.run_name} ({run_id[:8]}) holds no model{which}. Choose a finished run.")
    return folders


def download_model(store: Store, model_id: str, into: Path) -> Path:
    """Copy a logged MLflow model into a new folder, where `mlflow.pyfunc.load_model` finds it too."""
    into.mkdir(parents=True)
    where = store.client.get_logged_model(model_id).artifact_location  # models:/ would ignore the store's address
    return Path(mlflow.artifacts.download_artifacts(where, dst_path=str(into), tracking_uri=store.uri))


def parent_of(store: Store, run: Run) -> Run:
    """The run itself, or for a fold the run it belongs to."""
    parent = run.data.tags.get("mlflow.parentRunId")
    return store.client.get_run(parent) if parent else run


def ui_command(store: Store, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command that serves MLflow's UI on this store, and its environment."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    return command, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def patients_of(store: Store, run: Run) -> set[str]:
    """Everyone who took part in a run, on whatever side of its folds."""
    return set(read_table(store, run, "split")["case"])


def read_table(store: Store, run: Run, name: str) -> pd.DataFrame:
    """A table that a run has logged. Raises `StoreError`."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = store.client.download_artifacts(run.info.run_id, f"{name}.csv", folder)
            return pd.read_csv(path, dtype={"case": str})
    except (MlflowException, OSError) as error:
        raise StoreError(
            f"run {run.info.run_name} ({run.info.run_id[:8]}) has lost its table {name}.csv. "
            "Delete the run in the UI, or put its artifacts back."
        ) from error


def _leaderboard_view() -> str:
    """MLflow's UI shows no metric columns by itself: a saved view with ours, ranked, folds left out.

    The format is not documented; this is what the UI of 3.17 writes when a view is saved by hand.
    """
    state = {
        "searchFilter": f"tags.`bench.kind` = '{PARENT}'",
        "orderByKey": "metrics.`dice`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(VIEW_COLUMNS),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
    }
    now = int(time.time() * 1000)
    return json.dumps({"name": "Leaderboard", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def _record(store: Store, run: Run) -> RunRecord:
    cases = read_table(store, run, "cases")
    return RunRecord(
        run.info.run_id, run.info.run_name or "", cases, run.data.params, run.data.metrics, dict(run.data.tags)
    )


def _client(uri: str) -> MlflowClient:
    client = MlflowClient(uri)  # mlflow.set_tracking_uri would write it into the environment of all that follows
    client.search_experiments(max_results=1)  # speaks to the store, and creates a SQLite one
    return client


def _knock(uri: str, host: str, port: int) -> None:
    """MLflow itself would try for minutes before it says that nobody is there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise StoreError(
            f"no tracking server answers at {uri} ({error}). Start it, or give another --tracking-uri."
        ) from None


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


@contextmanager
def _lifetime(recorder: MlflowRecorder) -> Iterator[None]:
    def end(status: str) -> None:
        recorder.client.set_terminated(recorder.run_id, status)

    try:
        yield
    except KeyboardInterrupt:
        end("KILLED")
        raise
    except BaseException as error:
        recorder.tags({"bench.error": f"{type(error).__name__}: {error}"[:PARAM_LIMIT]})
        end("FAILED")
        raise
    end("FINISHED")


@contextmanager
def _system_metrics(recorder: MlflowRecorder) -> Iterator[None]:
    """CPU, memory and GPU load of the whole run, every ten seconds."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(recorder.run_id, tracking_uri=recorder.store.uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]
