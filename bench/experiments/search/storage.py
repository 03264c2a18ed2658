"""The Optuna storage of studies: a SQLite file beside the tracking store, or a database server."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from urllib.parse import urlparse

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from bench.errors import BadSetting, StoreError
from bench.tracking import Store, check_reachable, without_password

HEARTBEAT = 15  # seconds between two heartbeats of a worker
GRACE = 120  # seconds without a heartbeat after which a trial is failed


def choose_storage_url(option: str | None, store: Store) -> str:
    """Return the URL of --storage, or of `optuna.db` beside a SQLite store. Raises `BadSetting`."""
    if option is not None:
        return option
    if store.folder is None:
        raise BadSetting(
            "the tracking store is a server, so the study needs a storage of its own. Give --storage postgresql://..."
        )
    return f"sqlite:///{store.folder / 'optuna.db'}"


class SqliteStorage(RDBStorage):
    """Optuna's storage in SQLite with a file lock: SQLite locks no rows, so two workers could take one trial."""

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        with _lock(self.url):
            return super().set_trial_state_values(trial_id, state, values)


@contextmanager
def open_storage(url: str) -> Iterator[RDBStorage]:
    """Open Optuna's storage with heartbeats, so that the trial of a lost worker is failed. Raises `StoreError`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the search prints the results of trials itself
    local = urlparse(url).scheme == "sqlite"
    check_reachable(url, "--storage")
    connect = partial(
        SqliteStorage if local else RDBStorage,
        url,
        engine_kwargs={"connect_args": {"timeout": 60}} if local else {"pool_pre_ping": True},
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
    )
    try:
        with ignore_experimental_warnings(), _lock(url) if local else nullcontext():
            try:
                storage = connect()
            except DBAPIError:  # another process was creating the tables of a new database
                time.sleep(2)
                storage = connect()
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StoreError(
            f"the storage {without_password(url)} cannot be used: {reason}. Give another --storage."
        ) from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def ignore_experimental_warnings() -> Iterator[None]:
    """Ignore that Optuna calls heartbeats, plots and other features experimental at every use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _lock(url: str) -> FileLock:
    return FileLock(f"{url.removeprefix('sqlite:///')}.lock")
