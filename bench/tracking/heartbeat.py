"""The heartbeat of a run on a server: other machines cannot see the lock of the process that works on it.

The tag is written when a run is created or resumed, and then every `HEARTBEAT` seconds. A run whose tag is older
than `GRACE` seconds has lost its process. The clocks of machines that share a server must agree within a minute.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from bench.errors import StoreError
from bench.files import cache_folder
from bench.tracking.store import Store
from bench.tracking.tags import Tag

HEARTBEAT = 30.0  # seconds between two heartbeats
GRACE = 180.0  # seconds without a heartbeat after which a run has lost its process


def sign_of_life() -> str:
    """Return the tag's value: the time in seconds, and a hash of the machine and its cache folder."""
    return f"{time.time():.0f} {_machine()}"


def seconds_silent(run: Run) -> float:
    """Return the seconds since the last heartbeat of a run; one without a heartbeat counts from its start."""
    last = float(run.data.tags.get(Tag.HEARTBEAT, "0").split()[0])
    return abs(time.time() - max(last, float(run.info.start_time) / 1000))


def beats_here(run: Run) -> bool:
    """Return whether the last heartbeat came from this machine and cache, whose locks are visible here."""
    return run.data.tags.get(Tag.HEARTBEAT, "").endswith(f" {_machine()}")


@contextmanager
def heartbeat(store: Store, run_id: str) -> Iterator[None]:
    """Tag a run on a server with the time until the block ends."""
    stop = Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            with suppress(MlflowException, StoreError):  # what the run logs reports a lost server
                store.client.set_tag(run_id, Tag.HEARTBEAT, sign_of_life())

    if store.folder is None:
        Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _machine() -> str:
    return hashlib.sha256(f"{platform.node()} {cache_folder().resolve()}".encode()).hexdigest()[:12]
