"""The folders that `bench` writes to, reading and writing small files, and what to say if a disk refuses."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from bench.errors import DataError

LARGEST = 64 << 20  # bytes of a YAML or JSON file
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FRESH = 60.0  # seconds in which a new temporary folder may have no lock yet


def cache_folder() -> Path:
    """Return the folder of packs and phantoms: `BENCH_CACHE`, by default `~/.cache/bench`."""
    return Path(os.environ.get("BENCH_CACHE") or Path.home() / ".cache" / "bench")


def read_small(path: Path, what: str, way_out: str) -> bytes:
    """Return the content of a YAML or JSON file that a user names. Raises `DataError`.

    Only a regular file has an end: a pipe may wait for ever, and a device such as /dev/zero never ends. `what`
    names the file in the message, `way_out` is its last sentence.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{what} {path} is not a regular file. {way_out}")
        if (size := path.stat().st_size) > LARGEST:
            raise DataError(f"{what} {path} has {size} bytes, and at most {LARGEST} are read. {way_out}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{what} {path} cannot be read ({reason}). {way_out}") from None


def read_json(path: Path, what: str, way_out: str) -> Any:
    """Return the content of a JSON file that a user names, also with a byte order mark. Raises `DataError`."""
    try:
        return json.loads(read_small(path, what, way_out).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{what} {path} is not JSON: {reason}. {way_out}") from None


def check_folder(folder: Path) -> Path:
    """Return a data folder with `~` expanded. Raises `DataError` if it is none."""
    root = folder.expanduser()
    if root.is_file():
        archive = root.name.lower().endswith((".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar"))
        what = "is an archive. Unpack it and pass" if archive else "is a file. Pass"
        raise DataError(f"{folder} {what} the folder that holds the data.")
    if not root.is_dir():
        raise DataError(
            f"the data folder {folder} does not exist. Check the path (--data, or the setting dataset.folder)."
        )
    return root


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it."""
    partial = path.with_name(f".{path.name}.writing")
    with naming(path), partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # or the new name may be lost in a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def lock_if_writable(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` and yield True. Yield False, without a lock, if nothing can be written there.

    A read-only folder, such as a cache that a cluster shares, can then be read. Creates the folder.
    """
    from filelock import FileLock  # here, so that `bench --help` stays quick

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if error.errno not in (*REFUSED, *FULL):
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether another process holds the lock file `path`."""
    from filelock import FileLock, Timeout  # here, so that `bench --help` stays quick

    try:
        with FileLock(path, timeout=0.2):
            return False
    except Timeout:
        return True


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an `OSError` that names no file, such as that of a full disk, the name of the one that is written."""
    try:
        yield
    except OSError as error:
        error.strerror = error.strerror or str(error)  # NumPy gives only a text
        error.filename = error.filename or str(path)
        raise


@contextmanager
def writing_to_cache(folder: Path) -> Iterator[None]:
    """Raise `DataError` for an `OSError` about `folder`, which is in the cache, or about no named file."""
    try:
        yield
    except OSError as error:
        path = _path(error) or folder
        if not path.is_relative_to(folder):
            raise
        raise DataError(f"cannot write to the cache: {explain(error, path, 'BENCH_CACHE')}") from None


def explain(error: OSError, path: Path | None = None, variable: str | None = None) -> str:
    """Say which file could not be used, how much space is left, and which environment variable moves it."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):  # copytree: (source, target, reason)
        _, target, reason = error.args[0][0]
        error = OSError(None, reason, target)
    path = path or _path(error)
    places = {"BENCH_CACHE": cache_folder(), "TMPDIR": Path(tempfile.gettempdir()), "current folder": Path.cwd()}
    if path and variable is None:
        variable = next((v for v, at in places.items() if v.isupper() and path.is_relative_to(at)), None)
    left = {"": _free(path)} if path else {f"{at} ({v}): ": _free(at) for v, at in places.items()}
    reason = error.strerror or " ".join(str(error).split())[:300]
    said = f"{path}: {reason}." if path else f"{reason}."
    use = f"set {variable} to another folder." if variable else "use another folder."
    if error.errno in FULL or (error.errno is None and 0 in left.values()):  # NumPy gives no number
        room = ", ".join(f"{at}{free} MiB left" for at, free in left.items())
        return f"{said} Free some space ({room}), or {use}"
    return f"{said} {use[0].upper()}{use[1:]}" if variable or error.errno in REFUSED else said


def _path(error: OSError) -> Path | None:
    name = error.filename2 or error.filename  # of two files, the second is the one that is written
    return None if name is None else Path(str(name))


def _free(path: Path) -> int:
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free // 2**20


@contextmanager
def temporary_files() -> Iterator[None]:
    """Keep the temporary files of this process, also those of libraries, in one folder, and remove it at the end.

    First remove the folders that killed processes have left: nothing locks them.
    """
    with ExitStack() as end:
        end.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
        with suppress(OSError):  # a full disk: commands that need no temporary file work
            general = tempfile.gettempdir()
            for folder in Path(general).glob("medseg-bench-*.tmp"):
                _remove_abandoned(folder)
            own = tempfile.mkdtemp(prefix="medseg-bench-", suffix=".tmp")
            lock = os.open(own, os.O_RDONLY)
            end.callback(os.close, lock)
            end.callback(shutil.rmtree, own, ignore_errors=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = f"{general}/torchinductor_{os.getuid()}"  # compiled models stay for the next process
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", kept)
            tempfile.tempdir = own
        yield


def _remove_abandoned(folder: Path) -> None:
    with suppress(OSError):  # in use, of another user, or just removed by another process
        lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            found = os.fstat(lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > FRESH:
                shutil.rmtree(folder)
        finally:
            os.close(lock)
