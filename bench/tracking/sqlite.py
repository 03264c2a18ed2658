"""The SQLite file of a store: created whole or not at all, right after a move, read where it cannot be written."""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

from bench.errors import StoreError
from bench.files import is_locked

FILES = ("", "-journal", "-wal", "-shm")  # endings of a database and of what SQLite keeps beside it
PLACES = (  # table, key and column of every place of artifacts in MLflow's database
    ("experiments", "experiment_id", "artifact_location"),
    ("runs", "run_uuid", "artifact_uri"),
    ("logged_models", "model_id", "artifact_location"),
)
Moves = list[tuple[str, tuple[str, object]]]  # SQL statements with their values


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


def find_moves(path: Path, folder: Path) -> Moves:
    """Return how to record where artifacts are, if the store was moved or copied to `folder`.

    MLflow records absolute paths: a moved store would no longer find its artifacts, and a copy would write into
    the original. A run keeps its place if its artifacts are not beside the database.
    """
    here, moves = folder / "artifacts", []
    with closing(sqlite3.connect(path)) as database:
        for table, key, column in PLACES:
            query = f"SELECT {key}, {column} FROM {table} WHERE {column} LIKE 'file:%' AND instr({column}, ?) != 1"
            for row, uri in database.execute(query, (f"{here.as_uri()}/",)):
                old = Path(url2pathname(urlparse(uri).path))
                new = _place_beside(here, old)
                if new and (new.is_dir() or (table == "experiments" and not old.exists())):
                    moves.append((f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (new.as_uri(), row)))
    return moves


def _place_beside(here: Path, old: Path) -> Path | None:
    """Return where `old` is below the folder `here` of artifacts; None if it is there or was in no such folder."""
    places = [here / old.relative_to(parent) for parent in old.parents if parent.name == "artifacts"]
    new = next((place for place in places if place.is_dir()), places[0] if places else None)
    return None if new and new.exists() and old.exists() and new.samefile(old) else new


def apply_moves(path: Path, moves: Moves) -> None:
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        for statement, values in moves:
            database.execute(statement, values)


def is_in_use(folder: Path) -> bool:
    """Return whether a process works on a run of the store in this folder."""
    return any(map(is_locked, (folder / "unfinished").glob("*/lock")))


def copy_database(path: Path) -> Path:
    """Return a temporary copy of a database to read: SQLite must write beside a file that it reads."""
    if not path.exists():
        raise StoreError("it does not exist, and its folder cannot be written to.")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = Path(folder) / path.name
    try:
        uri = f"{path.as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.OperationalError:  # no process has it open, so its files do not change
        _remove(copy)
        for end in ("", "-wal"):
            if path.with_name(path.name + end).exists():
                shutil.copyfile(f"{path}{end}", f"{copy}{end}")
    return copy


def _remove(path: Path) -> None:
    for end in FILES:
        path.with_name(path.name + end).unlink(missing_ok=True)
