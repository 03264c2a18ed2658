"""The cache folder, and writing a file so that it is complete or does not exist."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of packs and phantoms: `BENCH_CACHE`, by default `~/.cache/bench`."""
    return Path(os.environ.get("BENCH_CACHE") or Path.home() / ".cache" / "bench")


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
