"""Where runs are kept: opening a store, its experiments and their leaderboard in MLflow's UI."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from bench.errors import BadSetting, StoreError
from bench.tracking.ui import VIEW, leaderboard_view

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


DRIVERS = {
    "postgresql": "pip install 'medseg-bench[postgres]', and write postgresql://...",
    "mysql": "pip install pymysql, and write mysql+pymysql://...",
}


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
        self.client.set_experiment_tag(made, f"mlflow.sharedViewState.{VIEW}", leaderboard_view())
        return made

    @property
    def address(self) -> str:
        """The URI as it may be shown."""
        return without_password(self.uri)

    @property
    def folder(self) -> Path | None:
        """Where a SQLite store lies; None for a server."""
        path = _sqlite_path(self.uri)
        return path and path.parent

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
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces tables and monitors
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it prints, it also raises
    uri = store_uri(uri)
    path = _sqlite_path(uri)
    check_reachable(uri, "--tracking-uri")
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # two processes that meet a new database break it
                client = _made(path, uri)
        else:
            client = _client(uri)
    except Exception as error:
        problem = str(error).strip().splitlines()[0]
        raise StoreError(
            f"the tracking store {without_password(uri)} cannot be used: {problem} Give another --tracking-uri."
        ) from error
    return Store(uri, client)


def _made(path: Path, uri: str) -> MlflowClient:
    """The client of a SQLite store, whose tables are made if it is new; what was half made is made anew."""
    making = path.with_suffix(".making")
    if making.exists():  # its maker was killed, and nobody has used it yet
        for end in ("", "-journal", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
    if path.exists():
        return _client(uri)
    making.touch()
    client = _client(uri)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=WAL")  # readers and a writer side by side
    making.unlink()
    return client


def check_reachable(uri: str, option: str) -> None:
    """Raise `StoreError` where a server does not answer, or its driver is missing; `option` is what names it.

    What stands on it would try for minutes before it says so, and at length.
    """
    server, shown = urlparse(uri), without_password(uri)
    kind = server.scheme.partition("+")[0]
    if kind not in PORTS:
        return
    try:
        engine = create_engine(uri) if kind in DRIVERS else None
        if server.hostname is not None:  # else a socket of this machine
            socket.create_connection((server.hostname, server.port or PORTS[kind]), timeout=5).close()
        if engine is not None:
            engine.connect().close()
            engine.dispose()
    except ImportError as error:
        raise StoreError(f"{shown} needs a driver ({error}): {DRIVERS[kind]}") from None
    except OSError as error:
        raise StoreError(
            f"nobody answers at {shown} ({error}). Start the server, or give another {option}."
        ) from None
    except (SQLAlchemyError, ValueError) as error:
        raise StoreError(
            f"{shown} cannot be used: {str(error).splitlines()[0]}. Give another {option}."
        ) from error


def without_password(uri: str) -> str:
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", uri)


def _client(uri: str) -> MlflowClient:
    client = MlflowClient(uri)  # mlflow.set_tracking_uri would write it into the environment of all that follows
    client.search_experiments(max_results=1)  # speaks to the store, and creates a SQLite one
    return cast(MlflowClient, RetryingClient(client))


class RetryingClient:
    """MLflow's client: a locked database is tried again, ever later, and a server that is lost is a `StoreError`.

    MLflow itself waits 20 seconds for a lock, and nothing has been written when it gives up; for a server it waits
    four minutes. Metrics are not tried again: they have an outbox, and the run goes on.
    """

    def __init__(self, client: MlflowClient, pauses: tuple[float, ...] = (1, 2, 4, 8)) -> None:
        self._client, self._pauses = client, pauses

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return partial(self._persist, found) if callable(found) else found

    def _persist(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        for pause in () if "metrics" in named else self._pauses:
            try:
                return call(*given, **named)
            except MlflowException as error:
                if isinstance(error.__context__, RequestException):
                    uri = without_password(self._client.tracking_uri)
                    raise StoreError(
                        f"nobody answers at {uri} any more ({root_cause(error)}). Start it again, then give the same "
                        "command: it goes on, and sends the metrics that wait in this folder."
                    ) from error
                if "database is locked" not in str(error):
                    raise
            time.sleep(pause)
        return call(*given, **named)


def quoted(value: str) -> str:
    """As MLflow's filters take it, which know no escapes. Raises `BadSetting`."""
    if "'" in value and '"' in value:
        raise BadSetting(f"{value} has both kinds of quotes, and MLflow cannot look for it. Use one of them.")
    return f'"{value}"' if "'" in value else f"'{value}'"


def root_cause(error: BaseException) -> str:
    """What was at the bottom, such as 'database is locked'; MLflow and what it stands on wrap it several times."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
