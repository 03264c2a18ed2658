from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where packs and the phantom are kept: `BENCH_CACHE`, else `~/.cache/bench`."""
    return Path(os.environ.get("BENCH_CACHE") or Path.home() / ".cache" / "bench")


def write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.writing")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # or the name may be lost with the power
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
