"""Opening a tracking store, and an MLflow client that copes with locks and lost servers."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service import utils as tracking_cache
from requests import RequestException
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from bench.errors import BadSetting, StoreError
from bench.files import explain, lock_if_writable
from bench.tracking.sqlite import (
    apply_moves,
    copy_database,
    create_database,
    find_moves,
    is_in_use,
    sqlite_file,
)
from bench.tracking.ui import experiment_tags, outdated

# MLflow reads these at every request. Six attempts of 30 seconds, not eight of 120: a server has a minute to
# come back. What has to be quick (a first contact, metrics, the end of a run) gets two attempts of 10 seconds.
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
SLOW = 2.0  # seconds for one answer, above which a user is warned: a run makes a hundred requests and more
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}
DRIVERS = {
    "postgresql": "pip install 'medseg-bench[postgres]', and write postgresql://...",
    "mysql": "pip install pymysql, and write mysql+pymysql://...",
}
NOT_UNIQUE = ("UNIQUE constraint failed", "duplicate key value", "Duplicate entry")  # SQLite, PostgreSQL, MySQL
UNAVAILABLE = "TEMPORARILY_UNAVAILABLE"  # what MLflow calls every failed operation of a database
READING = ("get_", "search_", "download_")  # methods that write nothing
UNWRITABLE = ("disk is full", "readonly database", "disk I/O error", "unable to open database")  # SQLite


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def store_uri(uri: str | None = None) -> str:
    """Return `uri`, else `MLFLOW_TRACKING_URI`, else that of `mlruns/mlflow.db` in the current folder."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlruns/mlflow.db').resolve()}"


@dataclass(frozen=True)
class Store:
    """An open tracking store."""

    uri: str
    client: MlflowClient
    refusal: str = ""  # of a store that can only be read: why nothing can be logged

    def experiment(self, name: str, say: Callable[[str], None] = to_stderr) -> str:
        """Return the id of the experiment `name`. Create or, which `say` tells, restore it if necessary."""
        experiment, tags = self.client.get_experiment_by_name(name), experiment_tags(name)
        if experiment is None:
            place = (self.folder / "artifacts" / _folder_name(name)).as_uri() if self.folder else None
            try:
                return str(self.client.create_experiment(name, artifact_location=place, tags=tags))
            except MlflowException:  # another process has just created it
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            deleted = self._deleted_runs(experiment.experiment_id)
            try:
                self.client.restore_experiment(experiment.experiment_id)
            except MlflowException:  # another process has just restored it
                if self.client.get_experiment(experiment.experiment_id).lifecycle_stage == "deleted":
                    raise
            for run in deleted:  # MLflow restores them with their experiment
                self.client.delete_run(run)
            say(f"experiment {name} was deleted and is restored; its {len(deleted)} earlier runs stay deleted")
        self._set_tags(experiment, tags)
        return str(experiment.experiment_id)

    def add_view(self, experiment_id: str, data: str) -> None:
        """Give an experiment that `experiment` did not create a leaderboard and a description of `data`."""
        self._set_tags(self.client.get_experiment(experiment_id), experiment_tags(data))

    def _set_tags(self, experiment: Experiment, tags: Mapping[str, str]) -> None:
        for tag, value in outdated(tags, experiment.tags).items():
            self.client.set_experiment_tag(experiment.experiment_id, tag, value)

    def _deleted_runs(self, experiment_id: str) -> list[str]:
        search = partial(self.client.search_runs, [experiment_id], run_view_type=ViewType.DELETED_ONLY)
        page = search(max_results=1000)
        runs = list(page)
        while page.token:
            page = search(max_results=1000, page_token=page.token)
            runs += page
        return [run.info.run_id for run in runs]

    @property
    def address(self) -> str:
        """The URI without its password, for messages."""
        return without_password(self.uri)

    @property
    def folder(self) -> Path | None:
        """The folder of a SQLite store; None for a server."""
        path = sqlite_file(self.uri, "--tracking-uri")
        return path and path.parent


def connect(uri: str | None = None) -> Store:
    """Open the store. Create a SQLite store that does not exist. Raises `StoreError`."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces tables and monitors
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it prints, it also raises
    uri = store_uri(uri)
    path = sqlite_file(uri, "--tracking-uri")
    check_reachable(uri, "--tracking-uri")
    try:
        if path is not None:
            return _open_sqlite(path, uri)
        return Store(uri, _open_client(uri))
    except Exception as error:
        problem = explain(error) if isinstance(error, OSError) else str(error).strip().splitlines()[0]
        raise StoreError(
            f"the tracking store {without_password(uri)} cannot be used: {problem} Give another --tracking-uri."
        ) from error


def connect_to_write(uri: str | None = None) -> Store:
    """Open the store as `connect` does. Raises `StoreError` also for one that can only be read."""
    store = connect(uri)
    if store.refusal:
        raise StoreError(store.refusal)
    return store


def _open_sqlite(path: Path, uri: str) -> Store:
    """Open a SQLite store: create it, record where a move has put its artifacts, or read a copy of it."""
    with lock_if_writable(Path(f"{path}.lock")) as writable:  # two processes that create one database break it
        if not writable or (path.exists() and not os.access(path, os.W_OK)):
            return _open_to_read(path, uri, "cannot be written to")
        try:
            create_database(path, _make_database)
            client = _open_client(uri)
            moves = find_moves(path, path.parent)
        except Exception as error:
            if not path.exists() or not _is_unwritable(error):  # SQLite writes even to read
                raise
            return _open_to_read(path, uri, "is on a full disk")
        if moves and is_in_use(path.parent):  # its process would write to a place that it cannot reach
            return _open_to_read(path, uri, "is in use under its former path")
        if moves:
            apply_moves(path, moves)
            tracking_cache._artifact_repos_cache.clear()  # of places by run, whichever store they were in
        return Store(uri, client)


def _open_to_read(path: Path, uri: str, reason: str) -> Store:
    copy = copy_database(path)
    refusal = f"the tracking store {uri} {reason}. Give another --tracking-uri, such as a copy of its folder."
    client = _open_client(f"sqlite:///{copy}", refusal)
    apply_moves(copy, find_moves(copy, path.parent))
    return Store(uri, client, refusal)


def _make_database(uri: str) -> None:
    """Create MLflow's tables and its default experiment, which `mlflow run` needs, beside the database."""
    place = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    database = SqlAlchemyStore(uri, place)  # type: ignore[no-untyped-call]
    database.engine.dispose()


def check_reachable(uri: str, option: str) -> None:
    """Raise `StoreError` if a server does not answer or its driver is missing.

    `option` is the CLI option that names the server. Without this check, MLflow and Optuna would try for minutes.
    """
    server, address = urlparse(uri), without_password(uri)
    scheme = server.scheme.partition("+")[0]
    if scheme not in PORTS:
        return
    try:
        engine = create_engine(uri) if scheme in DRIVERS else None
        if server.hostname is not None:  # else a socket of this machine
            socket.create_connection((server.hostname, server.port or PORTS[scheme]), timeout=5).close()
        if engine is not None:
            engine.connect().close()
            engine.dispose()
    except ImportError as error:
        raise StoreError(f"{address} needs a driver ({error}): {DRIVERS[scheme]}") from None
    except OSError as error:
        raise StoreError(
            f"no server answers at {address} ({error}). Start the server, or give another {option}."
        ) from None
    except TypeError as error:  # without an encoding, the driver returns bytes where SQLAlchemy reads text
        raise StoreError(f"{address} has no encoding. Create the database with ENCODING 'UTF8'.") from error
    except (SQLAlchemyError, ValueError) as error:
        raise StoreError(
            f"{address} cannot be used: {str(error).splitlines()[0]}. Give another {option}."
        ) from error


def without_password(uri: str) -> str:
    """Return the URI with its password replaced by three stars."""
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", uri)


def _open_client(uri: str, refusal: str = "") -> MlflowClient:
    client = MlflowClient(uri)  # mlflow.set_tracking_uri would put it into the environment of later processes
    remote, started = urlparse(uri).scheme in ("http", "https"), time.monotonic()
    with short_timeouts():
        client.search_experiments(max_results=1)  # contacts the store, and creates the tables of a SQLite store
    if remote:
        for name, value in TIMEOUTS.items():
            os.environ.setdefault(name, value)
    if remote and (seconds := time.monotonic() - started) > SLOW:
        to_stderr(
            f"the server at {without_password(uri)} took {seconds:.0f} s for one answer. A run makes hundreds of "
            "requests, so it will be slow"
        )
    return cast(MlflowClient, RetryingClient(client, refusal=refusal))


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Give a server seconds instead of minutes to answer MLflow, except where the user has set these variables."""
    before = {name: os.environ.get(name) for name in SHORT_TIMEOUTS}
    ours = {name: SHORT_TIMEOUTS[name] for name, value in before.items() if value in (None, TIMEOUTS[name])}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            if (value := before[name]) is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _is_unwritable(error: Exception) -> bool:
    return any(text in str(error) for text in UNWRITABLE)


class RetryingClient:
    """MLflow's client: retries a locked database after growing pauses, raises `StoreError` for a lost server.

    MLflow itself waits 20 seconds for a lock, and has written nothing when it gives up. It waits four minutes for
    a server. With a `refusal`, it only reads. Metrics are not retried: they have an outbox, and the run continues.
    """

    def __init__(self, client: MlflowClient, pauses: tuple[float, ...] = (1, 2, 4, 8), refusal: str = "") -> None:
        self._client, self._pauses, self._refusal = client, pauses, refusal

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute
        if self._refusal and not name.startswith(READING):
            raise StoreError(self._refusal)
        return partial(self._retry, attribute)

    def _retry(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for pause in () if "metrics" in kwargs else self._pauses:
            try:
                return call(*args, **kwargs)
            except MlflowException as error:
                if "database is locked" not in str(error) and not _created_twice(error):
                    if _is_unwritable(error):
                        raise StoreError(
                            f"{self._client.tracking_uri} cannot be written to ({root_cause(error)}). Free some "
                            "space there, or make it writable, then repeat the command."
                        ) from error
                    lost = isinstance(error.__context__, RequestException)
                    if not lost and error.error_code != UNAVAILABLE:
                        raise
                    kind = "server" if lost else "database"
                    raise StoreError(
                        f"the {kind} at {without_password(self._client.tracking_uri)} no longer answers "
                        f"({root_cause(error)}). Start it again, then repeat the command: it resumes the run and "
                        "sends the metrics kept in this folder."
                    ) from error
            time.sleep(pause)
        return call(*args, **kwargs)


def _created_twice(error: MlflowException) -> bool:
    """Return whether another process created the same row first: repeated, the call finds it."""
    return error.error_code != "RESOURCE_ALREADY_EXISTS" and any(text in str(error) for text in NOT_UNIQUE)


def quoted(value: str) -> str:
    """Return the value in the quotes of MLflow's filters, which cannot be escaped. Raises `BadSetting`."""
    if "'" in value and '"' in value:
        raise BadSetting(f"{value} contains both ' and \", and MLflow cannot search for it. Use only one of them.")
    return f'"{value}"' if "'" in value else f"'{value}'"


def root_cause(error: BaseException) -> str:
    """Return the message of the innermost error, such as 'database is locked'. MLflow wraps it several times."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _folder_name(experiment: str) -> str:
    """Return the name of the folder of an experiment: one part of a path, without a meaning in URLs."""
    if re.fullmatch(r"(?!\.+$)[\w.-]{1,100}", experiment):
        return experiment
    readable = re.sub(r"[^\w-]+", "-", experiment)[:60]
    return f"{readable}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"
