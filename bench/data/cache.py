"""What the cache holds, and removing what no running process needs."""

from __future__ import annotations

import fcntl
import shutil
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from bench.errors import DataError
from bench.files import cache_folder, writing_to_cache

KINDS = {  # and where they are; whatever else is in the folder is left alone
    "pack": "packs/*-????????????????",
    "phantom": "phantom-????????????",
    "execution plans": "plans.json",
    "unfinished pack": "packs/.writing-*",
    "unfinished phantom": ".phantom-*",
    "checkpoints": "unfinished/*",
}
LOCKS = ("packs/.lock", "phantom-*.lock", "plans.lock")


@dataclass(frozen=True)
class Entry:
    """A folder or file of the cache: its size in bytes, the seconds since it was written, and why it is kept."""

    kind: str
    path: Path
    size: int
    age: float
    kept: str = ""


def list_cache() -> list[Entry]:
    """Return what is in the cache, in the order of `KINDS`. Preprocessed slices belong to their pack."""
    entries = []
    for kind, where in KINDS.items():
        for path in sorted(cache_folder().glob(where)):
            with suppress(FileNotFoundError):  # renamed or removed meanwhile
                entries.append(_entry(kind, path))
    return entries


def clear_cache() -> list[Entry]:
    """Remove the entries that need not be kept, and return them. Raises `DataError`."""
    cache = cache_folder()
    with writing_to_cache(cache), ExitStack() as locks:
        try:  # so that nobody opens or writes a pack meanwhile
            for lock in [path for pattern in LOCKS for path in cache.glob(pattern)]:
                locks.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            raise DataError(f"a process is writing to {cache}. Repeat the command when it has finished.") from None
        unneeded = [entry for entry in list_cache() if not entry.kept]
        for entry in unneeded:
            if entry.path.is_dir():  # renamed, so that nobody finds half of it if this process is killed
                half = ".writing-" if entry.path.parent.name == "packs" else ".phantom-"
                shutil.rmtree(entry.path.rename(entry.path.with_name(f"{half}{entry.path.name}")))
            else:
                entry.path.unlink()
    return unneeded


def _entry(kind: str, path: Path) -> Entry:
    files = [path, *path.rglob("*")]
    stats = [file.stat() for file in files]
    kept = ""
    if kind == "checkpoints":
        kept = "a run on a tracking server resumes from them"
    elif any(_is_mapped(file) for file in files if file.suffix == ".npy"):
        kept = "in use"
    return Entry(kind, path, sum(s.st_size for s in stats), time.time() - max(s.st_mtime for s in stats), kept)


def _is_mapped(file: Path) -> bool:
    """Return whether a process has the array open; see `cached_arrays.open_array`."""
    with file.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
