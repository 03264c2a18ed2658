"""Writing a run: parameters, metrics, tables, pictures, models, and how it ended."""

from __future__ import annotations

import getpass
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import mlflow
import numpy as np
import pandas as pd
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
from numpy.typing import NDArray

from bench.errors import StoreError
from bench.tracking.outbox import Outbox, short_timeouts, to_stderr
from bench.tracking.store import Store, quoted, root_cause
from bench.tracking.tags import FOLD, KIND, PARENT

PARAM_LIMIT = 6000  # characters that MLflow takes


class MlflowRecorder:
    """Writes one run. Implements `bench.types.Recorder`.

    What a method was given is in the store when it returns. Metrics may instead wait in the outbox; all else that
    the store does not take raises.
    """

    def __init__(
        self, store: Store, run_id: str, experiment_id: str, outbox: Outbox, *, again: bool = False
    ) -> None:
        self.store, self.client, self.outbox = store, store.client, outbox
        self.run_id, self.experiment_id = run_id, experiment_id
        self.again = again
        told = _logged(store, run_id) if again else frozenset()
        self.known = told | outbox.waiting(run_id)  # metrics that need not be told again

    def settings(self, values: Mapping[str, Any]) -> None:
        there = self.client.get_run(self.run_id).data.params if self.again else {}  # they cannot be changed
        params = [Param(k, str(v)[:PARAM_LIMIT]) for k, v in values.items() if k not in there]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """One batch. Infinity would win every descending sort in the UI, so it is written as NaN."""
        now = int(time.time() * 1000)
        finite = {k: float(v) if math.isfinite(v) else math.nan for k, v in values.items()}
        new = [Metric(k, v, now, step) for k, v in finite.items() if (k, step) not in self.known]
        self.outbox.send(self.run_id, new)

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
        outputs = self.client.get_run(self.run_id).outputs
        if self.again and outputs and outputs.model_outputs:
            return  # it was logged before the run was broken off
        pixels = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, channels))
        probabilities = TensorSpec(np.dtype(np.float32), (-1, -1, -1))
        logged = self.client.create_logged_model(self.experiment_id, name="model", source_run_id=self.run_id)
        with tempfile.TemporaryDirectory() as workspace:
            target = Path(workspace) / "model"
            with warnings.catch_warnings():  # the signature says what an input example would
                warnings.filterwarnings("ignore", ".*input example was not provided", UserWarning)
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
        inputs = self.client.get_run(self.run_id).inputs
        if self.again and inputs and inputs.dataset_inputs:
            return
        dataset = Dataset(name, digest, "local", json.dumps({"uri": name}), profile=json.dumps(profile))
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "cv")])])

    def end(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)

    def break_off(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """End before its time; a store that cannot be told must not hide what went wrong."""
        try:
            with short_timeouts():
                if tags:
                    self.tags(tags)
                self.end(status)
        except (MlflowException, StoreError):
            self.outbox.say(f"{self.store.address} could not be told that run {self.run_id} is {status}")

    @contextmanager
    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Self]:
        """A run below this one; it ends as the block ends."""
        all_tags = {KIND: FOLD, "mlflow.parentRunId": self.run_id, **(tags or {})}
        before = self._children(name) if self.again else []
        for run in before[:1]:
            reopen(self.store, run)
        run = before[0] if before else self.client.create_run(self.experiment_id, run_name=name, tags=all_tags)
        child = type(self)(self.store, run.info.run_id, self.experiment_id, self.outbox, again=bool(before))
        with _lifetime(child):
            yield child

    def _children(self, name: str) -> list[Run]:
        """Runs below this one that have this name, the newest first."""
        where = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.run_name = {quoted(name)}"
        return list(self.client.search_runs([self.experiment_id], where))


@contextmanager
def open_run(
    store: Store,
    name: str,
    experiment: str,
    tags: Mapping[str, str],
    *,
    say: Callable[[str], None] = to_stderr,
    again: Run | None = None,
) -> Iterator[MlflowRecorder]:
    """A parent run: FINISHED, FAILED or KILLED as the block ends. Adopts the run that `mlflow run` has opened.

    `again` is a run that was broken off, to go on with: what it has logged is not logged twice.

    Metrics that the store does not take must not end a run: `say` hears when they wait and when they have arrived.
    If some never do, they are in `bench-unsent-<run id>.jsonl` in this folder (not in a cache: people empty those)
    and `StoreError` says so, as it does where the store fails otherwise.
    """
    tags = {KIND: PARENT, **tags}
    adopted = os.environ.pop("MLFLOW_RUN_ID", None)  # popped, or worker processes would close the parent
    if again is not None:
        reopen(store, again)
        run = again
    elif adopted:
        run = store.client.get_run(adopted)
    else:
        experiment_id = store.experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment)
        origin = {"mlflow.user": getpass.getuser(), "mlflow.source.name": "bench", "mlflow.source.type": "LOCAL"}
        run = store.client.create_run(experiment_id, run_name=name, tags={**origin, **tags})
    outbox = Outbox(store, Path(f"bench-unsent-{run.info.run_id}.jsonl").absolute(), say)
    recorder = MlflowRecorder(store, run.info.run_id, run.info.experiment_id, outbox, again=again is not None)
    if adopted and again is None:
        recorder.tags({"mlflow.runName": name, **tags})
    try:
        with _lifetime(recorder), _delivery(outbox), _system_metrics(recorder):
            yield recorder
    except MlflowException as error:
        raise StoreError(
            f"the tracking store {store.address} failed in the middle of run {recorder.run_id}: {root_cause(error)}. "
            "See to it, then start the run again."
        ) from error


def reopen(store: Store, run: Run) -> None:
    """Mark a run that was broken off as running again."""
    store.client.update_run(run.info.run_id, status="RUNNING")
    if "bench.error" in run.data.tags:
        store.client.delete_tag(run.info.run_id, "bench.error")


def _logged(store: Store, run_id: str) -> frozenset[tuple[str, int]]:
    """Names and steps of the metrics that a run has of us."""
    names = [n for n in store.client.get_run(run_id).data.metrics if not n.startswith("system/")]
    return frozenset((n, metric.step) for n in names for metric in store.client.get_metric_history(run_id, n))


def note_failure(store: Store, name: str, experiment: str, tags: Mapping[str, str], problem: str) -> None:
    """A run that was refused before it could begin, so that the store knows of it: FAILED, with what was wrong."""
    all_tags = {KIND: PARENT, "bench.error": problem[:PARAM_LIMIT], **tags}
    run = store.client.create_run(store.experiment(experiment), run_name=name, tags=all_tags)
    store.client.set_terminated(run.info.run_id, "FAILED")


def note_ranks(store: Store, standings: Mapping[str, Mapping[str, float]]) -> None:
    """Metrics of runs that have ended, such as their rank: what they mean changes as others come."""
    now = int(time.time() * 1000)
    for run_id, values in standings.items():
        finite = {k: float(v) if math.isfinite(v) else math.nan for k, v in values.items()}
        store.client.log_batch(run_id, [Metric(k, v, now, 0) for k, v in finite.items()])


@contextmanager
def _lifetime(recorder: MlflowRecorder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        recorder.break_off("KILLED")
        raise
    except BaseException as error:
        recorder.break_off("FAILED", {"bench.error": f"{type(error).__name__}: {error}"[:PARAM_LIMIT]})
        raise
    recorder.end("FINISHED")


@contextmanager
def _delivery(outbox: Outbox) -> Iterator[None]:
    """At the end everything is in the store, or it is said where it is."""
    try:
        yield
    except BaseException:
        if problem := outbox.close():
            outbox.say(problem)
        raise
    if problem := outbox.close():
        raise StoreError(problem)


@contextmanager
def _system_metrics(recorder: MlflowRecorder) -> Iterator[None]:
    """CPU, memory and GPU load of the whole run, every ten seconds."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(recorder.run_id, tracking_uri=recorder.store.uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        with short_timeouts():
            monitor.finish()  # type: ignore[no-untyped-call]
