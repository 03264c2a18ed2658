"""Metrics on their way to the store: what it does not take now is kept, and sent again.

A run trains for hours, and no server stays up for ever. MLflow says with an `MlflowException` that a database is
locked or a server gone, but only after 20 seconds (SQLite) or 4 minutes (a server; measured on 3.17).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from bench.errors import StoreError
from bench.tracking.store import Store, root_cause

# MLflow reads these at every request. Two tries of 10 seconds, where it would make eight of 120.
BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


PAUSE = 10  # times as long as the vain attempt took: a store that hangs costs at most a tenth of a run


REFUSED = "INVALID_PARAMETER_VALUE"  # a name that MLflow does not take, or a deleted run: waiting mends neither


FIELDS = ("key", "value", "timestamp", "step")  # of a metric, as `file` has it


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Outbox:
    """The metrics of a run and its folds, sent in order; in `file`, one batch a line, those that must wait.

    A file that an earlier process has left is taken up. The store keeps one of two equal metrics (key, step, time
    and value), so a batch that arrived in part, or whose answer was lost, may be sent again.
    """

    def __init__(
        self,
        store: Store,
        file: Path,
        say: Callable[[str], None] = to_stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.file, self.say, self.clock = store, file, say, clock
        self._waiting = deque(_read(file) if file.exists() else [])
        self._failing, self._again = bool(self._waiting), 0.0
        self._one_at_a_time = Lock()  # folds may run at once

    def send(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Into the store, or into `file` until it can be reached. Raises `StoreError` for what it never takes."""
        with self._one_at_a_time:
            self._waiting.append((run_id, metrics))
            if self.clock() >= self._again:
                self._flush()
            else:
                self._keep()

    def waiting(self, run_id: str) -> frozenset[tuple[str, int]]:
        """Names and steps of the metrics that wait for a run."""
        return frozenset((m.key, m.step) for own, metrics in self._waiting if own == run_id for m in metrics)

    def close(self) -> str | None:
        """Try once more. If some must still wait: a sentence that says where they are and what to do."""
        with suppress(StoreError):  # what is refused waits as well, and is spoken of here
            self._flush()
        if not self._waiting:
            return None
        left = f"{sum(len(metrics) for _, metrics in self._waiting)} metrics did not reach {self.store.address}"
        if problem := self._keep():
            return f"{left}, and are lost: {self.file} cannot be written ({problem})."
        code = f"import bench.tracking as t; t.replay(t.connect({self.store.address!r}), {str(self.file)!r})"
        return f'{left}. They are in {self.file}; send them when it answers again: python -c "{code}"'

    def _flush(self) -> None:
        started = self.clock()
        try:
            with short_timeouts():
                while self._waiting:
                    run_id, metrics = self._waiting[0]
                    self.store.client.log_batch(run_id, metrics=metrics)
                    self._waiting.popleft()
        except Exception as error:  # MLflow wraps what it knows of; hours of training must not hang on the rest
            now = self.clock()
            self._again = now + PAUSE * (now - started)
            first, self._failing = not self._failing, True
            kept = f"only in memory ({problem})" if (problem := self._keep()) else f"in {self.file}"
            if isinstance(error, MlflowException) and error.error_code == REFUSED:
                raise StoreError(f"{self.store.address} refuses metrics of run {run_id}: {error}") from error
            if first:
                self.say(
                    f"{self.store.address} takes no metrics ({root_cause(error)}): they wait {kept}, the run goes on"
                )
        else:
            if self._failing:
                self.file.unlink(missing_ok=True)
                self.say(f"{self.store.address} takes metrics again: all that waited have arrived")
            self._failing, self._again = False, 0.0

    def _keep(self) -> OSError | None:
        """Write all that waits to `file`, as a whole or not at all; gives what was in the way."""
        rows = [
            {"run_id": run_id, "metrics": [{name: getattr(m, name) for name in FIELDS} for m in metrics]}
            for run_id, metrics in self._waiting
        ]
        draft = self.file.with_suffix(".draft")
        try:
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
            draft.replace(self.file)
        except OSError as problem:
            return problem
        return None


def replay(store: Store, file: Path | str) -> None:
    """Send what a run has left in a file, and remove the file. Raises `StoreError`."""
    if not Path(file).exists():
        raise StoreError(f"there is no file {file}: nothing waits in it to be sent.")
    if problem := Outbox(store, Path(file)).close():
        raise StoreError(problem)


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Inside, MLflow gives a server seconds, not minutes; what the user's environment says comes first."""
    ours = {name: value for name, value in BRIEF.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _read(file: Path) -> list[tuple[str, Sequence[Metric]]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["run_id"], [Metric(**values) for values in row["metrics"]]) for row in rows]
