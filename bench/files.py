"""The cache folder, reading a small file, and writing a file so that it is complete or does not exist."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from bench.errors import DataError

LARGEST = 64 << 20  # bytes of a YAML or JSON file


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


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it."""
    partial = path.with_name(f".{path.name}.writing")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # or the new name may be lost in a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
