"""Metrics on their way to the store: those that it does not accept now are kept in a file and sent later.

A run trains for hours, and servers fail. MLflow reports a locked database or a lost server as `MlflowException`,
but only after 20 seconds (SQLite) or 4 minutes (a server; measured with MLflow 3.17).
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from bench.errors import StoreError
from bench.tracking.store import Store, root_cause, short_timeouts, to_stderr

PAUSE_FACTOR = 10  # times the length of the failed attempt: a store that hangs costs at most a tenth of a run
REFUSED = "INVALID_PARAMETER_VALUE"  # an invalid name or a deleted run: waiting does not help
FIELDS = ("key", "value", "timestamp", "step")  # of a metric in the file


class Outbox:
    """Sends the metrics of a run and its folds in order. `file` keeps unsent batches, one per line.

    Batches that an earlier process left in `file` are sent first. The store keeps one of two equal metrics (key,
    step, time and value), so a batch may be sent again after it arrived in part or its answer was lost.
    """

    def __init__(
        self,
        store: Store,
        file: Path,
        say: Callable[[str], None] = to_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.file, self.say, self.clock = store, file, say, clock
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self._batches: deque[tuple[str, Sequence[Metric]]] = deque(
            (row["run_id"], [Metric(**values) for values in row["metrics"]]) for row in rows
        )
        self._failing, self._retry_at = bool(self._batches), 0.0
        self._lock = Lock()  # folds may run in parallel

    def send(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Send metrics to the store, or keep them in `file`. Raises `StoreError` if it will never accept them."""
        with self._lock:
            self._batches.append((run_id, metrics))
            if self.clock() >= self._retry_at:
                self._flush()
            else:
                self._save()

    def unsent(self, run_id: str) -> frozenset[tuple[str, int]]:
        """Return names and steps of the unsent metrics of a run."""
        return frozenset((m.key, m.step) for owner, metrics in self._batches if owner == run_id for m in metrics)

    def close(self) -> str | None:
        """Try to send once more. Return a sentence on where unsent metrics are and how to send them, or None."""
        with suppress(StoreError):  # refused metrics stay unsent, and the sentence names them too
            self._flush()
        if not self._batches:
            return None
        count = f"{sum(len(metrics) for _, metrics in self._batches)} metrics did not reach {self.store.address}"
        if problem := self._save():
            return f"{count} and are lost: {self.file} cannot be written ({problem})."
        code = f"import bench.tracking as t; t.replay(t.connect({self.store.address!r}), {str(self.file)!r})"
        return f'{count}. They are in {self.file}. Send them once the store answers again: python -c "{code}"'

    def _flush(self) -> None:
        started = self.clock()
        try:
            with short_timeouts():
                while self._batches:
                    run_id, metrics = self._batches[0]
                    self.store.client.log_batch(run_id, metrics=metrics)
                    self._batches.popleft()
        except Exception as error:  # MLflow does not wrap every error, and none may end hours of training
            now = self.clock()
            self._retry_at = now + PAUSE_FACTOR * (now - started)
            first, self._failing = not self._failing, True
            where = f"only in memory ({problem})" if (problem := self._save()) else f"in {self.file}"
            if isinstance(error, MlflowException) and error.error_code == REFUSED:
                raise StoreError(f"{self.store.address} refuses metrics of run {run_id}: {error}") from error
            if first:
                self.say(
                    f"{self.store.address} accepts no metrics ({root_cause(error)}): they are kept {where}, and "
                    "the run continues"
                )
        else:
            if self._failing:
                self.file.unlink(missing_ok=True)
                self.say(f"{self.store.address} accepts metrics again: all that were kept have been sent")
            self._failing, self._retry_at = False, 0.0

    def _save(self) -> OSError | None:
        """Write all unsent batches to `file`, completely or not at all. Return the error that prevented it."""
        rows = [
            {"run_id": run_id, "metrics": [{name: getattr(m, name) for name in FIELDS} for m in metrics]}
            for run_id, metrics in self._batches
        ]
        draft = self.file.with_suffix(".draft")
        try:
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
            draft.replace(self.file)
        except OSError as problem:
            return problem
        return None


def replay(store: Store, file: Path | str) -> None:
    """Send the metrics that a run left in a file, and remove the file. Raises `StoreError`."""
    if not Path(file).exists():
        raise StoreError(
            f"there is no file {file}. Give the file that the run named, bench-unsent-<run id>.jsonl."
        )
    if problem := Outbox(store, Path(file)).close():
        raise StoreError(problem)
