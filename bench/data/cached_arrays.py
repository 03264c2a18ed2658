"""Arrays in the cache: created with space for all of them, locked while in use, and checked once per change."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import TypeAdapter, ValidationError

from bench.errors import DataError
from bench.files import write_atomically


def open_array(path: Path, dtype: DTypeLike) -> NDArray[Any]:
    """Map a .npy file of this type, read-only; a shared lock on the file lasts as long as the map.

    Raises `OSError` and `ValueError`.
    """
    with path.open("rb") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        np.lib.format.read_magic(file)
        shape, by_column, found = np.lib.format.read_array_header_1_0(file)
        if found != dtype or by_column:
            raise ValueError(f"{path.name} holds an array of another kind")
        return np.memmap(file, dtype, "r", file.tell(), shape)


def create_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create a .npy file of full size and map it. Raises `OSError`, for example for a full disk.

    Without space on the disk, writing to the map of a sparse file would end the process by a signal.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        size = path.stat().st_size
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                needed = f"{error.strerror}; {size / 2**20:.0f} MiB are needed"
                raise OSError(error.errno, needed, str(path)) from None
    return array


def file_state(paths: Iterable[Path]) -> str:
    """Hash what changes if a file is replaced or written to: its inode, size, and times of content and inode."""
    stats = [path.stat() for path in paths]
    return hash_json([(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats])


def checked(folder: Path) -> dict[str, str]:
    """Return the states in which the files of a cached folder were last checked, by what was checked."""
    try:
        return TypeAdapter(dict[str, str]).validate_json((folder / "checked.json").read_bytes())
    except (OSError, ValidationError):  # not checked yet, or damaged
        return {}


def remember_check(folder: Path, **states: str) -> None:
    """Write the states in which files were checked. A read-only folder is checked again next time."""
    known = checked(folder)
    if known | states != known:
        with suppress(OSError):
            write_atomically(folder / "checked.json", json.dumps(known | states).encode())


def damaged(folder: Path, error: object) -> DataError:
    """Return the error that a cached folder cannot be used, and why."""
    reason = " ".join(str(error).split())
    return DataError(f"{folder} is damaged ({reason}). Remove that folder; it will be written again.")


def hash_json(content: Any) -> str:
    """Return the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
