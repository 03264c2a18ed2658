"""The SQLite file of a store: which file a URI names, and creating it whole or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from bench.errors import StoreError

FILES = ("", "-journal", "-wal", "-shm")  # endings of a database and of what SQLite keeps beside it


def sqlite_file(uri: str, option: str) -> Path | None:
    """Return the file that a SQLite URI names; None for a server.

    Raises `StoreError` for a path that SQLAlchemy or MLflow would read as another one. `option` is the CLI option
    that names the store.
    """
    scheme, _, name = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite":
        return None
    if name in ("", ":memory:"):
        raise StoreError(f"{uri} names no file. Give {option} sqlite:///FILE.")
    path = Path(name).absolute()
    if "?" in name or unquote(str(path)) != str(path):
        raise StoreError(
            f"the path {path} contains a '?' or a code such as '%20', which have a meaning in URLs, so files "
            f"would be written elsewhere. Rename the folder, or give another {option}."
        )
    return path


def create_database(path: Path, make: Callable[[str], None]) -> None:
    """Create a database with `make(URI)` under a temporary name and rename it. An existing one stays as it is.

    The caller holds the lock of `path`. The temporary file of a killed process is removed by the next.
    """
    if path.exists() and path.stat().st_size:
        return
    draft = path.with_name(f".{path.name}.making")
    _remove(draft)
    try:
        make(f"sqlite:///{draft}")
        with closing(sqlite3.connect(draft)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # one process can write while others read
        draft.replace(path)
    finally:
        _remove(draft)


def _remove(path: Path) -> None:
    for end in FILES:
        path.with_name(path.name + end).unlink(missing_ok=True)
