"""Writing a run: settings, metrics, tags, tables, images, models, and how the run ended."""

from __future__ import annotations

import getpass
import json
import math
import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Self

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

from bench.errors import StoreError
from bench.tracking.heartbeat import heartbeat, sign_of_life
from bench.tracking.outbox import Outbox
from bench.tracking.store import Store, quoted, root_cause, short_timeouts, to_stderr
from bench.tracking.tags import FOLD, PARENT, Tag

PARAM_LIMIT = 6000  # characters that MLflow accepts
FINISH_SECONDS = 20  # for the last load of the machine to arrive


class MlflowRecorder:
    """Writes one run. Implements `bench.types.Recorder`.

    A method returns once the store has what it was given. Only metrics may be in the outbox instead; every other
    failed write raises. A `resumed` run does not log again what it has logged before.
    """

    def __init__(
        self, store: Store, run_id: str, experiment_id: str, outbox: Outbox, *, resumed: bool = False
    ) -> None:
        self.store, self.client, self.outbox = store, store.client, outbox
        self.run_id, self.experiment_id = run_id, experiment_id
        self.resumed = resumed
        self.logged = (_logged_metrics(store, run_id) if resumed else frozenset()) | outbox.unsent(run_id)

    def settings(self, values: Mapping[str, Any]) -> None:
        logged = self.client.get_run(self.run_id).data.params if self.resumed else {}  # MLflow cannot change them
        params = [Param(k, str(v)[:PARAM_LIMIT]) for k, v in values.items() if k not in logged]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log one batch. Infinity would win every descending sort in the UI, so it is written as NaN.

        MLflow allows no brackets: `dice[core]` becomes `dice/core`, which its UI shows in a section of its own.
        """
        now = int(time.time() * 1000)
        allowed = {k.replace("[", "/").replace("]", ""): v for k, v in _finite(values).items()}
        new = [Metric(k, v, now, step) for k, v in allowed.items() if (k, step) not in self.logged]
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
        if self.resumed and outputs and outputs.model_outputs:
            return
        pixels = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, channels))
        probabilities = TensorSpec(np.dtype(np.float32), (-1, -1, -1))
        logged = self._create_model()
        with tempfile.TemporaryDirectory() as workspace:
            target = Path(workspace) / "model"
            with warnings.catch_warnings():  # the signature replaces an input example
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
        self.client.finalize_logged_model(logged.model_id, mlflow.entities.LoggedModelStatus.READY)
        self.client.log_outputs(self.run_id, [mlflow.entities.LoggedModelOutput(logged.model_id, step=0)])

    def _create_model(self) -> LoggedModel:
        """Create the model of this run, or return the one that an interrupted call has created."""

        def created() -> list[LoggedModel]:
            return list(self.client.search_logged_models([self.experiment_id], f"source_run_id = '{self.run_id}'"))

        models = created() if self.resumed else []
        if not models:
            new = self.client.create_logged_model(self.experiment_id, name="model", source_run_id=self.run_id)
            twins = created() if self.store.folder is None else []
            models = [new, *(model for model in twins if model.model_id != new.model_id)]
        for twin in models[1:]:  # made by the same request, whose answer was lost
            self.client.delete_logged_model(twin.model_id)
        return models[0]

    def data(self, name: str, digest: str, profile: Mapping[str, Any]) -> None:
        """Log the data set of the run as an MLflow input."""
        inputs = self.client.get_run(self.run_id).inputs
        if self.resumed and inputs and inputs.dataset_inputs:
            return
        dataset = Dataset(name, digest, "local", json.dumps({"uri": name}), profile=json.dumps(profile))
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "cv")])])

    def end(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status)

    def end_early(self, status: str, tags: Mapping[str, str] | None = None) -> None:
        """End a run that was interrupted or failed. A store that fails, too, does not hide the original error."""
        try:
            with short_timeouts():
                if tags:
                    self.tags(tags)
                self.end(status)
        except (MlflowException, StoreError):
            self.outbox.say(f"{self.store.address} could not record that run {self.run_id} is {status}")

    @contextmanager
    def child(
        self, name: str, tags: Mapping[str, str] | None = None, *, ended: str = "FINISHED"
    ) -> Iterator[Self]:
        """Open a run below this one, such as a fold; it is `ended`, FAILED or KILLED when the block ends."""
        all_tags = {Tag.KIND: FOLD, "mlflow.parentRunId": self.run_id, **(tags or {})}
        where = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.run_name = {quoted(name)}"
        before = list(self.client.search_runs([self.experiment_id], where)) if self.resumed else []
        if before:
            reopen(self.store, before[0])
        run = before[0] if before else _create_run(self.store, self.experiment_id, name, all_tags)
        child = type(self)(self.store, run.info.run_id, self.experiment_id, self.outbox, resumed=bool(before))
        with _lifetime(child, ended):
            yield child


@contextmanager
def open_run(
    store: Store,
    name: str,
    experiment: str,
    tags: Mapping[str, str],
    *,
    say: Callable[[str], None] = to_stderr,
    resume: Run | None = None,
) -> Iterator[MlflowRecorder]:
    """Open a parent run, which is FINISHED, FAILED or KILLED when the block ends.

    It is the interrupted run `resume`, or the run that `mlflow run` has opened, or a new one.

    Metrics that the store does not accept do not end the run: `say` receives a sentence when they are kept, and
    one when they have been sent. Those that stay unsent are in `bench-unsent-<run id>.jsonl` in the current folder
    (not in a cache, which people empty), and `StoreError` says so. Any other failure of the store also raises
    `StoreError`.
    """
    tags = {Tag.KIND: PARENT, **tags}
    adopted = _launched_run(store) if resume is None else None
    os.environ.pop("MLFLOW_RUN_ID", None)  # or worker processes would close the parent
    if resume is not None:
        reopen(store, resume)
        run = resume
    elif adopted is not None:
        run = adopted
    else:
        experiment_id = store.experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment, say)
        origin = {"mlflow.user": getpass.getuser(), "mlflow.source.name": "bench", "mlflow.source.type": "LOCAL"}
        run = _create_run(store, experiment_id, name, {**origin, **tags})
    outbox = Outbox(store, Path(f"bench-unsent-{run.info.run_id}.jsonl").absolute(), say)
    recorder = MlflowRecorder(store, run.info.run_id, run.info.experiment_id, outbox, resumed=resume is not None)
    if adopted is not None:
        store.add_view(run.info.experiment_id, experiment)
        recorder.tags({"mlflow.runName": name, **tags})
    try:
        with _lifetime(recorder), _delivery(outbox), _system_metrics(recorder), heartbeat(store, run.info.run_id):
            yield recorder
    except MlflowException as error:
        raise StoreError(
            f"the tracking store {store.address} failed during run {recorder.run_id}: {root_cause(error)}. "
            "Fix the store, then repeat the command."
        ) from error


def _launched_run(store: Store) -> Run | None:
    """Return the run that `mlflow run` has opened, or None. Raises `StoreError` for any other run."""
    if not (run_id := os.environ.get("MLFLOW_RUN_ID")):
        return None
    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        state = f"not in {store.address} ({root_cause(error)})"
    else:
        if run.info.lifecycle_stage != "active":
            state = "deleted"
        elif run.info.status != "RUNNING":
            state = f"already {run.info.status}"
        elif Tag.KIND in run.data.tags:
            state = "a run of another command"
        else:
            return run
    raise StoreError(
        f"MLFLOW_RUN_ID names run {run_id}, which is {state}. `mlflow run` sets it for a new run; elsewhere it "
        "is a leftover: `unset MLFLOW_RUN_ID`."
    )


def reopen(store: Store, run: Run) -> None:
    """Mark an interrupted run as running again."""
    _delete_twins(store, run)
    if store.folder is None and "mlflow.parentRunId" not in run.data.tags:
        store.client.set_tag(run.info.run_id, Tag.HEARTBEAT, sign_of_life())
    store.client.update_run(run.info.run_id, status="RUNNING")
    if Tag.ERROR in run.data.tags:
        store.client.delete_tag(run.info.run_id, Tag.ERROR)


def _create_run(store: Store, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
    """Create a run with a key of its own. MLflow repeats a request whose answer was lost: one run stays."""
    own = {Tag.KEY: uuid.uuid4().hex}
    if store.folder is None and "mlflow.parentRunId" not in tags:
        own[Tag.HEARTBEAT] = sign_of_life()
    run = store.client.create_run(experiment_id, run_name=name, tags={**tags, **own})
    _delete_twins(store, run)
    return run


def _delete_twins(store: Store, run: Run) -> None:
    """Delete the other runs that the request for this run has created on a server."""
    key = run.data.tags.get(Tag.KEY)
    if store.folder is not None or key is None:
        return
    for twin in store.client.search_runs([run.info.experiment_id], f"tags.`{Tag.KEY}` = '{key}'"):
        if twin.info.run_id != run.info.run_id:
            store.client.delete_run(twin.info.run_id)


def log_failure(store: Store, name: str, experiment: str, tags: Mapping[str, str], problem: str) -> None:
    """Log a FAILED run for one that was refused before it could start, with the reason."""
    all_tags = {Tag.KIND: PARENT, Tag.ERROR: problem[:PARAM_LIMIT], **tags}
    run = _create_run(store, store.experiment(experiment), name, all_tags)
    store.client.set_terminated(run.info.run_id, "FAILED")


def log_ranks(
    store: Store,
    ranks: Mapping[str, Mapping[str, float]],
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Log metrics of finished runs, by run id, that change when other runs finish; `tick(done, of)` follows each.

    MLflow shows the value with the latest time, so the time is later than that of every earlier value, even if the
    clock was set back.
    """
    for number, (run_id, values) in enumerate(ranks.items(), 1):
        earlier = store.client.get_metric_history(run_id, "rank")  # the others have the same times
        later = max([int(time.time() * 1000), *(1 + metric.timestamp for metric in earlier)])
        store.client.log_batch(run_id, [Metric(k, v, later, 0) for k, v in _finite(values).items()])
        tick(number, len(ranks))


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {k: float(v) if math.isfinite(v) else math.nan for k, v in values.items()}


def _logged_metrics(store: Store, run_id: str) -> frozenset[tuple[str, int]]:
    """Return names and steps of the metrics that a run has logged, without MLflow's own."""
    names = [n for n in store.client.get_run(run_id).data.metrics if not n.startswith("system/")]
    return frozenset((n, metric.step) for n in names for metric in store.client.get_metric_history(run_id, n))


@contextmanager
def _lifetime(recorder: MlflowRecorder, ended: str = "FINISHED") -> Iterator[None]:
    """End the run with the status that matches how the block ends."""
    try:
        yield
    except KeyboardInterrupt:
        recorder.end_early("KILLED")
        raise
    except BaseException as error:
        recorder.end_early("FAILED", {Tag.ERROR: f"{type(error).__name__}: {error}"[:PARAM_LIMIT]})
        raise
    recorder.end(ended)


@contextmanager
def _delivery(outbox: Outbox) -> Iterator[None]:
    """Send all metrics before the block ends, or report where the unsent ones are."""
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
    """Log CPU, memory and GPU load every ten seconds until the block ends."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(recorder.run_id, tracking_uri=recorder.store.uri)  # type: ignore[no-untyped-call]
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        with short_timeouts():  # a request under way may still wait longer, and the run does not wait for it
            last = Thread(target=monitor.finish, daemon=True)
            last.start()
            last.join(FINISH_SECONDS)
